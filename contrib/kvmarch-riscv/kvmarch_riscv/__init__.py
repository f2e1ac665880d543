"""RISC-V: KVM with the H extension, from v5.16 on.

The hooks of kvmarch's contract; what they do is in the modules beside this one. What
is modelled, and what is not, is in the README.
"""

__all__ = ["KVMARCH_API"]

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvmarch import (
    ArchInfo,
    ArchVerb,
    Change,
    Choice,
    Deviation,
    EntryError,
    EntryKind,
    FaultResult,
    Kernel,
    Vcpu,
    Vm,
    hookimpl,
)

from kvmarch_riscv import (
    cpus,
    fault,
    gstage,
    hfence,
    kinds,
    lab,
    memslots,
    notifier,
    ranges,
    teardown,
    vmid,
    walk,
    walk_layout,
)
from kvmarch_riscv.arch_info import ARCH_INFO
from kvmarch_riscv.changes import CHANGES
from kvmarch_riscv.kinds import decode, formats
from kvmarch_riscv.pte import entry_pfn, pte_with_pfn
from kvmarch_riscv.state import RiscvVcpu, RiscvVm

KVMARCH_API = (1, 3)


@hookimpl
def kvmarch_arch() -> ArchInfo:
    """Return what is true of RISC-V in every release."""
    return ARCH_INFO


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/RISC-V."""
    return CHANGES


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return what depends on changes."""
    return (
        *vmid.CHOICES,
        *cpus.CHOICES,
        *hfence.CHOICES,
        *gstage.CHOICES,
        *ranges.CHOICES,
        *fault.CHOICES,
        *notifier.CHOICES,
        *memslots.CHOICES,
        *teardown.CHOICES,
        *kinds.CHOICES,
    )


@hookimpl
def kvmarch_deviations() -> Sequence[Deviation]:
    """Return what KVM/RISC-V does otherwise than the contract has it."""
    return (
        Deviation("frees-tables", "riscv 3.3: unmap and free_pgd() keep them"),
        Deviation("maps-nothing-before-end", "riscv 3.4", "", (6, 10)),
    )


@hookimpl
def kvmarch_verbs() -> Sequence[ArchVerb]:
    """Return what only this architecture's scenarios do."""
    return cpus.VERBS


@hookimpl
def kvmarch_recordings() -> Sequence[str]:
    """Return the folder of the recordings of real kernels."""
    return [str(Path(__file__).parent / "recordings")]


@hookimpl
def kvmarch_scenarios() -> Sequence[str]:
    """Return the folder of the bugs that the fact sheet has a schedule for."""
    return [str(Path(__file__).parent / "scenarios")]


# -- entries -----------------------------------------------------------------------


@hookimpl
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    """Return every kind of entry that this kernel writes, root level first."""
    return formats(k, options)


@hookimpl
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields."""
    return decode(k, options, entry, level)


@hookimpl
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the first page of a leaf."""
    kind, _fields = decode(k, options, entry, level)
    return entry_pfn(entry) if kind in {"leaf", "device"} else None


@hookimpl
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return a leaf as it would be for another page."""
    if kvmarch_entry_pfn(k, options, entry, level) is None:
        raise EntryError(f"{entry:#x} of level {level} leads to no page")
    return pte_with_pfn(entry, pfn)


kvmarch_lab = hookimpl(lab.machine)
kvmarch_walk = hookimpl(walk_layout.walk_layout)
kvmarch_entry = hookimpl(walk.entry_of)
kvmarch_leaf_table = hookimpl(walk.leaf_table)


# -- operations --------------------------------------------------------------------


@hookimpl
def kvmarch_vm_create(vm: Vm) -> RiscvVm:
    """Make the G-stage of a VM: the root exists from the beginning."""
    return RiscvVm(vm)


@hookimpl
def kvmarch_vcpu_create(vcpu: Vcpu) -> RiscvVcpu:
    """Make what a vCPU has of its own."""
    return RiscvVcpu(vcpu.number)


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> int:
    """Return the VMID that the vCPU has entered with."""
    number: int = vcpu.arch.hgatp_vmid
    return number


@hookimpl
def kvmarch_handle_request(vcpu: Vcpu, request: str) -> None:
    """Do what was asked of a vCPU before it enters the guest.

    :Kernel: kvm_riscv_check_vcpu_requests()
    """
    if request == vmid.UPDATE_HGATP:
        vmid.update(vcpu)
    elif request == hfence.FLUSH:
        vcpu.tlb.drop_all(vcpu.vm.arch.vmid)
    elif request == hfence.HFENCE:
        hfence.hfence_process(vcpu)


@hookimpl
async def kvmarch_page_fault(
    vcpu: Vcpu, gfn: int, access: str, why: str
) -> FaultResult:
    """Handle a guest page fault; the exit does not say which bit was missing."""
    return await fault.page_fault(vcpu, gfn, access, why)


kvmarch_vcpu_load = hookimpl(vmid.vcpu_load)
kvmarch_vcpu_reload = hookimpl(vmid.vcpu_reload)
kvmarch_translate = hookimpl(walk.translate)
kvmarch_unmap_gfn_range = hookimpl(ranges.kvm_unmap_gfn_range)
kvmarch_set_spte_gfn = hookimpl(notifier.set_spte_gfn)
kvmarch_age_gfn = hookimpl(notifier.age_gfn)
kvmarch_test_age_gfn = hookimpl(notifier.test_age_gfn)
kvmarch_prepare_memory_region = hookimpl(memslots.prepare_memory_region)
kvmarch_commit_memory_region = hookimpl(memslots.commit_memory_region)
kvmarch_flush_shadow_memslot = hookimpl(memslots.flush_shadow_memslot)
