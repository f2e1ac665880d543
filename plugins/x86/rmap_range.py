"""What notifiers and dirty logging do to the leafs of the direct MMU.

:Kernel: kvm_handle_gfn_range() with the kvm_*_rmap() handlers, slot_handle_level()
    with its own, in arch/x86/kvm/mmu.c, later arch/x86/kvm/mmu/mmu.c, v3.16 to v7.2;
    fact sheet x86, 3.3 to 3.7.

Each function is one atomic step with mmu_lock held exclusively.
"""

__all__ = [
    "rmap_age",
    "rmap_clear_dirty_slot",
    "rmap_dirty_masked",
    "rmap_set_spte_gfn",
    "rmap_test_age",
    "rmap_unmap_gfn_range",
    "rmap_write_protect_gfn",
    "rmap_write_protect_slot",
    "rmap_zap_collapsible",
]

from kvmarch_x86.geometry import LEVEL_BITS, pages_per_hpage
from kvmarch_x86.layout import Layout
from kvmarch_x86.rmap_entries import (
    RmapRange,
    drop_leafs,
    for_each_rmap,
    forget_lost_rmaps,
    leafs_with,
    mark_page,
)
from kvmarch_x86.spte import (
    is_accessed_spte,
    is_last_spte,
    is_shadow_present_pte,
    is_writable_pte,
    kvm_mmu_changed_pte_notifier_make_spte,
    mark_spte_for_access_track,
    spte_to_pfn,
)

from kvmarch import Flush, HostPte, Memslot, Vm


def rmap_unmap_gfn_range(vm: Vm, slot: Memslot, start: int, end: int) -> Flush | None:
    """Drop every leaf for ``start`` to ``end`` (gfn, end exclusive).

    :Kernel: kvm_unmap_rmapp() up to v5.12, kvm_zap_rmap() later. From v6.12 it may
        yield. Simplified: it never does; harmless because a yield there has paid its
        flush, and what was zapped before it is as if zapped in a call of its own.
    """
    if vm.arch.lost_rmaps:
        forget_lost_rmaps(vm, slot.as_id, start, end, "unmap")
    dropped = 0
    for table, _level, first, stop in for_each_rmap(vm, slot.as_id, start, end):
        dropped += drop_leafs(vm, table, first, stop, "kvm_unmap_gfn_range")
    return vm.ledger.owe(start, end) if dropped else None


def rmap_set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Follow a host PTE that is about to change: drop the leaf, or make it read-only.

    :Kernel: kvm_set_pte_rmapp() up to v5.12, kvm_set_pte_rmap() until v6.9
    """
    layout = vm.arch.layout
    if vm.arch.lost_rmaps:
        forget_lost_rmaps(vm, slot.as_id, gfn, gfn + 1, "set_pte")
    owed: Flush | None = None
    writable, pfn = HostPte.write.get(pte), HostPte.pfn.get(pte)
    for table, level, index, stop in for_each_rmap(vm, slot.as_id, gfn, gfn + 1):
        old = table.get(index)
        if not drop_leafs(vm, table, index, stop, "kvm_set_spte_gfn"):
            continue
        if not writable:
            new = kvm_mmu_changed_pte_notifier_make_spte(
                layout, old, pfn, keep_mmu_writable=vm.k.x86_change_pte_keeps
            )
            table.set(index, new)
        pages = pages_per_hpage(level)
        owed = vm.ledger.owe(gfn & -pages, (gfn & -pages) + pages) | owed
    return owed


# -- ageing ------------------------------------------------------------------------


def rmap_age(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark the leafs in a range old; return whether one was accessed.

    The flush is the caller's: clear_flush_young() flushes if this returns True up to
    v6.12, clear_young() never does.

    :Kernel: kvm_age_rmapp(), kvm_age_rmap() from v5.13, kvm_rmap_age_gfn_range() from
        v6.15, which holds no lock but one bit in each reverse map
    """
    layout = vm.arch.layout
    if not layout.ad and not layout.saved_mask:
        return _age_by_unmapping(vm, slot, start, end)
    if vm.arch.lost_rmaps:
        forget_lost_rmaps(vm, slot.as_id, start, end, "age")
    a = layout.shadow_accessed_mask
    young = 0
    for at in for_each_rmap(vm, slot.as_id, start, end):
        table, level, first, stop = at
        if layout.ad:
            for match in leafs_with(layout, level, a):
                young += table.change(match, first, stop, clear=a)
        else:
            young += _track(vm, at)
    return young > 0


