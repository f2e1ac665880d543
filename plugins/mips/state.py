"""What KVM/MIPS keeps per VM and per vCPU.

:Kernel: struct kvm_arch, struct kvm_vcpu_arch; fact sheet mips, sections 1 and 7.
"""

__all__ = ["MipsVcpu", "MipsVm", "vcpu_create", "vm_create"]

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kvmarch_mips.guestid import first_version
from kvmarch_mips.pte import LAYOUTS, Layout, find_layout

from kvmarch import KvmarchError, Match, Part, Vcpu, Vm

if TYPE_CHECKING:
    from kvmarch_mips.geometry import Geometry

# Simplified: GuestCtl1.ID and EntryHi.ASID have eight bits here, as in the first
# release of the architecture; hardware may have fewer of one and more of the other.
ID_MASK = (1 << 8) - 1
"""The bits of a GuestID or ASID that hardware compares."""


def layout_of(options: Mapping[str, Any]) -> Layout:
    """Return the layout that a machine's options name."""
    shift = options["page_size"].bit_length() - 1
    return find_layout(options["layout"], shift, options["cca"])


class MipsVm(Part):
    """The GPA page table of one VM, and what its operations read often.

    :param layout: the bits of every entry.
    :param mmu: ``guestid``, ``rad`` or ``te``.
    :param pgd: physical address of the root; 0 once it is freed.
    """

    variables = ("pgd", "asid_flush_mask")

    def __init__(self, vm: Vm, layout: Layout, mmu: str, pgd: int) -> None:
        k = vm.k
        geometry = layout.geometry
        self.layout = layout
        self.geometry: Geometry = geometry
        self.mmu = mmu
        self.pgd = pgd
        self.asid_flush_mask: set[int] = set()
        """CPUs that take a new root ASID before they enter this guest (RAD)."""
        self.gfn_shifts = tuple(s - layout.page_shift for s in geometry.shifts)
        """By level, from the leaf up: lowest gfn bit of the index."""
        self.gfns = 1 << geometry.gpa_bits - layout.page_shift
        """How many gfns the table can tell apart."""
        self.young = Match(layout.present | layout.accessed)
        self.unclean = Match(layout.present | layout.modified)
        # Choices that are values, read once.
        self.past_end: int = k.mips_past_end
        self.sets_absent: bool = k.mips_sets_absent
        self.releases_locked: bool = k.mips_releases_locked
        self.pairs: int = k.mips_vpn2_mask >> layout.page_shift & ~1
        """Bits of a gfn that say which pair a local invalidation looks for."""


class MipsVcpu(Part):
    """One vCPU, and the CPU that it runs on.

    ``context`` is the number under which its translations are cached, with the
    version above: vzguestid[cpu]; the root ASID of gpa_mm; or, with trap and
    emulate, the ASID of the guest's kernel mm. ``cache`` is what this CPU counts it
    from: guestid_cache(cpu) or asid_cache(cpu). 0 is a number given up.
    """

    variables = ("context", "cache", "tag", "mmu_page_cache", "gva")

    def __init__(self) -> None:
        # Simplified: one CPU per vCPU, for good. What a vCPU does after it has moved
        # to another CPU (a new GuestID, a flush of the guest TLB) has no place here.
        self.context = 0
        self.cache = first_version(ID_MASK)
        self.tag = 0
        """The part of ``context`` that hardware compares, as of the last entry."""
        self.mmu_page_cache = 0
        """Pages at hand for new tables."""
        # Simplified: the guest reaches memory through its unmapped kernel segment, so
        # that one GVA page table is enough and its index is the gfn. A dict, because
        # it is only ever used by its own vCPU and never freed under a walker.
        self.gva: dict[int, int] = {}
        """The guest kernel's GVA page table, by gfn (trap and emulate)."""


def vm_create(vm: Vm) -> MipsVm:
    """Make the root of the GPA page table, every entry leading to the invalid table.

    :Kernel: kvm_arch_init_vm(), kvm_pgd_alloc(), since v4.11.
    :raises KvmarchError: the CPU cannot have this layout and do VZ.
    """
    options = vm.options
    mmu = options["mmu"]
    if mmu != "te" and not LAYOUTS[options["layout"]].rixi:
        raise KvmarchError(
            f"mips: every CPU with VZ has RIXI: layout={options['layout']} "
            f"goes with mmu=te only, not mmu={mmu}"
        )
    layout = layout_of(options)
    geometry = layout.geometry
    root = vm.tables.alloc(
        1 << geometry.bits[-1], geometry.levels, 0, empty=geometry.empty[-1]
    )
    return MipsVm(vm, layout, mmu, root.pa)


def vcpu_create(vcpu: Vcpu) -> MipsVcpu:
    """Make a vCPU without any number of its own yet.

    :Kernel: kvm_arch_vcpu_create().
    """
    return MipsVcpu()
