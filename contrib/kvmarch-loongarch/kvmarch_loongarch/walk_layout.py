"""How the secondary page table is walked, as data."""

__all__ = ["walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch import Kernel, WalkLayout, WalkLevel, WalkRule

from kvmarch_loongarch.geometry import Geometry, InvalidTable, find_geometry
from kvmarch_loongarch.pte import Bits, Empty, V, huge_format, leaf_format


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return the walk of the table that CSR.PGDL leads to while the guest runs.

    An entry above level 0 that leads nowhere is any address of the kernel's image: an
    image of memory does not say where the invalid tables are.
    """
    geometry = find_geometry(options)
    return WalkLayout(
        levels=tuple(
            WalkLevel(
                level,
                geometry.shifts[level] + geometry.page_shift,
                geometry.bits,
                tuple(_rules(k.loongarch_bits, geometry, level)),
            )
            for level in range(geometry.root_level, -1, -1)
        ),
        page_shift=geometry.page_shift,
        permissions=("nr", "w", "d", "nx"),
        memory_type="mat",
    )


def _rules(bits: Bits, geometry: Geometry, level: int) -> Iterator[WalkRule]:
    page = geometry.page_shift
    if level:
        yield WalkRule.of(InvalidTable, "absent")
    else:
        yield WalkRule.of(Empty, "absent")
    if level < 2:
        fmt = (huge_format if level else leaf_format)(bits, page)
        leaf = WalkRule.of(fmt, "leaf", "pfn", page)
        yield WalkRule("leaf", leaf.mask | V, leaf.value | V, leaf.address)
        # Without V the access raises an exception: old.
        yield WalkRule("kept", leaf.mask, leaf.value, leaf.address)
    if level:
        yield WalkRule.of(geometry.directory, "table", "table", page, exact=True)
