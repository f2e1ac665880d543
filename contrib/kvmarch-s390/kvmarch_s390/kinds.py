"""The kinds of entry by level, and what a value is, in both designs."""

__all__ = ["CHOICES", "decode", "entry_pfn", "entry_repoint", "walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch import (
    Choice,
    EntryError,
    EntryKind,
    Kernel,
    WalkLayout,
    WalkLevel,
    WalkRule,
)

from kvmarch_s390 import dat
from kvmarch_s390.geometry import (
    PAGE,
    PAGE_SHIFT,
    REGION3,
    ROOTS,
    SEGMENT,
    entries,
    pages,
)
from kvmarch_s390.host_pte import Empty, HostPage, invalid_region_format
from kvmarch_s390.region import table_entry_format

s390_leaf_level = Choice("s390_leaf_level", "the highest level that may have leaves")
s390_leaf_level.add(PAGE)
s390_leaf_level.add(SEGMENT, "s390-own-tables")
s390_leaf_level.add(REGION3, "s390-own-tables", "s390-large-region3")

formats = Choice("formats", "the kinds of entry")


@formats.when()
def _shared(k: Kernel, options: Mapping[str, Any]) -> tuple[EntryKind, ...]:
    """Return gmap's kinds, and below them the host's own (to v6.19)."""
    return (
        *(
            row
            for level in range(ROOTS[options["root"]], PAGE, -1)
            for row in (
                EntryKind(level, "none", invalid_region_format(level)),
                EntryKind(level, "table", table_entry_format(level)),
            )
        ),
        EntryKind(PAGE, "none", Empty),
        EntryKind(PAGE, "leaf", HostPage, maps=True),
    )


@formats.when("s390-own-tables")
def _own(k: Kernel, options: Mapping[str, Any]) -> tuple[EntryKind, ...]:
    """Return the kinds of KVM's own tables (v7.0 on)."""
    rows: list[EntryKind] = []
    for level in range(ROOTS[options["root"]], PAGE - 1, -1):
        rows.append(EntryKind(level, "none", dat.token_format(level, hole=False)))
        rows.append(EntryKind(level, "hole", dat.token_format(level, hole=True)))
        if level <= k.s390_leaf_level:
            leaf = dat.large_format(level) if level else dat.OwnPte
            rows.append(EntryKind(level, "leaf", leaf, maps=True))
        if level:
            rows.append(EntryKind(level, "table", table_entry_format(level)))
    return tuple(rows)


def decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields.

    :raises EntryError: there is no such level, or the value has more than 64 bits.
    """
    top = ROOTS[options["root"]]
    if not PAGE <= level <= top:
        raise EntryError(f"s390 with this root has levels 0 to {top}, not {level}")
    if not 0 <= entry < 1 << 64:
        raise EntryError(f"{entry:#x} is no 64-bit value")
    for row in k.formats.fn(k, options):
        if row.level == level and row.format.accepts(entry):
            return row.kind, row.format.unpack(entry)
    return "unknown", {}


def _frame(k: Kernel, options: Mapping[str, Any], entry: int, level: int) -> Any:
    """Return the field of a leaf's frame number, None if it is no leaf."""
    if decode(k, options, entry, level)[0] != "leaf":
        return None
    row = next(r for r in k.formats.fn(k, options) if r.maps and r.level == level)
    return row.format.fields["pfra" if "pfra" in row.format.fields else "pfn"]


def entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the first page of a leaf."""
    field = _frame(k, options, entry, level)
    return None if field is None else int(field.get(entry))


def entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return a leaf as it would be for another page."""
    field = _frame(k, options, entry, level)
    if field is None:
        raise EntryError(f"{entry:#x} of level {level} leads to no page")
    return int(field.set(entry, pfn))


# -------------------------------------------------------------------------
# The walk, as data
# -------------------------------------------------------------------------


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return the walk; up to v6.19 its last level is the host's."""
    rows = k.formats.fn(k, options)
    return WalkLayout(
        levels=tuple(
            WalkLevel(
                level,
                PAGE_SHIFT + pages(level).bit_length() - 1,
                entries(level).bit_length() - 1,
                tuple(
                    rule for row in rows if row.level == level for rule in _rules(row)
                ),
            )
            for level in range(ROOTS[options["root"]], PAGE - 1, -1)
        ),
        page_shift=PAGE_SHIFT,
        byteorder="big",
        permissions=("write", "w", "protect", "p"),
    )


def _rules(row: EntryKind) -> Iterator[WalkRule]:
    if row.kind == "table":
        unit = 11 if row.level == SEGMENT else 12
        yield WalkRule.of(row.format, "table", "origin", unit)
    elif row.kind == "leaf":
        fields = row.format.fields
        name = "pfra" if "pfra" in fields else "pfn"
        leaf = WalkRule.of(row.format, "leaf", name, PAGE_SHIFT)
        invalid = fields["invalid" if "invalid" in fields else "i"].mask
        yield WalkRule("leaf", leaf.mask | invalid, leaf.value, leaf.address)
        yield WalkRule("kept", leaf.mask, leaf.value, leaf.address)
    else:
        yield WalkRule.of(row.format, "absent" if row.kind == "none" else "note")


CHOICES = (s390_leaf_level, formats)
