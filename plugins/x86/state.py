"""What KVM/x86 keeps per VM, per vCPU and per table page.

:Kernel: struct kvm_arch, struct kvm_vcpu_arch, struct kvm_mmu_page; fact sheet x86,
    section 2.
"""

__all__ = ["ENTRIES", "Role", "X86Vcpu", "X86Vm"]

from collections.abc import Callable
from typing import NamedTuple

from kvmarch_x86.geometry import LEVEL_BITS, PAGE_SHIFT
from kvmarch_x86.layout import Layout
from kvmarch_x86.mmio import generation_mmio_spte_mask, get_mmio_spte_generation
from kvmarch_x86.rules import Rules
from kvmarch_x86.spte_fields import EptEntry

from kvmarch import Match, Part

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


def leaf_match(layout: Layout, bits: int = 0) -> Match:
    """Return what tells 4 KiB leaves, tracked ones too, from other entries.

    For layouts of the TDP MMU (5.10 on); as few bits as possible are looked at, for
    each of them costs a pass over a table.

    :param bits: that must be set as well.
    """
    mask = layout.present_mask
    if mask & mask - 1 == 0:
        # A bit of its own says that an entry is present.
        return Match(mask | bits, mask | bits)
    if not layout.ad:
        return Match(layout.ad_mask | bits, layout.ad_disabled | bits)
    # Readable, and not the highest A/D kind, which means MMIO.
    high = 1 << layout.ad_mask.bit_length() - 1 if layout.ad_mask else 0
    return Match(EptEntry.r.mask | high | bits, EptEntry.r.mask | bits)


def hardware_tests(layout: Layout) -> dict[str, tuple[int, int, int]]:
    """Return how hardware judges an entry that maps memory, by access.

    :returns: bits that are looked at, what they must be, and what is set then.
    """
    present = EptEntry.r.mask
    mark = layout.mmio_value >> PAGE_SHIFT << PAGE_SHIFT
    # NPT: what only MMIO entries hold must be clear. EPT: they are not readable.
    no_mmio = mark & -mark if layout.shadow_nx_mask else 0
    execute = layout.shadow_x_mask | layout.shadow_nx_mask
    a = layout.shadow_accessed_mask if layout.ad else 0
    d = layout.shadow_dirty_mask if layout.ad else 0
    seen = present | no_mmio
    return {
        "read": (seen, present, a),
        "write": (
            seen | layout.writable_mask,
            present | layout.writable_mask,
            a | d,
        ),
        "exec": (seen | execute, present | layout.shadow_x_mask, a),
    }


class X86Vm(Part):
    """The MMU of one VM; it becomes ``vm.arch``.

    :param layout: the bits of every entry.
    :param level: of a root table, 4 or 5.
    :param is_tdp: the TDP MMU maps, not the direct MMU with reverse maps.
    :param nx_huge_pages: huge pages are not executable.
    :param pml: hardware logs the pages whose D it sets.
    :param eager_split: huge pages are split when dirty logging begins.
    :param slot_zap_all: deleting a memslot zaps everything.
    :param rules: what the kernel does, as far as it is yes or no.
    :param place_generation: see :func:`~kvmarch_x86.mmio.make_mmio_spte`.
    :param read_generation: see :func:`~kvmarch_x86.mmio.check_mmio_spte`.
    """

    variables = (
        "roots",
        "root_of",
        "invalid_roots",
        "mmu_valid_gen",
        "active_mmu_pages",
        "mmu_page_hash",
        "parent_ptes",
        "lost_rmaps",
        "lpage_info",
        "inhibited",
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
        slot_zap_all: bool = True,
        rules: Rules | None = None,
        place_generation: Callable[[Layout, int], int] = generation_mmio_spte_mask,
        read_generation: Callable[[Layout, int], int] = get_mmio_spte_generation,
    ) -> None:
        self.layout = layout
        self.level = level
        self.is_tdp = is_tdp
        self.nx_huge_pages = nx_huge_pages
        self.pml = pml
        self.eager_split = eager_split
        self.slot_zap_all = slot_zap_all
        self.rules = rules or Rules(*(True for _ in Rules._fields))
        self.shares_log = self.rules.logs_shared and self.rules.uses_rcu
        """Dirty logging begins and ends with mmu_lock for read."""
        self.place_generation = place_generation
        self.read_generation = read_generation
        self.gfn_bits = LEVEL_BITS * level
        frozen = layout.frozen if self.rules.freezes else None
        self.frozen = layout.nonpresent if frozen is None else frozen
        """What a removed entry holds: empty where there is no frozen value."""
        self.hardware = hardware_tests(layout)
        self.leaf = leaf_match(layout)
        self.writable_leaf = leaf_match(layout, layout.writable_mask)
        self.accessed_leaf = leaf_match(layout, layout.shadow_accessed_mask)
        self.dirty_leaf = leaf_match(layout, layout.shadow_dirty_mask)
        self.roots: list[int] = []
        """tdp_mmu_roots: physical addresses, newest first, invalid ones included."""
        self.root_of: dict[int, int] = {}
        """The valid root of an address space, by as_id; 0 or absent for none."""
        self.invalid_roots: list[int] = []
        """Roots of the TDP MMU that wait to be zapped."""
        self.mmu_valid_gen = 0
        self.active_mmu_pages: list[int] = []
        """Tables of the rmap MMU: physical addresses, newest first."""
        self.mmu_page_hash: dict[tuple[int, int, int], list[int]] = {}
        """Tables of the rmap MMU by address space, level and first gfn, oldest first.

        They are the reverse maps as well: the place of a direct table says the gfn of
        each of its entries, so that the reverse map of a gfn is the leaf at its index
        in each of the tables here. Obsolete tables stay until they are zapped.
        """
        self.parent_ptes: dict[int, list[tuple[int, int]]] = {}
        """By table of the rmap MMU: table and index of the entries that point at it."""
        self.lost_rmaps: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        """By address space, level and gfn: table and index in a reverse map whose
        entry was overwritten and is no leaf any more (D16 of the fact sheet)."""
        self.lpage_info: dict[tuple[int, int, int], int] = {}
        """By address space, level and first gfn: disallow_lpage, where not zero."""
        self.inhibited = (0, 0)
        """First gfn and end of what is emulated since APICv was inhibited."""


class X86Vcpu(Part):
    """What one vCPU has loaded; it becomes ``vcpu.arch``."""

    variables = ("root_pa", "root_as_id", "pml_buffer", "retried")

    def __init__(self) -> None:
        self.root_pa = 0
        """The root that is loaded; 0 for none (INVALID_PAGE)."""
        self.root_as_id = 0
        """The address space that it was loaded for."""
        self.pml_buffer: list[int] = []
        """The gfns that hardware has logged since the last exit."""
        self.retried = False
        """The last access to be emulated was tried again instead; only one that could
        be, see :func:`~kvmarch_x86.fault.page_fault`."""
