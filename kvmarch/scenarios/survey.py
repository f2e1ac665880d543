"""Everything in a VM's tables at one moment, as somebody sees it who walks them all."""

__all__ = ["Entry", "survey"]

from collections.abc import Iterable
from typing import NamedTuple

from kvmarch.format.walk import WalkLayout
from kvmarch.kernel.vm import Vm

_EMPTY = ("table", "absent")


class Entry(NamedTuple):
    """An entry that is neither empty nor leads to a table.

    :param gfn: the first that it is for.
    :param level: the architecture's own level number.
    """

    gfn: int
    level: int
    entry: int


def survey(vm: Vm, also: Iterable[int] = ()) -> tuple[Entry, ...]:
    """Return the entries of a VM's tables, by gfn.

    What counts is decided by the architecture's layout of a walk; without one, every
    value but 0 does.

    :param also: gfns to look at besides those of memslots.
    """
    gfns = {
        gfn
        for memslots in vm.memslots
        for slot in memslots.slots
        for gfn in range(slot.base_gfn, slot.base_gfn + slot.npages)
    }
    layout = vm.k.walk.fn(vm.k, vm.options)
    found: dict[tuple[int, int], Entry] = {}
    for gfn in sorted(gfns.union(also)):
        value, level = vm.k.entry.fn(vm, gfn)
        pages = _pages(layout, value, level)
        if pages:
            first = gfn & -pages
            found.setdefault((first, level), Entry(first, level, value))
    return tuple(found[key] for key in sorted(found))


def _pages(layout: WalkLayout | None, value: int, level: int) -> int:
    """Return for how many pages an entry stands, a power of two; 0 if it is empty."""
    if layout is None:
        return 1 if value else 0
    there = layout.by_level[level]
    rule = next((r for r in there.rules if value & r.mask == r.value), None)
    if rule is not None and rule.role in _EMPTY:
        return 0
    return 1 << there.shift - layout.page_shift
