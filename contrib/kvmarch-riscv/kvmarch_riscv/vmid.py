"""VMIDs: what the translations of a VM are tagged with, and how they are handed out.

:Kernel: arch/riscv/kvm/vmid.c; kvm_riscv_local_tlb_sanitize() (fact sheet riscv, 3.8).

All vCPUs of a VM share one. VMIDs belong to the host: every VM of the machine draws on
the same ones, and what a VM gives up is not used again before all have begun anew.
"""

__all__ = ["CHOICES", "Vmids", "update", "vcpu_load", "vcpu_reload"]

from typing import TYPE_CHECKING, Any

from kvmarch import (
    Choice,
    Lock,
    LockClass,
    Part,
    Vcpu,
    Vm,
    kvm_make_all_cpus_request,
    op,
)

from kvmarch_riscv.cpus import sanitize
from kvmarch_riscv.geometry import PAGE_SHIFT, Hgatp

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm

_PART = "vmids"
VMID_LOCK = LockClass("vmid_lock", rank=60)
UPDATE_HGATP = "update_hgatp"
NEW_TURN = "new_turn"
"""No request of the kernel: the interrupt of those that fence."""


class Vmids(Part):
    """The allocator of the host.

    :param bits: of hgatp.VMID that the CPUs have.

    ``vmid_version`` counts how often all began anew; ``vmid_next`` is the next one, 0
    if there is none left.
    """

    variables = ("vmid_version", "vmid_next", "lock")

    def __init__(self, world: Any, bits: int) -> None:
        self.hardware_bits = bits
        self.vmid_version = 1
        self.vmid_next = 0
        self.vms: list[Vm] = []
        self.lock = Lock(world, VMID_LOCK)

    @classmethod
    def of(cls, vm: Vm) -> "Vmids":
        """Return the allocator of the host that a VM runs on, and register the VM."""
        vmids = vm.world.parts.get(_PART)
        if not isinstance(vmids, cls):
            vmids = cls(vm.world, vm.options["vmid_bits"])
            vm.world.add(_PART, vmids)
        vmids.vms.append(vm)
        return vmids

    def vcpus(self) -> list[Vcpu]:
        """Return every vCPU of the host; each one has a CPU of its own."""
        return [vcpu for vm in self.vms for vcpu in vm.vcpus]

    @property
    def bits(self) -> int:
        """Return how many bits are used: none if there are more CPUs than VMIDs.

        :Kernel: kvm_riscv_gstage_vmid_detect()
        """
        bits = self.hardware_bits
        return bits if 1 << bits >= len(self.vcpus()) else 0


def _is_stale(vm: Vm) -> bool:
    """Return whether the VM needs another VMID.

    :Kernel: kvm_riscv_gstage_vmid_ver_changed()
    """
    arch: RiscvVm = vm.arch
    vmids = arch.vmids
    return vmids.bits > 0 and arch.vmid_version != vmids.vmid_version


def vcpu_load(vcpu: Vcpu) -> bool:
    """Refuse the entry while the VMID is stale; without VMIDs drop everything.

    :Kernel: kvm_arch_vcpu_ioctl_run(), which backs out; kvm_riscv_mmu_update_hgatp(),
        which fences all at each write of hgatp if no VMID is used.
    """
    if _is_stale(vcpu.vm):
        return True
    if not vcpu.vm.arch.vmids.bits:
        # Simplified: at every entry, where the kernel does so when it loads a vCPU and
        # when the VMID changes; harmless because the CPU belongs to this vCPU.
        vcpu.tlb.drop_all()
    else:
        sanitize(vcpu)
    return False


begin_turn = Choice(
    "riscv_begin_turn", "what happens to translations when all VMIDs begin anew"
)


@begin_turn.when()
def _fence_all(vmids: Vmids) -> None:
    """Let the firmware fence all CPUs; guests that run stay where they are (to v5.18).

    :Kernel: sbi_remote_hfence_gvma()
    """
    for vcpu in vmids.vcpus():
        vcpu.tlb.drop_all()
    for vm in vmids.vms:
        vm.arch.cpus.left.clear()
        vm.world.note("hfence_gvma_all", version=vmids.vmid_version)


@begin_turn.when("riscv-hfence-ring")
def _interrupt_all(vmids: Vmids) -> None:
    """Interrupt all CPUs, which leave their guests and fence (v5.19 on).

    :Kernel: on_each_cpu_mask(), kvm_riscv_local_hfence_gvma_all()
    """
    for vm in vmids.vms:
        kvm_make_all_cpus_request.fn(vm, NEW_TURN)
    _fence_all(vmids)


@op(name="kvm_riscv_gstage_vmid_update")
def _allocate(vm: Vm) -> bool:
    """Give the VM a VMID; return False if somebody else did meanwhile."""
    if not _is_stale(vm):
        return False
    arch: RiscvVm = vm.arch
    vmids = arch.vmids
    if vmids.vmid_next == 0:
        vmids.vmid_version += 1
        vmids.vmid_next = 1
        vm.k.riscv_begin_turn.fn(vmids)
    arch.vmid = vmids.vmid_next
    vmids.vmid_next = vmids.vmid_next + 1 & (1 << vmids.bits) - 1
    arch.vmid_version = vmids.vmid_version
    return True


@op(name="request update of hgatp")
def _request_update(vm: Vm) -> None:
    """Ask all vCPUs of the VM to load the VMID, without a kick.

    :Kernel: kvm_make_request(KVM_REQ_UPDATE_HGATP)
    """
    for vcpu in vm.vcpus:
        vcpu.requests.add(UPDATE_HGATP)


async def vcpu_reload(vcpu: Vcpu) -> None:
    """Get another VMID.

    :Kernel: kvm_riscv_gstage_vmid_update()
    """
    vm = vcpu.vm
    async with vm.arch.vmids.lock.write():
        done = await _allocate(vm)
    if done:
        await _request_update(vm)


def update(vcpu: Vcpu) -> None:
    """Load the VM's VMID into hgatp.

    :Kernel: kvm_riscv_mmu_update_hgatp()
    """
    arch: RiscvVm = vcpu.vm.arch
    vcpu.arch.hgatp_vmid = arch.vmid
    root = (arch.pgd or 0) >> PAGE_SHIFT
    hgatp = Hgatp.pack(mode=arch.mode.number, vmid=arch.vmid, ppn=root)
    vcpu.vm.world.note("hgatp", vcpu=vcpu.name, value=hgatp)


CHOICES = (begin_turn,)
