"""What KVM/LoongArch keeps per VM and per vCPU.

:Kernel: struct kvm_arch, struct kvm_vcpu_arch (fact sheet loongarch, 1.2, 2).
"""

__all__ = ["LoongarchVcpu", "LoongarchVm", "slot_key", "vcpu_create", "vm_create"]

from dataclasses import astuple

from kvmarch import Match, Memslot, Part, Vcpu, Vm

from kvmarch_loongarch.geometry import find_geometry
from kvmarch_loongarch.pte import P, V
from kvmarch_loongarch.vpid import FIRST_VERSION

SlotKey = tuple[int, ...]


def slot_key(slot: Memslot) -> SlotKey:
    """Return what tells a memslot from every other one, older ones of it included."""
    return astuple(slot)


class LoongarchVm(Part):
    """The secondary page table of one VM.

    :param pgd: physical address of the root, which stays until the VM is destroyed.
    """

    variables = ("pgd", "slot_flags")

    def __init__(self, vm: Vm) -> None:
        self.geometry = find_geometry(vm.options)
        self.bits = vm.k.loongarch_bits
        self.ptw: bool = vm.options["ptw"]
        gpa_bits = vm.options["vabits"] - vm.k.loongarch_spare_gpa_bits
        self.gfns = 1 << gpa_bits - self.geometry.page_shift
        """How many gfns the guest may use."""
        self.young = Match(P | V)
        self.slot_flags: dict[SlotKey, int] = {}
        """slot->arch.flags, by memslot as it was published."""
        top = self.geometry.root_level
        root = vm.tables.alloc(
            self.geometry.entries, top, 0, empty=self.geometry.empty[top]
        )
        self.pgd = root.pa


class LoongarchVcpu(Part):
    """One vCPU, on a CPU of its own.

    ``vpid`` is the number under which its translations are cached, with the version
    above; 0 is a number given up. ``cache`` is what the CPU counts from. ``flush_gpa``
    is the gfn of the one address that is to be forgotten at the next entry, -1 if none.

    Simplified: one CPU per vCPU, for good; what a vCPU does after it has moved to
    another CPU has no place here.
    """

    variables = ("vpid", "cache", "gid", "flush_gpa", "mmu_page_cache")

    def __init__(self) -> None:
        self.vpid = 0
        self.cache = FIRST_VERSION
        self.gid = 0
        """The part of ``vpid`` that hardware compares, as of the last entry."""
        self.flush_gpa = -1
        self.mmu_page_cache = 0
        """Pages at hand for new tables."""


def vm_create(vm: Vm) -> LoongarchVm:
    """Make the root, every entry leading to the invalid table.

    :Kernel: kvm_arch_init_vm(), kvm_pgd_alloc().
    """
    return LoongarchVm(vm)


def vcpu_create(vcpu: Vcpu) -> LoongarchVcpu:
    """Make a vCPU without a vpid.

    :Kernel: kvm_arch_vcpu_create().
    """
    return LoongarchVcpu()
