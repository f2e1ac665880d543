"""Tell how a property is lost: the shortest schedule, and what its steps change."""

__all__ = ["explain", "told"]

from collections.abc import Callable

from kvmarch.changes import show_release
from kvmarch.explore.shorten import shorten
from kvmarch.explore.verdict import Verdict
from kvmarch.plugins import Plugins
from kvmarch.report.trace import Trace
from kvmarch.scenarios.cells import Explored, How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.properties import ALWAYS_ON
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.states import States
from kvmarch.scenarios.trace import check_property, replay, trace_of


def explain(
    scenario: Scenario,
    plugins: Plugins,
    choose: Choose,
    how: How | None = None,
    wanted: str = "",
) -> Trace:
    """Explore a scenario until a property is lost, and show its shortest schedule.

    :param wanted: the property; the one that is lost first if it is empty.
    :returns: without a step if nothing is lost; the status is 3 if a bound cut it.
    :raises UnknownNameError: there is no such property.
    """
    check_property(scenario, wanted)
    notes = []
    status = 0
    for cell, _expected in cells_of(scenario, plugins, choose):
        explored = explore_cell(cell, plugins, how)
        found = [v for v in explored.verdicts if wanted in {"", v.property}]
        if found:
            shortest = how is None or (how.order == "breadth" and not how.reduce)
            return told(explored, found[0], plugins, shortest=shortest)
        cut = explored.search.cut
        where = f"{cell.arch.name} {show_release(cell.release)} {cell.changes}".strip()
        what = wanted or "any property"
        verdict = f"{what} never lost"
        if cut:
            verdict = f"whether {what} is lost is unknown, cut at {cut}"
            status = 3
        notes.append(f"{where}: {verdict} ({explored.search.states} states)")
    tasks = tuple(task.name for task in scenario.tasks)
    return Trace(scenario.title, tasks, "", [], notes, explained=True, status=status)


def told(
    explored: Explored,
    verdict: Verdict,
    plugins: Plugins,
    *,
    shortest: bool,
    each: Callable[[States], None] | None = None,
) -> Trace:
    """Return the schedule on which a property is lost, with what its steps change.

    :param shortest: the search was one that finds shortest schedules.
    :param each: called with the states before the first step and after each one.
    """
    schedule = explored.schedule(verdict)
    assert schedule is not None
    program = explored.cell.program(plugins)
    schedule, _lost = shorten(
        program, schedule, verdict.property, always=program.asks_always
    )
    replayed = replay(explored.cell, schedule, plugins, states=True, each=each)
    trace = trace_of(replayed)
    trace.explained = True
    search = explored.search
    again = f", and {schedule.around} steps for ever" if schedule.cycle else ""
    of = f"of {search.states} states" if not search.cut else f"cut at {search.cut}"
    trace.notes.append(
        f"{verdict.property} is lost {verdict.verdict}; this is "
        f"{'its shortest' if shortest else 'one'} schedule, "
        f"{schedule.steps} steps, turns {len(schedule.turns)}{again} ({of})"
    )
    trace.notes.extend(
        f"{known.id}: {known.sentence} ({known.source})"
        for known in ALWAYS_ON
        if known.id == verdict.property
    )
    bad = explored.cell.scenario.bad.get(verdict.property)
    if bad is not None:
        trace.notes.append(f"{verdict.property}: lost if {bad[1]} ({bad[0]})")
    bug = explored.cell.scenario.bug
    if bug is not None:
        fix = f", fixed by {bug.fix}" if bug.fix else ""
        trace.notes.append(f"the bug: {bug.subject} ({bug.releases}{fix})")
    return trace
