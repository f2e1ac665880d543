"""Huge pages of the TDP MMU: split for dirty logging, made again after it.

:Kernel: kvm_tdp_mmu_try_split_huge_pages(), kvm_tdp_mmu_zap_collapsible_sptes(),
    recover_huge_pages_range(); fact sheet x86, 3.7.
"""

__all__ = ["CHOICES", "split_huge_now", "split_huge_pages"]

from kvmarch_x86.geometry import LEVEL_BITS, pages_per_hpage
from kvmarch_x86.spte import (
    is_frozen_spte,
    is_shadow_present_pte,
    make_huge_spte,
    make_nonleaf_spte,
)
from kvmarch_x86.state import ENTRIES, X86Vm
from kvmarch_x86.tdp_map import fill_from_huge, huge_level
from kvmarch_x86.tdp_tables import alloc_child, next_run
from kvmarch_x86.tdp_zap import drop_leaves, remove_table

from kvmarch import (
    Choice,
    Memslot,
    Table,
    Vm,
    kvm_flush_remote_tlbs_range,
    op,
)

# -- split -------------------------------------------------------------------------


@op(name="find huge page")
def _next_huge(
    vm: Vm, as_id: int, start: int, end: int, target: int
) -> tuple[Table, int, int, int] | None:
    """Return table, index and value of the next leaf above a level, and its gfn."""
    layout = vm.arch.layout
    while start < end:
        run = next_run(vm, as_id, start, end)
        if run is None:
            return None
        table, index, _stop, after = run
        if table.level > target:
            entry = table.get(index)
            if is_shadow_present_pte(layout, entry):
                base = table.base + (index << LEVEL_BITS * (table.level - 1))
                return table, index, entry, base
        start = after
    return None


@op(name="alloc table to split")
def _alloc(vm: Vm, table: Table, index: int) -> Table | None:
    """Return a new table; None if there is no memory for it.

    :Kernel: tdp_mmu_alloc_sp_for_split()
    """
    return None if vm.out_of_tables else alloc_child(vm, table, index)


@op(name="cmpxchg huge SPTE to table")
def _split(vm: Vm, table: Table, index: int, old: int, child: Table) -> bool:
    """Link the filled table unless the huge leaf has changed; no flush is owed.

    :Kernel: tdp_mmu_split_huge_page()
    """
    if table.get(index) != old:
        return False
    fill_from_huge(vm, child, old)
    table.set(index, make_nonleaf_spte(vm.arch.layout, child.pa))
    vm.world.note(
        "kvm_mmu_split_huge_page", gfn=child.base, spte=old, level=table.level
    )
    return True


@op(name="free unused table")
def _free_unused(vm: Vm, child: Table) -> None:
    vm.tables.free(child)


async def split_huge_pages(vm: Vm, as_id: int, start: int, end: int) -> None:
    """Split every huge page of a range down to 4 KiB, as far as memory goes.

    Simplified: the table is allocated without dropping the lock.

    :Kernel: kvm_tdp_mmu_try_split_huge_pages(), v5.18 on
    :Locking: mmu_lock, in either mode, and RCU.
    """
    huge = await _next_huge(vm, as_id, start, end, 1)
    while huge is not None:
        child = await _alloc(vm, huge[0], huge[1])
        if child is None:
            return
        done = await _split(vm, huge[0], huge[1], huge[2], child)
        if not done:
            await _free_unused(vm, child)
        huge = await _next_huge(vm, as_id, huge[3], end, 1)


def split_huge_now(vm: Vm, as_id: int, start: int, end: int) -> None:
    """Split every huge page of a range in one step, as far as memory goes.

    :Kernel: kvm_mmu_try_split_huge_pages(), when user space clears the log
    :Locking: mmu_lock for write.
    """
    huge = _next_huge.fn(vm, as_id, start, end, 1)
    while huge is not None:
        table, index, old, base = huge
        child = _alloc.fn(vm, table, index)
        if child is None:
            return
        _split.fn(vm, table, index, old, child)
        huge = _next_huge.fn(vm, as_id, base, end, 1)


# -- collapse ----------------------------------------------------------------------

collapse = Choice("x86_collapse", "what the TDP MMU does when dirty logging ends")


def _parent(vm: Vm, child: Table) -> tuple[Table, int]:
    """Return the table and index that point at a table of level 1."""
    arch: X86Vm = vm.arch
    table = vm.tables.at(arch.root_of[child.note.as_id])
    while True:
        index = child.base >> LEVEL_BITS * (table.level - 1) & ENTRIES - 1
        entry = table.get(index)
        if entry & arch.layout.pfn_mask == child.pa:
            return table, index
        table = vm.tables.at(entry & arch.layout.pfn_mask)


