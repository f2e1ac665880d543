"""Radix trees: entries and geometry of the tables that map a Book3S HV radix guest.

:Kernel: arch/powerpc/include/asm/book3s/64/pgtable.h, radix-4k.h and radix-64k.h, and
    arch/powerpc/kvm/book3s_64_mmu_radix.c, v4.11 to v6.19.

Each bit is stated once, here; positions are those of the fact sheet ppc, sections 3.1
to 3.3. Entries are ints as the CPU holds them; in memory they are big-endian, see
:func:`kvmarch_ppc.layout.to_memory`. No entry means MMIO: a page without a memslot
has none and is emulated at every access.
"""

__all__ = [
    "LEAF_LEVELS",
    "PAGE_ACCESSED",
    "PAGE_DIRTY",
    "PAGE_EXEC",
    "PAGE_INVALID",
    "PAGE_PRESENT",
    "PAGE_PTE",
    "PAGE_READ",
    "PAGE_SOFT_DIRTY",
    "PAGE_SPECIAL",
    "PAGE_WRITE",
    "PTE_BITS_MUST_MATCH",
    "RADIX_PTE_NONE_MASK",
    "Att",
    "PteBits",
    "RadixLayout",
    "RadixWord",
    "Table",
    "flags_built_pte",
    "gpa_index",
    "gpa_indexes",
    "host_copied_pte",
    "host_pte",
    "make_radix_layout",
    "pmd_leaf",
    "pmd_populate",
    "pmd_table",
    "pte_bits_match",
    "pte_dirty",
    "pte_hw_valid",
    "pte_mkclean",
    "pte_mkold",
    "pte_none",
    "pte_pfn",
    "pte_present",
    "pte_write",
    "pte_young",
    "shift_to_level",
]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any

from kvmarch_ppc.layout import (
    ENTRY_SHIFT,
    REAL_ADDRESS_BITS,
    Empty,
    Layout,
    find_page_shift,
)
from kvmarch_ppc.nest_rmap import NEST_RMAP_KINDS
from kvmarch_ppc.partition import PartitionRadix0, PartitionRadix1

from kvmarch import EntryError, EntryFormat, EntryKind, Field

INDEX_BITS: Mapping[int, tuple[int, ...]] = {12: (9, 9, 9, 13), 16: (5, 9, 9, 13)}
"""By PAGE_SHIFT, index bits of the tables at levels 0 (PTE) to 3 (PGD)."""
LEAF_LEVELS = (0, 1, 2)
"""KVM rejects leaves of 512 GiB."""


class RadixWord(IntEnum):
    """What a radix guest's values are; 0 to 3 are levels of the tree.

    The ``level`` argument of kvmppc_create_pte() has the same numbers.
    """

    PTE = 0
    PMD = 1
    PUD = 2
    PGD = 3
    PARTITION0 = 4
    """Partition-table entry, first doubleword: the root."""
    PARTITION1 = 5
    """Partition-table entry, second doubleword."""
    RMAP = 6
    """The memslot's word of a page."""


class Att(IntEnum):
    """Memory type of a leaf; the kernel writes _PAGE_ before each name."""

    NORMAL = 0
    SAO = 1
    NON_IDEMPOTENT = 2
    TOLERANT = 3


class Live(EntryFormat):
    """An entry that hardware may use while its first bit is set."""

    present = Field(63, doc="_PAGE_PRESENT: hardware uses the entry")

    @classmethod
    def may_change(cls, old: int, new: int) -> bool:
        """Return whether the new value may replace the old one by a single store."""
        return not old & new & cls.fields["present"].mask or super().may_change(
            old, new
        )


class PteBits(Live):
    """Bits of leaves of every size; 60:56 would be the key of a hash entry."""

    pte = Field(62, fixed=1, doc="_PAGE_PTE: a leaf, also on base pages")
    sw0 = Field(61, doc="_RPAGE_SW0: _PAGE_INVALID while PRESENT is 0")
    sw1 = Field(11, doc="_RPAGE_SW1: software")
    special = Field(10, doc="_PAGE_SPECIAL: no struct page behind it")
    soft_dirty = Field(9, doc="_PAGE_SOFT_DIRTY: written since the host last asked")
    accessed = Field(8, doc="_PAGE_ACCESSED: R, set by hardware too")
    dirty = Field(7, doc="_PAGE_DIRTY: C, set by hardware too")
    att = Field(5, 4, enum=Att, doc="memory type")
    privileged = Field(3, doc="_PAGE_PRIVILEGED")
    read = Field(2, doc="_PAGE_READ")
    write = Field(1, doc="_PAGE_WRITE")
    exec = Field(0, doc="_PAGE_EXEC")

    live_changes = accessed.mask | dirty.mask | write.mask

    @classmethod
    def may_change(cls, old: int, new: int) -> bool:
        """Return whether the new value may replace the old one by a single store.

        Clearing always may. In a live leaf R and C come and go and WRITE may be added;
        two faults that disagree in more raise a WARN_ON (fact sheet ppc, 3.5), and
        WRITE goes away by unmapping only.
        """
        if not old & new & PAGE_PRESENT:
            return True
        return super().may_change(old, new) and not old & ~new & PAGE_WRITE


