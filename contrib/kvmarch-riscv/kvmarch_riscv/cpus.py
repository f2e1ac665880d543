"""CPUs: what a TLB belongs to when a vCPU is scheduled on another one.

:Kernel: kvm_riscv_local_tlb_sanitize() of arch/riscv/kvm/tlb.c, since v5.19 (fact sheet
    riscv, 3.8; 5, bug 8).

kvmarch gives each vCPU a TLB of its own. Here it is that of the CPU on which the vCPU
is: a move leaves it behind and takes what the other CPU has.
"""

__all__ = ["CHOICES", "VERBS", "Cpus", "sanitize"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvmarch import (
    BLOCKED,
    IN_GUEST,
    ArchVerb,
    Choice,
    Part,
    Translation,
    Vcpu,
    Vm,
    op,
)

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm

Entry = tuple[Any, int, int]
"""How a TLB names what it holds: tag, first gfn, pages."""


class Cpus(Part):
    """TLBs of the CPUs on which no vCPU of the VM is, by CPU."""

    variables = ("left",)

    def __init__(self) -> None:
        self.left: dict[int, tuple[tuple[Entry, Translation], ...]] = {}

    def drop(self, tag: int, start: int, end: int) -> None:
        """Forget what overlaps ``start`` to ``end`` (gfn, end exclusive) everywhere."""
        for cpu, entries in list(self.left.items()):
            self.left[cpu] = tuple(
                (key, translation)
                for key, translation in entries
                if key[0] != tag or key[1] >= end or start >= key[1] + key[2]
            )


sanitizes = Choice(
    "riscv_sanitizes", "whether a vCPU that enters on another CPU drops the VMID there"
)
sanitizes.add(False)
sanitizes.add(True, "riscv-tlb-sanitize")

CHOICES = (sanitizes,)


def sanitize(vcpu: Vcpu) -> None:
    """Drop the VMID's translations if the vCPU was on another CPU when it left.

    :Kernel: kvm_riscv_local_tlb_sanitize()
    """
    own = vcpu.arch
    if own.last_exit_cpu != own.cpu and vcpu.k.riscv_sanitizes:
        vcpu.tlb.drop_all(vcpu.vm.arch.vmid)
    # It leaves the guest on the CPU on which it enters.
    own.last_exit_cpu = own.cpu


@op(name="move vCPU")
def _move(vm: Vm, number: int, cpu: int) -> Any:
    """Put a vCPU that is outside the guest on a CPU that no other one is on."""
    vcpu = vm.vcpus[number]
    arch: RiscvVm = vm.arch
    others = (other for other in vm.vcpus if other is not vcpu)
    if vcpu.mode == IN_GUEST or any(other.arch.cpu == cpu for other in others):
        return BLOCKED
    left = arch.cpus.left
    left[vcpu.arch.cpu] = tuple(sorted(vcpu.tlb.entries.items()))
    vcpu.tlb.entries.clear()
    for (tag, _gfn, _pages), translation in left.pop(cpu, ()):
        vcpu.tlb.insert(tag, translation)
    vcpu.arch.cpu = cpu
    return None


async def _move_vcpu(vm: Vm, args: Mapping[str, Any]) -> None:
    await _move(vm, args["vcpu"], args["cpu"])


VERBS = (
    ArchVerb(
        "move_vcpu",
        "A vCPU that is outside the guest is scheduled on another CPU, which must be "
        "free.",
        _move_vcpu,
        {"vcpu": "int", "cpu": "int"},
    ),
)
