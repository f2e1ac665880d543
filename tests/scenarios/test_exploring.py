"""Every interleaving of the shipped scenarios, and what may not matter to it."""

import random

import pytest

from kvmarch.errors import ExploreError, ScenarioError
from kvmarch.explore import search as searching
from kvmarch.explore.audit import Comparison
from kvmarch.explore.cells import watched
from kvmarch.explore.schedule import Schedule
from kvmarch.explore.search import Bounds, Search, explore
from kvmarch.explore.space import Space
from kvmarch.explore.stateless import Traces
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.explain import explain
from kvmarch.scenarios.exploring import explore_table, names_of_all
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.trace import replay, trace_of

PLUGINS = load_plugins()
CELLS = [
    pytest.param(cell, expected, id=cell.where)
    for name in names_of_all(PLUGINS)
    for cell, expected in cells_of(load(find(name)), PLUGINS, Choose())
]
RACE = """\
title = "a vCPU's write against migration"
setup = ["slot id=0 memory=ram gfn=0"]

[vm]
memory = [{ name = "ram", pages = 2 }]

[[task]]
name = "host"
steps = ["migrate memory=ram page=0"]

[[task]]
name = "vcpu0"
steps = ["write gfn=0"]
"""


@pytest.fixture
def race(tmp_path):
    """Return a scenario that loses a property on MIPS before v6.13."""
    path = tmp_path / "race.toml"
    path.write_text(RACE)
    return load(path)


def cell_of(scenario, arch, kernel="v6.1"):
    """Return one cell of a scenario."""
    choose = Choose((arch,), (kernel,))
    return next(cells_of(scenario, PLUGINS, choose))[0]


def summary(search):
    """Return what must not depend on how the search was done."""
    return len(search.ends), len(search.stuck), sorted(search.found)


@pytest.mark.parametrize(("cell", "expected"), CELLS)
def test_expectations_are_met(cell, expected, look):
    outcome = look(cell, expected)
    tasks = tuple(task.name for task in cell.scenario.tasks)

    assert (outcome.notes, outcome.status) == ([], 0)
    for row in outcome.rows:
        if row["schedule"]:
            schedule = Schedule.parse(row["schedule"], cell.where, tasks)
            lost = {v.property for v in replay(cell, schedule, PLUGINS).violations}
            assert row["property"] in lost


@pytest.mark.parametrize("arch", sorted(PLUGINS.loaded))
def test_a_state_is_what_its_schedule_leads_to(race, arch):
    program = cell_of(race, arch).program(PLUGINS)
    space = Space(program)
    found = Search(space)

    with watched(space.open()) as log:
        space.start(log)
        searching._breadth_first(found, Bounds(), 0.0, False)
        rng = random.Random(1)  # noqa: S311 - which states are looked at is no secret
        states = rng.sample(sorted(space.parents), 200)
        differences = [space.differences(state) for state in states]

    assert [d for d in differences if d] == []


@pytest.mark.parametrize("arch", sorted(PLUGINS.loaded))
def test_a_reduction_keeps_ends_and_verdicts(race, arch):
    cell = cell_of(race, arch)

    whole = explore(cell.program(PLUGINS))
    reduced = explore(cell.program(PLUGINS), reduce=True)

    assert summary(reduced) == summary(whole)
    assert reduced.states < whole.states
    assert reduced.passes > 1


def test_depth_first_finds_the_same(race):
    cell = cell_of(race, "mips")

    breadth = explore(cell.program(PLUGINS))
    depth = explore(cell.program(PLUGINS), order="depth")

    assert summary(depth) == summary(breadth)
    assert depth.states == breadth.states
    assert depth.transitions == breadth.transitions
    assert depth.found["freed-page"].length >= breadth.found["freed-page"].length


def test_the_shortest_schedule_loses_the_property_at_its_last_step(race):
    cell = cell_of(race, "mips")
    explored = explore_cell(cell, PLUGINS)
    (verdict,) = explored.verdicts
    schedule = explored.schedule(verdict)
    *turns, (last, count) = schedule.turns
    shorter = Schedule(schedule.where, schedule.tasks, (*turns, (last, count - 1)))

    whole = replay(cell, schedule, PLUGINS)
    almost = replay(cell, shorter, PLUGINS)

    assert (verdict.property, verdict.verdict) == ("freed-page", "sometimes")
    assert [v.property for v in whole.violations] == ["freed-page"]
    assert almost.violations == []


@pytest.mark.parametrize("order", ["random", "pct"])
def test_a_sample_depends_on_its_seed_alone(race, order):
    cell = cell_of(race, "mips")

    def tried(seed):
        found = explore_cell(cell, PLUGINS, How(order=order, runs=40, seed=seed))
        return sorted(found.search.space.parents), found.search.cut

    assert tried(1) == tried(1)
    assert tried(1) != tried(2)
    assert tried(1)[1] == f"40 schedules ({order}, seed 1)"


