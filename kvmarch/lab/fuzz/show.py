"""What was found, for people: the steps, and both sides decoded."""

__all__ = ["show"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch.lab.fuzz.compare import Comparer
from kvmarch.lab.fuzz.run import Found
from kvmarch.lab.sides import Memory, Setup
from kvmarch.report.render import render
from kvmarch.report.table import Column, Table
from kvmarch.walk.names import Names


def show(found: Found, comparer: Comparer, names: Names) -> str:
    """Return a difference as text of several lines.

    :param names: of the machine that is modelled.
    """
    setup = found.program.setup
    difference = found.seen.difference
    before = _counted(found.before, "step")
    least = _counted(len(found.program.lines), "step")
    place = f"process {found.number}: {difference.what}"
    lines = [
        f"{place} differs after {before}; least {least}:",
        f"  {_vms(setup)}; {'; '.join(map(_memory, setup.memories))}",
        *(f"    {line}" for line in found.program.lines),
        f"  {difference.text}",
    ]
    rows = list(_rows(found, comparer, names))
    if rows:
        columns: tuple[str, ...] = ("side", "gfn", "level", "entry", "kind", "fields")
        columns = ("vm", *columns) if setup.vms > 1 else columns
        table = Table("", tuple(map(Column, columns)), rows)
        text = render(table, "text").strip("\n")
        lines += ["", *(f"  {line}".rstrip() for line in text.splitlines())]
    return "\n".join(lines) + "\n"


def _rows(
    found: Found, comparer: Comparer, names: Names
) -> Iterator[Mapping[str, Any]]:
    for vm, leaf, real in comparer.leaves(*found.seen.looks):
        named = names.of(leaf.entry, leaf.level)
        yield {
            "side": "recorded" if real else "model",
            "vm": vm,
            "gfn": f"{leaf.gfn:#x}",
            "level": leaf.level,
            "entry": f"{leaf.entry:#x}",
            "kind": named.kind,
            "fields": named.show(),
        }


def _memory(row: Memory) -> str:
    words = [f"{row.name} of {_counted(row.pages, 'page')}"]
    words += ["huge"] if row.huge else []
    words += ["untouched"] if row.contents is None else []
    words += [f"contents {' '.join(map(str, row.contents))}"] if row.contents else []
    return ", ".join(words)


def _vms(setup: Setup) -> str:
    vcpus = _counted(setup.vcpus, "vCPU")
    return f"{setup.vms} VMs of {vcpus} each" if setup.vms > 1 else vcpus


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
