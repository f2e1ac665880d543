"""Faults that share the tables of stage 2 with other faults.

:Kernel: user_mem_abort() of arch/arm64/kvm/mmu.c, since v6.2 (fact sheet arm64, 3.1,
    3.2).
"""

__all__ = ["CHOICES", "user_mem_abort_shared"]

import errno

from kvmarch_arm64.changes import PARALLEL
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.parallel import (
    Visit,
    leave_block,
    make_leaf_pte,
    reach_leaf,
    relax_perms_shared,
    walk_and_break,
)
from kvmarch_arm64.pgtable import make_leaf
from kvmarch_arm64.plan import (
    Known,
    account_page,
    find_vma,
    is_writable,
    needs_pages,
    plan_leaf,
)
from kvmarch_arm64.walk import VALID, stage2_walk

from kvmarch import (
    Choice,
    FaultIn,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    mmu_invalidate_retry,
    op,
    snapshot_mmu_seq,
)

_LAST = KVM_PGTABLE_LAST_LEVEL

seq_in_mmap_lock = Choice(
    "arm64_seq_in_mmap_lock",
    "whether the sequence count is read before mmap_lock is dropped",
)
seq_in_mmap_lock.add(False)
seq_in_mmap_lock.add(True, "arm64-seq-in-mmap-lock")

memcache_set = Choice(
    "arm64_memcache_set",
    "whether a fault that sets no pages aside knows where others are",
)
memcache_set.add(True)
memcache_set.add(False, *PARALLEL, "arm64-memcache-by-mode")
memcache_set.add(True, *PARALLEL, "arm64-memcache-by-mode", "arm64-memcache-always-set")

release_under_lock = Choice(
    "arm64_release_under_lock",
    "whether the page is released before mmu_lock is dropped",
)
release_under_lock.add(False)
release_under_lock.add(True, *PARALLEL, "arm64-release-under-lock")

CHOICES = (seq_in_mmap_lock, memcache_set, release_under_lock)


def _check_memcache(vm: Vm, gfn: int, level: int) -> None:
    """Record that a table is needed whose page would come from nowhere.

    It is a permission fault, so a leaf was there; but it may be gone by now, with its
    tables, and what the host maps may have become a block (fact sheet 6 row 20).
    """
    found = stage2_walk(vm, gfn, level)
    if found is not None and found[2] != level:
        vm.world.violate("table-memory", "a table's page is taken from nowhere")


@op(name="walk, stage2_try_break_pte")
def _begin(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    known: Known,
) -> Visit | int:
    """Check for a race, decide what to map, and lock the entry.

    While mmu_lock is held for read no invalidation can begin or end, so that the
    check holds for the whole step. With an entry locked the task is in an RCU read
    section.

    :returns: the entry; an errno; or attributes to relax a leaf by.
    """
    vm = vcpu.vm
    if mmu_invalidate_retry.fn(vm, known.seq):
        return -errno.EAGAIN
    start, pages, pfn, attr = plan_leaf(vcpu, slot, gfn, access, why, found, known)
    if not pages:
        return attr
    level = vm.arch.level_of[pages]
    if not vm.k.arm64_memcache_set and not needs_pages(slot, access, why):
        _check_memcache(vm, start, level)
    new = make_leaf(vm.arch, pfn, attr, level)
    at = walk_and_break(vcpu, start, pages, new)
    if not isinstance(at, int):
        vm.rcu.read().enter.op.fn()
    return at


@op(name="stage2_make_pte")
def _make(
    vcpu: Vcpu, at: Visit, slot: Memslot, gfn: int, access: str, found: FaultIn
) -> None:
    """Install the leaf, leave the RCU read section if it is a page, account.

    mmu_lock is still held: nobody could see a moment in between.
    """
    vm = vcpu.vm
    make_leaf_pte(vm, at)
    if at.level == _LAST:
        vm.rcu.read().leave.op.fn()
    _account_locked(vm, slot, gfn, access, found, 0)


@op(name="rcu_read_unlock")
def _leave_rcu(vm: Vm) -> None:
    vm.rcu.read().leave.op.fn()


def _account_locked(
    vm: Vm, slot: Memslot, gfn: int, access: str, found: FaultIn, ret: int
) -> None:
    """Do what is due before mmu_lock is dropped: dirty bit, release of the page."""
    writable = is_writable(slot, access, found)
    if writable and not ret and vm.k.arm64_marks_dirty != "unlocked":
        vm.mark_page_dirty(slot, gfn)
    if vm.k.arm64_release_under_lock:
        account_page.fn(vm, found.pfn, writable and not ret)


@op(name="account")
def _account(
    vm: Vm, slot: Memslot, gfn: int, access: str, found: FaultIn, ret: int
) -> None:
    _account_locked(vm, slot, gfn, access, found, ret)


@op(name="mark page dirty")
def _mark_dirty(vm: Vm, slot: Memslot, gfn: int) -> None:
    vm.mark_page_dirty(slot, gfn)


async def _map_shared(
    vcpu: Vcpu, at: Visit, slot: Memslot, gfn: int, access: str, found: FaultIn
) -> int:
    """Go on from the first locked entry until the leaf is there, and account.

    :returns: 0 or an errno.
    """
    vm = vcpu.vm
    if at.old & VALID or at.pages != 1 << vm.arch.shifts[at.level]:
        leaf = await reach_leaf(vcpu, at)
        if isinstance(leaf, int):
            await _leave_rcu(vm)
            await _account(vm, slot, gfn, access, found, leaf)
            return leaf
        at = leaf
    await _make(vcpu, at, slot, gfn, access, found)
    if at.level == _LAST:
        return 0
    ret = await leave_block(vm, at)
    await _leave_rcu(vm)
    return ret


async def user_mem_abort_shared(
    vcpu: Vcpu, slot: Memslot, gfn: int, access: str, why: str
) -> int:
    """Map a page next to other faults.

    :returns: 0 or an errno.
    """
    vm = vcpu.vm
    known: Known = await find_vma(vcpu, slot, gfn, needs_pages(slot, access, why))
    if known.errno:
        return known.errno
    if not vm.k.arm64_seq_in_mmap_lock:
        seq = await snapshot_mmu_seq(vm)
        known = known._replace(seq=seq)
    found = await faultin_pfn(vm, slot, gfn & -known.pages, access == "write")
    if found.error:
        return -errno.EFAULT
    async with vm.mmu_lock.read():
        at = await _begin(vcpu, slot, gfn, access, why, found, known)
        if not isinstance(at, int):
            ret = await _map_shared(vcpu, at, slot, gfn, access, found)
        else:
            ret = at
            if at >= 0:
                ret = await relax_perms_shared(vcpu, gfn, at)
            await _account(vm, slot, gfn, access, found, ret)
    writable = is_writable(slot, access, found) and not ret
    if writable and slot.logs_dirty and vm.k.arm64_marks_dirty == "unlocked":
        await _mark_dirty(vm, slot, gfn)
    if not vm.k.arm64_release_under_lock:
        await account_page(vm, found.pfn, writable)
    return ret
