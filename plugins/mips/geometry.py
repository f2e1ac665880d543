"""Shape of the GPA page table: levels, index bits, directory entries.

Models the 64-bit geometry of arch/mips/include/asm/pgtable-64.h and the walk of
arch/mips/kvm/mmu.c, v4.11 on (fact sheet mips, section 3). The table is an ordinary
kernel page table, so its directories hold kernel virtual addresses.

Levels count from the leaf: 1 holds PTEs, 2 points at tables of level 1, and so on.
The highest level is the PGD, whatever is folded below it.
"""

__all__ = [
    "INDEX_BITS",
    "Directory",
    "Geometry",
    "InvalidTable",
    "count_tables",
    "find_geometry",
    "index_split",
    "table_entry",
    "table_index",
    "table_none",
    "table_pa",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from kvmarch import EntryFormat, Field, KvmarchError

ENTRY_SHIFT = 3
"""An entry has 8 bytes at every level."""

CKSEG0 = 0xFFFF_FFFF_8000_0000
"""Where a 64-bit kernel image is linked: a window on the lowest physical memory."""

INDEX_BITS: Mapping[tuple[int, bool], tuple[int, ...]] = MappingProxyType(
    {
        (12, False): (9, 9, 10),
        (14, False): (11, 11, 11),
        (14, True): (11, 11, 12),
        (16, False): (13, 13),
        (12, True): (9, 9, 9, 9),
    }
)
"""Index bits from the leaf up, by page shift and CONFIG_MIPS_VA_BITS_48.

Two levels: the PMD is folded into the PGD. Four levels: that KVM works with them is
unverified, an empty PGD entry runs into a BUG().
"""

_NAMES = {
    2: ("pte", "pgd"),
    3: ("pte", "pmd", "pgd"),
    4: ("pte", "pmd", "pud", "pgd"),
}


class Directory(EntryFormat):
    """A directory entry that leads on: the next table's address in XKPHYS.

    A table is aligned to its page, so that no bit below the page shift is claimed by
    the subclass for a page size.

    :Kernel: pmd_populate_kernel(), pud_populate().
    """

    # Nothing but software reads a directory while it is walked.
    live_changes = (1 << EntryFormat.width) - 1

    segment = Field(63, 62, fixed=2, doc="XKPHYS, unmapped physical memory")
    cca = Field(61, 59, doc="cache coherency attribute of the window (CAC_BASE)")


class Directory4K(Directory):
    """A directory entry with 4 KiB pages."""

    table = Field(58, 12, doc="physical frame of the next table")


class Directory16K(Directory):
    """A directory entry with 16 KiB pages."""

    table = Field(58, 14, doc="physical frame of the next table")


class Directory64K(Directory):
    """A directory entry with 64 KiB pages."""

    table = Field(58, 16, doc="physical frame of the next table")


_DIRECTORIES = {12: Directory4K, 14: Directory16K, 16: Directory64K}


class InvalidTable(EntryFormat):
    """An empty directory entry: the address of a table that the kernel image holds.

    It is empty because it equals ``invalid_pte_table`` or a sibling, not because of
    any bit; zero is no empty directory entry.

    :Kernel: pmd_none(), pud_none().
    """

    live_changes = Directory.live_changes

    segment = Field(63, 29, fixed=CKSEG0 >> 29, doc="CKSEG0, the kernel image")
    offset = Field(28, 12, doc="4 KiB frame within the segment")


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of one configuration's GPA page table.

    Tuples run from the leaf up: what belongs to a level is at ``level - 1``.

    :param page_shift: 12, 14 or 16.
    :param va_bits_48: CONFIG_MIPS_VA_BITS_48.
    :param cca: cache coherency attribute of the window that directories point into.
    :param names: ``pte`` up to ``pgd``.
    :param bits: index bits.
    :param shifts: lowest GPA bit of the index.
    :param masks: what is left of the shifted GPA.
    :param empty: what an empty entry holds.
    :param directory: format of the entries that lead on.
    :param page_offset: kernel virtual address of physical address 0.
    :param pa_mask: bits of a directory entry that are the physical address.
    """

    page_shift: int
    va_bits_48: bool
    cca: int
    names: tuple[str, ...] = field(compare=False, repr=False)
    bits: tuple[int, ...] = field(compare=False, repr=False)
    shifts: tuple[int, ...] = field(compare=False, repr=False)
    masks: tuple[int, ...] = field(compare=False, repr=False)
    empty: tuple[int, ...] = field(compare=False, repr=False)
    directory: type[Directory] = field(compare=False, repr=False)
    page_offset: int = field(compare=False, repr=False)
    pa_mask: int = field(compare=False, repr=False)

    @property
    def levels(self) -> int:
        """Return how many tables a walk goes through."""
        return len(self.bits)

    @property
    def gpa_bits(self) -> int:
        """Return how many bits of a GPA the table can tell apart."""
        return self.shifts[-1] + self.bits[-1]

    @property
    def pgd_order(self) -> int:
        """Return the root's size as a power of two of pages."""
        return self.bits[-1] + ENTRY_SHIFT - self.page_shift

    @property
    def cache_min_pages(self) -> int:
        """Return how many pages a fault has at hand before it takes mmu_lock.

        :Kernel: KVM_MMU_CACHE_MIN_PAGES
        """
        return 1 if self.levels == 2 else 2


@cache
def find_geometry(page_shift: int, cca: int, va_bits_48: bool = False) -> Geometry:
    """Return the geometry of a configuration.

    :param page_shift: 12, 14 or 16.
    :param cca: of the kernel's cached window.
    :raises KvmarchError: no table is known for this configuration.
    :raises EntryError: the CCA has more than three bits.
    """
    bits = INDEX_BITS.get((page_shift, va_bits_48))
    if bits is None:
        known = ", ".join(
            f"{shift}{' with VA_BITS_48' if wide else ''}" for shift, wide in INDEX_BITS
        )
        raise KvmarchError(
            f"no GPA page table for page shift {page_shift}"
            f"{' with VA_BITS_48' if va_bits_48 else ''}; there is {known}"
        )
    directory = _DIRECTORIES[page_shift]
    shifts = tuple(page_shift + sum(bits[:below]) for below in range(len(bits)))
    # Simplified: CAC_BASE is an architecture constant in older kernels and follows
    # Config.K0 in newer ones; here it has the CCA of the leaf entries. Harmless
    # because nothing compares the window.
    page_offset = directory.pack(cca=cca)
    # Simplified: the kernel image decides where these tables are. One page each is
    # set aside at the start of the segment; only equality matters.
    frame = 1 << page_shift - InvalidTable.offset.low
    empty = tuple(
        InvalidTable.pack(offset=frame * above) if above else 0
        for above in range(len(bits))
    )
    return Geometry(
        page_shift=page_shift,
        va_bits_48=va_bits_48,
        cca=cca,
        names=_NAMES[len(bits)],
        bits=bits,
        shifts=shifts,
        masks=tuple((1 << width) - 1 for width in bits),
        empty=empty,
        directory=directory,
        page_offset=page_offset,
        pa_mask=directory.fields["table"].mask,
    )


def table_index(geometry: Geometry, gpa: int, level: int) -> int:
    """Return the index of a GPA in a table of this level.

    A GPA beyond ``gpa_bits`` wraps round in the root, as the kernel's index does.

    :Kernel: pte_index(), pmd_index(), pud_index(), pgd_index().
    """
    return gpa >> geometry.shifts[level - 1] & geometry.masks[level - 1]


def index_split(geometry: Geometry, gpa: int) -> dict[str, int]:
    """Return the index at every level by its name, from the root down."""
    return {
        geometry.names[level - 1]: table_index(geometry, gpa, level)
        for level in range(geometry.levels, 0, -1)
    }


def count_tables(geometry: Geometry, first: int, last: int) -> tuple[int, ...]:
    """Return how many tables of each level it takes to map a range, the root included.

    :param first: first gfn.
    :param last: last gfn, inclusive as in every range function of KVM on MIPS.
    :returns: counts from the leaf up.
    :raises KvmarchError: the range is empty or beyond the table.
    """
    end = 1 << geometry.gpa_bits - geometry.page_shift
    if not 0 <= first <= last < end:
        raise KvmarchError(
            f"gfn {first:#x}-{last:#x} is no range of gfns below {end:#x}"
        )
    spans = (
        shift + width - geometry.page_shift
        for shift, width in zip(geometry.shifts, geometry.bits, strict=True)
    )
    return tuple((last >> span) - (first >> span) + 1 for span in spans)


def table_entry(geometry: Geometry, pa: int) -> int:
    """Return the directory entry that leads to a table.

    :Kernel: pmd_populate_kernel(), pud_populate().
    :param pa: physical address of the table, in bytes.
    """
    return geometry.page_offset | pa


def table_pa(geometry: Geometry, entry: int) -> int:
    """Return the physical address of the table that a directory entry leads to.

    :Kernel: pmd_phys(), pud_phys().
    """
    return entry & geometry.pa_mask


def table_none(geometry: Geometry, entry: int, level: int) -> bool:
    """Return whether an entry of this level is empty.

    :Kernel: pmd_none(), pud_none(); at level 1 it is the zero of a cleared leaf table.
    """
    return entry == geometry.empty[level - 1]
