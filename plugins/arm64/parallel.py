"""The walkers of stage 2 that share the tables: mmu_lock for read, and RCU.

:Kernel: arch/arm64/kvm/hyp/pgtable.c with KVM_PGTABLE_WALK_SHARED, since v6.2 (fact
    sheet arm64, 2.1, 2.2, 3.2).

An entry goes from its old value by cmpxchg to LOCKED, and by a store to its new value.
Who finds it locked, or loses the cmpxchg, answers -EAGAIN. A table that is taken out
stays readable until every walker that was inside has left.
"""

__all__ = [
    "CHOICES",
    "Visit",
    "leave_block",
    "make_leaf_pte",
    "mkyoung_shared",
    "reach_leaf",
    "relax_perms_shared",
    "walk_and_break",
]

import errno
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from kvmarch_arm64.pgtable import (
    children,
    free_subtree,
    install_table,
    make_leaf,
    relaxed,
)
from kvmarch_arm64.pte import (
    kvm_pte_table,
    kvm_pte_to_phys,
    stage2_mkyoung,
    stage2_pte_is_locked,
    stage2_pte_needs_update,
)
from kvmarch_arm64.tlbi import kvm_tlb_flush_vmid_ipa, kvm_tlb_flush_vmid_ipa_nsh
from kvmarch_arm64.walk import (
    VALID,
    change_attributes,
    follow,
    leaf_of,
    stage2_walk,
)

from kvmarch import Choice, Vcpu, Vm, op
from kvmarch import Table as Entries

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu


class Visit(NamedTuple):
    """An entry that a walker has read, and what it wants to map there.

    :Kernel: struct kvm_pgtable_visit_ctx, struct stage2_map_data
    :param idx: of the entry in its table.
    :param old: the entry as it was.
    :param gfn: where the mapping begins; ``pages`` are those of the leaf.
    :param new: the leaf that is wanted.
    """

    table: Entries
    idx: int
    level: int
    old: int
    gfn: int
    pages: int
    new: int


# -------------------------------------------------------------------------
# Break and make
# -------------------------------------------------------------------------


def _try_break(vm: Vm, at: Visit) -> Visit | int:
    """Lock an entry that was read in this step, and give its reference back.

    What hardware has cached of it is still to be dropped, see :func:`reach_leaf`.

    :Kernel: stage2_try_break_pte()
    :returns: the entry; -EAGAIN if another walker has it, or it would only change in
        permissions.
    """
    # Between reading an entry and the cmpxchg only other faults can run, and whoever
    # loses to one of them would have found an entry that answers -EAGAIN as well. So
    # reading and cmpxchg are one step, and the cmpxchg succeeds.
    mmu: Mmu = vm.arch
    table, index, level, old, _gfn, pages, new = at
    if old:
        if stage2_pte_is_locked(mmu.layout, old):
            return -errno.EAGAIN
        if (
            old & VALID
            and pages == 1 << mmu.shifts[level]
            and not kvm_pte_table(old, level)
            and not stage2_pte_needs_update(mmu.layout, old, new)
        ):
            return -errno.EAGAIN
        table.refs -= 1
    locked = mmu.locked
    assert locked is not None
    table.set(index, locked)
    return at


@op(name="stage2_try_break_pte: TLBI")
def _flush_broken(vm: Vm, at: Visit) -> None:
    """Drop the translations of an entry that is locked by now."""
    if kvm_pte_table(at.old, at.level):
        vm.k.arm64_flush_table.fn(vm, at.gfn, 1 << vm.arch.shifts[at.level])
    else:
        kvm_tlb_flush_vmid_ipa(vm, at.gfn)


def _free_unlinked(vm: Vm, table: Entries) -> None:
    """Put a table that was taken out, and all below it, once nobody reads them.

    :Kernel: stage2_free_unlinked_table(), stage2_free_unlinked_table_rcu_cb()
    """
    _retire(vm, table)
    vm.rcu.call(partial(free_subtree, vm, table))


def _retire(vm: Vm, table: Entries) -> None:
    for child in list(children(vm, table)):
        _retire(vm, child)
    vm.tables.retire(table)


# -------------------------------------------------------------------------
# Map
# -------------------------------------------------------------------------