def test_pct_meets_the_race(race):
    found = explore_cell(cell_of(race, "mips"), PLUGINS, How(order="pct", runs=2000))

    assert [v.verdict for v in found.verdicts] == ["sometimes"]


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        pytest.param(Bounds(states=100), "100 states", id="states"),
        pytest.param(Bounds(depth=5), "depth 5", id="depth"),
        pytest.param(Bounds(seconds=1e-9), "1e-09 seconds", id="seconds"),
        pytest.param(Bounds(memory=1), "1 MiB", id="memory"),
    ],
)
@pytest.mark.parametrize("order", ["breadth", "depth"])
def test_a_cut_search_says_unknown(race, bounds, why, order):
    how = How(order=order, bounds=bounds)

    table = explore_table([race], PLUGINS, Choose(("x86",), ("v6.1",)), how)

    assert [row["verdict"] for row in table.rows] == ["unknown"]
    assert table.rows[0]["cut"] == why
    assert table.status == 3


def test_an_expectation_that_fails_is_said(tmp_path):
    path = tmp_path / "race.toml"
    wrong = '\n[[verdict]]\nkernel = "v6.1"\narch = "mips"\nverdict = "never"\n'
    path.write_text(RACE + wrong)

    table = explore_table([load(path)], PLUGINS, Choose())

    assert table.status == 1
    assert "never was expected, not freed-page sometimes" in table.notes[0]


def test_a_property_of_what_is_no_state_is_refused(tmp_path):
    path = tmp_path / "race.toml"
    path.write_text(RACE + "\n[property.left]\nbad = \"vcpus[0].exits['hlt']\"\n")

    with pytest.raises(ScenarioError, match="property left asks for exits"):
        explore_table([load(path)], PLUGINS, Choose(("x86",), ("v6.1",)))


def test_both_engines_agree_and_say_so(tmp_path):
    path = tmp_path / "small.toml"
    line = 'steps = ["migrate memory=ram page=0"]'
    path.write_text(RACE.replace(line, 'steps = ["age how=clear_young memory=ram"]'))
    choose = Choose(("x86",), ("v6.1",))

    table = explore_table([load(path)], PLUGINS, choose, How(engine="both"))

    assert table.status == 0
    assert "both engines agree" in table.notes[0]


def test_engines_that_disagree_are_an_error(race, monkeypatch):
    def disagree(program, **_how):
        search = explore(program)
        return Comparison(search, Traces(cut="1 second"), ["one end is missing"])

    monkeypatch.setattr("kvmarch.explore.audit.compare_engines", disagree)
    choose = Choose(("x86",), ("v6.1",))

    table = explore_table([race], PLUGINS, choose, How(engine="both"))

    assert table.status == 1
    assert "the engines disagree: one end is missing" in table.notes[0]


LOOP = "ppc-shadow-fault-loops@ppc-v7.2/mmu=pr"
LOOPING = Choose(("ppc",), ("v7.2",), options={"mmu": "pr"})


def looping():
    """Return a cell in which a vCPU faults for ever."""
    scenario = load(find("ppc-shadow-fault-loops", []))
    return next(cells_of(scenario, PLUGINS, LOOPING))[0]


def follow(turns):
    """Replay turns of that cell."""
    cell = looping()
    tasks = tuple(task.name for task in cell.scenario.tasks)
    schedule = Schedule.parse(f"{LOOP}:{turns}", cell.where, tasks)
    return trace_of(replay(cell, schedule, PLUGINS))


def test_a_livelock_is_told_up_to_where_it_is_as_before():
    trace = explain(looping().scenario, PLUGINS, LOOPING, wanted="ends")

    assert (trace.cycle, trace.around) == (53, 12)
    assert len(trace.moves) == 64
    assert [loss.property for loss in trace.lost] == ["ends"]
    assert any(
        "after step 64 everything is as it was before step 53" in note
        for note in trace.notes
    )


def test_a_cycle_is_replayed_once_around():
    trace = follow("b39a13~a12")

    assert [loss.property for loss in trace.lost] == ["ends"]
    assert trace.schedule == f"{LOOP}:b39a13~a12"


def test_a_cycle_that_passes_over_somebody_is_said_to_be_unfair():
    # The host has one step left, which nothing keeps it from taking.
    trace = follow("b38a13~a12")

    assert trace.lost == []
    assert trace.notes[-1].startswith("no fair schedule goes on so: host could move")


def test_a_cycle_that_does_not_come_back_is_refused():
    with pytest.raises(
        ExploreError, match="does not come back to where it began; what differs: vc"
    ):
        follow("b39a13~a11")
