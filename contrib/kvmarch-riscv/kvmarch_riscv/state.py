"""What KVM/RISC-V keeps per VM and per vCPU.

:Kernel: struct kvm_arch, struct kvm_vcpu_arch, struct kvm_gstage (fact sheet riscv, 2).
"""

__all__ = ["RiscvVcpu", "RiscvVm"]

from typing import TYPE_CHECKING

from kvmarch import Part, Vm

from kvmarch_riscv.cpus import Cpus
from kvmarch_riscv.geometry import INDEX_BITS, MODES, ROOT_ENTRIES, Mode
from kvmarch_riscv.vmid import Vmids

if TYPE_CHECKING:
    from kvmarch_riscv.hfence import Hfence


class RiscvVm(Part):
    """The G-stage of one VM; it becomes ``vm.arch``.

    ``pgd`` is the physical address of the root, None once it is gone. ``vmid`` tags the
    translations of all vCPUs; ``vmid_version`` says in which turn of numbers it was
    given. ``split_page_cache`` counts the pages set aside for eager splitting.
    """

    variables = ("pgd", "vmid", "vmid_version", "split_page_cache", "cpus")

    def __init__(self, vm: Vm) -> None:
        options = vm.options
        self.mode: Mode = MODES[options["mode"]]
        self.levels = self.mode.levels
        self.gfns = self.mode.gfns
        self.root_shift = INDEX_BITS * (self.levels - 1)
        """Lowest gfn bit of the root's index."""
        self.adue = bool(options["adue"])
        self.svvptc = bool(options["svvptc"])
        self.eager_split = bool(options["eager_split"])
        root = vm.tables.alloc(ROOT_ENTRIES, self.levels - 1, 0)
        self.pgd: int | None = root.pa
        self.vmid = 0
        self.vmid_version = 0
        self.split_page_cache = 0
        self.cpus = Cpus()
        self.vmids = Vmids.of(vm)


class RiscvVcpu(Part):
    """What a vCPU has of its own; it becomes ``vcpu.arch``.

    ``hgatp_vmid`` is the VMID in the register with which the guest was entered,
    ``hfence_queue`` the ring of fences to be done before the next entry, and
    ``mmu_page_cache`` counts the pages set aside for tables. ``cpu`` is where it is
    scheduled, ``last_exit_cpu`` where it was last in the guest.
    """

    variables = (
        "hgatp_vmid",
        "hfence_queue",
        "mmu_page_cache",
        "cpu",
        "last_exit_cpu",
    )

    def __init__(self, number: int) -> None:
        self.cpu = number
        self.last_exit_cpu = -1
        self.hgatp_vmid = 0
        self.hfence_queue: tuple[Hfence, ...] = ()
        self.mmu_page_cache = 0
