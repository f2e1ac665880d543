"""How the GPA page table is walked, as data."""

__all__ = ["walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch_mips import pte, state

from kvmarch import Kernel, WalkLayout, WalkLevel, WalkRule


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return the walk of the table that software fills the TLB from.

    Directories hold kernel virtual addresses in XKPHYS, which has the physical address
    in its low bits.
    """
    layout = state.layout_of(options)
    geometry = layout.geometry
    return WalkLayout(
        levels=tuple(
            WalkLevel(
                level,
                geometry.shifts[level - 1],
                geometry.bits[level - 1],
                tuple(_rules(layout, level)),
            )
            for level in range(geometry.levels, 0, -1)
        ),
        page_shift=layout.page_shift,
        byteorder="machine",
        permissions=("no_read", "write", "dirty", "no_exec"),
        memory_type="cca",
    )


def _rules(layout: pte.Layout, level: int) -> Iterator[WalkRule]:
    for row in pte.formats(layout):
        if row.level != level:
            continue
        if row.kind == "leaf":
            leaf = WalkRule.of(row.format, "leaf", "pfn", layout.page_shift)
            mask, address = leaf.mask | layout.valid, leaf.address
            yield WalkRule("leaf", mask, leaf.value | layout.valid, address)
            # Without VALID the refill raises an exception: old, or not readable.
            yield WalkRule("kept", mask, leaf.value, address)
        elif row.kind == "table":
            page = layout.page_shift
            yield WalkRule.of(row.format, "table", "table", page)
        else:
            yield WalkRule.of(row.format, "absent")
