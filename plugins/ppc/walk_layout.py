"""How the tables of a VM are walked, as data."""

__all__ = ["walk_layout"]

from collections.abc import Iterator, Mapping
from typing import Any

from kvmarch_ppc.radix_pte import RadixLayout
from kvmarch_ppc.radix_tree import make_layout

from kvmarch import Kernel, WalkLayout, WalkLevel, WalkRule


def walk_layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout | None:
    """Return the walk of a radix guest's tables; the other MMUs keep no tree.

    Tables are big-endian also on a little-endian host. An entry that leads to a table
    of another size than KVM makes is unknown.
    """
    if options["mmu"] != "radix":
        return None
    layout = make_layout(k, options)
    return WalkLayout(
        levels=tuple(
            WalkLevel(
                level,
                layout.level_shift[level],
                layout.index_bits[level],
                tuple(_rules(layout, level)),
            )
            for level in reversed(range(len(layout.index_bits)))
        ),
        page_shift=layout.page_shift,
        byteorder="big",
        permissions=("privileged", "read", "write", "exec"),
        memory_type="att",
    )


def _rules(layout: RadixLayout, level: int) -> Iterator[WalkRule]:
    for row in layout.by_level[level]:
        if row.kind == "leaf":
            yield WalkRule.of(row.format, "leaf", "pfn", layout.page_shift)
        elif row.kind == "invalid":
            yield WalkRule.of(row.format, "kept", "pfn", layout.page_shift)
        elif row.kind == "table":
            yield WalkRule.of(row.format, "table", "pa")
        elif row.kind == "remains":
            yield WalkRule.of(row.format, "note")
        else:
            yield WalkRule.of(row.format, "absent")
