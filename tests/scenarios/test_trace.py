"""Schedules that are followed step by step, shortened and explained."""

from pathlib import Path

import pytest

from kvmarch.errors import ExploreError, UnknownNameError
from kvmarch.explore.schedule import Schedule
from kvmarch.explore.search import Bounds
from kvmarch.report.trace import render_trace
from kvmarch.scenarios.cells import How, cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.explain import explain
from kvmarch.scenarios.file import load
from kvmarch.scenarios.trace import replay, shortened, trace_of

FOLDER = Path(__file__).parent / "trace"
AT = Choose(kernel=("v6.1",))


@pytest.fixture
def race():
    return load(FOLDER / "race.toml")


@pytest.fixture
def cell(race, toys):
    return next(iter(cells_of(race, toys, AT)))[0]


@pytest.fixture
def schedule(cell):
    """Return turns as a schedule of the race."""
    return lambda turns: Schedule.parse(
        f"{cell.where}:{turns}", cell.where, ("vcpu0", "madvise")
    )


@pytest.fixture
def follow(cell, schedule, toys):
    """Follow turns of the race."""
    return lambda turns, **how: replay(cell, schedule(turns), toys, **how)


def losses(trace):
    return [(step, task, loss.property) for step, task, loss in trace.losses()]


# -- followed ----------------------------------------------------------------------


def test_a_schedule_is_followed_and_stops_where_it_ends(follow):
    moves = follow("a3b2a1").moves

    assert [(move.step, move.task) for move in moves] == [
        (1, "vcpu0"),
        (2, "vcpu0"),
        (3, "vcpu0"),
        (4, "madvise"),
        (5, "madvise"),
        (6, "vcpu0"),
    ]
    assert moves[0].line == "read gfn=0"
    assert moves[2].name == "enter guest"


def test_a_property_that_the_next_step_would_lose_is_not_lost(follow):
    replayed = follow("a12b12")

    assert losses(trace_of(replayed)) == []
    assert len(replayed.moves) == 24


def test_a_loss_belongs_to_its_step(follow):
    trace = trace_of(follow("a12b13"))

    assert losses(trace) == [(25, "madvise", "mapped-in-progress")]
    assert "no property was lost" not in render_trace(trace, "text")


def test_without_a_loss_it_says_so(follow):
    assert "no property was lost" in render_trace(trace_of(follow("a2")), "text")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        pytest.param("a999", "vcpu0 is done after", id="too-many"),
        pytest.param("a10b99", "madvise waits at lock mmu_lock after", id="waits"),
        pytest.param("c1", "there is no task c", id="letter"),
        pytest.param("a1x", "are no turns such as a3b2", id="form"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(follow, turns, message):
    with pytest.raises(ExploreError, match=message):
        follow(turns)


# -- what steps change -------------------------------------------------------------


def test_changes_are_looked_at_only_when_asked(follow):
    assert not any(move.changes for move in follow("a12").moves)
    assert any(move.changes for move in follow("a12", states=True).moves)


def changes(replayed):
    return {move.name: move.changes for move in replayed.moves if move.changes}


def test_entries_are_told_decoded(follow):
    found = changes(follow("a12", states=True))["map"]

    assert (
        "gfn 0x0: level 2 0x0 empty -> level 1 0x100100f page "
        "(pfn=0x1001 young=1 exec=1 write=1)"
    ) in found


def test_counters_host_ptes_and_pages_are_told(follow):
    found = changes(follow("b20", states=True))

    assert found["mn_active_invalidate_count++"] == (
        "vm.mn_active_invalidate_count 0 -> 1",
    )
    assert (
        "vm.mmu_invalidate_in_progress 0 -> 1"
        in (found["mmu_invalidate_in_progress++"])
    )
    assert found["open range"] == (
        "range 0x7f0000000000 0x7f0000001000 madvise is open",
    )


def test_looking_changes_nothing(follow):
    plain, looked = follow("a12b13"), follow("a12b13", states=True)

    assert [m.name for m in plain.moves] == [m.name for m in looked.moves]
    assert losses(trace_of(plain)) == losses(trace_of(looked))


# -- shortened ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "turns", ["a12b13", "b5a12b8", "a1b1a1b1a1b1a9b10", "a4b3a4b3a4b7"]
)
def test_every_schedule_of_a_loss_is_made_one_of_fewest_steps(
    cell, schedule, toys, turns
):
    trace = shortened(cell, schedule(turns), toys)

    assert trace.schedule.endswith(":a12b13")
    assert losses(trace) == [(25, "madvise", "mapped-in-progress")]


def test_what_comes_after_the_loss_is_dropped(cell, schedule, toys):
    trace = shortened(cell, schedule("a12b15"), toys)

    assert trace.schedule.endswith(":a12b13")
    assert trace.notes[-1] == (
        "shortened from 27 steps in 2 turns to 25 steps in 2 turns, which lose "
        "mapped-in-progress too"
    )


@pytest.mark.parametrize(
    ("turns", "wanted", "message"),
    [
        pytest.param("a3", "", "does not lose any property", id="nothing"),
        pytest.param("a12b13", "warn", "does not lose warn", id="another"),
    ],
)
def test_a_schedule_that_loses_nothing_is_not_shortened(
    cell, schedule, toys, turns, wanted, message
):
    with pytest.raises(ExploreError, match=message):
        shortened(cell, schedule(turns), toys, wanted)


# -- explained ---------------------------------------------------------------------


@pytest.mark.parametrize("explained", [False, True], ids=["columns", "explained"])
def test_an_explanation_is_as_reviewed(race, toys, explained, request):
    trace = explain(race, toys, AT)
    trace.explained = explained
    text = render_trace(trace, "text")
    path = FOLDER / f"{'explained' if explained else 'columns'}.text"
    if request.config.getoption("--promote"):
        path.write_text(text, "utf-8")

    assert text == path.read_text("utf-8")


def test_another_property_may_be_asked_for(race, toys):
    trace = explain(race, toys, AT, wanted="freed-page")

    assert trace.moves == []
    assert trace.notes[0].startswith("toy v6.1: freed-page never lost (")


def test_a_search_that_is_cut_does_not_say_never(race, toys):
    how = How(bounds=Bounds(depth=5))

    assert (
        explain(race, toys, AT, how)
        .notes[0]
        .startswith("toy v6.1: whether any property is lost is unknown, cut at depth")
    )


def test_an_unknown_property_is_refused(race, toys):
    with pytest.raises(UnknownNameError, match="unknown property 'magic'; there is"):
        explain(race, toys, AT, wanted="magic")
