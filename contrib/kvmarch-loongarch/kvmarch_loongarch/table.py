"""The secondary page table: walks, and the operations on ranges.

Models the walkers of arch/loongarch/kvm/mmu.c, v6.8 on (fact sheet loongarch, 3). A
range that meets a leaf of level 1 only in part means all of it. Walks take the end
exclusive. A table goes only where memslots or the VM do.
"""

__all__ = [
    "Found",
    "at_or_above",
    "clear_range",
    "for_each_leaf",
    "lowest_entry",
    "mkclean_range",
    "populate",
    "table_at",
]

from collections.abc import Iterator
from typing import NamedTuple

from kvmarch import Table, Vm

from kvmarch_loongarch.pte import HUGE, P, mkclean
from kvmarch_loongarch.state import LoongarchVcpu, LoongarchVm


class Found(NamedTuple):
    """Where an entry is: its table and the index in it; and the entry."""

    table: Table
    at: int
    entry: int

    @property
    def present(self) -> bool:
        """Return whether it maps a page.

        :Kernel: kvm_pte_present() without a walk: P counts, at whatever level.
        """
        return bool(self.entry & P)


def at_or_above(vm: Vm, gfn: int, level: int) -> Found | None:
    """Return the entry of a gfn at a level, or the leaf of level 1 above it.

    :Kernel: kvm_populate_gpa() without a page cache.
    :returns: None if no table is linked there.
    """
    arch: LoongarchVm = vm.arch
    geometry = arch.geometry
    if not arch.pgd:
        return None
    table = vm.tables.at(arch.pgd)
    above = geometry.root_level
    while True:
        index = geometry.index(gfn, above)
        entry = table.get(index)
        if above == level or (
            above and entry & HUGE and entry != geometry.empty[above]
        ):
            return Found(table, index, entry)
        if entry == geometry.empty[above]:
            return None
        table = vm.tables.at(entry)
        above -= 1


def populate(vm: Vm, cache: LoongarchVcpu, gfn: int, level: int) -> Found:
    """Return the entry of a gfn at a level; make the tables that are missing.

    :Kernel: kvm_populate_gpa() with the vCPU's page cache.
    :Locking: mmu_lock.
    """
    arch: LoongarchVm = vm.arch
    geometry = arch.geometry
    table = vm.tables.at(arch.pgd)
    above = geometry.root_level
    while True:
        index = geometry.index(gfn, above)
        entry = table.get(index)
        if above == level:
            return Found(table, index, entry)
        if entry == geometry.empty[above]:
            entry = new_table(vm, cache, gfn, above - 1).pa
            # Simplified: stores are seen in order, so that the barrier between the
            # table's entries and its link (32d4b999dade, v6.11) makes no difference.
            table.set(index, entry)
        elif entry & HUGE:
            return Found(table, index, entry)
        table = vm.tables.at(entry)
        above -= 1


def new_table(vm: Vm, cache: LoongarchVcpu, gfn: int, level: int) -> Table:
    """Take a page that is at hand and make it an empty table of a level."""
    geometry = vm.arch.geometry
    vm.warn(not cache.mmu_page_cache, "kvm_mmu_memory_cache_alloc() of no page")
    cache.mmu_page_cache -= 1
    pages = geometry.pages(level + 1)
    return vm.tables.alloc(
        geometry.entries, level, gfn & -pages, empty=geometry.empty[level]
    )


def table_at(vm: Vm, gfn: int, level: int) -> tuple[Table, int] | None:
    """Return the table that holds a gfn's entry of a level, and the index in it."""
    arch: LoongarchVm = vm.arch
    if not 0 <= level < arch.geometry.levels or arch.pgd not in vm.tables.live:
        return None
    found = at_or_above(vm, gfn, level)
    if found is None or found.table.level != level:
        return None
    return found.table, found.at


def lowest_entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn, and its level."""
    geometry = vm.arch.geometry
    for level in range(geometry.levels):
        at = table_at(vm, gfn, level)
        if at is not None:
            return at[0].get(at[1]), level
    return geometry.empty[-1], geometry.root_level


# -------------------------------------------------------------------------
# Ranges
# -------------------------------------------------------------------------


def children(
    vm: Vm, table: Table, start: int, end: int
) -> Iterator[tuple[int, int, int, int]]:
    """Yield index, entry, first gfn and end for what is not empty in a range."""
    geometry = vm.arch.geometry
    pages = geometry.pages(table.level)
    low = max(start - table.base, 0) // pages
    high = min(-(-(end - table.base) // pages), table.size)
    for index, entry in list(table.used(low, high)):
        first = table.base + index * pages
        yield index, entry, max(start, first), min(end, first + pages)


def for_each_leaf(
    vm: Vm, start: int, end: int, table: Table | None = None
) -> Iterator[tuple[Found, int]]:
    """Yield each leaf that a range meets, with the first gfn of the range in it.

    :Kernel: kvm_ptw_top(), kvm_ptw_dir(), kvm_ptw_leaf().
    """
    if table is None:
        if not vm.arch.pgd:
            return
        table = vm.tables.at(vm.arch.pgd)
    for index, entry, first, stop in children(vm, table, start, end):
        if not table.level or entry & HUGE:
            if entry & P:
                yield Found(table, index, entry), first
        else:
            yield from for_each_leaf(vm, first, stop, vm.tables.at(entry))


def clear_range(vm: Vm, start: int, end: int) -> tuple[int, int] | None:
    """Clear every leaf that a range meets; tables stay.

    :Kernel: kvm_flush_pte() on a walk.
    :returns: the gfns that are mapped no more, end exclusive; None if nothing was.
    """
    geometry = vm.arch.geometry
    gone: tuple[int, int] | None = None
    for found, gfn in for_each_leaf(vm, start, end):
        level = found.table.level
        found.table.set(found.at, geometry.empty[level])
        pages = geometry.pages(level)
        first = gfn & -pages
        gone = (gone[0] if gone else first, first + pages)
    return gone


def mkclean_range(vm: Vm, start: int, end: int, mask: int = -1) -> bool:
    """Make leaves clean; return whether one was not.

    :Kernel: kvm_mkclean_pte() on a walk.
    :param mask: which pages of the range are meant, bit 0 for ``start``. A leaf of
        level 1 does not ask.
    """
    bits = vm.arch.bits
    changed = False
    for found, gfn in for_each_leaf(vm, start, end):
        chosen = found.table.level or mask >> gfn - start & 1
        if chosen and found.entry & bits.dirty:
            found.table.set(found.at, mkclean(bits, found.entry))
            changed = True
    return changed
