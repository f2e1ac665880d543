"""Mapping a page in the TDP MMU: with mmu_lock shared, and before v5.12 exclusively.

:Kernel: kvm_tdp_mmu_map() and what it calls, v5.10 on; fact sheet x86, 3.1.
"""

__all__ = [
    "FIXED",
    "LEAF",
    "PENDING",
    "RETRY",
    "SPURIOUS",
    "Fault",
    "Target",
    "begin",
    "commit",
    "fill_from_huge",
    "finish_shared",
    "goal_level",
    "huge_level",
    "map_exclusively",
]

from functools import cache
from typing import NamedTuple

from kvmarch_x86.geometry import LEVEL_BITS, PAGE_SHIFT, pages_per_hpage
from kvmarch_x86.layout import Layout
from kvmarch_x86.mmio import (
    kvm_current_mmio_generation,
    make_mmio_spte,
)
from kvmarch_x86.spte import (
    is_access_allowed,
    is_last_spte,
    is_shadow_present_pte,
    make_huge_page_split_spte,
    make_nonleaf_spte,
    make_spte,
    without_dirty,
)
from kvmarch_x86.stale import is_page_fault_stale
from kvmarch_x86.state import ENTRIES, X86Vm
from kvmarch_x86.tdp_tables import (
    INDEX,
    alloc_child,
    is_table,
    lowest,
    rcu_read_lock,
    rcu_read_unlock,
)
from kvmarch_x86.tdp_zap import mark_page, remove_table

from kvmarch import (
    LOG_DIRTY_PAGES,
    Memslot,
    Table,
    Vcpu,
    Vm,
    kvm_flush_remote_tlbs_range,
    op,
)

ACC_ALL = 7
"""ACC_EXEC_MASK, ACC_WRITE_MASK and ACC_USER_MASK: what a direct map allows."""

RETRY, FIXED, SPURIOUS = "retry", "fixed", "spurious"
LEAF, LINK, HUGE, FLUSH = "leaf", "link", "huge", "flush"
PENDING = frozenset({LEAF, LINK, HUGE, FLUSH})
"""What a :class:`Target` can ask for; the rest says how the map has ended."""


class Fault(NamedTuple):
    """What a page fault has found out before it takes mmu_lock.

    :Kernel: struct kvm_page_fault
    :param slot: None where nothing is mapped: an MMIO entry is made.
    :param pfn: of the very gfn, whatever size is mapped.
    :param writable: the host has the page writable (``map_writable``).
    :param seq: mmu_invalidate_seq from before the host was asked.
    """

    gfn: int
    access: str
    slot: Memslot | None
    pfn: int
    writable: bool
    seq: int


class Target(NamedTuple):
    """Where a map stands: what is to be done next, and with which entry."""

    what: str
    table: Table | None = None
    at: int = 0
    old: int = 0
    new: int = 0


GIVE_UP, DONE, DONE_BEFORE = Target(RETRY), Target(FIXED), Target(SPURIOUS)


@cache
def leaf_bits(layout: Layout, level: int, writable: bool) -> int:
    """Return a new leaf without its frame, of a page that is executable."""
    return make_spte(layout, 0, level, host_writable=writable)


def goal_level(vm: Vm, slot: Memslot | None, gfn: int, access: str) -> int:
    """Return the level at which a fault maps its page.

    :Kernel: kvm_mmu_hugepage_adjust(), mapping_level() before v5.6. Simplified: the
        host of the model has no pages of 1 GiB, so that level 3 never comes out.
    """
    if slot is None or slot.flags & LOG_DIRTY_PAGES or not vm.mm.pmds:
        return 1
    return huge_level(vm, slot, gfn, access)


