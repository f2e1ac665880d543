"""The kinds of entry by level, and what a value is."""

__all__ = ["CHOICES", "decode", "entry_pfn", "formats", "is_leaf"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch import Choice, EntryError, EntryKind, Kernel

from kvmarch_loongarch.geometry import InvalidTable, find_geometry
from kvmarch_loongarch.pte import (
    EARLY,
    HUGE,
    LATE,
    Empty,
    P,
    huge_format,
    leaf_format,
    pfn_of,
)

loongarch_bits = Choice("loongarch_bits", "which bits say writable and dirty")
loongarch_bits.add(EARLY)
loongarch_bits.add(LATE, "loongarch-writeable-bit-9")


def formats(k: Kernel, options: Mapping[str, Any]) -> Iterator[EntryKind]:
    """Yield every kind of entry, root level first."""
    geometry = find_geometry(options)
    bits, shift = k.loongarch_bits, geometry.page_shift
    for level in range(geometry.root_level, 0, -1):
        yield EntryKind(level, "none", InvalidTable)
        if level == 1:
            yield EntryKind(level, "leaf", huge_format(bits, shift), maps=True)
        yield EntryKind(level, "table", geometry.directory)
    yield EntryKind(0, "none", Empty)
    yield EntryKind(0, "leaf", leaf_format(bits, shift), maps=True)


def decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields.

    Only the marker of its own level is an empty entry.

    :raises EntryError: there is no such level, or the value has more than 64 bits.
    """
    geometry = find_geometry(options)
    if not 0 <= level < geometry.levels:
        raise EntryError(
            f"loongarch has levels 0 to {geometry.root_level}, not {level}"
        )
    if not 0 <= entry < 1 << 64:
        raise EntryError(f"{entry:#x} is no 64-bit value")
    for row in formats(k, options):
        if row.level != level or not row.format.accepts(entry):
            continue
        if row.kind == "none" and entry != geometry.empty[level]:
            continue
        return row.kind, row.format.unpack(entry)
    return "unknown", {}


def is_leaf(entry: int, level: int) -> bool:
    """Return whether an entry of a known kind leads to a page."""
    return bool(entry & P and (not level or (level == 1 and entry & HUGE)))


def entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the first page of a leaf."""
    if decode(k, options, entry, level)[0] != "leaf":
        return None
    return pfn_of(entry, find_geometry(options).page_shift)


CHOICES = (loongarch_bits,)
