"""What KVM/x86 keeps per VM, per vCPU and per table page.

:Kernel: struct kvm_arch, struct kvm_vcpu_arch, struct kvm_mmu_page; fact sheet x86,
    section 2.
"""

__all__ = ["ENTRIES", "Role", "X86Vcpu", "X86Vm"]

from typing import NamedTuple

from kvmarch_x86.geometry import LEVEL_BITS
from kvmarch_x86.layout import Layout

from kvmarch import Part

ENTRIES = 1 << LEVEL_BITS
"""Entries of every table."""


class Role(NamedTuple):
    """What a table page is for: ``Table.note``.

    :Kernel: union kvm_mmu_page_role, with kvm_mmu_page::mmu_valid_gen.
    :param as_id: address space (``role.smm``).
    :param level: of the entries in the table.
    :param invalid: no vCPU may load it as a root any more.
    :param ad_disabled: hardware sets neither A nor D in it.
    :param gen: mmu_valid_gen when it was made; the rmap MMU compares it.
    """

    as_id: int
    level: int
    invalid: bool = False
    ad_disabled: bool = False
    gen: int = 0


class X86Vm(Part):
    """The MMU of one VM; it becomes ``vm.arch``.

    :param layout: the bits of every entry.
    :param level: of a root table, 4 or 5.
    :param is_tdp: the TDP MMU maps, not the direct MMU with reverse maps.
    :param nx_huge_pages: huge pages are not executable.
    :param pml: hardware logs the pages whose D it sets.
    :param eager_split: huge pages are split when dirty logging begins.
    """

    variables = (
        "roots",
        "root_of",
        "invalid_roots",
        "mmu_valid_gen",
        "active_mmu_pages",
        "rmaps",
        "lpage_info",
    )

    def __init__(
        self,
        layout: Layout,
        level: int,
        *,
        is_tdp: bool,
        nx_huge_pages: bool = False,
        pml: bool = False,
        eager_split: bool = False,
    ) -> None:
        self.layout = layout
        self.level = level
        self.is_tdp = is_tdp
        self.nx_huge_pages = nx_huge_pages
        self.pml = pml
        self.eager_split = eager_split
        self.roots: list[int] = []
        """tdp_mmu_roots: physical addresses, newest first, invalid ones included."""
        self.root_of: dict[int, int] = {}
        """The valid root of an address space, by as_id; 0 or absent for none."""
        self.invalid_roots: list[int] = []
        """Roots of the TDP MMU that wait to be zapped."""
        self.mmu_valid_gen = 0
        self.active_mmu_pages: list[int] = []
        """Tables of the rmap MMU: physical addresses, newest first."""
        self.rmaps: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        """By address space, level and first gfn: table and index of each leaf."""
        self.lpage_info: dict[tuple[int, int, int], int] = {}
        """By address space, level and first gfn: disallow_lpage, where not zero."""


class X86Vcpu(Part):
    """What one vCPU has loaded; it becomes ``vcpu.arch``."""

    variables = ("root_pa", "pml_buffer")

    def __init__(self) -> None:
        self.root_pa = 0
        """The root that is loaded; 0 for none (INVALID_PAGE)."""
        self.pml_buffer: list[int] = []
        """The gfns that hardware has logged since the last exit."""
