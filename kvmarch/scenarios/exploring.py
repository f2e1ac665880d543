"""The table that ``kvmarch explore`` prints."""

__all__ = ["explore_table", "find_cell", "names_of_all"]

from collections.abc import Iterable
from typing import Any

from kvmarch.changes import RELEASES, show_release
from kvmarch.errors import ExploreError
from kvmarch.explore.verdict import Verdict
from kvmarch.plugins import Plugins
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import Cell, Explored, How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.records import Scenario

COLUMNS = (
    Column("scenario"),
    Column("arch"),
    Column("kernel"),
    Column("changes"),
    Column("property"),
    Column("verdict"),
    Column("expected"),
    Column("count", detail=True),
    Column("shortest"),
    Column("states"),
    Column("transitions", detail=True),
    Column("ends", detail=True),
    Column("seconds"),
    Column("states_per_s", detail=True),
    Column("peak_mib", detail=True),
    Column("cut", detail=True),
    Column("schedule", detail=True),
)


def names_of_all(plugins: Plugins) -> list[str]:
    """Return the scenarios of which something is expected over all interleavings."""
    paths = dict(library())
    for folder in plugins.scenario_folders():
        from pathlib import Path

        for path in sorted(Path(folder).glob("*.toml")):
            paths.setdefault(path.stem, path)
    return [name for name, path in paths.items() if load(path).verdicts]


def explore_table(
    scenarios: Iterable[Scenario],
    plugins: Plugins,
    choose: Choose,
    how: How | None = None,
) -> tuple[Table, list[Explored]]:
    """Explore scenarios; return one row per property that is lost or expected.

    :returns: the table, and the explored cells for those who want to see schedules.
    """
    table = Table("Every interleaving", COLUMNS, keys=4)
    done = []
    for scenario in scenarios:
        for cell, expected in cells_of(scenario, plugins, choose):
            explored = explore_cell(cell, plugins, how, expected)
            done.append(explored)
            _add(table, explored)
    if not done:
        raise ExploreError(
            "nothing to explore: no such kernel has such an architecture"
        )
    return table, done


def _add(table: Table, explored: Explored) -> None:
    failures = explored.failures()
    by_name = {verdict.property: verdict for verdict in explored.verdicts}
    wanted = [row.property for row in explored.expected if row.property != "*"]
    names = [*by_name, *(name for name in wanted if name not in by_name)]
    for name in dict.fromkeys(names):
        verdict = by_name.get(name) or Verdict(
            name, "unknown" if explored.search.cut else "never"
        )
        expected = [row.verdict for row in explored.expected if row.property == name]
        table.rows.append(_row(explored, verdict, ", ".join(expected)))
    if not names:
        rest = "unknown" if explored.search.cut else "never"
        every = ["never" for row in explored.expected if row.property == "*"]
        table.rows.append(_row(explored, Verdict("all", rest), ", ".join(every[:1])))
    for row, got in failures:
        table.status = 1
        because = f" ({row.because})" if row.because else ""
        table.failed.append(
            (
                f"{explored.cell.scenario.name} {explored.cell.arch.name}",
                show_release(explored.cell.release),
                f"{row.property}: {row.verdict} was expected{because}, not {got}",
            )
        )
        table.notes.append(
            f"FAILED {explored.cell.where}: {row.property} {row.verdict} was expected"
            f"{because}, not {got}"
        )
    if explored.search.cut:
        table.notes.append(f"{explored.cell.where}: cut at {explored.search.cut}")
        table.status = table.status or 3


def _row(explored: Explored, verdict: Verdict, expected: str) -> dict[str, Any]:
    cell, search = explored.cell, explored.search
    found = verdict.found
    schedule = explored.schedule(verdict)
    return {
        "scenario": cell.scenario.name,
        "arch": cell.arch.name,
        "kernel": show_release(cell.release),
        "changes": cell.changes,
        "property": verdict.property,
        "verdict": verdict.verdict,
        "expected": expected,
        "count": found.count if found else 0,
        "shortest": schedule.steps if schedule else "",
        "states": search.states,
        "transitions": search.transitions,
        "ends": len(search.ends) + len(search.stuck),
        "seconds": round(search.seconds, 3),
        "states_per_s": round(search.states / max(search.seconds, 1e-9)),
        "peak_mib": search.peak >> 10,
        "cut": search.cut,
        "schedule": str(schedule) if schedule else "",
    }


def find_cell(text: str, plugins: Plugins, choose: Choose, scenario: str) -> Cell:
    """Return the cell that a schedule belongs to, of those that were asked for.

    :raises ExploreError: it belongs to another scenario, architecture or kernel.
    """
    place = text.rpartition(":")[0]
    loaded = load(find(scenario, plugins.scenario_folders()))
    cells = [cell for cell, _ in cells_of(loaded, plugins, choose)]
    if not choose.kernel:
        cells += [
            Cell(loaded, arch, release, choose)
            for arch in choose.architectures(plugins)
            for release in RELEASES
        ]
    for cell in cells:
        if cell.where == place:
            return cell
    raise ExploreError(
        f"the schedule is of {place or text!r}, which is none of the kernels of "
        f"{loaded.name} that were asked for"
    )
