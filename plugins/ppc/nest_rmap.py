"""Nested rmap: from a page of an L1 VM to the shadow entries of its guests.

:Kernel: RMAP_NESTED_* in arch/powerpc/include/asm/kvm_book3s_64.h and KVMPPC_RMAP_* in
    kvm_host.h, from nested radix (v4.20) on.

A radix guest's memslot has one word per page. It is 0, or the only nested entry
itself, or the address of a list of nested entries (fact sheet ppc, 3.12 and 4.4).
"""

__all__ = [
    "NEST_RMAP_KINDS",
    "RMAP_NESTED_GPA_MASK",
    "RMAP_NESTED_IS_SINGLE_ENTRY",
    "RMAP_NESTED_LPID_MASK",
    "NestRmap",
    "NestRmapList",
    "NestRmapSingle",
    "is_single_entry",
    "nest_rmap",
    "nest_rmap_gpa",
    "nest_rmap_lpid",
]

from collections.abc import Mapping

from kvmarch_ppc.layout import Empty

from kvmarch import EntryFormat, Field


class NestRmap(EntryFormat):
    """One nested entry, as a list holds it."""

    lpid = Field(63, 52, doc="LPID that L1 gave its guest; never 0")
    n_gpa = Field(51, 12, shift=12, doc="real address in the nested guest")
    single = Field(0, fixed=0, doc="RMAP_NESTED_IS_SINGLE_ENTRY")


class NestRmapSingle(NestRmap):
    """One nested entry in the memslot's word, or at the end of a list."""

    single = Field(0, fixed=1, doc="RMAP_NESTED_IS_SINGLE_ENTRY: no list")


class NestRmapList(EntryFormat):
    """The host's own address of the first element of a list."""

    type = Field(63, 56, fixed=0xC0, doc="KVMPPC_RMAP_NESTED: a linear-map address")
    address = Field(55, 3, shift=3, doc="the rest of the address")


NEST_RMAP_KINDS: Mapping[str, type[EntryFormat]] = {
    "none": Empty,
    "nested": NestRmapSingle,
    "nested-list": NestRmapList,
}
"""What the memslot's word of a page can be."""

RMAP_NESTED_LPID_MASK = NestRmap.lpid.mask
RMAP_NESTED_GPA_MASK = NestRmap.n_gpa.mask
RMAP_NESTED_IS_SINGLE_ENTRY = NestRmapSingle.single.mask


def nest_rmap(lpid: int, n_gpa: int, *, single: bool) -> int:
    """Return a nested entry.

    :Kernel: kvmhv_insert_nest_rmap() and its callers.
    :param n_gpa: real address in the nested guest; its lowest 12 bits do not matter.
    """
    entry = NestRmap.lpid.place(lpid) | n_gpa & RMAP_NESTED_GPA_MASK
    return entry | RMAP_NESTED_IS_SINGLE_ENTRY if single else entry


def nest_rmap_lpid(entry: int) -> int:
    """Return the LPID that L1 gave the nested guest."""
    return entry >> NestRmap.lpid.low


def nest_rmap_gpa(entry: int) -> int:
    """Return the nested guest's real address of the page."""
    return entry & RMAP_NESTED_GPA_MASK


def is_single_entry(word: int) -> bool:
    """Return whether a memslot's word is an entry itself rather than a list."""
    return word & RMAP_NESTED_IS_SINGLE_ENTRY != 0
