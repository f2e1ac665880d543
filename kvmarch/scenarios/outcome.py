"""What an exploration says of one cell, as plain values that can be sent and stored."""

__all__ = ["COLUMNS", "Outcome", "nothing_of", "outcome_of"]

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvmarch.changes import show_release
from kvmarch.explore.verdict import Verdict
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import Cell, Explored

if TYPE_CHECKING:
    from kvmarch.explore.audit import Comparison

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
    Column("seconds", detail=True),
    Column("states_per_s", detail=True),
    Column("peak_mib", detail=True),
    Column("cut", detail=True),
    Column("schedule", detail=True),
)


@dataclass(slots=True)
class Outcome:
    """The rows of one cell, and what is wrong with it.

    :param failed: as in a table: where, at which release, and what.
    :param error: why the cell could not be explored; empty if it was.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    status: int = 0
    error: str = ""

    def add_to(self, table: Table) -> None:
        """Put the cell's rows into a table of many cells.

        An architecture whose code failed outweighs an expectation that did, and that
        a search that was cut.
        """
        table.rows.extend(self.rows)
        table.failed.extend(self.failed)
        table.notes.extend(self.notes)
        if self.status == 2 or table.status == 2:
            table.status = 2
        elif self.status == 1 or not table.status:
            table.status = self.status


def outcome_of(explored: Explored) -> Outcome:
    """Return one row per property that is lost or expected."""
    outcome = Outcome()
    by_name = {verdict.property: verdict for verdict in explored.verdicts}
    wanted = [row.property for row in explored.expected if row.property != "*"]
    names = [*by_name, *(name for name in wanted if name not in by_name)]
    rest = "unknown" if explored.search.cut else "never"
    for name in dict.fromkeys(names):
        verdict = by_name.get(name) or Verdict(name, rest)
        expected = [row.verdict for row in explored.expected if row.property == name]
        outcome.rows.append(_row(explored, verdict, ", ".join(expected)))
    if not names:
        every = ["never" for row in explored.expected if row.property == "*"]
        outcome.rows.append(_row(explored, Verdict("all", rest), ", ".join(every[:1])))
    cell = explored.cell
    for row, got in explored.failures():
        outcome.status = 1
        because = f" ({row.because})" if row.because else ""
        what = f"{row.property}: {row.verdict} was expected{because}, not {got}"
        outcome.failed.append(
            (
                f"{cell.scenario.name} {cell.arch.name}",
                show_release(cell.release),
                what,
            )
        )
        outcome.notes.append(
            f"FAILED {cell.where}: {row.property} {row.verdict} was expected"
            f"{because}, not {got}"
        )
    if explored.audit is not None:
        _audit(outcome, cell.where, explored.audit)
    if explored.search.symmetry:
        outcome.notes.append(f"{cell.where}: symmetry: {explored.search.symmetry}")
    if explored.search.cut:
        outcome.notes.append(f"{cell.where}: cut at {explored.search.cut}")
        outcome.status = outcome.status or 3
    return outcome


def nothing_of(cell: Cell, verdict: str, why: str) -> Outcome:
    """Return the one row of a cell that could not be explored."""
    row: dict[str, Any] = {
        **dict.fromkeys((column.name for column in COLUMNS), ""),
        "scenario": cell.scenario.name,
        "arch": cell.arch.name,
        "kernel": show_release(cell.release),
        "changes": cell.changes,
        "property": "all",
        "verdict": verdict,
    }
    return Outcome([row], notes=[f"{cell.where}: {why}"])


def _audit(outcome: Outcome, where: str, audit: "Comparison") -> None:
    """Say what the engine without states found; a disagreement is a failure."""
    for difference in audit.differences:
        outcome.status = 1
        outcome.notes.append(f"FAILED {where}: the engines disagree: {difference}")
    traces = audit.traces
    if traces.cut:
        outcome.notes.append(
            f"{where}: without states cut at {traces.cut}, after {traces.traces} "
            "traces; what it saw agrees"
            if not audit.differences
            else f"{where}: without states cut at {traces.cut}"
        )
        outcome.status = outcome.status or 3
    elif not audit.differences:
        outcome.notes.append(
            f"{where}: both engines agree ({traces.traces} traces without states)"
        )


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
