"""Looking for entries in all of an image, table by table (extra ``kvmarch[lab]``)."""

__all__ = ["Scanner", "filled"]

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvmarch.walk.image import Image
from kvmarch.walk.words import LARGE, SMALL, Ints

CHUNK = 1 << 20
"""Entries that are looked at in one go."""


class Scanner:
    """Entries of one index in every place where a table can be.

    Holes of the file are passed over: they hold no entry, and reading them could
    fill them.

    :param size: bytes of an entry, 4 or 8.
    :param order: ``little`` or ``big``.
    """

    def __init__(self, image: Image, size: int, order: str) -> None:
        self.image, self.size = image, size
        kind = LARGE if size == LARGE.itemsize else SMALL
        self._kind = kind.newbyteorder("<" if order == "little" else ">")

    def column(self, index: int, length: int) -> Iterator[tuple[Ints, Ints]]:
        """Yield tables' addresses, and their entries of an index, piece by piece.

        :param length: bytes of a table, which is aligned to it.
        """
        pieces: list[tuple[Ints, Ints]] = []
        held = 0
        for pa, end in self._filled(length):
            for start in range(pa, end, CHUNK * length):
                count = (min(start + CHUNK * length, end) - start) // length
                pieces.append(self._piece(start, count, index, length))
                held += count
                if held >= CHUNK:
                    yield _joined(pieces)
                    pieces, held = [], 0
        if pieces:
            yield _joined(pieces)

    def _piece(
        self, start: int, count: int, index: int, length: int
    ) -> tuple[Ints, Ints]:
        offset = self.image.offset(start, count * length)
        assert offset is not None
        view = np.ndarray(
            (count,),
            self._kind,
            self.image.buffer,
            offset + index * self.size,
            (length,),
        )
        tables = np.arange(count, dtype=LARGE) * LARGE.type(length)
        tables += LARGE.type(start)
        return tables, view.astype(LARGE)

    def _filled(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield the stretches of memory that are in the file, in whole tables."""
        done = 0
        with Path(self.image.path).open("rb") as file:
            for pa, size, offset in self.image.regions:
                assert size is not None
                first, last = -(-pa // length) * length, (pa + size) // length * length
                for start, end in _extents(file.fileno(), offset, offset + size):
                    low = max(first, (start - offset + pa) // length * length, done)
                    high = min(last, -(-(end - offset + pa) // length) * length)
                    if low < high:
                        done = high
                        yield low, high


def _joined(pieces: list[tuple[Ints, Ints]]) -> tuple[Ints, Ints]:
    tables, entries = zip(*pieces, strict=True)
    return np.concatenate(tables), np.concatenate(entries)


def filled(image: Image) -> Iterator[tuple[int, int]]:
    """Yield the parts of an image's file that hold memory and are no holes."""
    with Path(image.path).open("rb") as file:
        for _pa, size, offset in image.regions:
            assert size is not None
            yield from _extents(file.fileno(), offset, offset + size)


def _extents(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file that are no holes."""
    at = start
    while at < end:
        try:
            first = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return  # there is no data behind this place
        if first >= end:
            return
        at = os.lseek(file, first, os.SEEK_HOLE)
        yield first, min(at, end)