def huge_level(vm: Vm, slot: Memslot, gfn: int, access: str) -> int:
    """Return the largest level that host and memslot allow for a gfn.

    :Kernel: kvm_mmu_max_mapping_level(); the memslot's part is lpage_info, by which
        no huge page leaves the slot or shifts against the host's
    """
    pages = pages_per_hpage(2)
    arch: X86Vm = vm.arch
    first = gfn & -pages
    if (
        (arch.nx_huge_pages and access == "exec")
        or first < slot.base_gfn
        or first + pages > slot.base_gfn + slot.npages
        or (slot.base_gfn ^ slot.userspace_addr >> PAGE_SHIFT) & pages - 1
        or arch.lpage_info.get((slot.as_id, 2, first))
    ):
        return 1
    vpn = slot.hva(gfn, PAGE_SHIFT) >> PAGE_SHIFT
    return 2 if vm.mm.level_pages(vpn) >= pages else 1


def _new_leaf(vcpu: Vcpu, fault: Fault, level: int, old: int) -> int:
    """Return the entry that a fault installs at its goal, in place of an old one."""
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    if fault.slot is None:
        generation = vm.memslots[vcpu.as_id].generation
        return make_mmio_spte(
            arch.layout,
            fault.gfn,
            ACC_ALL,
            generation,
            place=arch.place_generation,
        )
    pfn = fault.pfn & -pages_per_hpage(level)
    new = leaf_bits(arch.layout, level, fault.writable) | pfn << PAGE_SHIFT
    if arch.rules.dirty_over_writable:
        return new
    return without_dirty(arch.layout, new, old)


def note_set_spte(vcpu: Vcpu, fault: Fault, level: int, spte: int) -> None:
    """Record the entry as the kernel's trace events do."""
    vm = vcpu.vm
    if fault.slot is None:
        layout = vm.arch.layout
        gen = kvm_current_mmio_generation(layout, vm.memslots[vcpu.as_id].generation)
        vm.world.note("mark_mmio_spte", gfn=fault.gfn, access=ACC_ALL, gen=gen)
    else:
        vm.world.note("kvm_mmu_set_spte", gfn=fault.gfn, spte=spte, level=level)


def _aim(vcpu: Vcpu, fault: Fault) -> Target:
    """Walk towards the goal; return the first thing that is to be done."""
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    layout, gfn, slot = arch.layout, fault.gfn, fault.slot
    table, index, old = lowest(vm, vcpu.arch.root_pa, gfn)
    if old == layout.frozen:
        return GIVE_UP
    level = table.level
    goal = 1
    if slot is not None and vm.mm.pmds:
        goal = goal_level(vm, slot, gfn, fault.access)
        if level < goal:
            return _aim_above(vcpu, fault, goal)
    if old != layout.nonpresent and _spurious(arch, fault, old, level):
        return DONE_BEFORE
    if level > goal:
        what = HUGE if is_shadow_present_pte(layout, old) else LINK
        return Target(what, table, index, old)
    new = _new_leaf(vcpu, fault, level, old)
    if new == old:
        return DONE_BEFORE
    return Target(LEAF, table, index, old, new)


def _aim_above(vcpu: Vcpu, fault: Fault, goal: int) -> Target:
    """Take the table of small pages as the goal of a huge one."""
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    table = vm.tables.at(vcpu.arch.root_pa)
    while True:
        index = fault.gfn >> LEVEL_BITS * (table.level - 1) & INDEX
        old = table.get(index)
        if table.level == goal:
            break
        table = vm.tables.at(old & arch.layout.pfn_mask)
    if arch.nx_huge_pages:
        # The small pages may be executable: they stay (disallowed_hugepage_adjust()).
        return _aim_small(vcpu, fault)
    return Target(LEAF, table, index, old, _new_leaf(vcpu, fault, goal, old))


def _aim_small(vcpu: Vcpu, fault: Fault) -> Target:
    """Take the lowest entry that there is as the goal."""
    table, index, old = lowest(vcpu.vm, vcpu.arch.root_pa, fault.gfn)
    if _spurious(vcpu.vm.arch, fault, old, table.level):
        return DONE_BEFORE
    new = _new_leaf(vcpu, fault, table.level, old)
    return DONE_BEFORE if new == old else Target(LEAF, table, index, old, new)


