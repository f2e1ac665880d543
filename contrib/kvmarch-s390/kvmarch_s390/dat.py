"""Entries of KVM's own tables, from v7.0 on.

Models arch/s390/kvm/dat.h, arch/s390/kvm/gmap/dat.h in v7.3 (fact sheet s390, 3.1 to
3.6). d, sd, p and w are four things: dirty and told to the host, dirty since the last
sync of the log, protected, and allowed to be written by the host.
"""

__all__ = [
    "LEAF_LEVELS",
    "Empty",
    "Hole",
    "Large",
    "OwnPte",
    "age",
    "children",
    "is_large",
    "is_present",
    "is_token",
    "large_format",
    "link",
    "masks",
    "minor_fault",
    "needs_log",
    "sync",
    "token",
    "token_format",
]

from functools import cache
from typing import cast

from kvmarch import EntryFormat, Field

from kvmarch_s390.geometry import LEVELS, PAGE, REGION3, SEGMENT, pages, table_type
from kvmarch_s390.region import ANY

ADDRESSING = 5
"""The program interruption of an address that is none."""


class Leaf(EntryFormat):
    """What leaves of all levels have."""

    live_changes = ANY

    iep = Field(8, doc="no execution")
    p = Field(9, doc="protected: stores trap")
    sd = Field(1, doc="software: dirty since the last sync of the log")
    pr = Field(0, fixed=1, doc="software: maps a page, if invalid for a while")


class OwnPte(Leaf):
    """A leaf of 4 KiB."""

    pfra = Field(63, 12, doc="page frame number")
    z = Field(11, fixed=0, doc="must be 0")
    i = Field(10, doc="invalid: accesses trap")
    u = Field(7, doc="software: unused")
    s = Field(6, doc="software: no struct page")
    w = Field(5, doc="software: the host allows writing")
    r = Field(4, doc="software: readable; KVM leaves 0")
    d = Field(3, doc="software: dirty, and the folio knows")
    y = Field(2, doc="software: young")


class Large(Leaf):
    """A leaf of a segment, or of 2 GiB."""

    s = Field(15, doc="software: no struct page")
    w = Field(14, doc="software: the host allows writing")
    r = Field(13, doc="software: readable; KVM leaves 0")
    d = Field(12, doc="software: dirty, and the folio knows")
    y = Field(11, doc="software: young")
    fc = Field(10, fixed=1, doc="format control: a large page")
    prefix_notif = Field(7, doc="holds a prefix page: its vCPU must leave SIE first")
    vsie_notif = Field(6, doc="a nested guest's shadow depends on it")
    i = Field(5, doc="invalid: accesses trap")


@cache
def large_format(level: int) -> type[Large]:
    """Return the format of a leaf of a segment or region-3 table."""
    spare = pages(level).bit_length() - 1
    fields = {
        "__doc__": f"A {LEVELS[level]} entry that maps {pages(level) >> 8} MiB.",
        "pfra": Field(63, 12 + spare, shift=spare, doc="page frame number"),
        "tt": Field(3, 2, fixed=table_type(level), doc=f"a {LEVELS[level]} entry"),
    }
    name = f"Large{LEVELS[level].capitalize()}"
    return cast("type[Large]", type(name, (Large,), fields))


# -------------------------------------------------------------------------
# Tokens: invalid entries that say why
# -------------------------------------------------------------------------


class Hole(EntryFormat):
    """There is no memslot: the guest gets a program interruption, and no fault."""

    live_changes = ANY

    type = Field(63, 48, fixed=1, doc="a program interruption")
    code = Field(47, 32, fixed=ADDRESSING, doc="which one: addressing")


class Empty(EntryFormat):
    """There is a memslot, and nothing is mapped."""

    live_changes = ANY

    type = Field(63, 48, fixed=0, doc="nothing to say")


