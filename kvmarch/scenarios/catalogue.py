"""The catalogue of bugs: what each scenario of one shows, and whether it does."""

__all__ = ["FOUND", "bug_names", "bugs_table", "measure"]

from collections.abc import Callable, Iterable
from typing import Any

from kvmarch.plugins import Plugins
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, load, load_all
from kvmarch.scenarios.found import FOUND, recorded
from kvmarch.scenarios.outcome import Outcome
from kvmarch.scenarios.parallel import results_of, works_of
from kvmarch.scenarios.records import Bug, Scenario

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


def bug_names(
    plugins: Plugins,
    choose: Choose,
    complain: Callable[[str], None] = lambda _why: None,
) -> list[str]:
    """Return the ids of all bugs, or of those of some architectures.

    :param complain: called with what is wrong with a scenario that cannot be read.
    """
    for arch in choose.arch:
        plugins.get(arch)
    names = []
    for name, scenario in load_all(plugins.scenario_folders(), complain).items():
        bug = scenario.bug
        if bug is not None and (not choose.arch or bug.arch in (*choose.arch, "")):
            names.append(name)
    return names


def measure(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Return what the first cell shows in which a property is lost that is to be."""
    for outcome in outcomes:
        for row in outcome.rows:
            if row["schedule"] and row["expected"] not in {"", "never"}:
                kernel = row["schedule"].partition("@")[2].rpartition(":")[0]
                return {
                    "property": row["property"],
                    "kernel": kernel,
                    "shortest": row["shortest"],
                    "states": row["states"],
                    "schedule": row["schedule"],
                }
    return {}


def bugs_table(
    plugins: Plugins,
    choose: Choose,
    *,
    check: bool = False,
    how: How | None = None,
    jobs: int = 1,
    progress: Callable[[str], None] = lambda _name: None,
    names: Iterable[str] = (),
) -> Table:
    """Return one row per bug: of releases, of what was never merged, candidates.

    :param check: explore every kernel of which a scenario says something, and say
        where it is not so.
    :param jobs: processes among which the kernels are shared.
    :param progress: called with the id of a bug when one of its kernels is done.
    :param names: the bugs; all if it is empty.
    """
    table = Table("Bugs that the search finds again", COLUMNS)
    known = recorded(plugins, table.notes.append)
    candidates: list[tuple[Scenario, Bug, dict[str, Any]]] = []
    unmerged: list[dict[str, Any]] = []
    chosen = tuple(names) or bug_names(plugins, choose, table.notes.append)
    table.status = 2 if table.notes else 0
    scenarios = [load(find(name, plugins.scenario_folders())) for name in chosen]
    if check:
        known = _check(table, scenarios, plugins, choose, how, jobs, progress)
    for scenario in scenarios:
        bug = scenario.bug
        assert bug is not None
        found = known.get(scenario.name, {})
        if bug.status == "candidate":
            candidates.append((scenario, bug, found))
        elif bug.status == "unmerged":
            unmerged.append(_row(scenario, bug, found))
        else:
            table.rows.append(_row(scenario, bug, found))
    table.rows.extend(unmerged)
    for scenario, bug, found in candidates:
        table.rows.append(_row(scenario, bug, found))
        table.notes.append(
            f"candidate {scenario.name}: open upstream; {bug.confirm or bug.subject}"
        )
    table.notes.insert(
        0,
        f"{len(table.rows) - len(unmerged) - len(candidates)} bugs of releases, "
        f"{len(unmerged)} of what was never merged, {len(candidates)} candidates",
    )
    return table


def _check(
    table: Table,
    scenarios: list[Scenario],
    plugins: Plugins,
    choose: Choose,
    how: How | None,
    jobs: int,
    progress: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Explore every kernel; add to the table what is not as the scenarios say."""
    works = list(works_of(scenarios, plugins, choose, how))
    outcomes: dict[int, Outcome] = {}
    for number, outcome in results_of(works, plugins, jobs):
        progress(works[number].scenario.name)
        outcomes[number] = outcome
    found = {}
    for scenario in scenarios:
        numbers = [n for n, work in enumerate(works) if work.scenario is scenario]
        mine = [outcomes[number] for number in numbers]
        found[scenario.name] = measure(mine)
        # Of the architectures that were asked for none may have had the bug.
        had = any(row.verdict != "never" for n in numbers for row in works[n].expected)
        for outcome in mine:
            table.notes.extend(outcome.notes)
            if outcome.status == 1 or not table.status:
                table.status = outcome.status
        if had and not found[scenario.name]:
            table.status = 1
            table.notes.append(f"FAILED {scenario.name}: the bug is found in no kernel")
    return found


def _row(scenario: Scenario, bug: Bug, found: dict[str, Any]) -> dict[str, Any]:
    lost = [row for row in scenario.verdicts if row.verdict != "never"]
    return {
        "id": scenario.name,
        "arch": bug.arch or "all",
        "status": bug.status,
        "fix": bug.fix or {"candidate": "open"}.get(bug.status, ""),
        "releases": bug.releases,
        "property": found.get("property", lost[0].property if lost else ""),
        "kernel": found.get("kernel", ""),
        "shortest": found.get("shortest", ""),
        "states": found.get("states", ""),
        "schedule": found.get("schedule", ""),
        "subject": bug.subject,
    }