def _spurious(arch: X86Vm, fault: Fault, old: int, level: int) -> bool:
    """Return whether a present leaf allows the access already (v7.2)."""
    if not arch.rules.spurious_first or fault.slot is None:
        return False
    layout = arch.layout
    if not is_shadow_present_pte(layout, old) or not is_last_spte(layout, old, level):
        return False
    return is_access_allowed(layout, old, fault.access)


# -- shared: v5.12 on --------------------------------------------------------------


@op(name="stale? walk the TDP MMU")
def begin(vcpu: Vcpu, fault: Fault) -> Target:
    """Check whether the fault is stale; begin to read tables, and walk them.

    That is one step although the kernel takes several: no invalidation can begin or
    end while mmu_lock is held, and what RCU protects is read here first.
    """
    if is_page_fault_stale(vcpu, fault.slot, fault.gfn, fault.seq):
        return GIVE_UP
    target = _aim(vcpu, fault)
    if target.table is not None:
        rcu_read_lock(vcpu.vm)
    return target


@op(name="walk the TDP MMU")
def _again(vcpu: Vcpu, fault: Fault) -> Target:
    target = _aim(vcpu, fault)
    if target.table is None:
        rcu_read_unlock(vcpu.vm)
    return target


@op(name="cmpxchg SPTE")
def commit(vcpu: Vcpu, fault: Fault, target: Target) -> Target:
    """Install the leaf unless its place has changed; leave RCU if nothing is owed."""
    vm = vcpu.vm
    _what, table, index, old, new = target
    assert table is not None
    if table.get(index) != old:
        rcu_read_unlock(vm)
        return GIVE_UP
    table.set(index, new)
    slot, level = fault.slot, table.level
    if (
        slot is not None
        and slot.flags & LOG_DIRTY_PAGES
        and new & vm.arch.layout.writable_mask
    ):
        vm.mark_page_dirty(slot, fault.gfn)
    if vm.world.traced:
        note_set_spte(vcpu, fault, level, new)
    if level > 1 and is_table(old):
        # A huge page takes over from small ones: their table goes.
        child = vm.tables.at(old & vm.arch.layout.pfn_mask)
        remove_table(vm, child, shared=True)
        base = table.base + (index << LEVEL_BITS * (level - 1))
        vm.ledger.owe(base, base + pages_per_hpage(level))
        return Target(FLUSH, table, index, old, new)
    rcu_read_unlock(vm)
    return DONE


@op(name="rcu_read_unlock")
def _leave(vcpu: Vcpu) -> Target:
    rcu_read_unlock(vcpu.vm)
    return DONE


@op(name="alloc table")
def _alloc(vcpu: Vcpu, target: Target) -> Table:
    assert target.table is not None
    return alloc_child(vcpu.vm, target.table, target.at)


def fill_from_huge(vm: Vm, child: Table, huge: int) -> None:
    """Fill a new table with small leaves that map what a huge one maps.

    :Kernel: tdp_mmu_split_huge_page(), v5.18 on
    """
    layout, level = vm.arch.layout, child.level
    for index in range(ENTRIES):
        child.set(index, make_huge_page_split_spte(layout, huge, level, index))


@op(name="cmpxchg SPTE to table")
def _link(vcpu: Vcpu, target: Target, child: Table) -> bool:
    """Link a new table unless the place has changed."""
    vm = vcpu.vm
    table, index, old = target.table, target.at, target.old
    assert table is not None
    if table.get(index) != old:
        vm.tables.free(child)
        rcu_read_unlock(vm)
        return False
    if target.what == HUGE:
        fill_from_huge(vm, child, old)
    table.set(index, make_nonleaf_spte(vm.arch.layout, child.pa))
    if vm.world.traced:
        vm.world.note("kvm_mmu_get_page", gfn=child.base, level=child.level)
    return True


@op(name="cmpxchg SPTE to frozen")
def _freeze(vcpu: Vcpu, target: Target) -> bool:
    """Take a huge leaf out of the way, so that nobody installs before the flush."""
    vm = vcpu.vm
    table, index, old = target.table, target.at, target.old
    assert table is not None
    if table.get(index) != old:
        rcu_read_unlock(vm)
        return False
    table.set(index, vm.arch.frozen)
    if vm.arch.rules.marks_when_dropped:
        mark_page(vm, old, "tdp_mmu_zap_spte_atomic")
    base = table.base + (index << LEVEL_BITS * (table.level - 1))
    vm.ledger.owe(base, base + pages_per_hpage(table.level))
    return True


