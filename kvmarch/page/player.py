"""A schedule that was followed, as plain data: each step, and what it changed.

Of the state only differences are kept: rows and tables that are new or say something
else, and the names of those that are gone. Whoever reads it puts them together.
"""

__all__ = ["Camera", "trace_data"]

from typing import Any

from kvmarch.page.entries import Entries
from kvmarch.page.state import RowMaker, Rows
from kvmarch.page.tree import TableData, tables_of
from kvmarch.report.trace import Trace
from kvmarch.scenarios.states import States


class Camera:
    """Takes the state before the first step and after each one."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self._entries: dict[str, Entries] = {}
        self._make = RowMaker(self._entries)
        self._rows: Rows = {}
        self._tables: dict[str, TableData] = {}

    def take(self, states: States) -> None:
        """Write down what is new since the last picture."""
        vms = states.machine.vms
        for vm in vms:
            if vm.name not in self._entries:
                self._entries[vm.name] = Entries(vm)
        rows = self._make.rows_of(states)
        tables = tables_of(vms, self._entries)
        self.frames.append(
            {
                "rows": [
                    [group, label, text]
                    for (group, label), text in rows.items()
                    if self._rows.get((group, label)) != text
                ],
                "gone": [list(key) for key in self._rows if key not in rows],
                "tables": {
                    name: table
                    for name, table in tables.items()
                    if self._tables.get(name) != table
                },
                "freed": [name for name in self._tables if name not in tables],
            }
        )
        self._rows, self._tables = rows, tables


def trace_data(trace: Trace, camera: Camera, **about: Any) -> dict[str, Any]:
    """Return a schedule that was followed as plain data.

    :param about: what else is to be known of it.
    """
    steps = []
    # The first frame shows the machine before any step.
    for move, frame in zip(trace.moves, camera.frames[1:], strict=True):
        steps.append(
            {
                "task": move.task,
                "name": move.name,
                "line": move.line,
                "result": move.result,
                "changes": list(move.changes),
                "lost": [[loss.property, loss.sentence] for loss in move.lost],
                **frame,
            }
        )
    return {
        **about,
        "title": trace.title,
        "schedule": trace.schedule,
        "tasks": list(trace.tasks),
        "start": camera.frames[0],
        "steps": steps,
        "cycle": trace.cycle,
        "lost": [[loss.property, loss.sentence] for loss in trace.lost],
        "notes": list(trace.notes),
    }