@cache
def token_format(level: int, hole: bool) -> type[EntryFormat]:
    """Return the format of a token of a level."""
    base = Hole if hole else Empty
    name = f"{base.__name__}{LEVELS[level].capitalize()}"
    bit = 10 if level == PAGE else 5
    fields: dict[str, object] = {
        "__doc__": f"{base.__doc__}",
        "i": Field(bit, fixed=1, doc="invalid"),
        "pr": Field(0, fixed=0, doc="software: maps no page"),
    }
    if level:
        fields["tt"] = Field(
            3, 2, fixed=table_type(level), doc=f"a {LEVELS[level]} entry"
        )
    return cast("type[EntryFormat]", type(name, (base,), fields))


def token(level: int, hole: bool) -> int:
    """Return the token of a level."""
    return token_format(level, hole).kind_value


def is_token(entry: int, level: int) -> bool:
    """Return whether an entry is a hole or empty."""
    bit = OwnPte.i.mask if level == PAGE else Large.i.mask
    return bool(entry & bit) and not entry & Leaf.pr.mask


def is_large(entry: int) -> bool:
    """Return whether a region or segment entry that is no token maps memory."""
    return bool(entry & Large.fc.mask)


def is_present(entry: int, level: int) -> bool:
    """Return whether an entry leads to a page, be it invalid for a while."""
    if level == PAGE:
        return bool(entry & Leaf.pr.mask)
    return level <= REGION3 and is_large(entry) and bool(entry & Leaf.pr.mask)


# -------------------------------------------------------------------------
# What KVM makes of them
# -------------------------------------------------------------------------


def masks(level: int) -> tuple[int, int, int, int]:
    """Return I, y, d and w of a leaf of a level."""
    fmt = OwnPte if level == PAGE else Large
    return fmt.i.mask, fmt.y.mask, fmt.d.mask, fmt.w.mask


_PROTECTED, _SD = Leaf.p.mask, Leaf.sd.mask


def link(
    level: int,
    pfn: int,
    old: int,
    *,
    writable: bool,
    dirty: bool,
    special: bool = False,
) -> int:
    """Return the entry with which a fault maps a page.

    d stays if it was set; sd is what it was, even where nothing was mapped (fact sheet,
    bug 17).

    :Kernel: gmap_link()
    :param old: the entry that is there.
    :param dirty: the fault was a store.
    """
    _i, _y, d, _w = masks(level)
    dirty = dirty or (is_present(old, level) and bool(old & d))
    fmt = OwnPte if level == PAGE else large_format(level)
    return fmt.pack(
        pfra=pfn,
        y=1,
        d=int(dirty),
        p=int(not dirty),
        w=int(writable),
        s=int(special),
        sd=int(is_present(old, level) and bool(old & _SD)),
    )


def minor_fault(level: int, entry: int, *, write: bool) -> int:
    """Return a present entry as an access that it may have leaves it."""
    i, y, d, _w = masks(level)
    entry = entry & ~i | y
    return entry & ~_PROTECTED | d | _SD if write else entry


def age(level: int, entry: int) -> int:
    """Return the entry as aging leaves it: invalid and protected, neither y nor d."""
    i, y, d, _w = masks(level)
    return entry & ~(y | d) | i | _PROTECTED


def needs_log(entry: int) -> bool:
    """Return whether a present entry was written since the last sync, or may be."""
    return not entry & _PROTECTED or bool(entry & _SD)


def sync(entry: int) -> int:
    """Return the entry as a sync of the dirty log leaves it; d stays."""
    return entry & ~_SD | _PROTECTED


def children(entry: int, level: int) -> list[int]:
    """Return the entries of the table that stands for a large leaf.

    :Kernel: dat_split_ste(), dat_split_crste().
    """
    fmt = large_format(level).fields
    below = level - 1
    child = OwnPte if below == PAGE else large_format(below)
    bits = {
        name: fmt[name].get(entry)
        for name in ("sd", "y", "d", "w", "s", "p", "i", "iep")
    }
    first, step = fmt["pfra"].get(entry), pages(below)
    return [
        child.pack(pfra=pfn, **bits) for pfn in range(first, first + pages(level), step)
    ]


LEAF_LEVELS = (PAGE, SEGMENT, REGION3)
"""Levels that may have leaves; the last one since v7.2."""
