"""The entries of an image as numpy arrays (extra ``kvmarch[lab]``)."""

__all__ = ["Ints", "Words"]

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvmarch.walk.image import Image

Ints: TypeAlias = npt.NDArray[np.uint64]

SMALL, LARGE = np.dtype("u4"), np.dtype("u8")


class Words:
    """Entries by physical address; nothing is read that is not asked for.

    :param size: bytes of an entry, 4 or 8.
    :param order: ``little`` or ``big``.
    """

    def __init__(self, image: Image, size: int, order: str) -> None:
        self._image = image
        self._kind = (LARGE if size == 8 else SMALL).newbyteorder(
            "<" if order == "little" else ">"
        )
        self._size = size
        regions = image.regions
        self._starts = np.array([r.pa for r in regions], LARGE)
        self._ends = np.array([r.pa + (r.size or 0) for r in regions], LARGE)
        # Moves are taken modulo 2^64: a region may lie above its place in the file.
        moves = [(r.offset - r.pa) % (1 << 64) for r in regions]
        self._moves = np.array(moves, LARGE)
        rests = {move % size for move in moves}
        self._flat: npt.NDArray[np.unsignedinteger] | None = None
        if len(rests) == 1:
            # All entries are aligned alike in the file, which they nearly always are.
            (self._skip,) = rests
            count = (len(image.buffer) - self._skip) // size
            self._flat = np.frombuffer(image.buffer, self._kind, count, self._skip)

    def offsets(self, pa: Ints, size: int) -> Ints:
        """Return where in the file runs of some bytes begin, all ones if not there."""
        if len(self._starts) == 1:
            start, end = int(self._starts[0]), int(self._ends[0])
            out: Ints = pa + self._moves[0]
            if len(pa) and (int(pa.min()) < start or int(pa.max()) > end - size):
                out[(pa < start) | (pa > max(end - size, 0))] = NOWHERE
            return out
        at = np.searchsorted(self._starts, pa, "right")
        found = at > 0
        at -= found
        last = self._ends[at]
        found &= (last >= size) & (pa <= last - np.minimum(last, size))
        return np.where(found, pa + self._moves[at], NOWHERE)

    def tables(self, offsets: Ints, length: int) -> Ints:
        """Return runs of entries, one row each.

        :param offsets: in bytes, all of them in the file.
        :param length: entries of each.
        """
        buffer = self._image.buffer
        reach = len(buffer) - length * self._size + 1
        # Every place in the file as a row; only those that are picked are read.
        every = np.ndarray((reach, length), self._kind, buffer, strides=(1, self._size))
        return every[offsets.view(np.int64)].astype(LARGE, copy=False)

    def pick(self, offsets: npt.NDArray[np.int64]) -> Ints:
        """Return single entries.

        :param offsets: in bytes, all of them in the file.
        """
        if self._flat is None or not self._flat.flags.aligned:
            return self.tables(offsets.view(LARGE), 1)[:, 0]
        if self._skip:
            offsets = offsets - self._skip
        words = self._flat.view(self._kind.newbyteorder("=")).take(
            offsets >> (self._size.bit_length() - 1)
        )
        if not self._kind.isnative:
            words.byteswap(inplace=True)
        return words.astype(LARGE, copy=False)


NOWHERE = LARGE.type((1 << 64) - 1)
