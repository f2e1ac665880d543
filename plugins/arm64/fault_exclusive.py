"""Faults that have the tables of stage 2 for themselves.

:Kernel: user_mem_abort() of arch/arm64/kvm/mmu.c, v5.10 to v6.1 (fact sheet arm64,
    3.1).
"""

__all__ = ["CHOICES", "user_mem_abort_exclusive"]

import errno

from kvmarch_arm64.changes import PARALLEL, PGTABLE
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.pgtable import (
    install_table,
    kvm_pgtable_stage2_map,
    kvm_pgtable_stage2_relax_perms,
)
from kvmarch_arm64.plan import (
    Known,
    account_page,
    find_vma,
    is_writable,
    needs_pages,
    plan_leaf,
)
from kvmarch_arm64.tlbi import kvm_tlb_flush_vmid_ipa
from kvmarch_arm64.walk import VALID, stage2_walk

from kvmarch import (
    Choice,
    FaultIn,
    Memslot,
    Vcpu,
    faultin_pfn,
    mmu_invalidate_retry,
    op,
)

_LAST = KVM_PGTABLE_LAST_LEVEL

marks_dirty = Choice("arm64_marks_dirty", "when a page is marked dirty in the log")
marks_dirty.add("always")
marks_dirty.add("mapped", PGTABLE, "arm64-perms-only-eagain")
marks_dirty.add(
    "unlocked", *PARALLEL, "arm64-perms-only-eagain", "arm64-dirty-after-unlock"
)


reads_for = Choice(
    "arm64_reads_for", "which write faults of dirty logging take the read lock"
)
reads_for.add("none")
reads_for.add("all", "arm64-mmu-rwlock", "arm64-logging-read-lock")
reads_for.add(
    "pages",
    "arm64-mmu-rwlock",
    "arm64-logging-read-lock",
    "arm64-logging-read-lock-page",
)


map_sharing = Choice("arm64_map_sharing", "how a fault maps under the read lock")

CHOICES = (marks_dirty, reads_for, map_sharing)


@op(name="snapshot mmu_notifier_seq, choose the lock")
def _snapshot(vcpu: Vcpu, slot: Memslot, access: str, why: str) -> tuple[int, bool]:
    """Return the sequence count, and whether the read lock will do.

    Only W is added under the read lock, since v5.18, and that to a page: a block has
    to make place for a table (fact sheet 6 row 12).
    """
    logging = why == "permission" and access == "write" and slot.logs_dirty
    which = vcpu.vm.k.arm64_reads_for
    page = vcpu.arch.fault_level == _LAST
    shares = logging and (which == "all" or (which == "pages" and page))
    return vcpu.vm.mmu_invalidate_seq, shares


@op(name="map under mmu_lock")
def _map(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    known: Known,
) -> int:
    """Map the page unless an invalidation raced; return 0 or an errno."""
    vm = vcpu.vm
    if mmu_invalidate_retry.fn(vm, known.seq):
        return -errno.EAGAIN
    start, pages, pfn, attr = plan_leaf(vcpu, slot, gfn, access, why, found, known)
    writable = is_writable(slot, access, found)
    always = vm.k.arm64_marks_dirty == "always"
    if writable and always:
        vm.mark_page_dirty(slot, gfn)
    if pages:
        ret = kvm_pgtable_stage2_map(vm, start, pages, pfn, attr, vcpu.arch)
    else:
        ret = kvm_pgtable_stage2_relax_perms(vm, gfn, attr)
    if writable and not ret and not always:
        vm.mark_page_dirty(slot, gfn)
    return ret


async def user_mem_abort_exclusive(
    vcpu: Vcpu, slot: Memslot, gfn: int, access: str, why: str
) -> int:
    """Map a page with the tables for itself (v5.10 to v6.1).

    The sequence count is read after mmap_lock was dropped.

    :returns: 0 or an errno.
    """
    vm = vcpu.vm
    ret: int
    known: Known = await find_vma(vcpu, slot, gfn, needs_pages(slot, access, why))
    if known.errno:
        return known.errno
    seq, shares = await _snapshot(vcpu, slot, access, why)
    known = known._replace(seq=seq)
    found = await faultin_pfn(vm, slot, gfn & -known.pages, access == "write")
    if found.error:
        return -errno.EFAULT
    if shares:
        async with vm.mmu_lock.read():
            ret = await vm.k.arm64_map_sharing(
                vcpu, slot, gfn, access, why, found, known
            )
    else:
        async with vm.mmu_lock.write():
            ret = await _map(vcpu, slot, gfn, access, why, found, known)
    await account_page(vm, found.pfn, is_writable(slot, access, found))
    return ret


# -------------------------------------------------------------------------
# A block that makes place for a table under the read lock (fact sheet 6 row 12)
# -------------------------------------------------------------------------


@op(name="read the block's entry")
def _find_block(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    known: Known,
) -> int:
    """Return the level of a block that has to make place for a page; -1 for none."""
    vm = vcpu.vm
    if mmu_invalidate_retry.fn(vm, known.seq):
        return -1
    _start, pages, _pfn, _attr = plan_leaf(vcpu, slot, gfn, access, why, found, known)
    where = stage2_walk(vm, gfn)
    if not pages or where is None:
        return -1
    _table, _index, level, old = where
    return level if old & VALID and level < _LAST else -1


@op(name="clear the block")
def _clear_block(vcpu: Vcpu, gfn: int, level: int) -> None:
    """Clear the entry that was read, whatever it is by now."""
    vm = vcpu.vm
    where = stage2_walk(vm, gfn, level)
    if where is not None:
        table, index, _level, _old = where
        table.set(index, 0)
        kvm_tlb_flush_vmid_ipa(vm, gfn)
        table.refs -= 1


@op(name="kvm_set_table_pte")
def _link_table(vcpu: Vcpu, gfn: int, level: int) -> None:
    """Link an empty table where the block was."""
    vm = vcpu.vm
    where = stage2_walk(vm, gfn, level)
    if where is not None:
        table, index, _level, old = where
        vm.warn(bool(old & VALID), "kvm_set_table_pte(): the entry is valid")
        vcpu.arch.mmu_page_cache -= 1
        install_table(vm, table, index, gfn, level)


map_sharing.add(_map)
map_sharing.add(
    _map,
    "arm64-mmu-rwlock",
    "arm64-logging-read-lock",
    "arm64-logging-read-lock-page",
)


@map_sharing.when("arm64-mmu-rwlock", "arm64-logging-read-lock")
async def _map_in_pieces(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    known: Known,
) -> int:
    """Map with plain stores while other faults do the same.

    Before f587661f21eb a block was replaced under the read lock: two faults could
    both clear it and link a table each.
    """
    level = await _find_block(vcpu, slot, gfn, access, why, found, known)
    if level >= 0:
        await _clear_block(vcpu, gfn, level)
        await _link_table(vcpu, gfn, level)
    return await _map(vcpu, slot, gfn, access, why, found, known)
