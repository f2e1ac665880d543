"""Entries of region and segment tables that lead on, roots, and PGSTEs.

Fact sheet s390, 2.3, 2.4, 3.2, 3.3 and 3.5. Bits are counted from the least significant
one, where IBM's documents count from the other end.
"""

__all__ = [
    "ANY",
    "Asce",
    "Pgste",
    "PgsteEarly",
    "PgsteMoved",
    "SegmentTable",
    "TableEntry",
    "asce_of",
    "table_entry",
    "table_entry_format",
]

from functools import cache
from typing import cast

from kvmarch import EntryFormat, Field

from kvmarch_s390.geometry import LEVELS, SEGMENT, table_type

ANY = (1 << EntryFormat.width) - 1
"""Hardware looks at an entry under IPTE, IDTE or CRDTE only: any change is one."""


class TableEntry(EntryFormat):
    """An entry of a region table that leads to a table; its level adds TT."""

    live_changes = ANY

    origin = Field(63, 12, doc="4 KiB frame of the next table, which has 16 KiB")
    fc = Field(10, fixed=0, doc="format control: a table")
    p = Field(9, doc="protected")
    iep = Field(8, doc="no execution")
    tf = Field(7, 6, doc="table offset: parts of the table that are missing in front")
    i = Field(5, fixed=0, doc="invalid")
    cr = Field(4, doc="common region")
    tl = Field(1, 0, doc="table length, in quarters less one")


class SegmentTable(EntryFormat):
    """A segment entry that leads to a page table."""

    live_changes = ANY

    origin = Field(63, 11, doc="2 KiB frame of the page table")
    fc = Field(10, fixed=0, doc="format control: a table")
    p = Field(9, doc="protected")
    iep = Field(8, doc="no execution")
    i = Field(5, fixed=0, doc="invalid")
    cs = Field(4, doc="common segment")
    tt = Field(3, 2, fixed=0, doc="a segment entry")


@cache
def table_entry_format(level: int) -> type[EntryFormat]:
    """Return the format of what leads on from a level."""
    if level == SEGMENT:
        return SegmentTable
    name = LEVELS[level]
    tt = Field(3, 2, fixed=table_type(level), doc=f"a {name} entry")
    doc = f"A {name} entry that leads to a table."
    made = type(f"{name.capitalize()}Table", (TableEntry,), {"__doc__": doc, "tt": tt})
    return cast("type[EntryFormat]", made)


def table_entry(level: int, pa: int) -> int:
    """Return the entry of a level that leads to a table.

    :param pa: physical address of the table, in bytes.
    """
    fmt = table_entry_format(level)
    if level == SEGMENT:
        return fmt.pack(origin=pa >> 11)
    return fmt.pack(origin=pa >> 12, tl=3)


class Asce(EntryFormat):
    """An address-space control element: the root of a translation."""

    live_changes = ANY

    origin = Field(63, 12, doc="4 KiB frame of the root")
    p = Field(8, doc="private space")
    s = Field(7, doc="storage alteration events")
    x = Field(6, doc="space switch event")
    r = Field(5, fixed=0, doc="real space")
    dt = Field(3, 2, doc="0 segment, 1 region 3, 2 region 2, 3 region 1")
    tl = Field(1, 0, doc="table length, in quarters less one")


def asce_of(level: int, pa: int) -> int:
    """Return the ASCE of a guest whose root is a table of a level."""
    return Asce.pack(origin=pa >> 12, p=1, s=1, x=1, dt=table_type(level), tl=3)


class PgsteHardware(EntryFormat):
    """The bits of a page's status, beside its entry, that are the machine's."""

    live_changes = ANY

    acc = Field(63, 60, doc="access-control bits of the guest's storage key")
    fp = Field(59, doc="fetch protection of the key")
    pcl = Field(55, doc="lock of the entry; hardware takes it too")
    hr = Field(54, doc="referenced, as the host sees it")
    hc = Field(53, doc="changed, as the host sees it")
    gr = Field(50, doc="referenced, as the guest sees it")
    gc = Field(49, doc="changed, as the guest sees it")
    zero = Field(31, doc="the guest knows the page to be zero")
    nodat = Field(30, doc="the guest uses no DAT on the page")
    usage = Field(25, 24, doc="usage state that the guest has set (CMMA)")


class Pgste(PgsteHardware):
    """The status of one page, beside its entry (v7.0 on)."""

    val16 = Field(47, 32, doc="data of KVM's own")
    cmma_d = Field(15, doc="the usage state has changed")
    prefix_notif = Field(14, doc="a prefix page: its vCPU must leave SIE first")
    vsie_notif = Field(13, doc="a nested guest's shadow depends on it")
    vsie_gmem = Field(12, doc="memory of a nested guest (v7.1 on)")


class PgsteMoved(PgsteHardware):
    """The status of one page beside the host's entry, v6.14 to v6.19."""

    uc = Field(15, doc="user dirty: written since the last sync of the dirty log")
    notify = Field(14, doc="IN: tell gmap's notifiers when the entry goes")
    vsie = Field(13, doc="a nested guest's shadow depends on it")


class PgsteEarly(PgsteHardware):
    """The same up to v6.13."""

    uc = Field(47, doc="user dirty: written since the last sync of the dirty log")
    notify = Field(46, doc="IN: tell gmap's notifiers when the entry goes")
    vsie = Field(45, doc="a nested guest's shadow depends on it")
