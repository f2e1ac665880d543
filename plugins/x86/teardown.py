"""The end: of the address space, and of the VM.

:Kernel: kvm_arch_flush_shadow_all(), kvm_arch_destroy_vm(), kvm_mmu_uninit_vm(); fact
    sheet x86, 3.9.
"""

__all__ = ["destroy_vm", "flush_shadow_all"]

from kvmarch_x86.flush import put_vcpu_root
from kvmarch_x86.rmap_mmu import rmap_zap_all
from kvmarch_x86.tdp_zap import invalidate_roots, tdp_zap_all, zap_invalidated_roots

from kvmarch import Vm, op


async def flush_shadow_all(vm: Vm) -> None:
    """Zap everything; called when the address space goes, perhaps twice at once.

    :Kernel: kvm_arch_flush_shadow_all(), kvm_mmu_zap_all()
    :Locking: kvm->srcu read; takes mmu_lock for write.
    """
    async with vm.mmu_lock.write():
        if vm.arch.is_tdp:
            await tdp_zap_all(vm)
        else:
            await rmap_zap_all(vm)


@op(name="vCPUs put their roots")
def _unload_vcpus(vm: Vm) -> None:
    """Let every vCPU go of its root.

    :Kernel: kvm_unload_vcpu_mmus(), kvm_destroy_vcpus()
    """
    for vcpu in vm.vcpus:
        put_vcpu_root(vcpu)


@op(name="are tables left?")
def _check_tables(vm: Vm) -> None:
    left = len(vm.tables.live)
    vm.warn(left > 0, f"{left} page tables are left when the VM is destroyed")


async def destroy_vm(vm: Vm) -> None:
    """Free what is left when nobody uses the VM any more.

    From v6.4 the TDP MMU has a reference to each root of its own, and puts it after it
    has made the root invalid and zapped it.

    :Kernel: kvm_arch_destroy_vm(), kvm_mmu_uninit_tdp_mmu()
    """
    await _unload_vcpus(vm)
    if vm.arch.is_tdp:
        if vm.arch.rules.keeps_roots:
            await invalidate_roots(vm)
            await zap_invalidated_roots(vm, False)
    else:
        async with vm.mmu_lock.write():
            await rmap_zap_all(vm)
    await _check_tables(vm)
