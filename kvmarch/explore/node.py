"""What is known about one standpoint: its transitions, by what they read."""

__all__ = [
    "BLOCKED_STEP",
    "DIGIT",
    "DIGIT_MASK",
    "FIELD",
    "NUMBER",
    "SALT",
    "Known",
    "Marked",
    "Node",
    "mark",
    "salt",
]

from typing import Any, Self

from kvmarch.machine.world import Violation

FIELD = 14
"""Bits for the number of a standpoint."""
NUMBER = (1 << FIELD) - 1
DIGIT = 4
"""Bits of a digit: a cell has as many digits as its values need."""
DIGIT_MASK = (1 << DIGIT) - 1
SALT = 72
"""Bits for the sum that keeps hashes apart: 56 for each of up to 65,536 cells."""
_WORD = (1 << 64) - 1


def salt(cell: int, number: int) -> int:
    """Return a number of 56 bits that looks random; 0 for a cell's first value.

    Python hashes a number by its remainder of 2**61 - 1, in which the digits of a long
    one fall upon each other. The sum of these over all cells, in the state as well,
    makes hashes of different states differ.
    """
    if not number:
        return 0
    mixed = (cell * 0x9E3779B97F4A7C15 + number * 0xC2B2AE3D27D4EB4F + 1) & _WORD
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> shift) * factor & _WORD
    return (mixed ^ mixed >> 31) >> 8


class _BlockedStep:
    __slots__ = ()

    def __repr__(self) -> str:
        return "BLOCKED_STEP"


BLOCKED_STEP: Any = _BlockedStep()
"""The transition of a step that must wait."""


class Marked(int):
    """A transition during which properties were lost."""

    violations: tuple[Violation, ...]

    def __new__(cls, delta: int, violations: tuple[Violation, ...]) -> Self:
        """Return the change of the state with what was lost."""
        made = super().__new__(cls, delta)
        made.violations = violations
        return made


def mark(delta: int, violations: tuple[Violation, ...]) -> int:
    """Return a transition that loses properties, if any are lost."""
    return Marked(delta, violations) if violations else delta


class Known:
    """Transitions of one step by what it reads.

    :param reads: the cells that any of the runs has read.
    :param mask: the fields of the state that they are, and the standpoint's.
    """

    __slots__ = ("by_part", "counts", "mask", "reads")

    def __init__(self, reads: frozenset[int], mask: int) -> None:
        self.reads = reads
        self.mask = mask
        self.by_part: dict[int, Any] = {}
        self.counts: dict[int, int] = {}
        """Steps of a transition, where it is not one."""


class Node:
    """A standpoint: the step that comes next, and what is known about it.

    ``known`` holds the transitions for the part of the state under ``mask``. When a run
    reads a cell that none has read before, what was known stays true for its own part
    of the state, and is kept as ``older``.
    """

    __slots__ = (
        "after",
        "bars",
        "counts",
        "growth",
        "known",
        "latest",
        "mask",
        "name",
        "older",
        "ran",
        "shift",
        "updates",
        "waits",
        "writes",
    )

    def __init__(
        self, name: str, shift: int = -1, growth: list[int] | None = None
    ) -> None:
        self.name = name
        self.shift = shift
        self.growth = [0] if growth is None else growth
        self.writes: set[int] = set()
        """Cells that the step has given another value."""
        self.updates: set[int] = set()
        """Unordered cells to which it has added or from which it has taken its own."""
        self.waits: frozenset[int] = frozenset()
        """Cells of locks that the step takes: it waits while they are held."""
        self.bars: frozenset[int] = frozenset()
        """Cells of locks that are held here, at which others would have to wait."""
        self.after: set[int] = set()
        """Standpoints to which the step has led."""
        self.ran = False
        own = NUMBER << shift if shift >= 0 else 0
        self.older: list[Known] = []
        self._use(Known(frozenset(), own))

    def _use(self, latest: Known) -> None:
        self.latest = latest
        self.mask = latest.mask
        self.known = latest.by_part
        self.counts = latest.counts

    @property
    def reads(self) -> frozenset[int]:
        """Return the cells that the step has read or written, in any state so far."""
        return self.latest.reads

    def read_more(self, reads: frozenset[int], mask: int) -> Known:
        """Depend on more cells from now on; return where transitions now go."""
        self.growth[0] += 1
        if self.known:
            self.older.append(self.latest)
        self._use(Known(self.reads | reads, mask))
        return self.latest

    def widen(self, known: Known, bits: int) -> None:
        """Take up a field of a cell that was read before it ever varied."""
        known.mask |= bits
        if known is self.latest:
            self.mask = known.mask

    def know(self, state: int, change: Any, steps: int) -> None:
        """Remember a transition."""
        part = state & self.mask
        self.known[part] = change
        if steps != 1:
            self.counts[part] = steps
        if isinstance(change, int):
            self.ran = True
            after = state + change >> self.shift & NUMBER
            if after not in self.after:
                self.after.add(after)
                self.growth[0] += 1

    def touch(self, writes: set[int], updates: set[int]) -> None:
        """Remember what a run has written."""
        if not (writes <= self.writes and updates <= self.updates):
            self.writes |= writes
            self.updates |= updates
            self.growth[0] += 1

    def recall(self, state: int) -> Any:
        """Return a transition that is known from before more was read, or None."""
        for known in self.older:
            part = state & known.mask
            change = known.by_part.get(part)
            if change is not None:
                self.know(state, change, known.counts.get(part, 1))
                return change
        return None
