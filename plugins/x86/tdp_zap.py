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
    "zap_invalidated_roots",
]

from collections.abc import Sequence
from functools import partial

from kvmarch_x86.geometry import PAGE_SHIFT
from kvmarch_x86.spte import (
    is_accessed_spte,
    is_dirty_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from kvmarch_x86.state import ENTRIES, Role, X86Vm
from kvmarch_x86.tdp_tables import free_table, is_table, put_root

from kvmarch import Table, Vm, kvm_flush_remote_tlbs, op

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


ALL = -1
"""Where the walk of a root's own entries begins that has not given way yet."""


def _passes(arch: X86Vm) -> tuple[int, ...]:
    """Return the levels at which a root is zapped before its own entries are.

    Small steps first, so that no single one takes long (fact sheet x86, 3.9).
    """
    if arch.rules.four_passes:
        return (1, 2, 3)
    return (3,) if arch.rules.two_passes else ()


@op(name="next invalid root")
def _next_invalid(vm: Vm) -> int:
    roots = vm.arch.invalid_roots
    return int(roots[0]) if roots else 0


@op(name="put zapped root")
def _put_zapped(vm: Vm, root_pa: int) -> None:
    vm.arch.invalid_roots.remove(root_pa)
    if put_root(vm, root_pa):
        free_root(vm, root_pa)


@op(name="zap entry of root")
def _zap_entry(vm: Vm, root_pa: int, at: int, shared: bool) -> int:
    """Clear the first entry of a root itself that maps something, from an index on.

    Up to v5.15 a walk that had given way went on behind the entry at which it did (D7
    of the fact sheet).

    :returns: the index to go on from; 0 if nothing is left.
    """
    arch: X86Vm = vm.arch
    root = vm.tables.at(root_pa)
    present = [
        i for i, e in root.used(at, ENTRIES) if is_shadow_present_pte(arch.layout, e)
    ]
    if at and not arch.rules.restarts_at_entry:
        present = present[1:]
    if not present:
        return 0
    index = present[0]
    entry = root.get(index)
    if is_table(entry):
        root.set(index, arch.layout.nonpresent)
        child = vm.tables.at(entry & arch.layout.pfn_mask)
        remove_table(vm, child, shared=shared)
    else:
        drop_leaves(vm, root, index, index + 1, "tdp_mmu_zap_root")
    return index + 1 if len(present) > 1 else 0


async def zap_invalidated_roots(vm: Vm, shared: bool) -> None:
    """Zap the roots that were made invalid, and put the MMU's reference to each.

    The lock is given up between the passes and after each entry of a root, as it is
    whenever somebody waits for it. Nothing is flushed: no vCPU may enter the guest
    with such a root. From v5.18 to v6.5 a worker does it and the caller waits.

    :Kernel: kvm_tdp_mmu_zap_invalidated_roots()
    :Locking: takes mmu_lock, for read if ``shared``.
    """
    lock = vm.mmu_lock
    pa = await _next_invalid(vm)
    while pa:
        for level in _passes(vm.arch):
            async with lock.read() if shared else lock.write(), vm.rcu.read():
                await _zap_level(vm, pa, level, shared)
        at = ALL
        while at:
            async with lock.read() if shared else lock.write(), vm.rcu.read():
                at = await _zap_entry(vm, pa, max(at, 0), shared)
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
def _zap_next_of_all(
    vm: Vm, root_pa: int, at: int, shared: bool
) -> tuple[int, int, bool]:
    """Clear a root down to its last entry but those behind it; go on in the next one.

    :param at: the index in the root to go on from; ``ALL`` for its beginning.
    :returns: root and index to go on from, 0 for both at the end; and whether there
        was anything.
    """
    arch: X86Vm = vm.arch
    found = False
    roots = list(arch.roots)
    if root_pa:
        roots = roots[roots.index(root_pa) :]
    for pa in roots:
        if pa != root_pa:
            at = ALL
        if at == ALL:
            for level in _passes(arch):
                found |= _zap_level.fn(vm, pa, level, shared)
        root = vm.tables.at(pa)
        found |= any(
            is_shadow_present_pte(arch.layout, e)
            for _i, e in root.used(max(at, 0), ENTRIES)
        )
        following = _zap_entry.fn(vm, pa, max(at, 0), shared)
        if found and arch.rules.flushes_zap_all:
            vm.ledger.owe(0, 1 << arch.gfn_bits)
        if following:
            # A reference keeps the root while the lock is given up.
            root.refs += pa != root_pa
            return pa, following, found
        if pa == root_pa and put_root(vm, pa):
            free_root(vm, pa)
    return 0, 0, found


async def tdp_zap_all(vm: Vm, *, shared: bool = False) -> None:
    """Clear every root, invalid ones included; the roots stay.

    It gives way after each entry of a root, and pays before what it owes until then.

    :Kernel: kvm_tdp_mmu_zap_all(); with a flush up to v5.17, without from v5.18
    :Locking: mmu_lock exclusively; dropped on the way. For read if ``shared``.
    """
    pa, at, found = await _zap_next_of_all(vm, 0, ALL, shared)
    if found and vm.arch.rules.flushes_zap_all:
        await kvm_flush_remote_tlbs(vm)
    while pa:
        if not shared:
            await vm.mmu_lock.drop_write()
            await vm.mmu_lock.take_write()
        pa, at, found = await _zap_next_of_all(vm, pa, at, shared)
        if found and vm.arch.rules.flushes_zap_all:
            await kvm_flush_remote_tlbs(vm)