def _age_by_unmapping(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Age where there is neither A nor access tracking (to v4.10).

    Nothing flushes TLBs for that but clear_flush_young().
    """
    if vm.k.x86_rmap_age_bumps_seq:
        vm.mmu_invalidate_seq += 1
    dropped = sum(
        drop_leafs(vm, table, first, stop, "kvm_age_hva")
        for table, _level, first, stop in for_each_rmap(vm, slot.as_id, start, end)
    )
    return dropped > 0


def _track(vm: Vm, at: RmapRange) -> int:
    """Take the permissions of leafs away; return how many were accessed."""
    layout = vm.arch.layout
    young = 0
    for index, spte in _leafs_of(layout, at):
        if is_accessed_spte(layout, spte):
            dirty = is_writable_pte(layout, spte)
            mark_page(vm, spte, accessed=False, dirty=dirty, who="mmu_spte_age")
            at.table.set(index, mark_spte_for_access_track(layout, spte))
            young += 1
    return young


def _leafs_of(layout: Layout, at: RmapRange) -> list[tuple[int, int]]:
    """Return index and value of the leafs in a run of entries."""
    return [
        (index, spte)
        for index, spte in at.table.used(at.start, at.stop)
        if is_shadow_present_pte(layout, spte) and is_last_spte(layout, spte, at.level)
    ]


def rmap_test_age(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether a leaf in a range was accessed.

    :Kernel: kvm_test_age_rmapp(), kvm_test_age_rmap() from v5.13
    """
    layout = vm.arch.layout
    if not layout.ad and not layout.saved_mask:
        # Without A in any form the primary MMU alone knows.
        return False
    a = layout.shadow_accessed_mask
    for at in for_each_rmap(vm, slot.as_id, start, end):
        table, level, first, stop = at
        if layout.ad:
            if any(table.count(m, first, stop) for m in leafs_with(layout, level, a)):
                return True
        elif any(is_accessed_spte(layout, spte) for _, spte in _leafs_of(layout, at)):
            return True
    return False


# -- dirty logging -----------------------------------------------------------------


def rmap_write_protect_slot(vm: Vm, slot: Memslot, min_level: int) -> Flush | None:
    """Take W from every leaf of a slot, from a level on; MMU-writable stays.

    :Kernel: kvm_mmu_slot_remove_write_access(); it may yield after each reverse map.
        Simplified: it never does; harmless because the flush is due after the unlock.
    """
    start, end = slot.base_gfn, slot.end_gfn
    if not _write_protect(vm, slot, start, end, min_level, pt_protect=False):
        return None
    return vm.ledger.owe(start, end, due="return")


def rmap_write_protect_gfn(
    vm: Vm, slot: Memslot, gfn: int, *, min_level: int = 1, due: str = "unlock"
) -> Flush | None:
    """Take W and MMU-writable from what maps a gfn, against fast faults too.

    :Kernel: rmap_write_protect(), kvm_mmu_slot_gfn_write_protect() from v5.11
    """
    if not _write_protect(vm, slot, gfn, gfn + 1, min_level, pt_protect=True):
        return None
    return vm.ledger.owe(gfn, gfn + 1, due=due)


def rmap_clear_dirty_slot(vm: Vm, slot: Memslot) -> Flush | None:
    """Take D from the 4 KiB leafs of a slot, or W where hardware does not set D.

    :Kernel: kvm_mmu_slot_leaf_clear_dirty(), from v4.0
    """
    start, end = slot.base_gfn, slot.end_gfn
    if not _clear_dirty(vm, slot, start, end):
        return None
    return vm.ledger.owe(start, end, due="return")


def rmap_dirty_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Make the next write to chosen 4 KiB pages visible again.

    :Kernel: kvm_mmu_write_protect_pt_masked(), kvm_mmu_clear_dirty_pt_masked()
    :param gfn: what bit 0 of the mask stands for.
    """
    changed = False
    for start, end in _runs(gfn, mask):
        if vm.arch.pml:
            changed |= _clear_dirty(vm, slot, start, end)
        else:
            changed |= _write_protect(
                vm, slot, start, end, 1, max_level=1, pt_protect=False
            )
    if not changed:
        return None
    return vm.ledger.owe(slot.base_gfn, slot.end_gfn, due="return")


def _runs(gfn: int, mask: int) -> list[tuple[int, int]]:
    """Return start and end of each run of ones in a mask."""
    runs = []
    while mask:
        gap = (mask & -mask).bit_length() - 1
        mask >>= gap
        length = (~mask & mask + 1).bit_length() - 1
        runs.append((gfn + gap, gfn + gap + length))
        mask >>= length
        gfn += gap + length
    return runs


def _write_protect(
    vm: Vm,
    slot: Memslot,
    start: int,
    end: int,
    min_level: int,
    *,
    max_level: int = 3,
    pt_protect: bool,
) -> bool:
    """Clear W, for a guest page table MMU-writable too; return whether that did much.

    :Kernel: spte_write_protect(). An entry without W is left alone, unless it is a
        guest page table's and could get W back.
    """
    layout = vm.arch.layout
    w = layout.writable_mask
    clear = w | (layout.shadow_mmu_writable_mask if pt_protect else 0)
    if vm.arch.lost_rmaps:
        forget_lost_rmaps(vm, slot.as_id, start, end, "write_protect")
    changed = 0
    for at in for_each_rmap(
        vm, slot.as_id, start, end, min_level=min_level, max_level=max_level
    ):
        table, level, first, stop = at
        if not layout.ad and layout.no_ad_mask:
            # W is what says dirty here.
            _mark_dirty(vm, at, w)
        for match in leafs_with(layout, level, w):
            changed += table.change(match, first, stop, clear=clear)
        if pt_protect:
            for match in leafs_with(layout, level, layout.lockless_mask):
                changed += table.change(match, first, stop, clear=clear)
    return changed > 0


def _clear_dirty(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    layout = vm.arch.layout
    w, d = layout.writable_mask, layout.shadow_dirty_mask
    bit = d if layout.ad else w
    if vm.arch.lost_rmaps:
        forget_lost_rmaps(vm, slot.as_id, start, end, "clear_dirty")
    changed = 0
    for at in for_each_rmap(vm, slot.as_id, start, end, max_level=1):
        _mark_dirty(vm, at, bit)
        for match in leafs_with(layout, at.level, bit):
            changed += at.table.change(match, at.start, at.stop, clear=bit)
    return changed > 0


def _mark_dirty(vm: Vm, at: RmapRange, bit: int) -> None:
    """Tell pages that they were written, before the bit that says so is cleared.

    :Kernel: kvm_set_pfn_dirty() in mmu_spte_update() and spte_wrprot_for_clear_dirty(),
        up to v6.12
    """
    if not vm.arch.rules.marks_when_dropped:
        return
    layout, mark = vm.arch.layout, vm.host.mark
    for match in leafs_with(layout, at.level, bit):
        for _index, spte in at.table.used(at.start, at.stop):
            if spte & match.mask == match.value:
                pfn = spte_to_pfn(layout, spte)
                mark(pfn, dirty=True, accessed=False, who="dirty logging")


# -- huge pages --------------------------------------------------------------------


def rmap_zap_collapsible(vm: Vm, slot: Memslot) -> Flush | None:
    """Drop the 4 KiB leafs whose memory the host maps by a huge page.

    :Kernel: kvm_mmu_zap_collapsible_sptes(), kvm_rmap_zap_collapsible_sptes() from
        v5.11
    """
    # Simplified: up to v5.11 the page decides, not its mapping; harmless because the
    # model's huge pages are split with their mapping.
    lpage_info, mm = vm.arch.lpage_info, vm.mm
    start, end = slot.base_gfn, slot.end_gfn
    dropped = 0
    for table, level, first, stop in for_each_rmap(
        vm, slot.as_id, start, end, max_level=1
    ):
        gfn = table.base + (first << LEVEL_BITS * (level - 1))
        vpn = slot.hva(gfn, vm.page_shift) >> vm.page_shift
        if mm.level_pages(vpn) >= pages_per_hpage(2) and not lpage_info.get(
            (slot.as_id, 2, table.base), 0
        ):
            dropped += drop_leafs(
                vm, table, first, stop, "kvm_mmu_zap_collapsible_spte"
            )
    return vm.ledger.owe(start, end) if dropped else None
