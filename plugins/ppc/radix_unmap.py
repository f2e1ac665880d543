"""Taking leaves of a radix guest away, and ageing them.

:Kernel: kvm_unmap_radix(), kvm_age_radix(), kvm_test_age_radix(),
    kvmppc_radix_flush_memslot(), arch/powerpc/kvm/book3s_64_mmu_radix.c, v4.11 on; fact
    sheet ppc, 3.6, 3.7 and 3.9.
"""

__all__ = [
    "CHOICES",
    "age_gfn",
    "flush_memslot",
    "kvmppc_unmap_pte",
    "set_spte_gfn",
    "test_age_gfn",
    "unmap_gfn_range",
]

from kvmarch_ppc.ops import ALL
from kvmarch_ppc.radix_pte import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT
from kvmarch_ppc.radix_tree import LEAF, Radix, leaf_runs, tlbie

from kvmarch import Choice, Match, Memslot, Table, Vm, op

PRESENT_LEAF = Match(LEAF)
DIRTY_LEAF = Match(LEAF | PAGE_DIRTY)
YOUNG_LEAF = Match(LEAF | PAGE_ACCESSED)

update_dirty_map = Choice(
    "ppc_radix_update_dirty_map", "how the dirty bits of an unmapped leaf are set"
)
cleared = Choice("ppc_radix_cleared", "the bits that unmapping clears")
cleared.add(PAGE_PRESENT)
cleared.add(ALL, "ppc-radix-clear-all")


@update_dirty_map.when("ppc-one-dirty-bitmap")
def kvmppc_update_dirty_map(vm: Vm, slot: Memslot, gfn: int, pages: int) -> None:
    """Set the bits of a whole leaf, as far as they are in the slot.

    :Kernel: kvmppc_update_dirty_map(), e641a317830b.
    """
    for each in range(max(gfn, slot.base_gfn), min(gfn + pages, slot.end_gfn)):
        vm.mark_page_dirty(slot, each)


