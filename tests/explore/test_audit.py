"""Both engines on scenarios, and what a disagreement looks like."""

from dataclasses import replace

import pytest

from kvmarch import plugins
from kvmarch.changes import find_release
from kvmarch.explore import audit
from kvmarch.explore.audit import compare_engines
from kvmarch.explore.programs import SmallProgram, load, store
from kvmarch.explore.search import Bounds, explore
from kvmarch.explore.verdict import verdicts
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.scenarios.program import ScenarioProgram

CELLS = [
    ("generation", "x86", "v3.16", (), "stale-mmio"),
    ("generation", "x86", "v3.16", ("mmio-cache-generation",), "stale-mmio"),
    ("arm64-block-over-table", "arm64", "v4.12", (), "table-memory"),
]


def scenario_program(name, arch, release, plus, *, swapped=False):
    scenario = load_scenario(find(name, ()))
    if swapped:
        scenario = replace(scenario, tasks=tuple(reversed(scenario.tasks)))
    plugin = plugins.load().get(arch)
    k = plugins.link(plugin, find_release(release), plus=plus)
    return ScenarioProgram(scenario, k, plugin.info.settle(find_release(release), {}))


@pytest.mark.parametrize(("name", "arch", "release", "plus", "lost"), CELLS)
def test_the_engines_agree_on_scenarios(name, arch, release, plus, lost):
    program = scenario_program(name, arch, release, plus)

    comparison = compare_engines(program, bounds=Bounds(seconds=60))

    assert comparison.complete
    assert comparison.differences == []
    assert comparison.traces.verdict(lost) in {"sometimes", "always"}
    assert comparison.traces.blocked == 0


@pytest.mark.parametrize(("name", "arch", "release", "plus", "lost"), CELLS)
def test_the_order_of_a_scenarios_tasks_changes_no_verdict(
    name, arch, release, plus, lost
):
    first, second = (
        explore(scenario_program(name, arch, release, plus, swapped=swapped))
        for swapped in (False, True)
    )

    assert {v.property: v.verdict for v in verdicts(first)} == {
        v.property: v.verdict for v in verdicts(second)
    }
    assert first.states == second.states
    assert lost in first.found


@pytest.fixture
def race():
    program = SmallProgram()
    x, y = program.variable("x"), program.variable("y")

    async def copy():
        seen = await load(x)
        await store(y, seen + 1)

    async def change():
        await store(x, 1)

    program.task("copy", copy)
    program.task("change", change)
    program.claim("first", lambda: y.value != 2)
    return program


def test_a_disagreement_is_told(race, monkeypatch):
    def forgets(program, **how):
        traces = explore_stateless(program, **how)
        traces.found.clear()
        traces.ends.popitem()
        return traces

    explore_stateless = audit.explore_stateless
    monkeypatch.setattr(audit, "explore_stateless", forgets)

    told = compare_engines(race).differences

    assert len(told) == 2
    assert told[0].endswith("is reached only with states")
    assert told[1] == "first: sometimes with states, never without"


def test_nothing_is_held_against_an_engine_that_was_cut(race):
    comparison = compare_engines(race, bounds=Bounds(depth=1))

    assert not comparison.complete
    assert comparison.differences == []
