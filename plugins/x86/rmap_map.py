"""A fault of the direct MMU with mmu_lock held: link tables, set the leaf, prefetch.

:Kernel: direct_map(), __direct_map(), mmu_set_spte(), direct_pte_prefetch() in
    arch/x86/kvm/mmu.c, later arch/x86/kvm/mmu/mmu.c, v3.16 to v7.2; fact sheet x86,
    3.1 and 4.
"""

__all__ = ["RMAP_RECYCLE_THRESHOLD", "rmap_map"]

from kvmarch_x86.geometry import LEVEL_BITS, pages_per_hpage
from kvmarch_x86.mmio import kvm_current_mmio_generation, make_mmio_spte
from kvmarch_x86.rmap_entries import (
    drop_leafs,
    leafs,
    store_spte,
)
from kvmarch_x86.rmap_pages import kvm_mmu_get_page, link_shadow_page, unlink_child
from kvmarch_x86.spte import (
    is_last_spte,
    is_shadow_present_pte,
    make_spte,
    spte_to_pfn,
    without_dirty,
)
from kvmarch_x86.state import ENTRIES, Role

from kvmarch import HostPte, Memslot, Table, Vm, gfn_to_memslot

ACC_ALL = 7
"""Execute, write and user access."""
PTE_PREFETCH_NUM = 8
RMAP_RECYCLE_THRESHOLD = 1000
"""More entries than that in one reverse map are all zapped when one is added."""

GUP_FAST_WRITE = HostPte.present.mask | HostPte.write.mask


def rmap_map(
    vm: Vm,
    slot: Memslot | None,
    gfn: int,
    pfn: int,
    goal_level: int,
    *,
    root_pa: int,
    host_writable: bool = False,
    gen: int = 0,
) -> str:
    """Map a gfn, or mark it as MMIO, and then look at its neighbours.

    Flushes that are needed are entered in the ledger and due before the unlock.

    :Kernel: __direct_map() up to v5.17, direct_map() later
    :param slot: None where the gfn has none: an MMIO entry is made.
    :param pfn: of the gfn, or of the first page at the goal level.
    :param goal_level: the largest level that the fault may use.
    :param root_pa: the root that the vCPU has loaded.
    :param host_writable: the host lets the guest write; the leaf then does, whether
        the fault is a write or not.
    :param gen: the memslots' generation that an MMIO entry gets.
    :returns: ``guest``; ``mmio`` if the access must be emulated.
    """
    layout = vm.arch.layout
    offset = gfn & pages_per_hpage(goal_level) - 1
    pfn = pfn & -pages_per_hpage(goal_level) | offset
    tables = vm.tables
    table = tables.at(root_pa)
    level = table.level
    while True:
        index = gfn >> LEVEL_BITS * (level - 1) & ENTRIES - 1
        spte = table.get(index)
        present = is_shadow_present_pte(layout, spte)
        is_table = present and not is_last_spte(layout, spte, level)
        if level == goal_level and not (is_table and layout.nx_huge_pages):
            break
        # Where a table is at the goal already, an executable page may be in it: a huge
        # page that is not executable must not take its place.
        # Simplified: from v6.2 (from memory) only if the mitigation is why the table
        # is there; harmless because the page is mapped either way.
        goal_level = min(goal_level, level - 1)
        if is_table:
            table = tables.at(spte & layout.pfn_mask)
        else:
            if present:
                drop_leafs(vm, table, index, index + 1, "drop_large_spte")
                _owe_flush(vm, gfn, level)
            role: Role = table.note
            base = gfn & -pages_per_hpage(level)
            child = kvm_mmu_get_page(vm, role.as_id, level - 1, base)
            link_shadow_page(vm, table, index, child)
            table = child
        level -= 1
    if slot is None:
        _set_mmio(vm, table, index, gfn, gen)
        _direct_pte_prefetch(vm, table, index)
        return "mmio"
    changed = _mmu_set_spte(
        vm, slot, table, index, pfn, host_writable=host_writable, prefetch=False
    )
    if changed or not vm.k.x86_rmap_spurious_ends:
        _direct_pte_prefetch(vm, table, index)
    return "guest"


def _owe_flush(vm: Vm, gfn: int, level: int) -> None:
    pages = pages_per_hpage(level)
    first = gfn & -pages
    vm.ledger.owe(first, first + pages)


def _gfn_of(table: Table, index: int) -> int:
    """Return the first gfn of an entry (kvm_mmu_page_get_gfn())."""
    return table.base + (index << LEVEL_BITS * (table.level - 1))


