"""Whether a page fault has become stale while it slept.

:Kernel: is_page_fault_stale(), v5.16 on; the retry check alone before; fact sheet x86,
    3.1.
"""

__all__ = ["CHOICES", "RELOAD_REQUESTS", "is_obsolete_root", "is_page_fault_stale"]

from typing import TYPE_CHECKING

from kvmarch_x86.geometry import PAGE_SHIFT

from kvmarch import (
    Choice,
    Memslot,
    Vcpu,
    Vm,
    mmu_invalidate_retry,
    mmu_invalidate_retry_gfn,
    mmu_invalidate_retry_hva,
)

if TYPE_CHECKING:
    from kvmarch_x86.state import Role, X86Vm

RELOAD_REQUESTS = ("mmu_reload", "mmu_free_obsolete_roots")
"""KVM_REQ_MMU_RELOAD, from v5.18 KVM_REQ_MMU_FREE_OBSOLETE_ROOTS."""

retry = Choice("x86_retry", "which invalidations make a fault stale")


@retry.when()
def _any_invalidation(vm: Vm, seq: int, slot: Memslot | None, gfn: int) -> bool:
    """Compare the count, whatever is being invalidated (to v5.11).

    Faults without a memslot are no exception yet (from memory).
    """
    return mmu_invalidate_retry.fn(vm, seq)


@retry.when("notifier-range-hva")
def _by_hva(vm: Vm, seq: int, slot: Memslot | None, gfn: int) -> bool:
    """Look for an invalidation of the host address (v5.12 to v6.7)."""
    if slot is None:
        return False
    return mmu_invalidate_retry_hva.fn(vm, seq, slot.hva(gfn, PAGE_SHIFT))


@retry.when("notifier-range-hva", "notifier-range-gfn")
def _by_gfn(vm: Vm, seq: int, slot: Memslot | None, gfn: int) -> bool:
    """Look for an invalidation of the gfn (v6.8 on)."""
    return slot is not None and mmu_invalidate_retry_gfn.fn(vm, seq, gfn)


def is_obsolete_root(vm: Vm, pa: int) -> bool:
    """Return whether no vCPU should use a root any more.

    :Kernel: is_obsolete_sp(): in the rmap MMU by its generation too.
    """
    role: Role = vm.tables.at(pa).note
    if role.invalid:
        return True
    arch: X86Vm = vm.arch
    return not arch.is_tdp and role.gen != arch.mmu_valid_gen


def is_page_fault_stale(vcpu: Vcpu, slot: Memslot | None, gfn: int, seq: int) -> bool:
    """Return whether a fault must be tried again instead of mapping its page.

    A fault without a memslot (MMIO) looks at no invalidation.

    :Kernel: is_page_fault_stale(). Without the look at the root before v5.16, see D3
        of the fact sheet.
    :Locking: mmu_lock, in either mode.
    """
    vm = vcpu.vm
    if vm.arch.rules.checks_root and is_obsolete_root(vm, vcpu.arch.root_pa):
        return True
    if not vm.mmu_invalidate_in_progress and vm.mmu_invalidate_seq == seq:
        # No check of any release has anything against that.
        return False
    stale: bool = vm.k.x86_retry.fn(vm, seq, slot, gfn)
    return stale


CHOICES = (retry,)
