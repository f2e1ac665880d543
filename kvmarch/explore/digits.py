"""Where each cell has its digits in the number that is a state."""

__all__ = ["Digits"]

from collections.abc import Iterable

from kvmarch.explore.node import DIGIT, DIGIT_MASK, FIELD, SALT, Known, Node, salt


class Digits:
    """The digits of every cell that ever varied.

    A state is, from its lowest bit on: a field for each task's standpoint, the sum that
    keeps hashes apart, digits in the order in which they were needed.

    :param tasks: how many there are.
    """

    def __init__(self, tasks: int) -> None:
        self.of: dict[int, list[int]] = {}
        """By cell that ever varied, the shifts of its digits, lowest first."""
        self._salt = FIELD * tasks
        self.end = self._salt + SALT
        """Where the next digit will stand."""
        self.room = 1 << self.end - 1
        """More than the sum that keeps hashes apart will ever be."""
        self._orbits: dict[int, tuple[int, ...]] = {}
        self._readers: dict[int, list[tuple[Node, Known]]] = {}

    def number_in(self, state: int, cell: int) -> int:
        """Return the number of a cell's value in a state."""
        number = 0
        for place, shift in enumerate(self.of.get(cell, ())):
            number |= (state >> shift & DIGIT_MASK) << DIGIT * place
        return number

    def change(self, cell: int, before: int, number: int) -> int:
        """Return what is added to a state when a cell gets another value."""
        digits = self.of.setdefault(cell, [])
        while number >> DIGIT * len(digits):
            for other in self._orbits.get(cell, (cell,)):
                self._grow(other)
        return self._bits(cell, number) - self._bits(cell, before)

    def _grow(self, cell: int) -> None:
        # Until now the digit was 0 everywhere, so that what is known stays true.
        for reader, known in self._readers.get(cell, ()):
            reader.widen(known, DIGIT_MASK << self.end)
        self.of.setdefault(cell, []).append(self.end)
        self.end += DIGIT

    def share(self, orbit: tuple[int, ...]) -> None:
        """Let digits of cells that can be exchanged stand side by side, from now on.

        The sum that keeps hashes apart is the same when they are exchanged.
        """
        for cell in orbit:
            self._orbits[cell] = orbit

    def mask(self, cells: Iterable[int]) -> int:
        """Return the digits of some cells."""
        bits = 0
        for cell in cells:
            for shift in self.of.get(cell, ()):
                bits |= DIGIT_MASK << shift
        return bits

    def _bits(self, cell: int, number: int) -> int:
        salted = self._orbits.get(cell, (cell,))[0]
        bits = salt(salted, number) << self._salt
        for place, shift in enumerate(self.of.get(cell, ())):
            bits |= (number >> DIGIT * place & DIGIT_MASK) << shift
        return bits

    def depend(self, node: Node, touched: set[int]) -> None:
        """Let a step depend on the cells that it has touched."""
        fresh = frozenset(touched) - node.reads
        if not fresh:
            return
        known = node.read_more(fresh, node.mask | self.mask(fresh))
        for cell in known.reads:
            self._readers.setdefault(cell, []).append((node, known))
