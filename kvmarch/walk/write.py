"""The model's own tables as an image: for tests, benchmarks and examples."""

__all__ = ["write_tables"]

import sys
from array import array
from collections.abc import Iterable
from pathlib import Path

from kvmarch.format.table import Table
from kvmarch.walk.image import GRAIN


def write_tables(
    path: Path, tables: Iterable[Table], order: str = "little", base: int = 0
) -> int:
    """Write tables where they are in memory, holes in between.

    :param order: byte order of the entries.
    :param base: physical address at which the file begins.
    :returns: the size of the file in bytes: whole pages, as a raw image has.
    """
    end = base
    with path.open("wb") as file:
        for table in tables:
            words = array("Q", table.copy(0, table.size))
            if order != sys.byteorder:
                words.byteswap()
            file.seek(table.pa - base)
            words.tofile(file)
            end = max(end, table.pa + words.itemsize * table.size)
        size = -(-(end - base) // GRAIN) * GRAIN
        file.truncate(size)
    return size
