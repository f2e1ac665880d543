"""A schedule as a table: one column per task, one row per step."""

__all__ = ["replay", "trace_table"]

from dataclasses import dataclass
from typing import Any

from kvmarch.changes import show_release
from kvmarch.errors import ExploreError, ModelError
from kvmarch.explore.schedule import Schedule
from kvmarch.machine.world import Event, Violation
from kvmarch.plugins import Plugins, link
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import Cell
from kvmarch.scenarios.play import Played, play_along


@dataclass(frozen=True, slots=True)
class Replayed:
    """A schedule that was run step by step."""

    cell: Cell
    schedule: Schedule
    played: Played

    @property
    def violations(self) -> list[Violation]:
        """Return what was lost on the way."""
        return self.played.violations


def replay(cell: Cell, schedule: Schedule, plugins: Plugins) -> Replayed:
    """Run a schedule step by step, and stop where it ends.

    :raises ExploreError: it asks for steps that cannot be taken.
    """
    k = link(cell.arch, cell.release, **cell.choose.changes_for(cell.arch, plugins))
    options = cell.arch.info.settle(
        cell.release, cell.choose.options_for(cell.arch, plugins)
    )
    try:
        played = play_along(cell.scenario, k, options, schedule.turns)
    except ModelError as error:
        raise ExploreError(str(error)) from None
    return Replayed(cell, schedule, played)


def trace_table(replayed: Replayed) -> Table:
    """Return the schedule with one column per task, as reviewers draw it."""
    cell, played = replayed.cell, replayed.played
    names = replayed.schedule.tasks
    title = f"{cell.scenario.title}: {cell.arch.name} {show_release(cell.release)}"
    if cell.changes:
        title += f" {cell.changes}"
    table = Table(title, (Column("step"), *(Column(name) for name in names)))
    for event in played.events:
        text = _show(event)
        if text and event.task in names:
            row: dict[str, Any] = dict.fromkeys(names, "")
            row["step"] = event.step
            row[event.task] = text
            table.rows.append(row)
    table.notes.append(f"schedule {replayed.schedule}")
    for violation in played.violations:
        who = f" ({violation.task})" if violation.task else ""
        table.notes.append(f"LOST {violation.property}{who}: {violation.sentence}")
    if not played.violations:
        table.notes.append("no property was lost")
    return table


def _show(event: Event) -> str:
    data = event.data
    match event.name:
        case "step":
            return f"> {data['text']}"
        case "micro":
            name: str = data["step"]
            return "" if name in {"begin", "end"} else name
        case "violation":
            return f"*** LOST {data['property']}"
        case "entry":
            return f"  gfn {data['gfn']:#x}: {data['old']:#x} -> {data['new']:#x}"
    return ""