@op(name="find collapsible table")
def _next_collapsible(
    vm: Vm, slot: Memslot, start: int
) -> tuple[Table, int, int, Table] | None:
    """Return the next entry whose 4 KiB pages the host maps by one huge page.

    :returns: table and index of the entry, its value, and the table it points at.
    """
    end = slot.end_gfn
    while start < end:
        run = next_run(vm, slot.as_id, start, end)
        if run is None:
            return None
        table, first, stop, start = run
        if (
            table.level == 1
            and table.count(vm.arch.leaf, first, stop)
            and huge_level(vm, slot, table.base + first, "read") > 1
        ):
            parent, index = _parent(vm, table)
            return parent, index, parent.get(index), table
    return None


@op(name="zap collapsible leaves")
def _zap_leaves(vm: Vm, child: Table) -> None:
    drop_leaves(vm, child, 0, ENTRIES, "zap_collapsible_spte_range")
    vm.ledger.owe(child.base, child.base + ENTRIES)


@collapse.when()
async def _collapse_leaves(vm: Vm, slot: Memslot) -> None:
    """Drop 4 KiB leaves, so that faults make the huge page again (to v5.18).

    :Kernel: kvm_tdp_mmu_zap_collapsible_sptes()
    """
    found = await _next_collapsible(vm, slot, slot.base_gfn)
    while found is not None:
        child = found[3]
        await _zap_leaves(vm, child)
        await kvm_flush_remote_tlbs_range(vm, child.base, child.base + ENTRIES)
        found = await _next_collapsible(vm, slot, child.base + ENTRIES)


@op(name="cmpxchg table to frozen")
def _freeze(vm: Vm, table: Table, index: int, old: int, child: Table) -> bool:
    layout = vm.arch.layout
    if table.get(index) != old or is_frozen_spte(layout, old):
        return False
    table.set(index, vm.arch.frozen)
    remove_table(vm, child, shared=True)
    vm.ledger.owe(child.base, child.base + ENTRIES)
    return True


@op(name="unfreeze SPTE")
def _thaw(vm: Vm, table: Table, index: int) -> None:
    table.set(index, vm.arch.layout.nonpresent)


@collapse.when("x86-collapse-tables")
async def _collapse_tables(vm: Vm, slot: Memslot) -> None:
    """Take whole tables out: freeze, flush, empty (v5.19 to v6.12).

    :Kernel: kvm_tdp_mmu_zap_collapsible_sptes(), tdp_mmu_zap_spte_atomic()
    :Locking: mmu_lock for read, RCU.
    """
    found = await _next_collapsible(vm, slot, slot.base_gfn)
    while found is not None:
        table, index, old, child = found
        base = child.base
        done = await _freeze(vm, table, index, old, child)
        if done:
            await kvm_flush_remote_tlbs_range(vm, base, base + ENTRIES)
            await _thaw(vm, table, index)
        found = await _next_collapsible(vm, slot, base + ENTRIES)


@op(name="cmpxchg table to huge SPTE")
def _recover(vm: Vm, table: Table, index: int, old: int, child: Table) -> bool:
    """Replace a table by the huge leaf that its first present entry belongs to.

    :Kernel: recover_huge_pages_range(), make_huge_spte()
    :returns: whether a flush is owed.
    """
    arch: X86Vm = vm.arch
    layout, leaf = arch.layout, arch.leaf
    small = next(
        (s for _i, s in child.used(0, ENTRIES) if s & leaf.mask == leaf.value), 0
    )
    if table.get(index) != old or not small:
        return False
    table.set(index, make_huge_spte(layout, small, table.level))
    remove_table(vm, child, shared=True)
    vm.ledger.owe(child.base, child.base + pages_per_hpage(table.level))
    return True


@collapse.when("x86-collapse-tables", "x86-recover-huge-pages")
async def _recover_huge_pages(vm: Vm, slot: Memslot) -> None:
    """Put huge leaves in place of tables; one flush before RCU is left (v6.13 on).

    :Kernel: kvm_tdp_mmu_recover_huge_pages()
    :Locking: mmu_lock for read, RCU.
    """
    flush = False
    found = await _next_collapsible(vm, slot, slot.base_gfn)
    while found is not None:
        table, index, old, child = found
        base = child.base
        done = await _recover(vm, table, index, old, child)
        flush = flush or done
        found = await _next_collapsible(vm, slot, base + ENTRIES)
    if flush:
        await kvm_flush_remote_tlbs_range(vm, slot.base_gfn, slot.end_gfn)


CHOICES = (collapse,)
