"""Layouts: what a value means in one configuration of any PowerPC MMU.

Layouts are made by :func:`~kvmarch_ppc.radix_pte.make_radix_layout`,
:func:`~kvmarch_ppc.hpt.make_hash_layout`, :func:`~kvmarch_ppc.hpt.make_pr_layout` and
:func:`~kvmarch_ppc.e500_tlbe.make_e500_layout`.
"""

__all__ = [
    "ENTRY_SHIFT",
    "PAGE_SHIFTS",
    "REAL_ADDRESS_BITS",
    "Decoded",
    "Empty",
    "Layout",
    "decode",
    "find_page_shift",
    "formats",
    "from_memory",
    "to_memory",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kvmarch import EntryError, EntryFormat, EntryKind, FormatError

PAGE_SHIFTS: Mapping[int, int] = {4096: 12, 65536: 16}
"""PAGE_SHIFT by page size in bytes."""
REAL_ADDRESS_BITS = 53
"""A host real address has its highest bit one below (fact sheet ppc, 3.2)."""
ENTRY_SHIFT = 3
"""An entry of a tree has 8 bytes."""


class Empty(EntryFormat):
    """Nothing is here, and anything may follow."""

    live_changes = (1 << EntryFormat.width) - 1


class Decoded(NamedTuple):
    """What a value means."""

    kind: str
    """A kind of :func:`formats`, or ``unknown``."""
    format: type[EntryFormat] | None
    """None if no format accepts the value."""
    fields: dict[str, int]
    """The fields by name, highest bit first."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The entries of one configuration; compared by identity."""

    mmu: str
    """``radix``, ``hash``, ``pr`` or ``e500``."""
    page_shift: int
    """PAGE_SHIFT of the host."""
    rows: tuple[EntryKind, ...]
    """Level, kind and format of every entry."""
    by_level: Mapping[int, tuple[EntryKind, ...]] = field(init=False)
    """The rows of each level."""

    def __post_init__(self) -> None:
        by_level: dict[int, tuple[EntryKind, ...]] = {}
        for row in self.rows:
            by_level[row.level] = (*by_level.get(row.level, ()), row)
        # The way to fill a field of a frozen record.
        object.__setattr__(self, "by_level", by_level)


def formats(layout: Layout) -> list[EntryKind]:
    """Return level, kind and format of every entry of a layout."""
    return list(layout.rows)


def decode(layout: Layout, entry: int, level: int) -> Decoded:
    """Return what a value means at a level.

    A value that no format accepts is ``unknown``. Formats of one level exclude each
    other, so no value has two meanings.

    :param level: a member of RadixWord, HashWord or E500Word.
    :raises EntryError: there is no such level, or the value is too wide for it.
    """
    rows = layout.by_level.get(level)
    if rows is None:
        known = ", ".join(str(int(at)) for at in layout.by_level)
        raise EntryError(f"{layout.mmu} has no level {level}; there is {known}")
    width = rows[0].format.width
    if not 0 <= entry < 1 << width:
        raise EntryError(f"{entry:#x} is no {width}-bit value")
    for row in rows:
        if row.format.accepts(entry):
            return Decoded(row.kind, row.format, row.format.unpack(entry))
    return Decoded("unknown", None, {})


def to_memory(entry: int, width: int = EntryFormat.width) -> bytes:
    """Return the bytes of an entry in RAM: big-endian, whatever the host is.

    :param width: bits of the entry; 128 for both doublewords of an HPTE.
    """
    return entry.to_bytes(width // 8, "big")


def from_memory(raw: bytes) -> int:
    """Return the entry that some bytes in RAM hold."""
    return int.from_bytes(raw, "big")


def find_page_shift(page_size: int, known: Mapping[int, int] = PAGE_SHIFTS) -> int:
    """Return PAGE_SHIFT for a page size in bytes.

    :raises FormatError: there are no such pages.
    """
    if page_size not in known:
        sizes = ", ".join(map(str, known))
        raise FormatError(f"no page size {page_size} here; there is {sizes}")
    return known[page_size]
