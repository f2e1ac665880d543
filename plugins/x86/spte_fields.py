"""Bits of EPT and NPT entries (SPTEs): what the processor reads and what KVM keeps.

:Kernel: arch/x86/kvm/mmu.c up to v5.9, arch/x86/kvm/mmu/spte.h from v5.11.

Each bit is stated once, here. Positions are those of the fact sheet x86, sections 1.2,
1.3, 1.4 and 1.6; where a release moved bits there is a class for each place.
"""

__all__ = [
    "AdKind",
    "AdKind52",
    "AdKind60",
    "AdKind62",
    "AdKindOn",
    "EptEntry",
    "EptLeaf",
    "EptMmio",
    "EptTable",
    "Frozen72",
    "Frozen612",
    "Large",
    "MmioMark42",
    "MmioMark411",
    "MmioMark510",
    "MmioMark612",
    "MmuPresent",
    "NonPresent0",
    "NonPresent63",
    "NptLeaf",
    "NptMmio",
    "NptTable",
    "Removed",
    "Removed512",
    "Saved52",
    "Saved52WithoutXu",
    "Saved54",
    "Spte",
    "SuppressVe",
    "UserExecute",
    "Writable9",
    "Writable10",
    "Writable53",
    "Writable57",
]

from enum import IntEnum

from kvmarch_x86.geometry import MemType

from kvmarch import EntryError, EntryFormat, Field


class AdKind(IntEnum):
    """How accessed and dirty state of a present entry are kept."""

    ENABLED = 0
    DISABLED = 1
    WRPROT_ONLY = 2
    """Hardware sets A and D, but dirty logging must clear W (L2 tables under PML)."""


class AdKindOn(IntEnum):
    """The kinds that an entry can have where hardware sets A and D."""

    ENABLED = 0
    WRPROT_ONLY = 2


class Spte(EntryFormat):
    """Any entry."""

    # x86 hardware asks for no break-before-make. What KVM itself forbids is a rule of
    # leaf formats, see Leaf.may_change().
    live_changes = (1 << EntryFormat.width) - 1


class Leaf(Spte):
    """An entry that maps memory.

    W without host-writable and MMU-writable is refused: no kernel makes such a leaf.
    MMU-writable alone is accepted, although it is not legal either: change_pte made
    that until f082d86ea685 (v5.17).
    """

    @classmethod
    def check(cls, entry: int) -> None:
        """Refuse what is not an entry of this kind.

        :raises EntryError: with the bits or the field at fault.
        """
        super().check(entry)
        if not cls._may_be_writable(entry):
            raise EntryError(
                f"{entry:#x}: {cls.__name__}.w needs host_writable and mmu_writable"
            )

    @classmethod
    def accepts(cls, entry: int) -> bool:
        """Return whether the value is an entry of this kind without stray bits."""
        return super().accepts(entry) and cls._may_be_writable(entry)

    @classmethod
    def _may_be_writable(cls, entry: int) -> bool:
        w, host, mmu = (
            cls.fields[name].get(entry)
            for name in ("w", "host_writable", "mmu_writable")
        )
        return not w or bool(host and mmu)

    @classmethod
    def may_change(cls, old: int, new: int) -> bool:
        """Return whether the new value may replace the old one in a live entry.

        A leaf never becomes a leaf of another page in one step: the TDP MMU calls
        that a bug (fact sheet x86, section 2), the rmap MMU drops the old one first.
        """
        pfn = cls.fields["pfn"]
        return not cls.accepts(new) or pfn.get(old) == pfn.get(new)


class EptEntry(Spte):
    """What the processor reads in every EPT entry."""

    x = Field(2, doc="execute; supervisor execute where XU is used")
    w = Field(1, doc="write")
    r = Field(0, doc="read")


class EptLeaf(Leaf, EptEntry):
    """An EPT entry that maps memory; direct maps are always readable."""

    dirty = Field(9)
    accessed = Field(8)
    ipat = Field(6, doc="ignore the guest's PAT")
    memtype = Field(5, 3, enum=MemType)
    r = Field(0, fixed=1, doc="read")


class EptTable(EptEntry):
    """An EPT entry that points at a table; it allows everything."""

    accessed = Field(8)
    x = Field(2, fixed=1, doc="execute; supervisor execute where XU is used")
    w = Field(1, fixed=1, doc="write")
    r = Field(0, fixed=1, doc="read")


class NptEntry(Spte):
    """What the processor reads in every NPT entry: the ordinary format."""

    accessed = Field(5)
    user = Field(2, fixed=1, doc="guest accesses count as user accesses")
    w = Field(1, doc="write")
    p = Field(0, fixed=1, doc="present")


class NptLeaf(Leaf, NptEntry):
    """An NPT entry that maps memory."""

    nx = Field(63, doc="no execute")
    dirty = Field(6)


class NptTable(NptEntry):
    """An NPT entry that points at a table; it allows everything."""

    w = Field(1, fixed=1, doc="write")


