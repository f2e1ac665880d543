"""Levels of dynamic address translation, and which root a guest gets.

Fact sheet s390, 2.1 and 3.5. A region or segment table has 2048 entries, a page table
256, with a PGSTE for each of them behind it.
"""

__all__ = [
    "LEVELS",
    "PAGE",
    "PAGE_SHIFT",
    "REGION3",
    "ROOTS",
    "SEGMENT",
    "entries",
    "index",
    "pages",
    "table_type",
]

PAGE_SHIFT = 12
PAGE, SEGMENT, REGION3, REGION2, REGION1 = range(5)
LEVELS = ("page", "segment", "region3", "region2", "region1")
"""Names of the levels, by number."""
ROOTS = {name: level for level, name in enumerate(LEVELS) if level}
"""Levels at which a root may be, by name."""

_SHIFTS = (0, 8, 19, 30, 41)
_BITS = (8, 11, 11, 11, 11)


def pages(level: int) -> int:
    """Return how many pages an entry of a level covers."""
    return 1 << _SHIFTS[level]


def entries(level: int) -> int:
    """Return how many entries a table of a level has."""
    return 1 << _BITS[level]


def index(gfn: int, level: int) -> int:
    """Return the index of a gfn in a table of a level."""
    return gfn >> _SHIFTS[level] & entries(level) - 1


def table_type(level: int) -> int:
    """Return the TT of a region or segment entry, which is the DT of a root, too."""
    return level - SEGMENT
