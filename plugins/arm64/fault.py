"""Stage-2 faults: from the abort to the mapped page.

:Kernel: kvm_handle_guest_abort() and user_mem_abort() of arch/arm64/kvm/mmu.c,
    virt/kvm/arm/mmu.c, arch/arm/kvm/mmu.c (fact sheet arm64, 3.1, 3.4).

No fault of the model is on a device page or in hugetlb memory: host memory has neither.
"""

__all__ = ["CHOICES", "kvm_handle_guest_abort"]

import errno
from typing import Any

from kvmarch_arm64.changes import PARALLEL, PGTABLE
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.oldmmu import stage2_get_leaf, stage2_set_pmd_huge, stage2_set_pte
from kvmarch_arm64.parallel import (
    Visit,
    leave_block,
    make_leaf_pte,
    mkyoung_shared,
    reach_leaf,
    relax_perms_shared,
    walk_and_break,
)
from kvmarch_arm64.pgtable import (
    kvm_pgtable_stage2_map,
    kvm_pgtable_stage2_mkyoung,
    kvm_pgtable_stage2_relax_perms,
)
from kvmarch_arm64.pte import kvm_pte_to_phys
from kvmarch_arm64.s2pte import (
    kvm_pfn_pte,
    kvm_pmd_mkhuge,
    kvm_s2pte_exec,
    kvm_s2pte_mkexec,
    kvm_s2pte_mkwrite,
    page_s2,
)
from kvmarch_arm64.state import Mmu

