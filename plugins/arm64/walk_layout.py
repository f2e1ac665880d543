"""How the stage-2 tables are walked, as data."""

__all__ = ["walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch_arm64.formats import Descriptor, Leaf
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL, Geometry
from kvmarch_arm64.layout import Layout, formats
from kvmarch_arm64.state import find_layout

from kvmarch import Kernel, WalkLayout, WalkLevel, WalkRule

ALL = (1 << Descriptor.width) - 1
"""Every bit of an entry."""

_AF = Leaf.af.mask


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return the walk of a VM's stage 2; concatenated roots are one wide table."""
    geometry: Geometry = k.arm64_geometry.fn(options)
    layout = find_layout(k, options)
    levels = []
    above = geometry.ia_bits
    for level in range(geometry.start_level, KVM_PGTABLE_LAST_LEVEL + 1):
        shift = geometry.shifts[level]
        rules = tuple(_rules(layout, level, haf=bool(options["haf"])))
        levels.append(WalkLevel(level, shift, above - shift, rules))
        above = shift
    return WalkLayout(
        levels=tuple(levels),
        page_shift=geometry.page_shift,
        permissions=("r", "w", "xn"),
        memory_type="memattr",
        # A root that does not fill its pages still has them to itself.
        root_align=(geometry.root_pages * geometry.page_size - 1).bit_length(),
    )


def _rules(layout: Layout, level: int, *, haf: bool) -> Iterator[WalkRule]:
    for at, kind, fmt in formats(layout):
        if at != level:
            continue
        if kind == "table":
            yield WalkRule.of(fmt, "table", "pfn", layout.page_shift)
        elif kind in {"page", "block"}:
            leaf = WalkRule.of(fmt, "leaf", "pfn", layout.page_shift)
            if haf:
                yield leaf
                continue
            mask, address = leaf.mask | _AF, leaf.address
            yield WalkRule("leaf", mask, leaf.value | _AF, address)
            yield WalkRule("kept", mask, leaf.value, address)
    yield WalkRule("absent", ALL, 0)
    yield WalkRule("note", Descriptor.valid.mask, 0)