class Table(Live):
    """An entry that points at a table; nothing in it changes while it is live."""

    present = Field(63, fixed=1, doc="hardware uses the entry")
    pte = Field(62, fixed=0, doc="no leaf")


class EmptyPte(Empty):
    """A cleared base-page entry; hardware may still write R and C back into it."""

    accessed = PteBits.accessed
    dirty = PteBits.dirty


PAGE_PRESENT = PteBits.present.mask
PAGE_PTE = PteBits.pte.mask
PAGE_INVALID = PteBits.sw0.mask
PAGE_SPECIAL = PteBits.special.mask
PAGE_SOFT_DIRTY = PteBits.soft_dirty.mask
PAGE_ACCESSED = PteBits.accessed.mask
PAGE_DIRTY = PteBits.dirty.mask
PAGE_READ = PteBits.read.mask
PAGE_WRITE = PteBits.write.mask
PAGE_EXEC = PteBits.exec.mask
RADIX_PTE_NONE_MASK = EmptyPte.known
PTE_BITS_MUST_MATCH = ((1 << PteBits.width) - 1) & ~PteBits.live_changes
"""What two faults that map the same page at once must agree on."""

_HW_VALID = PAGE_PRESENT | PAGE_PTE
_INVALID_PTE = PAGE_INVALID | PAGE_PTE
_WRITE_DIRTY = PAGE_WRITE | PAGE_DIRTY
_EXEC_ACCESSED = PAGE_EXEC | PAGE_ACCESSED
_BUILT = _HW_VALID | PAGE_READ | _EXEC_ACCESSED
_ATT_SHIFT = PteBits.att.low


@dataclass(frozen=True, slots=True, eq=False)
class RadixLayout(Layout):
    """A radix tree; tuples are by level, 0 (PTE) to 3 (PGD)."""

    index_bits: tuple[int, ...]
    index_mask: tuple[int, ...]
    level_shift: tuple[int, ...]
    """log2 of the bytes that one entry covers."""
    level_pages: tuple[int, ...]
    """Base pages that one entry covers."""
    table_bytes: tuple[int, ...]
    rpn_mask: int
    """PTE_RPN_MASK"""
    leaf_masks: tuple[int, ...]
    """Where a leaf holds its address; no leaf at level 3."""
    table_masks: tuple[int, ...]
    """Where an entry holds the address of the next table; 0 at level 0."""
    table_bits: tuple[int, ...]
    """What an entry that points at a table holds besides; 0 at level 0."""


def _make_leaf(page_shift: int, shift: int, kind: str, **fixed: int) -> type[PteBits]:
    """Return the format of a leaf; some of its bits say which kind it is."""
    size = f"{1 << shift % 10}{'?KMG'[shift // 10]}"
    fields: dict[str, Any] = {
        name: Field(PteBits.fields[name].low, fixed=value, doc=PteBits.fields[name].doc)
        for name, value in fixed.items()
    }
    fields["pfn"] = Field(
        REAL_ADDRESS_BITS - 1, shift, shift=shift - page_shift, doc="first host frame"
    )
    fields["__doc__"] = f"An entry of {size}iB: {kind}."
    made: type[PteBits] = type(f"{kind.capitalize()}{size}", (PteBits,), fields)
    return made


def _make_table(next_bits: int) -> type[Table]:
    shift = next_bits + ENTRY_SHIFT
    fields: dict[str, Any] = {
        "__doc__": f"A pointer to a table of {1 << next_bits} entries.",
        "pa": Field(REAL_ADDRESS_BITS - 1, shift, shift=shift, doc="the next table"),
        "nls": Field(4, 0, fixed=next_bits, doc="index bits of the next table"),
    }
    made: type[Table] = type(f"Table{1 << next_bits}", (Table,), fields)
    return made


