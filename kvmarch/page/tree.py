"""The tables of a machine as plain data: which there are, what stands in them."""

__all__ = ["tables_of"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch.format.table import Table
from kvmarch.kernel.vm import Vm
from kvmarch.page.entries import Entries
from kvmarch.page.runs import runs_of

TableData = dict[str, Any]


def tables_of(vms: list[Vm], entries: Mapping[str, Entries]) -> dict[str, TableData]:
    """Return the tables of all VMs, by VM and physical address.

    :param entries: what tells the entries of each VM, by the VM's name.
    """
    tables = {}
    for vm in vms:
        tell = entries[vm.name]
        for state in ("live", "retired"):
            for pa, table in sorted(getattr(vm.tables, state).items()):
                name = f"{pa:#x}" if len(vms) == 1 else f"{vm.name} {pa:#x}"
                tables[name] = {
                    "level": table.level,
                    "base": f"{table.base:#x}",
                    "state": state,
                    "rows": list(_rows(table, tell, vm.name, alone=len(vms) == 1)),
                }
    return tables


def _rows(table: Table, tell: Entries, vm: str, *, alone: bool) -> Iterator[list[Any]]:
    """Yield index, number, kind, fields, child and pattern of each run of entries.

    The child is the name of the table to which the entry leads; empty if to none. The
    pattern is what the entries of a run have in common, and those of a part of it.
    """
    pages = tell.pages_at(table.level)
    found = list(table.used(0, table.size))
    by_index = dict(found)
    same = (
        (index, tell.pattern(index, pages, entry, table.level))
        for index, entry in found
    )
    for run, pattern in runs_of(same):
        entry = by_index[run.first]
        number, kind, fields = tell.tell(entry, table.level)
        child = tell.child(entry, table.level)
        leads = "" if child is None else f"{child:#x}" if alone else f"{vm} {child:#x}"
        goes_on = by_index[run.last] != entry
        shared = f"{pattern.entry:x} {pattern.offset:x}"
        yield [str(run), number + "…" * goes_on, kind, fields, leads, shared]
