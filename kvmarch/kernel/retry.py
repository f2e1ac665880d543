"""The sequence count, and the checks whether a fault has become stale.

Models include/linux/kvm_host.h; generic facts 2.4.
"""

__all__ = [
    "mmu_invalidate_retry",
    "mmu_invalidate_retry_gfn",
    "mmu_invalidate_retry_gfn_unsafe",
    "mmu_invalidate_retry_hva",
    "snapshot_mmu_seq",
]

from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import op


@op(name="snapshot mmu_invalidate_seq")
def snapshot_mmu_seq(vm: Vm) -> int:
    """Read the sequence count, before anything of the primary MMU is read."""
    return vm.mmu_invalidate_seq


@op(name="mmu_invalidate_retry?")
def mmu_invalidate_retry(vm: Vm, seq: int) -> bool:
    """Return whether any invalidation is in progress or has ended since.

    :Kernel: mmu_invalidate_retry(), mmu_notifier_retry() before v6.0.
    """
    return vm.mmu_invalidate_in_progress > 0 or vm.mmu_invalidate_seq != seq


@op(name="mmu_invalidate_retry_hva?")
def mmu_invalidate_retry_hva(vm: Vm, seq: int, hva: int) -> bool:
    """Return whether an invalidation of this hva is in progress or any has ended.

    :Kernel: mmu_invalidate_retry_hva(), v5.12 to v6.7.
    :Locking: mmu_lock, in either mode.
    """
    vm.mmu_lock.require("read", "mmu_invalidate_retry_hva")
    if (
        vm.mmu_invalidate_in_progress
        and vm.mmu_invalidate_range_start <= hva < vm.mmu_invalidate_range_end
    ):
        return True
    return vm.mmu_invalidate_seq != seq


@op(name="mmu_invalidate_retry_gfn?")
def mmu_invalidate_retry_gfn(vm: Vm, seq: int, gfn: int) -> bool:
    """Return whether an invalidation of this gfn is in progress or any has ended.

    :Kernel: mmu_invalidate_retry_gfn(), v6.8 on; warns and retries if an
        invalidation is in progress that has not said its range yet.
    :Locking: mmu_lock, in either mode.
    """
    vm.mmu_lock.require("read", "mmu_invalidate_retry_gfn")
    if vm.mmu_invalidate_in_progress:
        if vm.warn(
            vm.mmu_invalidate_range_start == -1,
            "mmu_invalidate_retry_gfn: an invalidation without a range",
        ):
            return True
        if vm.mmu_invalidate_range_start <= gfn < vm.mmu_invalidate_range_end:
            return True
    return vm.mmu_invalidate_seq != seq


@op(name="mmu_invalidate_retry_gfn_unsafe?")
def mmu_invalidate_retry_gfn_unsafe(vm: Vm, seq: int, gfn: int) -> bool:
    """Look before the lock is taken; must be followed by the check under the lock.

    :Kernel: mmu_invalidate_retry_gfn_unsafe(), v6.9 on.
    """
    if (
        vm.mmu_invalidate_in_progress
        and vm.mmu_invalidate_range_start <= gfn < vm.mmu_invalidate_range_end
    ):
        return True
    return vm.mmu_invalidate_seq != seq