def _build(
    page_shift: int, level_shift: tuple[int, ...], *, remains: bool
) -> Iterator[EntryKind]:
    index_bits = INDEX_BITS[page_shift]
    for level, shift in zip(RadixWord, level_shift, strict=False):
        if level in LEAF_LEVELS:
            leaf = _make_leaf(page_shift, shift, "leaf", present=1)
            yield EntryKind(level, "leaf", leaf, maps=True)
            invalid = _make_leaf(page_shift, shift, "invalid", present=0, sw0=1)
            yield EntryKind(level, "invalid", invalid, maps=True)
            if remains:
                left = _make_leaf(page_shift, shift, "remains", present=0, sw0=0)
                yield EntryKind(level, "remains", left)
        if level:
            yield EntryKind(level, "table", _make_table(index_bits[level - 1]))
        yield EntryKind(level, "none", Empty if level else EmptyPte)
    yield EntryKind(RadixWord.PARTITION0, "root", PartitionRadix0)
    yield EntryKind(RadixWord.PARTITION0, "none", Empty)
    yield EntryKind(RadixWord.PARTITION1, "process-table", PartitionRadix1)
    yield EntryKind(RadixWord.PARTITION1, "none", Empty)
    for kind, fmt in NEST_RMAP_KINDS.items():
        yield EntryKind(RadixWord.RMAP, kind, fmt)


@cache
def make_radix_layout(page_size: int = 65536, *, remains: bool = False) -> RadixLayout:
    """Return the layout of a radix guest; the same arguments give the same object.

    Kinds in the tree are ``leaf``, ``invalid`` (PRESENT clear, but the host has not
    forgotten the page), ``remains``, ``table`` and ``none``.

    :param page_size: the host's base page in bytes.
    :param remains: unmapping clears PRESENT and nothing else, as before v4.18 (fact
        sheet ppc, 3.6); what it leaves is ``remains``, otherwise unknown.
    :raises FormatError: there are no such pages.
    """
    page_shift = find_page_shift(page_size)
    bits = INDEX_BITS[page_shift]
    shifts = tuple(page_shift + sum(bits[:level]) for level in range(len(bits)))
    rows = tuple(_build(page_shift, shifts, remains=remains))
    by_kind = {(row.level, row.kind): row.format for row in rows}
    leaves = [by_kind[level, "leaf"] for level in LEAF_LEVELS]
    tables = [by_kind[level, "table"] for level in range(1, len(bits))]
    return RadixLayout(
        mmu="radix",
        page_shift=page_shift,
        rows=rows,
        index_bits=bits,
        index_mask=tuple((1 << n) - 1 for n in bits),
        level_shift=shifts,
        level_pages=tuple(1 << shift - page_shift for shift in shifts),
        table_bytes=tuple(1 << n + ENTRY_SHIFT for n in bits),
        rpn_mask=leaves[0].fields["pfn"].mask,
        leaf_masks=tuple(leaf.fields["pfn"].mask for leaf in leaves),
        table_masks=(0, *(table.fields["pa"].mask for table in tables)),
        table_bits=(0, *(table.kind_value for table in tables)),
    )


def gpa_index(layout: RadixLayout, gpa: int, level: int) -> int:
    """Return the index of a guest real address in a table of this level.

    :Kernel: pte_index(), pmd_index(), pud_index(), pgd_index().
    """
    return gpa >> layout.level_shift[level] & layout.index_mask[level]


def gpa_indexes(layout: RadixLayout, gpa: int) -> tuple[int, int, int, int]:
    """Return the indexes of a guest real address: PGD, PUD, PMD, PTE."""
    pte, pmd, pud, pgd = layout.level_shift
    pte_mask, pmd_mask, pud_mask, pgd_mask = layout.index_mask
    return (
        gpa >> pgd & pgd_mask,
        gpa >> pud & pud_mask,
        gpa >> pmd & pmd_mask,
        gpa >> pte & pte_mask,
    )


def shift_to_level(layout: RadixLayout, shift: int) -> int:
    """Return the level of a leaf that KVM's functions describe by its shift.

    :param shift: 0 or PAGE_SHIFT, PMD_SHIFT (21) or PUD_SHIFT (30).
    :raises EntryError: no leaf has this size.
    """
    sizes = layout.level_shift[: len(LEAF_LEVELS)]
    if not shift:
        return RadixWord.PTE
    if shift not in sizes:
        known = ", ".join(map(str, (0, *sizes)))
        raise EntryError(f"no leaf has shift {shift}; there is {known}")
    return sizes.index(shift)


def pte_none(pte: int) -> bool:
    """Return whether an entry is empty, apart from a late R or C.

    :Kernel: pte_none(); tables above level 0 are compared with 0.
    """
    return not pte & ~RADIX_PTE_NONE_MASK


def pte_hw_valid(pte: int) -> bool:
    """Return whether hardware uses a leaf.

    :Kernel: pte_hw_valid()
    """
    return pte & _HW_VALID == _HW_VALID


def pte_present(pte: int) -> bool:
    """Return whether a leaf maps a page, even if hardware must not use it now.

    :Kernel: pte_present()
    """
    return pte & _HW_VALID == _HW_VALID or pte & _INVALID_PTE == _INVALID_PTE


def pmd_leaf(entry: int) -> bool:
    """Return whether an entry above level 0 is a leaf.

    :Kernel: pmd_leaf(), pud_leaf(); pmd_is_leaf(), pud_huge() and others before.
    """
    return entry & PAGE_PTE != 0


