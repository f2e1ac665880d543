"""How the tables of a direct map are walked, as data."""

__all__ = ["walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch_x86.arch_info import machine_layout
from kvmarch_x86.geometry import LEVEL_BITS, PAGE_SHIFT
from kvmarch_x86.layout import Layout, formats

from kvmarch import Kernel, WalkLayout, WalkLevel, WalkRule


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return the walk of a VM's own tables, EPT or NPT, 4 or 5 levels.

    Simplified: no shadow pages of guest page tables; what they are indexed by is not
    a guest-physical address.
    """
    layout = machine_layout(k, options)
    return WalkLayout(
        levels=tuple(
            WalkLevel(
                level,
                PAGE_SHIFT + LEVEL_BITS * (level - 1),
                LEVEL_BITS,
                tuple(_rules(layout, level)),
            )
            for level in range(options["levels"], 0, -1)
        ),
        page_shift=PAGE_SHIFT,
        permissions=("r", "p", "w", "x", "xu", "nx", "user"),
        memory_type="memtype" if layout.memtype_mask else "",
    )


def _rules(layout: Layout, level: int) -> Iterator[WalkRule]:
    """Yield the rules of a level; a large leaf comes before a table, which has no bit
    of its own that tells them apart.
    """
    for at, kind, fmt in formats(layout):
        if at != level:
            continue
        if kind == "leaf":
            yield WalkRule.of(fmt, "leaf", "pfn", PAGE_SHIFT)
        elif kind == "tracked":
            yield WalkRule.of(fmt, "kept", "pfn", PAGE_SHIFT)
        elif kind == "table":
            yield WalkRule.of(fmt, "table", "pfn", PAGE_SHIFT)
        else:
            yield WalkRule.of(fmt, "absent" if kind == "none" else "note")
