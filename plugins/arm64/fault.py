"""Stage-2 aborts: what they are, and who resolves them.

:Kernel: kvm_handle_guest_abort(), handle_access_fault() of arch/arm64/kvm/mmu.c,
    virt/kvm/arm/mmu.c, arch/arm/kvm/mmu.c (fact sheet arm64, 3.1, 3.4).

No fault of the model is on a device page: host memory has none.
"""

__all__ = ["CHOICES", "kvm_handle_guest_abort"]

import errno

from kvmarch_arm64.changes import PARALLEL, PGTABLE
from kvmarch_arm64.fault_exclusive import user_mem_abort_exclusive
from kvmarch_arm64.fault_old import user_mem_abort_old
from kvmarch_arm64.fault_shared import user_mem_abort_shared
from kvmarch_arm64.parallel import mkyoung_shared
from kvmarch_arm64.pgtable import kvm_pgtable_stage2_mkyoung
from kvmarch_arm64.pte import kvm_pte_to_phys

from kvmarch import (
    INVALID,
    READONLY,
    Choice,
    FaultResult,
    Memslot,
    Vcpu,
    Vm,
    op,
    slot_of,
)

mmu_lock_kind = Choice("mmu_lock_kind", "whether mmu_lock has a read mode")
mmu_lock_kind.add("spinlock")
mmu_lock_kind.add("rwlock", "arm64-mmu-rwlock")

aborts_beyond_ipa = Choice(
    "arm64_aborts_beyond_ipa",
    "whether an address beyond the IPA size is an abort in the guest",
)
aborts_beyond_ipa.add(False)
aborts_beyond_ipa.add(True, "arm64-out-of-ipa-abort")

access_fault_shares = Choice(
    "arm64_access_fault_shares",
    "whether access faults are resolved under the read lock",
)
access_fault_shares.add(False)
access_fault_shares.add(True, *PARALLEL, "arm64-access-fault-read-lock")

user_mem_abort = Choice("arm64_user_mem_abort", "how a fault in a memslot is resolved")
user_mem_abort.add(user_mem_abort_old)
user_mem_abort.add(user_mem_abort_exclusive, PGTABLE)
user_mem_abort.add(user_mem_abort_shared, *PARALLEL)

CHOICES = (mmu_lock_kind, aborts_beyond_ipa, access_fault_shares, user_mem_abort)


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
    if type(slot) is str:
        return slot
    if why == "access":
        await _handle_access_fault(vcpu.vm, gfn)
        return "guest"
    ret = await vcpu.vm.k.arm64_user_mem_abort(vcpu, slot, gfn, access, why)
    # -EAGAIN means that the guest tries again.
    return "guest" if not ret or ret == -errno.EAGAIN else "error"


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