def walk_and_break(vcpu: Vcpu, gfn: int, pages: int, new: int) -> Visit | int:
    """Walk to the entry that a map has to change, and lock it.

    :param new: the leaf that is wanted, of the level that ``pages`` mean.
    :returns: the entry; -EAGAIN if that race is lost, or the entry would only change
        in permissions; -ENOMEM if it needs a table and no page is set aside;
        -ERANGE without a root.
    """
    vm = vcpu.vm
    target = vm.arch.level_of[pages]
    found = stage2_walk(vm, gfn, target)
    if found is None:
        return -errno.ERANGE
    if found[2] != target and not vcpu.arch.mmu_page_cache:
        return -errno.ENOMEM
    return _try_break(vm, Visit(*found, gfn, pages, new))


def make_leaf_pte(vm: Vm, at: Visit) -> None:
    """Put the new leaf into a locked entry; a table that was there is let go.

    :Kernel: stage2_make_pte(), stage2_map_walk_table_pre()
    """
    at.table.refs += 1
    at.table.set(at.idx, at.new)
    if kvm_pte_table(at.old, at.level):
        _free_unlinked(vm, follow(vm, at.old))


@op(name="stage2_make_pte: table")
def _make_table(vcpu: Vcpu, at: Visit) -> Visit | int:
    """Put an empty table into a locked entry, walk on and lock the next entry."""
    vcpu.arch.mmu_page_cache -= 1
    install_table(vcpu.vm, at.table, at.idx, at.gfn, at.level)
    return walk_and_break(vcpu, at.gfn, at.pages, at.new)


async def reach_leaf(vcpu: Vcpu, at: Visit) -> Visit | int:
    """Go on from a locked entry until the entry of the leaf is locked and flushed.

    :Kernel: kvm_pgtable_stage2_map() with KVM_PGTABLE_WALK_SHARED, from its first
        stage2_try_break_pte() to its last
    :Locking: mmu_lock held for read, RCU read lock.
    :returns: the leaf's entry; -EAGAIN or -ENOMEM.
    """
    vm = vcpu.vm
    while True:
        if at.old & VALID:
            await _flush_broken(vm, at)
        if at.pages == 1 << vm.arch.shifts[at.level]:
            return at
        further = await _make_table(vcpu, at)
        if isinstance(further, int):
            return further
        at = further


@op(name="read the entry again")
def _reread(vm: Vm, at: Visit) -> Entries | None:
    """Return the table that stands where a block was made, if there is one by now.

    :Kernel: __kvm_pgtable_visit(), which reads the entry again after its callback
    """
    entry = at.table.get(at.idx)
    return follow(vm, entry) if kvm_pte_table(entry, at.level) else None


@op(name="stage2_make_pte: leaf below")
def _make_below(vm: Vm, at: Visit) -> None:
    make_leaf_pte(vm, at)


async def leave_block(vm: Vm, at: Visit) -> int:
    """Leave a block that was just made, unless a table has replaced it already.

    Then another vCPU wanted a page there, and the walk goes down into the table.
    Before 1f0f4a2ef7a5 (v6.4) the address had been advanced by the block, so that
    every page was off by its size.

    :returns: 0; -EAGAIN at the first entry that is mapped as it should be, or lost.
    """
    table = await _reread(vm, at)
    if table is None:
        return 0
    skipped = 0 if vm.k.arm64_pa_from_offset else at.pages
    index = 0
    while index < table.size:
        index = await _fill_below(vm, table, index, at, skipped)
        if index < table.size:
            leaf = await _break_below(vm, table, index, at, skipped)
            if isinstance(leaf, int):
                return leaf
            if leaf.old & VALID:
                await _flush_broken(vm, leaf)
            await _make_below(vm, leaf)
            index += 1
    return 0


def _below(
    vm: Vm, table: Entries, index: int, block: Visit, skipped: int
) -> tuple[int, int]:
    """Return pages and entry of one part of a block, ``skipped`` pages too far on."""
    mmu: Mmu = vm.arch
    layout, level = mmu.layout, table.level
    pages = 1 << mmu.shifts[level]
    pfn = kvm_pte_to_phys(layout, block.new) >> layout.page_shift
    attr = block.new & layout.leaf_attr_mask
    return pages, make_leaf(mmu, pfn + index * pages + skipped, attr, level)