def _mmu_set_spte(
    vm: Vm,
    slot: Memslot,
    table: Table,
    index: int,
    pfn: int,
    *,
    host_writable: bool,
    prefetch: bool,
) -> bool:
    """Set a leaf; return whether that changed the entry.

    :Kernel: mmu_set_spte() with set_spte()
    """
    layout = vm.arch.layout
    level = table.level
    pfn &= -pages_per_hpage(level)
    gfn = _gfn_of(table, index)
    old = table.get(index)
    was_rmapped = flush = False
    if is_shadow_present_pte(layout, old):
        if not is_last_spte(layout, old, level):
            unlink_child(vm, table, index)
            flush = True
        elif pfn != spte_to_pfn(layout, old):
            drop_leafs(vm, table, index, index + 1, "mmu_set_spte")
            flush = True
        else:
            was_rmapped = True
    new = make_spte(
        layout,
        pfn,
        level,
        execute=True,
        host_writable=host_writable,
        prefetch=prefetch,
    )
    if not vm.arch.rules.dirty_over_writable:
        new = without_dirty(layout, new, table.get(index))
    if new & layout.writable_mask and slot.bitmap:
        vm.mark_page_dirty(slot, gfn)
    changed = table.get(index) != new
    if changed:
        flush |= store_spte(vm, table, index, new, "mmu_set_spte")
        vm.world.note("kvm_mmu_set_spte", gfn=gfn, spte=new, level=level)
    if flush:
        _owe_flush(vm, gfn, level)
    if not was_rmapped:
        _rmap_add(vm, table, index, gfn)
    return changed


def _rmap_add(vm: Vm, table: Table, index: int, gfn: int) -> None:
    """Keep a reverse map from growing too long; the leaf is in it by its place.

    :Kernel: rmap_add(), rmap_recycle() up to v5.16
    """
    role: Role = table.note
    here = vm.arch.mmu_page_hash[role.as_id, table.level, table.base]
    if len(here) <= RMAP_RECYCLE_THRESHOLD:
        return
    mapped = leafs(vm.arch.layout, table.level)
    tables = [vm.tables.at(pa) for pa in here]
    count = sum(t.count(m, index, index + 1) for t in tables for m in mapped)
    if count - 1 > RMAP_RECYCLE_THRESHOLD:
        for each in tables:
            drop_leafs(vm, each, index, index + 1, "rmap_recycle")
        _owe_flush(vm, gfn, table.level)


# -- MMIO entries ------------------------------------------------------------------


def _set_mmio(vm: Vm, table: Table, index: int, gfn: int, generation: int) -> None:
    """Mark a gfn as MMIO.

    :Kernel: mark_mmio_spte(); fact sheet x86, D16
    """
    layout = vm.arch.layout
    old = table.get(index)
    if is_shadow_present_pte(layout, old):
        if vm.k.x86_rmap_mmio_overwrites:
            role: Role = table.note
            where = role.as_id, table.level, _gfn_of(table, index)
            vm.arch.lost_rmaps.setdefault(where, []).append((table.pa, index))
        else:
            drop_leafs(vm, table, index, index + 1, "mark_mmio_spte")
            _owe_flush(vm, gfn, table.level)
    slice_ = kvm_current_mmio_generation(layout, generation)
    vm.world.note("mark_mmio_spte", gfn=gfn, access=ACC_ALL, gen=slice_)
    place = vm.arch.place_generation
    table.set(index, make_mmio_spte(layout, gfn, ACC_ALL, generation, place=place))


# -- prefetch ----------------------------------------------------------------------


def _direct_pte_prefetch(vm: Vm, table: Table, index: int) -> None:
    """Map the neighbours of a page that just faulted, as far as that costs nothing.

    :Kernel: direct_pte_prefetch(), __direct_pte_prefetch()
    """
    layout = vm.arch.layout
    # Before v5.12 nobody asked whether an invalidation is in progress: then the fault
    # itself was retried.
    if table.level > 1 or not layout.ad or vm.mmu_invalidate_in_progress:
        return
    present, absent, value = (
        layout.present_mask,
        layout.absent_mask,
        layout.absent_value,
    )
    start = -1
    first = index & -PTE_PREFETCH_NUM
    for at in range(first, first + PTE_PREFETCH_NUM):
        spte = table.get(at)
        if at == index or (spte & present and spte & absent != value):
            if start >= 0:
                if not _direct_pte_prefetch_many(vm, table, start, at):
                    return
                start = -1
        elif start < 0:
            start = at
    if start >= 0 and vm.k.x86_rmap_prefetch_trailing:
        _direct_pte_prefetch_many(vm, table, start, first + PTE_PREFETCH_NUM)


def _direct_pte_prefetch_many(vm: Vm, table: Table, start: int, stop: int) -> bool:
    """Map a run of pages up to the first that the host has not mapped writable.

    :Kernel: direct_pte_prefetch_many(), gfn_to_page_many_atomic()
    :returns: whether there was at least one.
    """
    role: Role = table.note
    gfn = table.base + start
    slot = gfn_to_memslot(vm, gfn, role.as_id)
    if slot is None or slot.invalid or slot.logs_dirty or slot.readonly:
        return False
    count = stop - start
    if slot.end_gfn - gfn < count:
        # gfn_to_hva_many(): a run that leaves the slot gets no page at all.
        return False
    vpn = slot.hva(gfn, vm.page_shift) >> vm.page_shift
    for at in range(count):
        entry = vm.mm.pte(vpn + at)
        if entry & GUP_FAST_WRITE != GUP_FAST_WRITE:
            return at > 0
        _mmu_set_spte(
            vm,
            slot,
            table,
            start + at,
            HostPte.pfn.get(entry),
            host_writable=True,
            prefetch=True,
        )
    return True
