"""Entering the guest: requests, roots, flushes.

:Kernel: vcpu_enter_guest(), kvm_mmu_load(), kvm_mmu_free_obsolete_roots(),
    kvm_mmu_unload(); fact sheet x86, 3.8 and 3.9.
"""

__all__ = ["handle_request", "put_vcpu_root", "vcpu_load"]

from typing import TYPE_CHECKING

from kvmarch_x86.rmap_mmu import rmap_alloc_root, rmap_free_root
from kvmarch_x86.stale import is_obsolete_root
from kvmarch_x86.tdp_tables import load_root, put_root
from kvmarch_x86.tdp_zap import free_root
from kvmarch_x86.translate import drain_pml

from kvmarch import Vcpu

if TYPE_CHECKING:
    from kvmarch_x86.state import X86Vcpu, X86Vm


def vcpu_load(vcpu: Vcpu) -> None:
    """Load a root if there is none, and forget what was cached under it.

    :Kernel: kvm_mmu_reload(), kvm_mmu_load(), with its flush of the current context
    """
    state: X86Vcpu = vcpu.arch
    if state.pml_buffer:
        drain_pml(vcpu)
    if state.root_pa:
        if state.root_as_id == vcpu.as_id:
            return
        # Simplified: the root of the other address space is not kept for later.
        put_vcpu_root(vcpu)
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    if arch.is_tdp:
        state.root_pa = load_root(vcpu)
    else:
        state.root_pa = rmap_alloc_root(vm, vcpu.as_id)
    state.root_as_id = vcpu.as_id
    vcpu.tlb.drop_all(state.root_pa)


def put_vcpu_root(vcpu: Vcpu) -> None:
    """Let go of the root that a vCPU has loaded.

    :Kernel: kvm_mmu_free_roots()
    """
    state: X86Vcpu = vcpu.arch
    vm = vcpu.vm
    pa, state.root_pa = state.root_pa, 0
    if not pa:
        return
    arch: X86Vm = vm.arch
    if not arch.is_tdp:
        rmap_free_root(vm, pa)
    elif put_root(vm, pa):
        free_root(vm, pa)


def handle_request(vcpu: Vcpu, request: str) -> None:
    """Act on one request: flush, or leave the root that is loaded.

    :param request: ``tlb_flush``; ``mmu_reload`` (KVM_REQ_MMU_RELOAD, to v5.17): leave
        the root in any case; ``mmu_free_obsolete_roots``: if it is obsolete.
    """
    state: X86Vcpu = vcpu.arch
    if request == "tlb_flush":
        vcpu.tlb.drop_all()
    elif request == "mmu_reload" or (
        state.root_pa and is_obsolete_root(vcpu.vm, state.root_pa)
    ):
        put_vcpu_root(vcpu)
