"""How the G-stage is walked, as data."""

__all__ = ["walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch import Kernel, WalkLayout, WalkLevel, WalkRule

from kvmarch_riscv.formats import Empty, Leaf, Table, leaf_format
from kvmarch_riscv.geometry import (
    INDEX_BITS,
    LEAF_LEVELS,
    MODES,
    PAGE_SHIFT,
    ROOT_ENTRIES,
)

_V = Leaf.v.mask
_SEEN = _V | Leaf.u.mask | Leaf.r.mask
_AF = Leaf.a.mask
_RWX = Table.rwx.mask


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return the walk from a root of four pages; little-endian, as RISC-V is."""
    levels = MODES[options["mode"]].levels
    return WalkLayout(
        levels=tuple(
            WalkLevel(
                level,
                PAGE_SHIFT + INDEX_BITS * level,
                (ROOT_ENTRIES.bit_length() - 1 if level == levels - 1 else INDEX_BITS),
                tuple(_rules(level, adue=bool(options["adue"]))),
            )
            for level in range(levels - 1, -1, -1)
        ),
        page_shift=PAGE_SHIFT,
        permissions=("r", "w", "x", "u"),
        memory_type="pbmt",
    )


def _rules(level: int, *, adue: bool) -> Iterator[WalkRule]:
    """Yield what hardware makes of an entry: only V, R, W, X, U and A are looked at.

    What has V and no U is a leaf that faults, as KVM's mappings of devices were.
    """
    yield WalkRule.of(Empty, "absent")
    if level in LEAF_LEVELS:
        place = WalkRule.of(leaf_format(level), "leaf", "ppn", PAGE_SHIFT).address
        if not adue:
            yield WalkRule("kept", _SEEN | _AF, _SEEN, place)
        yield WalkRule("leaf", _SEEN, _SEEN, place)
        yield WalkRule("kept", _SEEN, _V | Leaf.r.mask, place)
    if level:
        place = WalkRule.of(Table, "table", "ppn", PAGE_SHIFT).address
        yield WalkRule("table", _V | _RWX, _V, place)