@update_dirty_map.when()
def mark_pages_dirty(vm: Vm, slot: Memslot, gfn: int, pages: int) -> None:
    """Set the bits of a whole leaf, but step by words where bits are meant.

    :Kernel: mark_pages_dirty(), before e641a317830b; fact sheet ppc, P17.
    """
    word = 64
    offset = gfn - slot.base_gfn
    if pages < word or not offset:
        kvmppc_update_dirty_map(vm, slot, gfn, pages)
        return
    vm.warn(
        (offset + pages // word) * word > slot.npages,
        f"mark_pages_dirty: {pages // word} words are written {offset} words into the "
        f"dirty bitmap of {slot}",
    )


def _log_dirty(
    vm: Vm, slot: Memslot | None, table: Table, first: int, stop: int
) -> None:
    """Note the dirty leaves of a run in the slot's bitmap, if it has one."""
    if slot is None or not slot.bitmap:
        return
    if not table.count(DIRTY_LEAF, first, stop):
        return
    arch: Radix = vm.arch
    pages = arch.pages[table.level]
    wanted = DIRTY_LEAF.mask
    for index, value in table.used(first, stop):
        if value & wanted == wanted:
            gfn = table.base + index * pages
            vm.k.ppc_radix_update_dirty_map.fn(vm, slot, gfn, pages)


def _clear(
    vm: Vm, slot: Memslot | None, table: Table, first: int, stop: int
) -> tuple[int, int]:
    """Clear the leaves of a run, still without tlbie.

    :returns: first and end gfn of what the run covers; twice the same if it is empty.
    """
    pages = vm.arch.pages[table.level]
    start, end = table.base + first * pages, table.base + stop * pages
    count = table.count(PRESENT_LEAF, first, stop)
    if not count:
        return start, start
    _log_dirty(vm, slot, table, first, stop)
    clear = vm.k.ppc_radix_cleared
    if clear == ALL and count == stop - first:
        table.fill(0, first, stop)
    else:
        table.change(PRESENT_LEAF, first, stop, clear=clear)
    return start, end


def kvmppc_unmap_pte(vm: Vm, slot: Memslot | None, table: Table, index: int) -> None:
    """Clear one leaf, if it is there, with a tlbie.

    :Kernel: kvmppc_unmap_pte(), and what kvm_unmap_radix() had in its place before.
    """
    start, end = _clear(vm, slot, table, index, index + 1)
    if start < end:
        tlbie(vm, start, end, vm.arch.pages[table.level])


def _unmap(vm: Vm, slot: Memslot, start: int, end: int) -> None:
    """Clear the leaves of a range.

    Simplified: one tlbie for neighbouring leaves of a size stands for one per leaf; all
    are under one hold of mmu_lock.
    """
    first = stop = -1
    size = 0
    for run in leaf_runs(vm, start, end):
        pages = vm.arch.pages[run[0].level]
        begin, after = _clear(vm, slot, *run)
        if begin != stop or pages != size:
            if first < stop:
                tlbie(vm, first, stop, size)
            first, size = begin, pages
        stop = after
    if first < stop:
        tlbie(vm, first, stop, size)


@op(name="kvm_unmap_radix")
def unmap_gfn_range(vm: Vm, slot: Memslot, start: int, end: int) -> None:
    """Unmap a range; a leaf that the range meets in part goes as a whole.

    Tables stay. Each leaf is invalidated in here, so no flush is owed.

    :Locking: mmu_lock.
    """
    start, end = vm.k.ppc_unmapped_range.fn("radix", start, end)
    _unmap(vm, slot, start, end)


@op(name="kvm_set_spte_radix")
def set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> None:
    """Unmap the page, which nobody has mapped since invalidate_range_start().

    :Kernel: kvm_set_spte_gfn_hv() and kvm_set_spte_hva_hv(), to v6.9.
    """
    _unmap(vm, slot, gfn, gfn + 1)


@op(name="kvm_age_radix")
def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Clear R, without a tlbie: until a translation is dropped, its page looks idle."""
    start, end = vm.k.ppc_aged_range.fn(start, end)
    young = 0
    for table, first, stop in leaf_runs(vm, start, end):
        young += table.change(YOUNG_LEAF, first, stop, clear=PAGE_ACCESSED)
    return young > 0


@op(name="kvm_test_age_radix")
def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether a leaf has R."""
    return any(
        table.count(YOUNG_LEAF, first, stop)
        for table, first, stop in leaf_runs(vm, start, end)
    )


# -- memslots ----------------------------------------------------------------------

flush = Choice("ppc_radix_flush_memslot", "how a memslot's leaves are removed")


@op(name="unmap memslot")
def _unmap_slot(vm: Vm, slot: Memslot) -> None:
    _unmap(vm, slot, slot.base_gfn, slot.end_gfn)


@op(name="mmu_invalidate_seq++")
def _seq_up(vm: Vm) -> None:
    vm.mmu_invalidate_seq += 1


@flush.when()
async def _flush_unlocked(vm: Vm, slot: Memslot) -> None:
    """Unmap each gfn without mmu_lock (to v4.20; fact sheet ppc, L5)."""
    await _unmap_slot(vm, slot)


@flush.when("ppc-radix-flush-on-flags")
async def _flush_locked(vm: Vm, slot: Memslot) -> None:
    """Unmap under mmu_lock; a fault that began before does not notice (P7)."""
    async with vm.mmu_lock.write():
        await _unmap_slot(vm, slot)


@flush.when("ppc-radix-flush-on-flags", "ppc-radix-flush-seq")
async def _flush_and_count(vm: Vm, slot: Memslot) -> None:
    """Unmap under mmu_lock, and make faults that began before retry (v5.8 on)."""
    async with vm.mmu_lock.write():
        await _unmap_slot(vm, slot)
        await _seq_up(vm)


async def flush_memslot(vm: Vm, slot: Memslot) -> None:
    """Remove every leaf of a memslot.

    :Kernel: kvmppc_radix_flush_memslot(), kvmppc_core_flush_memslot_hv() before.
    """
    await vm.k.ppc_radix_flush_memslot(vm, slot)


CHOICES = (update_dirty_map, cleared, flush)
