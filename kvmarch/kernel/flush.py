"""Remote TLB flushes and vCPU requests.

Models virt/kvm/kvm_main.c; generic facts 2.3, x86 facts 3.8, cross-arch 5.
"""

__all__ = [
    "flush_by_request",
    "forgive_flush",
    "invalidate_tlbs",
    "kvm_flush_remote_tlbs",
    "kvm_flush_remote_tlbs_memslot",
    "kvm_flush_remote_tlbs_range",
    "kvm_make_all_cpus_request",
    "kvm_make_vcpus_request_mask",
]

from typing import Any

from kvmarch.kernel.memslots import Memslot
from kvmarch.kernel.vm import IN_GUEST, OUTSIDE, READING, Vcpu, Vm
from kvmarch.machine.steps import BLOCKED, op

ALL_GFNS = 1 << 52
"""More gfns than any guest has."""


@op(name="make request of some vCPUs")
def kvm_make_vcpus_request_mask(
    vm: Vm, request: str, vcpus: tuple[Vcpu, ...] | None
) -> Any:
    """Ask vCPUs for something before they enter the guest, and kick those in it.

    The kick is an interrupt that the sender waits for: a vCPU in the guest has left
    it when this returns, and a vCPU that reads page tables with interrupts off
    holds the sender up.

    :Kernel: kvm_make_vcpus_request_mask(), kvm_kick_many_cpus().
    :param vcpus: which of the VM; all if it is None.
    """
    asked = vm.vcpus if vcpus is None else vcpus
    if any(vcpu.mode == READING for vcpu in asked):
        return BLOCKED
    vm.world.note("kvm_make_all_cpus_request", request=request)
    for vcpu in asked:
        vcpu.requests.add(request)
        if vcpu.mode == IN_GUEST:
            vcpu.mode = OUTSIDE
            vcpu.exits["kick"] += 1
    return None


@op(name="make request of all vCPUs")
def kvm_make_all_cpus_request(vm: Vm, request: str) -> Any:
    """Ask every vCPU for something before it enters the guest, and kick those in it.

    :Kernel: kvm_make_all_cpus_request().
    """
    return kvm_make_vcpus_request_mask.fn(vm, request, None)


def flush_by_request(vm: Vm, start: int, end: int) -> Any:
    """Flush by KVM_REQ_TLB_FLUSH: whole VM, done by each vCPU at its next entry.

    The usual body of an architecture's ``flush_remote_tlbs``.
    """
    return kvm_make_all_cpus_request.fn(vm, "tlb_flush")


def invalidate_tlbs(vm: Vm, start: int, end: int, tag: Any = None) -> None:
    """Make every vCPU forget a range at once, as a broadcast instruction does.

    :param tag: the tag to drop, where all vCPUs share one; each vCPU's own if it is
        left out.
    """
    vm.world.note("tlb_invalidate", start=start, end=end)
    tag_of = vm.k.tlb_tag.fn
    for vcpu in vm.vcpus:
        if vcpu.tlb.entries:
            vcpu.tlb.drop(tag_of(vcpu) if tag is None else tag, start, end)


async def kvm_flush_remote_tlbs(vm: Vm) -> None:
    """Flush the whole VM, and so pay whatever the task owes.

    :Kernel: kvm_flush_remote_tlbs().
    """
    await vm.k.flush_remote_tlbs(vm, 0, ALL_GFNS)
    await _paid(vm, 0, ALL_GFNS, "kvm_flush_remote_tlbs")


async def kvm_flush_remote_tlbs_range(vm: Vm, start: int, end: int) -> None:
    """Flush ``start`` to ``end`` (gfn, end exclusive).

    :Kernel: kvm_flush_remote_tlbs_range(); the whole VM where an architecture has
        no range flush.
    """
    await vm.k.flush_remote_tlbs(vm, start, end)
    await _paid(vm, start, end, "kvm_flush_remote_tlbs_range")


async def kvm_flush_remote_tlbs_memslot(vm: Vm, slot: Memslot) -> None:
    """Flush a memslot; allowed without mmu_lock because slots_lock orders it.

    :Kernel: kvm_flush_remote_tlbs_memslot(), kvm_arch_flush_remote_tlbs_memslot().
    """
    await kvm_flush_remote_tlbs_range(vm, slot.base_gfn, slot.end_gfn)


@op(name="flush done")
def _paid(vm: Vm, start: int, end: int, how: str) -> None:
    vm.ledger.pay(start, end, how)


@op(name="flush forgiven")
def forgive_flush(vm: Vm, why: str) -> None:
    """Say that a flush which is owed is not needed, and why.

    :param why: the reason, for the trace.
    """
    vm.ledger.forgive(why)
