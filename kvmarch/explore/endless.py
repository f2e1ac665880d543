"""A schedule that goes round for ever, checked by running it.

What comes first is run, and then the cycle once: the machine and every task must be
where they were. Whether fairness allows to go on so is found out by trying, at each
step of the cycle, whether those could move that do not.

Where a step leads from a state is asked of the machine once. Of many schedules that
are alike, as somebody tries them who makes one shorter, most are then only looked up.
"""

__all__ = ["Endless", "Round", "moves_of"]

from collections.abc import Hashable, Iterable, Iterator
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

_State = tuple[frozenset[tuple[int, int]], tuple[Hashable, ...]]
"""Cells that are not as in the beginning with their values, and each task's place."""


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
        self._number: dict[_State, int] = {}
        """Of each state in which the machine has been; 0 is the first."""
        self._known: list[dict[int, int | None]] = []
        """By state and task, the state after its step; None if it cannot move."""
        runner.begin()
        self._stands = self._look()
        """The state in which the machine is; -1 if running it has failed."""

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
        names = self.runner.names
        moving = tuple(names[i] for i in sorted(set(cycle)))
        moves = first + cycle
        states = self._follow(moves)[len(first) :]
        if states[0] != states[-1]:
            differs = self._differing(states[0], states[-1])
            return Round(moving, differs=", ".join(differs[:3]))
        others = set(range(len(names))).difference(cycle)
        able = [
            {i for i in others if self._after(state, i, moves, at) is not None}
            for at, state in enumerate(states[:-1], len(first))
        ]
        if always := set.intersection(*able):
            return Round(moving, able=tuple(names[i] for i in sorted(always)))
        return Round(moving, fairness="unfair" if any(able) else "queued")

    def _differing(self, one: int, other: int) -> list[str]:
        """Return the names of tasks, then of cells, that are not the same."""
        states = list(self._number)
        (values, places), (values_after, places_after) = states[one], states[other]
        pairs = zip(self.runner.names, places, places_after, strict=True)
        cells = sorted({cell for cell, _value in values ^ values_after})
        return [
            *(name for name, was, now in pairs if was != now),
            *(self.runner.cells.names[cell] for cell in cells),
        ]

    def _follow(self, moves: Moves) -> list[int]:
        """Return the states through which steps lead, the first state among them.

        :raises ExploreError: one cannot be taken.
        """
        states = [0]
        for at, i in enumerate(moves):
            after = self._after(states[-1], i, moves, at)
            if after is None:
                name = self.runner.names[i]
                raise ExploreError(f"{name} cannot take a step of the schedule")
            states.append(after)
        return states

    def _after(self, state: int, i: int, moves: Moves, at: int) -> int | None:
        """Return the state after a task's step; None if it cannot move.

        :param state: the one to which the first moves lead, as many as ``at``.
        """
        known = self._known[state]
        if i not in known:
            known[i] = self._try(state, i, moves[:at])
        return known[i]

    def _try(self, state: int, i: int, before: Moves) -> int | None:
        runner = self.runner
        stands, self._stands = self._stands, -1
        if stands != state:
            runner.replay(before)
        moved = not runner.is_done(i) and runner.measure(i).moved
        self._stands = self._look() if moved else state
        return self._stands if moved else None

    def _look(self) -> int:
        """Return the number of the state in which the machine is."""
        values, places = self.runner.state()
        state = frozenset(values.items()), places
        number = self._number.setdefault(state, len(self._number))
        if number == len(self._known):
            self._known.append({})
        return number
