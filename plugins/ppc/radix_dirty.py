"""The dirty log of a radix guest: harvest C, which needs no write-protection.

:Kernel: kvm_radix_test_clear_dirty(), kvmppc_hv_get_dirty_log_radix(),
    arch/powerpc/kvm/book3s_64_mmu_radix.c, v4.11 on; fact sheet ppc, 3.8.
"""

__all__ = ["CHOICES", "sync_dirty_log"]

from kvmarch_ppc.radix_pte import PAGE_DIRTY
from kvmarch_ppc.radix_tree import Radix, find_leaf, leaf_runs, tlbie
from kvmarch_ppc.radix_unmap import DIRTY_LEAF

from kvmarch import Choice, Memslot, Vm, op

harvest = Choice("ppc_radix_harvest", "how the dirty log clears a dirty leaf")


@op(name="find dirty leaf")
def _next_dirty(vm: Vm, start: int, end: int) -> int:
    """Look for a dirty leaf, without mmu_lock; return its gfn, or -1.

    Simplified: the whole scan up to the next one is one step.
    """
    arch: Radix = vm.arch
    wanted = DIRTY_LEAF.mask
    for table, first, stop in leaf_runs(vm, start, end):
        if table.count(DIRTY_LEAF, first, stop):
            for index, value in table.used(first, stop):
                if value & wanted == wanted:
                    gfn = table.base + index * arch.pages[table.level]
                    return max(gfn, start)
    return -1


@op(name="clear DIRTY, tlbie")
def _test_clear_dirty(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Clear DIRTY of a leaf and log its pages; return the first gfn after it."""
    arch: Radix = vm.arch
    place = find_leaf(vm, gfn)
    if place is None or not place.table.get(place.at) & PAGE_DIRTY:
        return gfn + 1
    table, index, level = place
    pages = arch.pages[level]
    table.set(index, table.get(index) & ~PAGE_DIRTY)
    first = gfn & -pages
    tlbie(vm, first, first + pages, pages)
    stop = min(first + pages, slot.end_gfn)
    for each in range(gfn, stop):
        vm.mark_page_dirty(slot, each)
    return stop


@harvest.when()
async def _unlocked(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Clear with no lock at all (to v4.20; fact sheet ppc, L5)."""
    return await _test_clear_dirty(vm, slot, gfn)


@harvest.when("ppc-radix-clear-dirty-locked")
async def _locked(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Take mmu_lock, look again, clear (v5.0 on).

    Simplified: up to v5.7 the kernel did not look again.
    """
    async with vm.mmu_lock.write():
        return await _test_clear_dirty(vm, slot, gfn)


async def sync_dirty_log(vm: Vm, slot: Memslot) -> int:
    """Move C of every leaf of a slot into its bitmap.

    :Kernel: kvmppc_hv_get_dirty_log_radix(). What unmapping found is in the bitmap
        already, and is fetched after this scan. Simplified: v4.11 to v4.14 fetched it
        before (fact sheet ppc, P19). Virtual processor areas are not modelled.
    """
    gfn = await _next_dirty(vm, slot.base_gfn, slot.end_gfn)
    while gfn >= 0:
        gfn = await vm.k.ppc_radix_harvest(vm, slot, gfn)
        gfn = await _next_dirty(vm, gfn, slot.end_gfn)
    return 0


CHOICES = (harvest,)
