"""Prefix pages: what hardware may touch without a fault that could be taken again.

Models REFRESH_GUEST_PREFIX (fact sheet s390, 2.7, 4.3). Each vCPU has two. It enters
SIE only while both may be written and are marked; who takes such a page away, or
protects it, takes the mark and waits until the vCPU has left SIE.
"""

__all__ = ["is_prefix", "pages_of", "release", "vcpu_load", "vcpu_reload"]

from typing import Any

from kvmarch import IN_GUEST, Vcpu, Vm, kvm_make_vcpus_request_mask, op

REFRESH = "refresh_guest_prefix"
"""The request that asks for it."""


def pages_of(vcpu: Vcpu) -> tuple[int, int]:
    """Return the gfns of a vCPU's prefix.

    Simplified: two pages per vCPU from 0 on; a guest may move its prefix (SPX).
    """
    first = 2 * vcpu.number
    return first, first + 1


def is_prefix(vm: Vm, gfn: int) -> bool:
    """Return whether a gfn is in the prefix of a vCPU that is in SIE now."""
    return vm.arch.prefix and any(
        vcpu.mode == IN_GUEST and gfn in pages_of(vcpu) for vcpu in vm.vcpus
    )


def release(vm: Vm, start: int, end: int) -> None:
    """Make vCPUs whose prefix is in a range refresh it, and wait until they are out.

    :Kernel: kvm_s390_sync_request()
    """
    for vcpu in vm.vcpus:
        if any(start <= gfn < end for gfn in pages_of(vcpu)):
            kvm_make_vcpus_request_mask.fn(vm, REFRESH, (vcpu,))


def vcpu_load(vcpu: Vcpu) -> bool:
    """Refuse to enter SIE while a page of the prefix is not guarded.

    :Kernel: kvm_s390_handle_requests()
    """
    vm = vcpu.vm
    if not vm.arch.prefix:
        return False
    guarded = vm.k.s390_prefix_guarded.fn
    return not all(guarded(vm, gfn, False) for gfn in pages_of(vcpu))


@op(name="mark prefix page")
def _mark(vm: Vm, gfn: int) -> Any:
    return vm.k.s390_prefix_guarded.fn(vm, gfn, True)


async def vcpu_reload(vcpu: Vcpu) -> None:
    """Fault the prefix in for writing, and mark it.

    :Kernel: kvm_s390_fixup_prefix(), gmap_mprotect_notify() up to v6.19
    """
    vm = vcpu.vm
    for gfn in pages_of(vcpu):
        async with vm.srcu.read():
            await vm.k.page_fault(vcpu, gfn, "write", "missing")
        await _mark(vm, gfn)