@op(name="map empty entries below")
def _fill_below(vm: Vm, table: Entries, index: int, block: Visit, skipped: int) -> int:
    """Map the entries from an index on that are empty; return the first that is not.

    Simplified: in one step, for there are hundreds of them. Who faults on one of them
    meanwhile finds it mapped, or maps it first.
    """
    while index < table.size and not table.get(index):
        table.set(index, _below(vm, table, index, block, skipped)[1])
        table.refs += 1
        index += 1
    return index


@op(name="stage2_try_break_pte: below")
def _break_below(
    vm: Vm, table: Entries, index: int, block: Visit, skipped: int
) -> Visit | int:
    """Lock the entry of one part of a block."""
    pages, new = _below(vm, table, index, block, skipped)
    gfn = block.gfn + index * pages
    at = Visit(table, index, table.level, table.get(index), gfn, pages, new)
    return _try_break(vm, at)


# -------------------------------------------------------------------------
# Attributes of one leaf
# -------------------------------------------------------------------------


class _Leaf(NamedTuple):
    table: Entries
    idx: int
    level: int
    old: int


@op(name="walk to leaf")
def _find_leaf(vm: Vm, gfn: int) -> _Leaf | None:
    """Return the leaf of a gfn; None if there is no valid one."""
    found = leaf_of(vm, gfn)
    return None if found is None else _Leaf(*found)


@op(name="stage2_try_set_pte")
def _try_set(vm: Vm, at: _Leaf, new: int) -> bool:
    """Change the attributes of a live leaf by cmpxchg."""
    if at.table.get(at.idx) != at.old:
        return False
    change_attributes(vm, at.table, at.idx, at.old, new)
    return True


@op(name="stage2_try_set_pte")
def _try_relax(vcpu: Vcpu, at: _Leaf, new: int) -> bool:
    """Add permissions; who loses the race leaves its translation, up to v6.6."""
    vm = vcpu.vm
    done: bool = _try_set.fn(vm, at, new)
    if not done and not vm.k.arm64_relax_flush_eagain and not vcpu.arch.stale:
        vcpu.arch.stale = "left"
    return done


relax_flush = Choice("arm64_relax_flush", "which TLBs forget a leaf that was relaxed")
relax_flush.add(lambda vcpu, gfn: kvm_tlb_flush_vmid_ipa(vcpu.vm, gfn))
relax_flush.add(kvm_tlb_flush_vmid_ipa_nsh, "arm64-relax-local-tlbi")

flush_on_eagain = Choice(
    "arm64_relax_flush_eagain", "whether a lost race flushes the leaf all the same"
)
flush_on_eagain.add(False)
flush_on_eagain.add(True, "arm64-relax-flush-eagain")

pa_from_offset = Choice(
    "arm64_pa_from_offset", "how a map finds the address of the next entry"
)
pa_from_offset.add(False)
pa_from_offset.add(True, "arm64-pa-from-offset")


async def relax_perms_shared(vcpu: Vcpu, gfn: int, attr: int) -> int:
    """Add permissions to a leaf, and drop the old translation.

    :Kernel: kvm_pgtable_stage2_relax_perms(), since v6.2
    :Locking: mmu_lock held for read.
    :returns: 0; -EAGAIN if there is no leaf any more, or it changed meanwhile.
    """
    vm = vcpu.vm
    ret = 0
    async with vm.rcu.read():
        at = await _find_leaf(vm, gfn)
        if at is None:
            ret = -errno.EAGAIN
        else:
            new = relaxed(vm, at.old, attr)
            if new != at.old:
                done = await _try_relax(vcpu, at, new)
                ret = 0 if done else -errno.EAGAIN
    if not ret or vm.k.arm64_relax_flush_eagain:
        await vm.k.arm64_relax_flush(vcpu, gfn)
    return ret


async def mkyoung_shared(vm: Vm, gfn: int) -> int:
    """Set the access flag of a leaf; nothing is flushed.

    :Kernel: kvm_pgtable_stage2_mkyoung(), since v6.3
    :Locking: mmu_lock held for read.
    :returns: the leaf as it was; 0 if there is none or the race was lost.
    """
    leaf = 0
    async with vm.rcu.read():
        at = await _find_leaf(vm, gfn)
        if at is not None:
            done = await _try_set(vm, at, stage2_mkyoung(at.old))
            leaf = at.old if done else 0
    return leaf


CHOICES = (relax_flush, flush_on_eagain, pa_from_offset)