def pte_young(pte: int) -> bool:
    """Return whether R is set.

    :Kernel: pte_young()
    """
    return pte & PAGE_ACCESSED != 0


def pte_dirty(pte: int) -> bool:
    """Return whether C is set.

    :Kernel: pte_dirty()
    """
    return pte & PAGE_DIRTY != 0


def pte_write(pte: int) -> bool:
    """Return whether a leaf may be written through.

    :Kernel: pte_write()
    """
    return pte & PAGE_WRITE != 0


def pte_pfn(layout: RadixLayout, pte: int) -> int:
    """Return the first base-page frame of a leaf of any size.

    :Kernel: pte_pfn()
    """
    return (pte & layout.rpn_mask) >> layout.page_shift


def pte_mkold(pte: int) -> int:
    """Return a leaf without R: what kvm_age_radix() leaves."""
    return pte & ~PAGE_ACCESSED


def pte_mkclean(pte: int) -> int:
    """Return a leaf without C: what kvm_radix_test_clear_dirty() leaves."""
    return pte & ~PAGE_DIRTY


def _address(layout: RadixLayout, pfn: int, level: int) -> int:
    pa = pfn << layout.page_shift
    if pa & ~layout.leaf_masks[level]:
        raise EntryError(f"pfn {pfn:#x} is not the first of a leaf of level {level}")
    return pa


def flags_built_pte(
    layout: RadixLayout, pfn: int, level: int = 0, *, write: bool, att: int = Att.NORMAL
) -> int:
    """Return the leaf that a fault makes from nothing but a frame and flags.

    :Kernel: kvmppc_book3s_radix_page_fault(), up to v4.18.
    :param write: the fault writes, or the host lets it; the leaf is dirty at once.
    :param att: an :class:`Att`.
    :raises EntryError: the frame is too large, or not aligned to the leaf.
    """
    pte = _address(layout, pfn, level) | _BUILT | att << _ATT_SHIFT
    return pte | _WRITE_DIRTY if write else pte


def host_copied_pte(host: int, *, writing: bool) -> int:
    """Return the leaf that a fault makes from the host's own entry of the page.

    Software bits and memory type come along, and EXEC is always added.

    :Kernel: kvmppc_book3s_instantiate_page(), since v4.19 (71d29f43b633; at first
        within kvmppc_book3s_radix_page_fault()).
    :param host: the host's entry; see :func:`host_pte`.
    :param writing: the fault writes, or the look-up found that writing is allowed.
    """
    pte = host | _EXEC_ACCESSED
    if writing and host & PAGE_WRITE:
        return pte | PAGE_DIRTY
    return pte & ~_WRITE_DIRTY


def host_pte(
    layout: RadixLayout,
    pfn: int,
    level: int = 0,
    *,
    write: bool,
    dirty: bool = False,
    soft_dirty: bool = False,
    special: bool = False,
    att: int = Att.NORMAL,
) -> int:
    """Return the entry that a host's own radix tree has for a present, young page.

    :param soft_dirty: set by the host at the first write.
    :param special: no struct page; the shared zero page is an example.
    :param att: an :class:`Att`.
    :raises EntryError: the frame is too large, or not aligned to the leaf.
    """
    # Simplified: no EXEC; KVM adds it in any case.
    pte = _address(layout, pfn, level) | _HW_VALID | PAGE_READ | PAGE_ACCESSED
    pte |= att << _ATT_SHIFT
    if write:
        pte |= PAGE_WRITE
    if dirty:
        pte |= PAGE_DIRTY
    if soft_dirty:
        pte |= PAGE_SOFT_DIRTY
    return pte | PAGE_SPECIAL if special else pte


def pte_bits_match(old: int, new: int, apart: int = 0) -> bool:
    """Return whether two leaves for one page differ in WRITE, DIRTY, ACCESSED at most.

    :Kernel: the WARN_ON conditions of kvmppc_create_pte().
    :param apart: further bits in which they may differ.
    """
    return not (old ^ new) & PTE_BITS_MUST_MATCH & ~apart


def pmd_populate(layout: RadixLayout, level: int, pa: int) -> int:
    """Return the entry of this level that points at a table.

    :Kernel: pmd_populate(), pud_populate(), p4d_populate().
    :param level: 1 to 3; the table is one level lower.
    :param pa: its real address in bytes.
    :raises EntryError: the table is not aligned to its size.
    """
    if pa & ~layout.table_masks[level]:
        size = layout.table_bytes[level - 1]
        raise EntryError(f"{pa:#x} is no place for a table of {size} bytes")
    return pa | layout.table_bits[level]


def pmd_table(layout: RadixLayout, level: int, entry: int) -> int:
    """Return the real address of the table that an entry of this level points at."""
    return entry & layout.table_masks[level]
