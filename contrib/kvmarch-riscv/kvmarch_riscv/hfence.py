"""Fences of the G-stage, and the ring of requests for them.

:Kernel: arch/riscv/kvm/tlb.c, since v5.19; stage2_remote_tlb_flush() before (fact sheet
    riscv, 3.10).

A fence is not done when it is asked for: the vCPUs have left the guest by then, and do
it before they enter again. Fences of the guest's own translations (VVMA) have no place
here, because the model's guest has none.
"""

__all__ = [
    "CHOICES",
    "MAX_HFENCE",
    "Hfence",
    "flush_remote_tlbs",
    "hfence_gvma_vmid_gpa",
    "hfence_process",
    "local_hfence_gvma_vmid_gpa",
]

from typing import NamedTuple

from kvmarch import (
    Choice,
    Vcpu,
    Vm,
    flush_by_request,
    invalidate_tlbs,
    kvm_make_all_cpus_request,
    kvm_make_vcpus_request_mask,
)

from kvmarch_riscv.geometry import ENTRIES, INDEX_BITS

MAX_HFENCE = 64
"""Fences that a vCPU's ring holds (KVM_RISCV_VCPU_MAX_HFENCE)."""
ALL_GFNS = 1 << 52

HFENCE = "hfence"
FLUSH = "tlb_flush"


class Hfence(NamedTuple):
    """One fence that is asked for: pages from a gfn on, in steps.

    :param step: pages of a step, as a power of two.
    :param vmid: -1 if it is that of the VM at the time when the fence is done.
    """

    gfn: int
    pages: int
    step: int
    vmid: int


# -------------------------------------------------------------------------
# Done by a vCPU
# -------------------------------------------------------------------------


def local_hfence_gvma_vmid_gpa(
    vcpu: Vcpu, vmid: int, gfn: int, pages: int, step: int
) -> None:
    """Drop the translations of one page in each step; all if there are many steps.

    :Kernel: kvm_riscv_local_hfence_gvma_vmid_gpa()
    """
    if pages >> step > ENTRIES:
        vcpu.tlb.drop_all(vmid)
        return
    # One fence drops what covers its address, and no more. With or without Svinval
    # the same addresses are named.
    end = gfn + pages
    if vcpu.k.riscv_fences_wrapped and end > _wraps(vcpu):
        vcpu.tlb.drop_all(vmid)
        return
    if end > _wraps(vcpu):
        return
    for at in range(gfn, end, 1 << step):
        vcpu.tlb.drop(vmid, at, at + 1)


def _wraps(vcpu: Vcpu) -> int:
    """Return the gfn at which an address of 64 bits begins anew."""
    return 1 << 64 - vcpu.vm.page_shift


fences_wrapped = Choice(
    "riscv_fences_wrapped", "whether a range whose end wraps is fenced at all"
)
fences_wrapped.add(False)
fences_wrapped.add(True, "riscv-hfence-wrap")


def hfence_process(vcpu: Vcpu) -> None:
    """Do the fences of the ring, in order.

    :Kernel: kvm_riscv_hfence_process()
    """
    for fence in vcpu.arch.hfence_queue:
        vmid = vcpu.vm.arch.vmid if fence.vmid < 0 else fence.vmid
        local_hfence_gvma_vmid_gpa(vcpu, vmid, fence.gfn, fence.pages, fence.step)
    vcpu.arch.hfence_queue = ()


# -------------------------------------------------------------------------
# Asked for
# -------------------------------------------------------------------------

hfence_vmid = Choice("riscv_hfence_vmid", "which VMID a request for a fence carries")


@hfence_vmid.when()
def _vmid_later(vm: Vm) -> int:
    """Leave it open until the fence is done (to v6.16)."""
    return -1


@hfence_vmid.when("riscv-hfence-vmid")
def _vmid_now(vm: Vm) -> int:
    """Name the one that the VM has now (v6.17 on)."""
    vmid: int = vm.arch.vmid
    return vmid


make_requests = Choice(
    "riscv_make_requests", "whom a full ring lets flush all of the VMID"
)


@make_requests.when()
def _fall_back_together(vm: Vm, full: tuple[Vcpu, ...]) -> None:
    """Let every vCPU do so, and leave what the other rings hold (to v7.2)."""
    kvm_make_all_cpus_request.fn(vm, FLUSH if full else HFENCE)


@make_requests.when("riscv-hfence-fallback-alone")
def _fall_back_alone(vm: Vm, full: tuple[Vcpu, ...]) -> None:
    """Let those do so whose ring is full (v7.3 on)."""
    rest = tuple(vcpu for vcpu in vm.vcpus if vcpu not in full)
    if rest:
        kvm_make_vcpus_request_mask.fn(vm, HFENCE, rest)
    if full:
        kvm_make_vcpus_request_mask.fn(vm, FLUSH, full)


hfence = Choice("riscv_hfence", "how translations of a range are dropped on all CPUs")


@hfence.when()
def _fence_everywhere(vm: Vm, gfn: int, pages: int, step: int) -> None:
    """Let the firmware fence all CPUs, now (to v5.18).

    :Kernel: stage2_remote_tlb_flush(), sbi_remote_hfence_gvma_vmid()
    """
    invalidate_tlbs(vm, gfn, gfn + pages, vm.arch.vmid)
    vm.arch.cpus.drop(vm.arch.vmid, gfn, gfn + pages)


@hfence.when("riscv-hfence-ring")
def _ask_all_vcpus(vm: Vm, gfn: int, pages: int, step: int) -> None:
    """Put a request into each vCPU's ring, and make them leave the guest (v5.19 on).

    :Kernel: make_xfence_request()
    """
    fence = Hfence(gfn, pages, step, vm.k.riscv_hfence_vmid.fn(vm))
    full = []
    for vcpu in vm.vcpus:
        if len(vcpu.arch.hfence_queue) < MAX_HFENCE:
            vcpu.arch.hfence_queue += (fence,)
        else:
            full.append(vcpu)
    vm.k.riscv_make_requests.fn(vm, tuple(full))


def hfence_gvma_vmid_gpa(vm: Vm, gfn: int, level: int) -> None:
    """Drop the translation of one entry of a level, on all CPUs.

    :Kernel: gstage_tlb_flush(), gstage_remote_tlb_flush() before v6.17
    """
    step = INDEX_BITS * level
    vm.k.riscv_hfence.fn(vm, gfn & -(1 << step), 1 << step, step)


flush_remote_tlbs = Choice("flush_remote_tlbs", "what the generic flush comes to")
flush_remote_tlbs.add(flush_by_request)


@flush_remote_tlbs.when("riscv-hfence-ring", "riscv-range-flush")
def _flush_range(vm: Vm, start: int, end: int) -> None:
    """Ask for a fence of a range page by page; or of all, by the usual request.

    :Kernel: kvm_arch_flush_remote_tlbs_range(), since v6.17
    """
    if end - start >= ALL_GFNS:
        flush_by_request(vm, start, end)
    else:
        vm.k.riscv_hfence.fn(vm, start, end - start, 0)


CHOICES = (fences_wrapped, hfence_vmid, make_requests, hfence, flush_remote_tlbs)
