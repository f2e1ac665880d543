"""The host's page-table entry, which up to v6.19 is the guest's too.

Models arch/s390/include/asm/pgtable.h (fact sheet s390, 2.2, 2.3). Hardware keeps no
accessed or dirty bit here: an entry that is not young is invalid, one that is not dirty
is protected, and the fault says that it was used.
"""

__all__ = [
    "Empty",
    "GmapLarge",
    "HostPage",
    "InvalidRegion",
    "gmap_segment",
    "host_page",
    "invalid_region",
    "invalid_region_format",
]

from functools import cache
from typing import cast

from kvmarch import EntryFormat, Field, HostPte

from kvmarch_s390.geometry import LEVELS, table_type
from kvmarch_s390.region import ANY

_P = HostPte.present.mask
_WRITABLE = _P | HostPte.write.mask | HostPte.dirty.mask


class HostPage(EntryFormat):
    """An entry that maps a page."""

    live_changes = ANY

    pfn = Field(63, 12, doc="page frame number")
    zero = Field(11, fixed=0, doc="must be 0")
    invalid = Field(10, doc="I: accesses trap")
    protect = Field(9, doc="P: stores trap")
    noexec = Field(8, doc="no execution (IEP)")
    unused = Field(7, doc="software: the guest can do without the content (CMMA)")
    special = Field(6, doc="software: no struct page")
    write = Field(5, doc="software: may be written")
    read = Field(4, doc="software: may be read")
    dirty = Field(3, doc="software")
    young = Field(2, doc="software")
    soft_dirty = Field(1, doc="software")
    present = Field(0, fixed=1, doc="software: maps a page")


class Empty(EntryFormat):
    """An entry that maps nothing."""

    live_changes = ANY

    invalid = Field(10, fixed=1, doc="I")


class InvalidRegion(EntryFormat):
    """A region or segment entry of gmap that leads nowhere."""

    live_changes = ANY

    i = Field(5, fixed=1, doc="invalid")


@cache
def invalid_region_format(level: int) -> type[EntryFormat]:
    """Return the format of an empty entry of a level."""
    name = LEVELS[level]
    tt = Field(3, 2, fixed=table_type(level), doc=f"a {name} entry")
    doc = f"A {name} entry that leads nowhere."
    made = type(f"No{name.capitalize()}", (InvalidRegion,), {"__doc__": doc, "tt": tt})
    return cast("type[EntryFormat]", made)


def invalid_region(level: int) -> int:
    """Return the empty entry of a level."""
    return invalid_region_format(level).kind_value


class GmapLarge(EntryFormat):
    """gmap's segment entry for 1 MiB, a copy of the host's with two bits of its own."""

    live_changes = ANY

    pfn = Field(63, 20, shift=8, doc="page frame number")
    notify = Field(15, doc="IN: tell gmap's notifiers when the entry goes")
    uc = Field(14, doc="user dirty")
    fc = Field(10, fixed=1, doc="format control: a large page")
    protect = Field(9, doc="P: stores trap")
    noexec = Field(8, doc="no execution (IEP)")
    i = Field(5, doc="invalid")
    cs = Field(4, doc="common segment")
    tt = Field(3, 2, fixed=0, doc="a segment entry")


_LARGE = GmapLarge.fc.mask
_UC = GmapLarge.uc.mask
_HARDWARE = (1 << 64) - (1 << 11) | 0x600 | GmapLarge.i.mask
"""Bits of a host entry that lead to a page table: origin, FC, P and I."""
_HARDWARE_LARGE = GmapLarge.known & ~(GmapLarge.notify.mask | _UC)


def gmap_segment(pmd: int) -> int:
    """Return gmap's segment entry for a host PMD.

    A large one begins as written by the user.

    :Kernel: __gmap_link(), since v4.19 for large pages.
    """
    if pmd & _LARGE:
        return pmd & _HARDWARE_LARGE | _UC
    return pmd & _HARDWARE


def host_page(entry: int, *, protected: bool = False) -> int:
    """Return the machine's entry for a host entry of the model.

    Simplified: an entry that waits for a migration reads as empty; a fault on either
    waits for the host.

    :param entry: a :class:`~kvmarch.HostPte` value.
    :param protected: the dirty log has set P, although the entry is dirty.
    """
    if not entry & _P:
        return Empty.kind_value
    young = HostPte.young.get(entry)
    return HostPage.pack(
        pfn=HostPte.pfn.get(entry),
        invalid=int(not young),
        protect=int(protected or entry & _WRITABLE != _WRITABLE),
        noexec=int(not HostPte.exec.get(entry)),
        special=HostPte.special.get(entry),
        write=HostPte.write.get(entry),
        read=1,
        dirty=HostPte.dirty.get(entry),
        young=young,
        soft_dirty=HostPte.soft_dirty.get(entry),
        present=1,
    )
