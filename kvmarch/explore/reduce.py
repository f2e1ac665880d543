"""Partial-order reduction: which task may go alone without a verdict being lost.

From a state it is enough to let one task move if its step commutes with everything
that the others can still do before it. What they can still do is read off their
control graphs, which grow while they are walked, and of which what was never run
counts as nothing: a search is repeated until one has learnt nothing new, and only that
one counts. Verdicts and end states stay as they are;
schedules may be longer than the shortest.
"""

__all__ = ["Reduction"]

from dataclasses import dataclass

from kvmarch.explore.space import Space


@dataclass(frozen=True, slots=True)
class Future:
    """What a task can still touch: cells, each a bit.

    :param read: cells that are read.
    :param write: cells that are written.
    :param update: unordered cells to which steps add or from which they take their own.
    """

    read: int = 0
    write: int = 0
    update: int = 0


def _bits(cells: frozenset[int] | set[int]) -> int:
    bits = 0
    for cell in cells:
        bits |= 1 << cell
    return bits


class Reduction:
    """Chooses the tasks that may go alone.

    :param space: the state space; its graphs may grow meanwhile.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self._alone: dict[int, tuple[int, ...]] = {}
        self._futures: dict[tuple[int, int, frozenset[int]], Future] = {}
        self._grown = -1

    def alone(self, state: int) -> tuple[int, ...]:
        """Return the tasks of which any one may go alone from a state."""
        growth = self.space.growth
        if growth[0] != self._grown:
            self._grown = growth[0]
            self._alone.clear()
            self._futures.clear()
        places = state & self.space.where
        found = self._alone.get(places)
        if found is None:
            found = self._alone[places] = self._choose(places)
        return found

    def _choose(self, places: int) -> tuple[int, ...]:
        space = self.space
        numbers = space.places(places)
        asked = _bits(space.between.reads)
        chosen = []
        for i, number in enumerate(numbers):
            if number == space.done_of[i]:
                continue
            node = space.nodes[i][number]
            if not node.ran:
                continue
            write, update = _bits(node.writes), _bits(node.updates)
            read = _bits(node.reads) & ~update
            if (write | update) & asked:
                continue
            if all(
                self._commutes(read, write, update, self._future(j, other, node.bars))
                for j, other in enumerate(numbers)
                if j != i and other != space.done_of[j]
            ):
                chosen.append(i)
        return tuple(chosen)

    @staticmethod
    def _commutes(read: int, write: int, update: int, future: Future) -> bool:
        return not (
            write & (future.read | future.write | future.update)
            or read & (future.write | future.update)
            or update & (future.read | future.write)
        )

    def _future(self, i: int, start: int, bars: frozenset[int]) -> Future:
        """Return what a task can touch without a step that writes one of some cells.

        :param bars: locks that somebody else holds: who would take one waits.
        """
        key = i, start, bars
        found = self._futures.get(key)
        if found is None:
            found = self._futures[key] = self._walk(i, start, bars)
        return found

    def _walk(self, i: int, start: int, bars: frozenset[int]) -> Future:
        nodes = self.space.nodes[i]
        done = self.space.done_of[i]
        read = write = update = 0
        seen = {start}
        stack = [start]
        while stack:
            number = stack.pop()
            if number == done:
                continue
            node = nodes[number]
            if node.waits & bars:
                continue
            read |= _bits(node.reads - node.updates)
            write |= _bits(node.writes)
            update |= _bits(node.updates)
            for after in node.after:
                if after not in seen:
                    seen.add(after)
                    stack.append(after)
        return Future(read, write, update)