@op(name="unfreeze SPTE")
def _thaw(vcpu: Vcpu, target: Target) -> None:
    assert target.table is not None
    target.table.set(target.at, vcpu.vm.arch.layout.nonpresent)


async def _flush_span(vm: Vm, target: Target) -> None:
    table = target.table
    assert table is not None
    base = table.base + (target.at << LEVEL_BITS * (table.level - 1))
    await kvm_flush_remote_tlbs_range(vm, base, base + pages_per_hpage(table.level))


async def finish_shared(vcpu: Vcpu, fault: Fault, target: Target) -> str:
    """Do what is left of a map that is more than one cmpxchg.

    :Kernel: kvm_tdp_mmu_map(), v5.12 on
    :Locking: mmu_lock for read, RCU from the first table to the last.
    :returns: RETRY, FIXED or SPURIOUS.
    """
    vm = vcpu.vm
    while target.what in PENDING:
        if target.what == LEAF:
            target = await commit(vcpu, fault, target)
        elif target.what == FLUSH:
            await _flush_span(vm, target)
            target = await _leave(vcpu)
        elif target.what == HUGE and not vm.arch.rules.splits_on_fault:
            frozen = await _freeze(vcpu, target)
            if not frozen:
                return RETRY
            await _flush_span(vm, target)
            await _thaw(vcpu, target)
            target = await _again(vcpu, fault)
        else:
            child = await _alloc(vcpu, target)
            linked = await _link(vcpu, target, child)
            if not linked:
                return RETRY
            target = await _again(vcpu, fault)
    return target.what


# -- exclusive: v5.10 and v5.11 ----------------------------------------------------


@op(name="stale? walk the TDP MMU exclusively")
def _aim_exclusively(vcpu: Vcpu, fault: Fault, first: bool) -> Target:
    if first and is_page_fault_stale(vcpu, fault.slot, fault.gfn, fault.seq):
        return GIVE_UP
    vm = vcpu.vm
    layout = vm.arch.layout
    target = _aim(vcpu, fault)
    table, index, old = target.table, target.at, target.old
    while target.what == LINK:
        assert table is not None
        child = alloc_child(vm, table, index)
        table.set(index, make_nonleaf_spte(layout, child.pa))
        target = _aim(vcpu, fault)
        table, index, old = target.table, target.at, target.old
    if table is None:
        return target
    level = table.level
    base = table.base + (index << LEVEL_BITS * (level - 1))
    if target.what == HUGE:
        table.set(index, layout.nonpresent)
        mark_page(vm, old, "tdp_mmu_set_spte")
        vm.ledger.owe(base, base + pages_per_hpage(level))
        return target
    table.set(index, target.new)
    slot = fault.slot
    if (
        slot is not None
        and slot.flags & LOG_DIRTY_PAGES
        and target.new & layout.writable_mask
    ):
        vm.mark_page_dirty(slot, fault.gfn)
    note_set_spte(vcpu, fault, level, target.new)
    if level > 1 and is_table(old):
        remove_table(vm, vm.tables.at(old & layout.pfn_mask), shared=False)
        vm.ledger.owe(base, base + pages_per_hpage(level))
        return target._replace(what=FLUSH)
    return DONE


async def map_exclusively(vcpu: Vcpu, fault: Fault) -> str:
    """Map with plain stores; a huge leaf in the way is dropped and flushed first.

    :Kernel: kvm_tdp_mmu_map(), v5.10 and v5.11
    :Locking: mmu_lock.
    """
    vm = vcpu.vm
    target = await _aim_exclusively(vcpu, fault, True)
    while target.what in {HUGE, FLUSH}:
        await _flush_span(vm, target)
        if target.what == FLUSH:
            return FIXED
        target = await _aim_exclusively(vcpu, fault, False)
    return target.what
