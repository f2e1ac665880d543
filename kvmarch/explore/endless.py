"""A schedule that goes round for ever, checked by running it.

What comes first is run, and then the cycle once: the machine and every task must be
where they were. Whether fairness allows to go on so is found out by trying, at each
step of the cycle, whether those could move that do not.
"""

__all__ = ["Endless", "Round", "moves_of"]

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from kvmarch.errors import ExploreError
from kvmarch.explore.cycles import going_on
from kvmarch.explore.program import Program
from kvmarch.explore.runner import Runner
from kvmarch.machine.world import Violation

Moves = tuple[int, ...]
"""Who takes each step, as the number of the task."""


def moves_of(names: tuple[str, ...], turns: Iterable[tuple[str, int]]) -> Moves:
    """Return who takes each step of turns."""
    numbers = {name: number for number, name in enumerate(names)}
    return tuple(numbers[name] for name, count in turns for _ in range(count))


@dataclass(frozen=True, slots=True)
class Round:
    """What going round once has shown.

    :param differs: what is not as it was before; empty if it comes back.
    :param fairness: of locks, under which the cycle may go on for ever: ``queued``, and
        so any; or ``unfair`` only; empty if under none.
    :param able: who could move in all of the cycle, and does not.
    """

    moving: tuple[str, ...]
    differs: str = ""
    fairness: str = ""
    able: tuple[str, ...] = ()

    @property
    def lost(self) -> tuple[Violation, ...]:
        """Return what is lost by going on so."""
        if self.differs or not self.fairness:
            return ()
        return (going_on(self.moving, self.fairness),)


class Endless:
    """Tries cycles of a program.

    :param runner: runs it, watched.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._known: dict[tuple[Moves, Moves], Round] = {}

    @classmethod
    @contextmanager
    def of(cls, program: Program) -> Iterator[Self]:
        """Watch a program meanwhile."""
        with Runner(program).watching() as runner:
            yield cls(runner)

    def round(self, first: Moves, cycle: Moves) -> Round:
        """Go round a cycle once.

        :raises ExploreError: a step cannot be taken.
        """
        key = first, cycle
        if key not in self._known:
            self._known[key] = self._round(first, cycle)
        return self._known[key]

    def _round(self, first: Moves, cycle: Moves) -> Round:
        runner = self.runner
        moving = tuple(runner.names[i] for i in sorted(set(cycle)))
        self._run(first)
        values, places = runner.state()
        for i in cycle:
            self._step(i)
        values_after, places_after = runner.state()
        names = runner.cells.names
        differs = [
            names[cell]
            for cell in sorted(values.keys() | values_after.keys())
            if values.get(cell) != values_after.get(cell)
        ]
        pairs = zip(runner.names, places, places_after, strict=True)
        differs[:0] = [name for name, was, now in pairs if was != now]
        if differs:
            return Round(moving, differs=", ".join(differs[:3]))
        return self._fair(first, cycle, moving)

    def _fair(self, first: Moves, cycle: Moves, moving: tuple[str, ...]) -> Round:
        """Try whether those who do not move in a cycle could."""
        runner = self.runner
        others = [
            i for i in range(runner.count) if i not in cycle and not runner.is_done(i)
        ]
        sometimes, always = set[int](), set(others)
        for i in others:
            for at in range(len(cycle)):
                self._run((*first, *cycle[:at]))
                if runner.measure(i).moved:
                    sometimes.add(i)
                else:
                    always.discard(i)
        if always:
            return Round(moving, able=tuple(runner.names[i] for i in sorted(always)))
        return Round(moving, fairness="unfair" if sometimes else "queued")

    def _run(self, moves: Moves) -> None:
        self.runner.begin()
        for i in moves:
            self._step(i)

    def _step(self, i: int) -> None:
        """Take a step.

        :raises ExploreError: it cannot be taken.
        """
        runner = self.runner
        if runner.is_done(i) or not runner.measure(i).moved:
            raise ExploreError(f"{runner.names[i]} cannot take a step of the schedule")
