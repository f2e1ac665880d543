"""Dirty logging in the TDP MMU: take W or D from leaves.

:Kernel: kvm_tdp_mmu_wrprot_slot(), kvm_tdp_mmu_clear_dirty_slot(),
    kvm_tdp_mmu_clear_dirty_pt_masked(); fact sheet x86, 3.6.
"""

__all__ = [
    "clear_dirty_slot",
    "mask_runs",
    "tdp_dirty_masked",
    "wrprot_gfn",
    "wrprot_range",
]

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmarch_x86.spte import (
    is_dirty_spte,
    is_shadow_present_pte,
    spte_to_pfn,
    spte_write_protect,
)
from kvmarch_x86.tdp_tables import lowest, next_run

from kvmarch import Flush, Match, Memslot, Table, Vm, op

if TYPE_CHECKING:
    from kvmarch_x86.state import X86Vm


def _strip(vm: Vm, table: Table, first: int, stop: int, *, dirty: bool) -> int:
    """Take D (W where hardware keeps no D), or W, from the leaves that have it.

    :returns: how many there were.
    """
    arch: X86Vm = vm.arch
    layout = arch.layout
    if dirty and layout.ad:
        match, clear = arch.dirty_leaf, layout.shadow_dirty_mask
    else:
        match, clear = arch.writable_leaf, layout.writable_mask
    if arch.rules.marks_when_dropped and (dirty or not layout.ad):
        _mark_dirty(vm, table, first, stop, match)
    return table.change(match, first, stop, clear=clear)


def _mark_dirty(vm: Vm, table: Table, first: int, stop: int, match: Match) -> None:
    """Tell pages that they are dirty before their leaves forget it (to v6.12)."""
    layout = vm.arch.layout
    for _index, spte in table.used(first, stop):
        if spte & match.mask == match.value and is_dirty_spte(layout, spte):
            pfn = spte_to_pfn(layout, spte)
            vm.host.mark(pfn, dirty=True, accessed=False, who="clear_dirty")


@op(name="write-protect table")
def _wrprot_next(
    vm: Vm, as_id: int, start: int, end: int, min_level: int
) -> tuple[int, bool]:
    """Take W from the leaves of the next table.

    :returns: the gfn to go on from, and whether a leaf had W.

    Simplified: a table is one step, though it is done entry by entry with cmpxchg;
    harmless because a loser tries again.
    """
    run = next_run(vm, as_id, start, end)
    if run is None:
        return end, False
    table, first, stop, after = run
    if table.level < min_level:
        return after, False
    return after, _strip(vm, table, first, stop, dirty=False) > 0


async def wrprot_range(
    vm: Vm, as_id: int, start: int, end: int, min_level: int
) -> bool:
    """Take W from every leaf of a range, from a level on; MMU-writable stays.

    :Kernel: kvm_tdp_mmu_wrprot_slot()
    :Locking: mmu_lock: for read from v5.13 on, exclusively before.
    """
    changed = False
    while start < end:
        start, found = await _wrprot_next(vm, as_id, start, end, min_level)
        changed = changed or found
    return changed


@op(name="clear D in table")
def _clear_dirty_next(vm: Vm, as_id: int, start: int, end: int) -> tuple[int, bool]:
    run = next_run(vm, as_id, start, end)
    if run is None:
        return end, False
    table, first, stop, after = run
    if table.level > 1:
        return after, False
    return after, _strip(vm, table, first, stop, dirty=True) > 0


async def clear_dirty_slot(vm: Vm, slot: Memslot) -> bool:
    """Take D from every 4 KiB leaf of a slot, so that the log sees the next write.

    :Kernel: kvm_tdp_mmu_clear_dirty_slot(), with PML
    :Locking: as for write protection.
    """
    start, end, changed = slot.base_gfn, slot.end_gfn, False
    while start < end:
        start, found = await _clear_dirty_next(vm, slot.as_id, start, end)
        changed = changed or found
    return changed


def mask_runs(gfn: int, mask: int) -> Iterator[tuple[int, int]]:
    """Yield first gfn and end of each run of ones in a mask."""
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        gfn += gap
        length = (~mask & mask + 1).bit_length() - 1
        yield gfn, gfn + length
        mask >>= length
        gfn += length


def tdp_dirty_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Take D or W from chosen 4 KiB leaves.

    :Kernel: kvm_tdp_mmu_clear_dirty_pt_masked(), clear_dirty_pt_masked()
    :Locking: mmu_lock for write.
    """
    arch: X86Vm = vm.arch
    changed = 0
    for start, end in mask_runs(gfn, mask):
        at = start
        while at < end:
            run = next_run(vm, slot.as_id, at, end)
            if run is None:
                break
            table, first, stop, at = run
            if table.level == 1:
                changed += _strip(vm, table, first, stop, dirty=arch.pml)
    if not changed:
        return None
    return vm.ledger.owe(gfn, gfn + mask.bit_length(), due="return")


def wrprot_gfn(vm: Vm, as_id: int, gfn: int, min_level: int) -> Flush | None:
    """Take W and MMU-writable from the leaf of a gfn, against fast faults too.

    What has no W by now is changed if it could get it back; up to v5.16 it was skipped
    (D9 of the fact sheet).

    :Kernel: kvm_tdp_mmu_write_protect_gfn(), write_protect_gfn()
    :Locking: mmu_lock for write.
    """
    arch: X86Vm = vm.arch
    layout = arch.layout
    root = arch.root_of.get(as_id)
    if not root:
        return None
    table, index, spte = lowest(vm, root, gfn)
    if table.level < min_level or not is_shadow_present_pte(layout, spte):
        return None
    w = layout.writable_mask
    if arch.rules.protects_mmu_writable:
        w |= layout.shadow_mmu_writable_mask
    if not spte & w:
        return None
    table.set(index, spte_write_protect(layout, spte, pt_protect=True))
    return vm.ledger.owe(gfn, gfn + 1, due="return")
