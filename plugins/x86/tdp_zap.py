"""Dropping entries of the TDP MMU: leaves, tables, whole roots.

:Kernel: tdp_mmu_zap_leafs(), zap_gfn_range(), handle_changed_spte(),
    handle_removed_pt(), tdp_mmu_zap_root(); fact sheet x86, 2, 3.3, 3.9 and 4.
"""

__all__ = [
    "drop_leaves",
    "free_root",
    "invalidate_roots",
    "mark_page",
    "remove_table",
    "tdp_zap_all",
    "unmap_leaves",
    "zap_invalidated_roots",
    "zap_range",
]

from collections.abc import Sequence
from functools import partial

from kvmarch_x86.geometry import LEVEL_BITS, PAGE_SHIFT
from kvmarch_x86.spte import (
    is_accessed_spte,
    is_dirty_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from kvmarch_x86.state import ENTRIES, Role, X86Vm
from kvmarch_x86.tdp_tables import free_table, is_table, put_root, runs

from kvmarch import Flush, Table, Vm, kvm_flush_remote_tlbs, op

ALL_BITS = (1 << 64) - 1


def mark_page(vm: Vm, spte: int, who: str) -> None:
    """Tell the page of a leaf that goes away what the leaf knows of it.

    :Kernel: kvm_set_pfn_dirty(), kvm_set_pfn_accessed(), called for a dropped entry
        up to v6.12
    """
    layout = vm.arch.layout
    dirty, accessed = is_dirty_spte(layout, spte), is_accessed_spte(layout, spte)
    if dirty or accessed:
        vm.host.mark(spte_to_pfn(layout, spte), dirty=dirty, accessed=accessed, who=who)


def _mark_pages(vm: Vm, table: Table, first: int, stop: int, who: str) -> None:
    """Tell the pages of all leaves in a run of entries."""
    vm.host.mark_run(partial(_mark_leaves, vm, table.copy(first, stop), who))


def _mark_leaves(vm: Vm, sptes: Sequence[int], who: str) -> None:
    arch: X86Vm = vm.arch
    layout, mark = arch.layout, vm.host.mark
    mask, value = arch.leaf.mask, arch.leaf.value
    if not layout.ad:
        for spte in sptes:
            if spte & mask == value:
                mark_page(vm, spte, who)
        return
    # The same where A and D are bits, without a call per entry but one.
    pfn_mask = layout.pfn_mask
    a, d = layout.shadow_accessed_mask, layout.shadow_dirty_mask
    for spte in sptes:
        if spte & mask == value and spte & (a | d):
            pfn = (spte & pfn_mask) >> PAGE_SHIFT
            mark(pfn, dirty=spte & d != 0, accessed=spte & a != 0, who=who)


def drop_leaves(vm: Vm, table: Table, first: int, stop: int, who: str) -> int:
    """Clear the leaves in a run of entries; return how many there were.

    MMIO entries stay, and what is frozen belongs to somebody else. A run above level 1
    holds no pointers at tables.
    """
    arch: X86Vm = vm.arch
    if arch.rules.marks_when_dropped:
        _mark_pages(vm, table, first, stop, who)
    put = arch.layout.nonpresent
    return table.change(arch.leaf, first, stop, clear=ALL_BITS, put=put)


def unmap_leaves(
    vm: Vm, as_id: int, start: int, end: int, *, invalid: bool
) -> Flush | None:
    """Drop the leaves of a range in every root of an address space.

    :Kernel: kvm_tdp_mmu_zap_leafs(), kvm_tdp_mmu_unmap_gfn_range(), v5.18 on
    :Locking: mmu_lock for write.
    :param invalid: roots that are invalid by now as well.
    """
    arch: X86Vm = vm.arch
    owed = False
    for pa in arch.roots:
        root = vm.tables.at(pa)
        role: Role = root.note
        if role.as_id != as_id or (role.invalid and not invalid):
            continue
        dropped = 0
        for table, first, stop in runs(vm, root, start, end):
            dropped += drop_leaves(vm, table, first, stop, "tdp_mmu_zap_leafs")
        # An invalid root owes nothing from v6.12 on: its vCPUs were told to leave it.
        if dropped and (not role.invalid or arch.rules.flushes_invalid):
            owed = True
    return vm.ledger.owe(start, end) if owed else None


# -- tables ------------------------------------------------------------------------


def remove_table(vm: Vm, table: Table, *, shared: bool) -> None:
    """Take a table out of use that was unlinked, with all that is below it.

    With the lock shared each entry is frozen, so that a fault which is still inside
    changes nothing any more; with it exclusive only those that map something. In
    v5.10 they become 0.

    :Kernel: handle_removed_pt(), handle_removed_tdp_mmu_page()
    """
    arch: X86Vm = vm.arch
    layout, leaf = arch.layout, arch.leaf
    frozen = arch.frozen
    if vm.world.traced:
        vm.world.note("kvm_mmu_prepare_zap_page", gfn=table.base, level=table.level)
    if table.level > 1:
        for _index, entry in table.used(0, ENTRIES):
            if is_table(entry):
                child = vm.tables.at(entry & layout.pfn_mask)
                remove_table(vm, child, shared=shared)
    if arch.rules.marks_when_dropped:
        if table.level == 1:
            _mark_pages(vm, table, 0, ENTRIES, "handle_removed_pt")
        for index, entry in table.used(0, ENTRIES):
            if table.level > 1 and not is_table(entry):
                _mark_pages(vm, table, index, index + 1, "handle_removed_pt")
    if shared:
        table.fill(frozen, 0, ENTRIES)
    elif table.level > 1:
        for index, entry in table.used(0, ENTRIES):
            if is_shadow_present_pte(layout, entry):
                table.set(index, frozen)
    else:
        table.change(leaf, 0, ENTRIES, clear=ALL_BITS, put=frozen)
    free_table(vm, table)


def _clear_table(vm: Vm, table: Table, *, shared: bool) -> bool:
    """Clear every present entry of a table; return whether there was one."""
    layout = vm.arch.layout
    found = False
    if table.level > 1:
        for index, entry in table.used(0, ENTRIES):
            if is_table(entry):
                table.set(index, layout.nonpresent)
                child = vm.tables.at(entry & layout.pfn_mask)
                remove_table(vm, child, shared=shared)
                found = True
    return bool(drop_leaves(vm, table, 0, ENTRIES, "tdp_mmu_zap_root")) or found


def zap_range(vm: Vm, root: Table, start: int, end: int) -> bool:
    """Drop what maps a range: whole tables inside it, and the leaves that overlap it.

    Simplified: the tables are given back in the same step, before their flush, as
    under RCU; harmless in v5.10 too, where no vCPU walks tables without the lock.

    :Kernel: zap_gfn_range(), v5.10 to v5.17
    :Locking: mmu_lock exclusively.
    :returns: whether a flush is owed.
    """
    layout = vm.arch.layout
    shift = LEVEL_BITS * (root.level - 1)
    first = max(start - root.base, 0) >> shift
    stop = min((end - root.base - 1 >> shift) + 1, ENTRIES)
    if not shift:
        return bool(drop_leaves(vm, root, first, stop, "zap_gfn_range"))
    dropped = False
    for index, entry in root.used(first, stop):
        base = root.base + (index << shift)
        if not is_table(entry):
            dropped |= bool(drop_leaves(vm, root, index, index + 1, "zap_gfn_range"))
        elif start <= base and base + (1 << shift) <= end:
            root.set(index, layout.nonpresent)
            remove_table(vm, vm.tables.at(entry & layout.pfn_mask), shared=False)
            dropped = True
        else:
            dropped |= zap_range(vm, vm.tables.at(entry & layout.pfn_mask), start, end)
    return dropped


# -- roots -------------------------------------------------------------------------


@op(name="mark roots invalid")
def invalidate_roots(vm: Vm) -> None:
    """Make every root unfit for new loads, to be zapped later.

    :Kernel: kvm_tdp_mmu_invalidate_all_roots(), v5.13 on
    :Locking: mmu_lock for write.
    """
    arch: X86Vm = vm.arch
    for pa in arch.roots:
        root = vm.tables.at(pa)
        role: Role = root.note
        if role.invalid:
            continue
        root.note = role._replace(invalid=True)
        arch.root_of[role.as_id] = 0
        if not arch.rules.keeps_roots:
            # The zapper must find the root even if its last vCPU leaves it.
            root.refs += 1
        arch.invalid_roots.append(pa)


@op(name="zap level of root")
def _zap_level(vm: Vm, root_pa: int, level: int, shared: bool) -> bool:
    """Clear every entry of a root that is at a level; return whether one was there."""
    found = False
    for table in _tables_of(vm, vm.tables.at(root_pa), level):
        found |= _clear_table(vm, table, shared=shared)
    return found


def _tables_of(vm: Vm, table: Table, level: int) -> list[Table]:
    """Return the tables of a level at and below a table."""
    if table.level <= level:
        return [table] if table.level == level else []
    pfn_mask = vm.arch.layout.pfn_mask
    return [
        found
        for _index, entry in table.used(0, ENTRIES)
        if is_table(entry)
        for found in _tables_of(vm, vm.tables.at(entry & pfn_mask), level)
    ]


def _passes(arch: X86Vm) -> tuple[int, ...]:
    """Return the levels at which a root is zapped one after the other.

    Small steps first, so that no single one takes long (fact sheet x86, 3.9).
    """
    return (1, 2, 3, arch.level) if arch.rules.four_passes else (3, arch.level)


@op(name="next invalid root")
def _next_invalid(vm: Vm) -> int:
    roots = vm.arch.invalid_roots
    return int(roots[0]) if roots else 0


@op(name="put zapped root")
def _put_zapped(vm: Vm, root_pa: int) -> None:
    vm.arch.invalid_roots.remove(root_pa)
    if put_root(vm, root_pa):
        free_root(vm, root_pa)


async def zap_invalidated_roots(vm: Vm, shared: bool) -> None:
    """Zap the roots that were made invalid, and put the MMU's reference to each.

    The lock is given up between the passes, as it is whenever somebody waits for it.
    Nothing is flushed: no vCPU may enter the guest with such a root. From v5.18 to
    v6.5 a worker does it and the caller waits.

    :Kernel: kvm_tdp_mmu_zap_invalidated_roots()
    :Locking: takes mmu_lock, for read if ``shared``.
    """
    lock = vm.mmu_lock
    pa = await _next_invalid(vm)
    while pa:
        for level in _passes(vm.arch):
            async with lock.read() if shared else lock.write(), vm.rcu.read():
                await _zap_level(vm, pa, level, shared)
        async with lock.read() if shared else lock.write():
            await _put_zapped(vm, pa)
        pa = await _next_invalid(vm)


def free_root(vm: Vm, root_pa: int) -> None:
    """Zap what a root without users still maps, and give it back.

    :Kernel: kvm_tdp_mmu_put_root(), kvm_tdp_mmu_free_root()
    """
    arch: X86Vm = vm.arch
    root = vm.tables.at(root_pa)
    role: Role = root.note
    arch.roots.remove(root_pa)
    if arch.root_of.get(role.as_id) == root_pa:
        arch.root_of[role.as_id] = 0
    if root_pa in arch.invalid_roots:
        arch.invalid_roots.remove(root_pa)
    remove_table(vm, root, shared=False)


@op(name="zap all of the TDP MMU")
def _zap_roots(vm: Vm) -> Flush | None:
    arch: X86Vm = vm.arch
    found = False
    for pa in tuple(arch.roots):
        for level in _passes(arch):
            found |= _zap_level.fn(vm, pa, level, False)
    if found and arch.rules.flushes_zap_all:
        return vm.ledger.owe(0, 1 << arch.gfn_bits)
    return None


async def tdp_zap_all(vm: Vm) -> None:
    """Clear every root, invalid ones included; the roots stay.

    Simplified: without yielding.

    :Kernel: kvm_tdp_mmu_zap_all(); with a flush up to v5.17, without from v5.18
    :Locking: mmu_lock exclusively.
    """
    owed = await _zap_roots(vm)
    if owed is not None:
        await kvm_flush_remote_tlbs(vm)
