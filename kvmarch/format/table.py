"""Page tables: sparse ones for small states, dense ones for whole guests.

Both keep the same interface, so that an operation is written once. The range
operations work on a whole table at a time; a :class:`Match` says which entries
they mean.
"""

__all__ = ["DenseTable", "Match", "SparseTable", "Table", "TablePool"]

import sys
from array import array
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol, cast

from kvmarch.errors import ModelError

_LANE = 64


class Match:
    """Entries whose bits under ``mask`` are ``value``.

    :param mask: bits that are looked at; none of them means every entry.
    :param value: what they must be.
    """

    __slots__ = ("bits", "mask", "value")

    def __init__(self, mask: int, value: int | None = None) -> None:
        self.mask = mask
        self.value = mask if value is None else value
        self.bits = tuple(
            (bit, self.value >> bit & 1) for bit in range(_LANE) if mask >> bit & 1
        )

    def __repr__(self) -> str:
        return f"Match({self.mask:#x}, {self.value:#x})"


class Table(Protocol):
    """One page of entries.

    ``pa`` is its physical address in bytes, ``size`` its number of entries,
    ``level`` and ``base`` (first gfn) where it hangs, ``refs`` a count that the
    architecture keeps as it needs, ``note`` a value of the architecture's own.
    """

    pa: int
    size: int
    level: int
    base: int
    refs: int
    note: Any

    def get(self, index: int) -> int:
        """Return an entry."""
        ...

    def set(self, index: int, entry: int) -> None:
        """Store an entry."""
        ...

    def used(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield index and value of the entries that are not the empty value."""
        ...

    def count(self, match: Match, start: int, stop: int) -> int:
        """Return how many entries match."""
        ...

    def change(
        self, match: Match, start: int, stop: int, *, clear: int = 0, put: int = 0
    ) -> int:
        """Clear and then set bits in every entry that matches.

        :returns: how many entries matched.
        """
        ...

    def fill(self, entry: int, start: int, stop: int) -> None:
        """Store one value in a run of entries."""
        ...

    def copy(self, start: int, stop: int) -> Sequence[int]:
        """Return a run of entries as they are now."""
        ...

    def freeze(self) -> tuple[Any, ...]:
        """Return the table as a hashable value."""
        ...


class SparseTable:
    """A table that stores only what differs from its empty value."""

    __slots__ = ("base", "cells", "empty", "level", "note", "pa", "refs", "size")
    variables = ("base", "cells", "empty", "level", "note", "refs", "size")
    """What its state is made of, as of a piece of the machine."""

    def __init__(self, pa: int, size: int, level: int, base: int, empty: int) -> None:
        self.pa, self.size, self.level, self.base = pa, size, level, base
        self.empty = empty
        self.refs = 0
        self.note: Any = None
        self.cells: dict[int, int] = {}

    def key(self) -> tuple[str, int]:
        """Return the table's name."""
        return "table", self.pa

    def get(self, index: int) -> int:
        """Return an entry."""
        return self.cells.get(index, self.empty)

    def set(self, index: int, entry: int) -> None:
        """Store an entry."""
        if entry >> _LANE:
            raise OverflowError(f"{entry:#x} is no 64-bit entry")
        if entry == self.empty:
            self.cells.pop(index, None)
        else:
            self.cells[index] = entry

    def used(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield index and value of the entries that are not the empty value."""
        for index in sorted(self.cells):
            if start <= index < stop:
                yield index, self.cells[index]

    def count(self, match: Match, start: int, stop: int) -> int:
        """Return how many entries match."""
        mask, value = match.mask, match.value
        found = sum(
            1
            for index, entry in self.cells.items()
            if start <= index < stop and entry & mask == value
        )
        if self.empty & mask == value:
            found += stop - start
            found -= sum(1 for index in self.cells if start <= index < stop)
        return found

    def change(
        self, match: Match, start: int, stop: int, *, clear: int = 0, put: int = 0
    ) -> int:
        """Clear and then set bits in every entry that matches."""
        mask, value = match.mask, match.value
        matched = [
            (index, entry)
            for index, entry in self.cells.items()
            if start <= index < stop and entry & mask == value
        ]
        if self.empty & mask == value:
            matched.extend(
                (index, self.empty)
                for index in range(start, stop)
                if index not in self.cells
            )
        for index, entry in matched:
            self.set(index, entry & ~clear | put)
        return len(matched)

    def fill(self, entry: int, start: int, stop: int) -> None:
        """Store one value in a run of entries."""
        if entry >> _LANE:
            raise OverflowError(f"{entry:#x} is no 64-bit entry")
        if entry == self.empty:
            for index in [i for i in self.cells if start <= i < stop]:
                del self.cells[index]
        else:
            self.cells.update(dict.fromkeys(range(start, stop), entry))

    def copy(self, start: int, stop: int) -> Sequence[int]:
        """Return a run of entries as they are now."""
        return tuple(self.cells.get(i, self.empty) for i in range(start, stop))

    def freeze(self) -> tuple[Any, ...]:
        """Return the table as a hashable value."""
        cells = tuple(sorted(self.cells.items()))
        return self.level, self.base, self.refs, self.note, cells


@cache
def _ones(lanes: int) -> int:
    """Return a number with bit 0 of each of so many 64-bit lanes set."""
    return int.from_bytes(b"\1\0\0\0\0\0\0\0" * lanes, "little")


class DenseTable:
    """A table as an array of 64-bit words.

    The range operations treat a run of entries as one large number: 64-bit lanes
    side by side, so that a mask for all of them is one multiplication.
    """

    __slots__ = (
        "base",
        "cells",
        "empty",
        "get",
        "level",
        "note",
        "pa",
        "refs",
        "set",
        "size",
    )

    def __init__(self, pa: int, size: int, level: int, base: int, empty: int) -> None:
        self.pa, self.size, self.level, self.base = pa, size, level, base
        self.empty = empty
        self.refs = 0
        self.note: Any = None
        self.cells = array("Q", (empty,)) * size
        # Every walk reads entries one by one: the array's own methods are quickest.
        self.get: Callable[[int], int] = self.cells.__getitem__
        self.set: Callable[[int, int], None] = self.cells.__setitem__

    def used(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield index and value of the entries that are not the empty value."""
        empty = self.empty
        for index, entry in enumerate(self.cells[start:stop], start):
            if entry != empty:
                yield index, entry

    def _load(self, start: int, stop: int) -> int:
        return int.from_bytes(memoryview(self.cells)[start:stop], sys.byteorder)

    def _lanes(self, word: int, match: Match, lanes: int) -> int:
        """Return bit 0 of each lane whose entry matches."""
        chosen = ones = _ones(lanes)
        for bit, wanted in match.bits:
            shifted = word >> bit
            chosen &= shifted if wanted else ones ^ (shifted & ones)
        return chosen

    def count(self, match: Match, start: int, stop: int) -> int:
        """Return how many entries match."""
        word = self._load(start, stop)
        return self._lanes(word, match, stop - start).bit_count()

    def change(
        self, match: Match, start: int, stop: int, *, clear: int = 0, put: int = 0
    ) -> int:
        """Clear and then set bits in every entry that matches."""
        word = self._load(start, stop)
        chosen = self._lanes(word, match, stop - start)
        if not chosen:
            return 0
        word ^= word & chosen * clear
        word |= chosen * put
        raw = word.to_bytes((stop - start) * 8, sys.byteorder)
        memoryview(self.cells)[start:stop] = memoryview(raw).cast("Q")
        return chosen.bit_count()

    def fill(self, entry: int, start: int, stop: int) -> None:
        """Store one value in a run of entries."""
        self.cells[start:stop] = array("Q", (entry,)) * (stop - start)

    def copy(self, start: int, stop: int) -> Sequence[int]:
        """Return a run of entries as they are now."""
        return self.cells[start:stop]

    def freeze(self) -> tuple[Any, ...]:
        """Return the table as a hashable value."""
        return self.level, self.base, self.refs, self.note, self.cells.tobytes()


class TablePool:
    """The pages that hold one VM's tables: who is linked, retired, freed.

    A table is *live* from alloc(), may be *retired* (unlinked, but readers may
    still be in it, as under RCU) and ends *freed*. Reading or writing a freed
    table and freeing it twice are reported to ``misuse``.

    :param dense: make :class:`DenseTable` instead of :class:`SparseTable`.
    :param base: physical address in bytes of the first table page.
    :param misuse: called with one sentence about what went wrong.
    """

    variables = ("next_pa", "holes", "live", "retired", "freed")

    def __init__(
        self,
        *,
        dense: bool = False,
        base: int = 0x1000_0000,
        misuse: Callable[[str], None] | None = None,
    ) -> None:
        self._make = DenseTable if dense else SparseTable
        self.next_pa = base
        self._misuse = misuse or _refuse
        self.holes: dict[int, list[int]] = {}
        self.live: dict[int, Table] = {}
        self.retired: dict[int, Table] = {}
        self.freed: dict[int, Table] = {}

    def alloc(
        self, size: int, level: int, base: int, *, empty: int = 0, align: int = 0
    ) -> Table:
        """Return a new table of ``size`` entries, all of them ``empty``.

        :param align: bytes; the table's own size if it is left out.
        """
        length = size * 8
        align = align or length
        holes = self.holes.get(length, [])
        pa = next((hole for hole in holes if not hole % align), 0)
        table: Any
        if pa:
            # The same object again: whoever still holds it sees the new table, as
            # whoever kept a pointer into the page would.
            holes.remove(pa)
            table = self.freed.pop(pa)
            table.__init__(pa, size, level, base, empty)
        else:
            pa = -(-self.next_pa // align) * align
            self.next_pa = pa + length
            table = self._make(pa, size, level, base, empty)
        self.live[pa] = table
        return cast("Table", table)

    def at(self, pa: int) -> Table:
        """Return the table at a physical address.

        A retired table is still readable. A freed one is reported and then
        given, as hardware and kernel would read what is left of it.

        :raises ModelError: there never was a table.
        """
        table = self.live.get(pa)
        if table is not None:
            return table
        table = self.retired.get(pa)
        if table is not None:
            return table
        table = self.freed.get(pa)
        if table is None:
            raise ModelError(f"no table was ever at {pa:#x}")
        self._misuse(f"the table at {pa:#x} is used after it was freed")
        return table

    def retire(self, table: Table) -> None:
        """Take a table out of use while readers may still be inside it."""
        if self.live.pop(table.pa, None) is None:
            self._misuse(f"the table at {table.pa:#x} is retired twice")
            return
        self.retired[table.pa] = table

    def free(self, table: Table) -> None:
        """Give the page back; its contents stay readable until it is reused."""
        pa = table.pa
        if self.live.pop(pa, None) is None and self.retired.pop(pa, None) is None:
            self._misuse(f"the table at {pa:#x} is freed twice")
            return
        self.freed[pa] = table
        # The lowest is taken first, so that the order of frees leaves no trace.
        insort(self.holes.setdefault(table.size * 8, []), pa)

    def freeze(self) -> tuple[Any, ...]:
        """Return all tables as a hashable value."""
        return tuple(
            tuple((pa, where[pa].freeze()) for pa in sorted(where))
            for where in (self.live, self.retired, self.freed)
        )


def _refuse(sentence: str) -> None:
    raise ModelError(sentence)