from kvmarch import (
    BLOCKED,
    INVALID,
    READONLY,
    Choice,
    FaultIn,
    FaultResult,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    host_mapping,
    mmu_invalidate_retry,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

_LAST = KVM_PGTABLE_LAST_LEVEL

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------


def _flag(name: str, doc: str, *needs: str) -> Choice:
    choice = Choice(name, doc)
    choice.add(False)
    choice.add(True, *needs)
    return choice


seq_in_mmap_lock = _flag(
    "arm64_seq_in_mmap_lock",
    "whether the sequence count is read before mmap_lock is dropped",
    "arm64-seq-in-mmap-lock",
)
release_under_lock = _flag(
    "arm64_release_under_lock",
    "whether the page is released before mmu_lock is dropped",
    *PARALLEL,
    "arm64-release-under-lock",
)
aborts_beyond_ipa = _flag(
    "arm64_aborts_beyond_ipa",
    "whether an address beyond the IPA size is an abort in the guest",
    "arm64-out-of-ipa-abort",
)
access_fault_shares = _flag(
    "arm64_access_fault_shares",
    "whether access faults are resolved under the read lock",
    *PARALLEL,
    "arm64-access-fault-read-lock",
)

marks_dirty = Choice("arm64_marks_dirty", "when a page is marked dirty in the log")
marks_dirty.add("always")
marks_dirty.add("mapped", PGTABLE, "arm64-perms-only-eagain")
marks_dirty.add(
    "unlocked", *PARALLEL, "arm64-perms-only-eagain", "arm64-dirty-after-unlock"
)

mmu_lock_kind = Choice("mmu_lock_kind", "whether mmu_lock has a read mode")
mmu_lock_kind.add("spinlock")
mmu_lock_kind.add("rwlock", "arm64-mmu-rwlock")

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

user_mem_abort = Choice("arm64_user_mem_abort", "how a fault in a memslot is resolved")

# -------------------------------------------------------------------------
# The abort
# -------------------------------------------------------------------------


@op(name="look up memslot and hva")
def _find_slot(vcpu: Vcpu, gfn: int, access: str) -> Memslot | FaultResult:
    """Return the memslot of a gfn, or how the fault ends without one.

    A slot that is being deleted has no hva, and a read-only one none to write to.

    :Kernel: gfn_to_memslot(), gfn_to_hva_memslot_prot()
    """
    vm = vcpu.vm
    slot: Memslot | None = slot_of.fn(vcpu, gfn)
    if (
        slot is not None
        and not slot.flags & INVALID
        and not (access == "write" and slot.flags & READONLY)
    ):
        return slot
    beyond = gfn >= vm.arch.end_gfn and vm.k.arm64_aborts_beyond_ipa
    if access == "exec" or beyond:
        # An abort in the guest, which has nothing to handle it here.
        name = "kvm_inject_pabt" if access == "exec" else "kvm_inject_dabt"
        vm.world.note(name, vcpu=vcpu.name, gfn=gfn)
        return "error"
    return "mmio"


async def kvm_handle_guest_abort(
    vcpu: Vcpu, gfn: int, access: str, why: str
) -> FaultResult:
    """Resolve a stage-2 abort.

    :Kernel: kvm_handle_guest_abort()
    :Locking: kvm->srcu read.
    """
    slot = await _find_slot(vcpu, gfn, access)
    if isinstance(slot, str):
        return slot
    if why == "access":
        await _handle_access_fault(vcpu.vm, gfn)
        return "guest"
    ret = await vcpu.vm.k.arm64_user_mem_abort(vcpu, slot, gfn, access, why)
    # -EAGAIN means that the guest tries again.
    return "guest" if ret in {0, -errno.EAGAIN} else "error"


@op(name="mkyoung")
def _mkyoung(vm: Vm, gfn: int) -> int:
    return kvm_pgtable_stage2_mkyoung(vm, gfn)


@op(name="mark page accessed")
def _accessed(vm: Vm, leaf: int) -> None:
    pfn = kvm_pte_to_phys(vm.arch.layout, leaf) >> vm.page_shift
    vm.host.mark(pfn, dirty=False, accessed=True, who="handle_access_fault")


async def _handle_access_fault(vm: Vm, gfn: int) -> None:
    """Set the access flag of a leaf.

    :Kernel: handle_access_fault(), since v4.1
    """
    if vm.k.arm64_access_fault_shares:
        async with vm.mmu_lock.read():
            leaf = await mkyoung_shared(vm, gfn)
    else:
        async with vm.mmu_lock.write():
            leaf = await _mkyoung(vm, gfn)
    if leaf:
        await _accessed(vm, leaf)


def _needs_pages(slot: Memslot, access: str, why: str) -> bool:
    """Return whether a fault may have to make tables (v5.10 on)."""
    return why != "permission" or (slot.logs_dirty and access == "write")


# -------------------------------------------------------------------------
# Faults that own the tables: v5.10 to v6.1
# -------------------------------------------------------------------------


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


def plan_leaf(
    vcpu: Vcpu, slot: Memslot, gfn: int, access: str, why: str, found: FaultIn
) -> tuple[int, int, int, int, bool]:
    """Return gfn, pages, pfn, attributes of the leaf, and whether it only relaxes."""
    vm = vcpu.vm
    mmu: Mmu = vm.arch
    logging = slot.logs_dirty
    pages, pfn = 1, found.pfn
    relax = False
    if why == "permission":
        granule = 1 << mmu.shifts[vcpu.arch.fault_level]
        if granule > 1 and not logging:
            # The block stays: without logging only its permissions are asked for.
            pages = granule
        elif not logging:
            gfn, pages, pfn = adjust_size(vm, slot, gfn, pfn)
        relax = pages == granule
    elif not logging:
        gfn, pages, pfn = adjust_size(vm, slot, gfn, pfn)
    writable = found.writable and (access == "write" or not logging)
    executable = access == "exec" or mmu.layout.dic
    return gfn, pages, pfn, mmu.attrs[writable | executable << 1], relax


@op(name="map under mmu_lock")
def _map(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    seq: int,
) -> int:
    """Map the page unless an invalidation raced; return 0 or an errno."""
    vm = vcpu.vm
    if mmu_invalidate_retry.fn(vm, seq):
        return 0
    start, pages, pfn, attr, relax = plan_leaf(vcpu, slot, gfn, access, why, found)
    writable = found.writable and (access == "write" or not slot.logs_dirty)
    if writable and vm.k.arm64_marks_dirty == "always":
        vm.mark_page_dirty(slot, gfn)
    if relax:
        ret = kvm_pgtable_stage2_relax_perms(vm, gfn, attr)
    else:
        ret = kvm_pgtable_stage2_map(vm, start, pages, pfn, attr, vcpu.arch)
    if writable and not ret and vm.k.arm64_marks_dirty != "always":
        vm.mark_page_dirty(slot, gfn)
    return ret
