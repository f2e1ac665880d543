"""The catalogue of bugs: what each scenario of one shows, and whether it does."""

__all__ = ["FOUND", "bug_names", "bugs_table", "measure"]

import json
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

from kvmarch.plugins import Plugins
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import Explored, How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.records import Bug, Scenario

FOUND = "found.json"
"""File beside the scenarios: what the search found in the buggy kernel of each."""

COLUMNS = (
    Column("id"),
    Column("arch"),
    Column("status", detail=True),
    Column("fix"),
    Column("releases"),
    Column("property"),
    Column("kernel", detail=True),
    Column("shortest"),
    Column("states"),
    Column("schedule", detail=True),
    Column("subject"),
)


def bug_names(plugins: Plugins, choose: Choose) -> list[str]:
    """Return the ids of all bugs, or of those of some architectures."""
    names = []
    for name in library():
        scenario = load(find(name, plugins.scenario_folders()))
        bug = scenario.bug
        if bug is not None and (not choose.arch or bug.arch in (*choose.arch, "")):
            names.append(name)
    return names


def measure(explored: Iterable[Explored]) -> dict[str, Any]:
    """Return what the first cell shows in which the bug's property is lost."""
    for cell in explored:
        for expected in cell.expected:
            if expected.verdict == "never":
                continue
            for verdict in cell.verdicts:
                schedule = cell.schedule(verdict)
                if verdict.property == expected.property and schedule is not None:
                    return {
                        "property": verdict.property,
                        "kernel": cell.cell.where.partition("@")[2],
                        "shortest": schedule.steps,
                        "states": cell.search.states,
                        "schedule": str(schedule),
                    }
    return {}


def _recorded() -> dict[str, dict[str, Any]]:
    file = resources.files("kvmarch.scenarios") / "bugs" / FOUND
    if not file.is_file():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return found


def bugs_table(
    plugins: Plugins,
    choose: Choose,
    *,
    check: bool = False,
    how: How | None = None,
    progress: Callable[[str], None] = lambda _name: None,
    names: Iterable[str] = (),
) -> Table:
    """Return one row per bug; candidates, which are open upstream, come last.

    :param check: explore every kernel of which a scenario says something, and say
        where it is not so.
    :param progress: called with the id of each bug before it is explored.
    :param names: the bugs; all if it is empty.
    """
    table = Table("Bugs that the search finds again", COLUMNS)
    recorded = _recorded()
    candidates: list[tuple[Scenario, Bug, dict[str, Any]]] = []
    for name in tuple(names) or bug_names(plugins, choose):
        scenario = load(find(name, plugins.scenario_folders()))
        bug = scenario.bug
        assert bug is not None
        found = recorded.get(name, {})
        if check:
            progress(name)
            explored = [
                explore_cell(cell, plugins, how, expected)
                for cell, expected in cells_of(scenario, plugins, choose)
            ]
            found = measure(explored)
            _judge(table, explored, found)
        if bug.status == "candidate":
            candidates.append((scenario, bug, found))
        else:
            table.rows.append(_row(scenario, bug, found))
    for scenario, bug, found in candidates:
        table.rows.append(_row(scenario, bug, found))
        table.notes.append(
            f"candidate {scenario.name}: open upstream; {bug.confirm or bug.subject}"
        )
    table.notes.insert(0, f"{len(table.rows)} bugs, {len(candidates)} candidates")
    return table


def _judge(table: Table, explored: list[Explored], found: dict[str, Any]) -> None:
    """Add to the table what is not as the scenario says."""
    for each in explored:
        for expected, got in each.failures():
            table.status = 1
            table.notes.append(
                f"FAILED {each.cell.where}: {expected.property} {expected.verdict} was "
                f"expected, not {got}"
            )
        if each.search.cut:
            table.status = table.status or 3
            table.notes.append(f"{each.cell.where}: cut at {each.search.cut}")
    if explored and not found:
        table.status = 1
        name = explored[0].cell.scenario.name
        table.notes.append(f"FAILED {name}: the bug is found in no kernel")


def _row(scenario: Scenario, bug: Bug, found: dict[str, Any]) -> dict[str, Any]:
    lost = [row for row in scenario.verdicts if row.verdict != "never"]
    return {
        "id": scenario.name,
        "arch": bug.arch or "all",
        "status": bug.status,
        "fix": bug.fix or ("open" if bug.status == "candidate" else ""),
        "releases": bug.releases,
        "property": found.get("property", lost[0].property if lost else ""),
        "kernel": found.get("kernel", ""),
        "shortest": found.get("shortest", ""),
        "states": found.get("states", ""),
        "schedule": found.get("schedule", ""),
        "subject": bug.subject,
    }