class Large(Spte):
    """A leaf above level 1."""

    ps = Field(7, fixed=1, doc="page size: this entry is a leaf")


class MmuPresent(Spte):
    """From v5.13: KVM's own present bit."""

    mmu_present = Field(11, fixed=1, doc="mapped by KVM, present for hardware or not")


class SuppressVe(Spte):
    """From v6.10: present entries do not raise #VE."""

    suppress_ve = Field(63, fixed=1, doc="suppress #VE")


class UserExecute(Spte):
    """The 7.2 layout: mode-based execute control."""

    xu = Field(10, doc="user execute")


class AdKind62(Spte):
    """The A/D kind of the 4.11 layout: one bit, set where A and D are not kept."""

    ad_kind = Field(62, doc="how A and D are kept")


class AdKind52(Spte):
    """The A/D kind from the 5.10 up to the 6.12 layout."""

    ad_kind = Field(53, 52, doc="how A and D are kept")


class AdKind60(Spte):
    """The A/D kind of the 7.2 layout."""

    ad_kind = Field(61, 60, doc="how A and D are kept")


class Writable10(Spte):
    """Writability up to v5.12, EPT and NPT."""

    mmu_writable = Field(11, doc="no shadowed guest page table")
    host_writable = Field(10, doc="slot and host mapping are writable")


class Writable57(Spte):
    """Writability in EPT, v5.13 up to the 6.12 layout."""

    mmu_writable = Field(58, doc="no shadowed guest page table")
    host_writable = Field(57, doc="slot and host mapping are writable")


class Writable53(Spte):
    """Writability in EPT, the 7.2 layout."""

    mmu_writable = Field(55, doc="no shadowed guest page table")
    host_writable = Field(53, doc="slot and host mapping are writable")


class Writable9(Spte):
    """Writability in NPT from v5.13."""

    mmu_writable = Field(10, doc="no shadowed guest page table")
    host_writable = Field(9, doc="slot and host mapping are writable")


class Saved52WithoutXu(Spte):
    """Permissions put aside by access tracking, the 4.11 layout."""

    saved_x = Field(54, doc="X before ageing")
    saved_r = Field(52, doc="R before ageing")


class Saved54(Spte):
    """Permissions put aside by access tracking, 5.10 up to the 6.12 layout."""

    saved_x = Field(56, doc="X before ageing")
    saved_r = Field(54, doc="R before ageing")


class Saved52(Spte):
    """Permissions put aside by access tracking, the 7.2 layout."""

    saved_xu = Field(62, doc="XU before ageing")
    saved_x = Field(54, doc="X before ageing")
    saved_r = Field(52, doc="R before ageing")


class NonPresent0(Spte):
    """Nothing here, up to v6.9."""


class NonPresent63(Spte):
    """Nothing here, from v6.10: EPT and NPT alike."""

    suppress_ve = Field(63, fixed=1, doc="SHADOW_NONPRESENT_VALUE")


class Removed512(Spte):
    """REMOVED_SPTE of v5.12."""

    frozen = Field(63, 0, fixed=1 << 59, doc="no permission, no frame")


class Removed(Spte):
    """REMOVED_SPTE, v5.13 up to the 6.1 layout: being changed without the lock."""

    frozen = Field(11, 0, fixed=0x5A0, doc="no permission, no frame")


class Frozen612(NonPresent63):
    """FROZEN_SPTE of the 6.12 layout."""

    frozen = Field(11, 0, fixed=0x5A0, doc="no permission, no frame")


class Frozen72(NonPresent63):
    """FROZEN_SPTE of the 7.2 layout."""

    frozen = Field(11, 0, fixed=0x1A0, doc="no permission, no frame")


class MmioMark42(Spte):
    """What marks an MMIO entry up to v4.10, besides bits that hardware refuses."""

    mark = Field(63, 62, fixed=3, doc="MMIO")


class MmioMark411(Spte):
    """What marks an MMIO entry in the 4.11 layout, besides bits hardware refuses."""

    mark = Field(62, fixed=1, doc="MMIO")


class MmioMark510(Spte):
    """The fourth value of the A/D kind in the 5.10 layout: an MMIO entry."""

    mark = Field(53, 52, fixed=3, doc="MMIO")


class MmioMark612(Spte):
    """From v6.10 MMIO entries of EPT leave suppress #VE clear, as the test asks."""

    suppress_ve = Field(63, fixed=0, doc="suppress #VE")


class EptMmio(EptEntry):
    """An entry that hardware finds misconfigured: write and execute without read."""

    x = Field(2, fixed=1, doc="execute")
    w = Field(1, fixed=1, doc="write")
    r = Field(0, fixed=0, doc="read")


class NptMmio(Spte):
    """The access that the fault allowed; hardware refuses a reserved address bit."""

    user = Field(2, doc="user access")
    w = Field(1, doc="write access")
