"""The shape of the table: levels, indexes, and what an empty entry holds.

Models kvm_init_gpa_walker() and kvm_ptw_ctx, v6.8 on (fact sheet loongarch, 1.2, 1.3).
A table has as many entries as fit into a page. An empty entry above level 0 holds the
kernel's address of an all-empty table, so that a refill handler may walk on into it.
"""

__all__ = ["Directory", "Geometry", "InvalidTable", "find_geometry"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

from kvmarch import EntryFormat, Field, KvmarchError

ENTRY_SHIFT = 3
KERNEL_IMAGE = 0x9000_0000_0100_0000
"""Where the invalid tables are: in the cached window, from 16 MiB on.

Simplified: the kernel's build decides where. Only equality matters.
"""


class Directory(EntryFormat):
    """An entry that leads on: the physical address of a table, without any flag."""

    live_changes = (1 << EntryFormat.width) - 1

    window = Field(63, 48, fixed=0, doc="no kernel virtual address")


class InvalidTable(EntryFormat):
    """An entry above level 0 that leads nowhere: the address of an all-empty table.

    :Kernel: invalid_pte_table, invalid_pmd_table, invalid_pud_table.
    """

    live_changes = Directory.live_changes

    window = Field(63, 48, fixed=KERNEL_IMAGE >> 48, doc="cached window of the kernel")
    frame = Field(47, 12, doc="4 KiB frame in the kernel's image")


@cache
def _directory(page_shift: int) -> type[Directory]:
    name = f"Directory{1 << page_shift - 10}K"
    doc = f"An entry that leads to a table of {1 << page_shift - 10} KiB."
    table = Field(47, page_shift, doc="physical frame of the next table")
    made = type(name, (Directory,), {"__doc__": doc, "table": table})
    return cast("type[Directory]", made)


@dataclass(frozen=True, slots=True)
class Geometry:
    """One configuration's table. Level 0 holds the leaves.

    :param page_shift: 12, 14 or 16.
    :param levels: 3, or 4 with pages of 4 KiB.
    :param bits: index bits of every table.
    :param shifts: by level, the lowest bit of a gfn in the index.
    :param empty: by level, what an empty entry holds.
    :param directory: format of the entries that lead on.
    """

    page_shift: int
    levels: int
    bits: int = field(compare=False, repr=False)
    shifts: tuple[int, ...] = field(compare=False, repr=False)
    empty: tuple[int, ...] = field(compare=False, repr=False)
    directory: type[Directory] = field(compare=False, repr=False)

    @property
    def root_level(self) -> int:
        """Return the level of the root."""
        return self.levels - 1

    @property
    def entries(self) -> int:
        """Return how many entries a table has."""
        return 1 << self.bits

    def index(self, gfn: int, level: int) -> int:
        """Return the index of a gfn in a table of a level."""
        return gfn >> self.shifts[level] & self.entries - 1

    def pages(self, level: int) -> int:
        """Return how many pages an entry of a level covers."""
        return 1 << self.shifts[level]


@cache
def _geometry(page_shift: int, levels: int) -> Geometry:
    if levels > 3 and page_shift > 12:
        raise KvmarchError(
            f"loongarch: pages of {1 << page_shift - 10} KiB go with levels=3, "
            f"not levels={levels}"
        )
    bits = page_shift - ENTRY_SHIFT
    size = 1 << page_shift
    return Geometry(
        page_shift=page_shift,
        levels=levels,
        bits=bits,
        shifts=tuple(level * bits for level in range(levels)),
        empty=tuple(
            KERNEL_IMAGE + level * size if level else 0 for level in range(levels)
        ),
        directory=_directory(page_shift),
    )


def find_geometry(options: Mapping[str, Any]) -> Geometry:
    """Return the geometry that a machine's options name.

    :raises KvmarchError: no kernel is built so.
    """
    return _geometry(options["page_size"].bit_length() - 1, options["levels"])
