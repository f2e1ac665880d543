"""A schedule: who moves when, as text that can be passed on and replayed."""

__all__ = ["Schedule", "schedule_of"]

import re
from dataclasses import dataclass

from kvmarch.errors import ExploreError
from kvmarch.explore.node import NUMBER
from kvmarch.explore.route import moves_to
from kvmarch.explore.search import Found
from kvmarch.explore.space import Space

CYCLE = "~"
"""What comes before the turns that are taken for ever."""
_TURN = re.compile(r"([a-z])(\d+)", re.ASCII)
LONGEST = 9
"""Digits of the steps of one turn."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Turns of tasks, each with its number of steps.

    :param where: scenario and machine that it belongs to, as one word.
    :param tasks: all tasks of the scenario, in order.
    :param turns: what comes first; of most schedules, all.
    :param cycle: what is then taken again and again.
    """

    where: str
    tasks: tuple[str, ...]
    turns: tuple[tuple[str, int], ...]
    cycle: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        letters = {name: chr(97 + n) for n, name in enumerate(self.tasks)}
        turns, cycle = (
            "".join(f"{letters[name]}{count}" for name, count in part)
            for part in (self.turns, self.cycle)
        )
        return f"{self.where}:{turns}{CYCLE if cycle else ''}{cycle}"

    @property
    def steps(self) -> int:
        """Return how many steps it has, up to where it goes round."""
        return sum(count for _name, count in self.turns)

    @property
    def around(self) -> int:
        """Return how many steps it takes to go round once."""
        return sum(count for _name, count in self.cycle)

    @classmethod
    def parse(cls, text: str, where: str, tasks: tuple[str, ...]) -> "Schedule":
        """Return a schedule that was written by ``str()``.

        :raises ExploreError: it does not parse, or belongs to something else.
        """
        place, colon, turns = text.rpartition(":")
        if not colon:
            raise ExploreError(f"{text!r} is no schedule such as {where}:a3b2")
        if place != where:
            raise ExploreError(
                f"the schedule is of {place}, not of {where}: it means nothing here"
            )
        first, mark, cycle = turns.partition(CYCLE)
        parts = [_turns(part, tasks) for part in (first, cycle)]
        if mark and not parts[1]:
            raise ExploreError(f"after {CYCLE} must come the turns of a cycle")
        return cls(where, tasks, *parts)


def _turns(text: str, tasks: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Return turns such as ``a3b2``.

    :raises ExploreError: they are none, or there is no such task.
    """
    if not re.fullmatch(r"([a-z]\d+)*", text, re.ASCII):
        raise ExploreError(f"{text!r} are no turns such as a3b2")
    found = []
    for letter, count in _TURN.findall(text):
        number = ord(letter) - 97
        if number >= len(tasks):
            raise ExploreError(
                f"turn {letter}{count}: there is no task {letter}; there is a to "
                f"{chr(96 + len(tasks))}"
            )
        if len(count) > LONGEST:
            raise ExploreError(f"turn {letter}{count[:LONGEST]}…: too many steps")
        found.append((tasks[number], int(count)))
    return merged(tuple(found))


def merged(turns: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """Join turns of one task that follow each other, and drop empty ones."""
    out: list[tuple[str, int]] = []
    for name, count in turns:
        if out and out[-1][0] == name:
            out[-1] = name, out[-1][1] + count
        elif count:
            out.append((name, count))
    return tuple(out)


def schedule_of(space: Space, found: Found, where: str) -> Schedule:
    """Return the schedule on which a property was found lost.

    A task's first steps, which touch nothing, are taken when it first moves: who does
    not matter does not appear.
    """
    moves = moves_to(space, found.state)
    if found.task >= 0:
        moves.append((found.task, _steps_of(space, found.state, found.task)))
    lead = list(space.lead)
    if found.task < 0:
        # What is lost at the end is lost when all that can be done has been.
        lead, idle = [0] * len(lead), lead
        moves[:0] = list(enumerate(idle))
    turns = []
    for i, count in moves:
        turns.append((space.names[i], lead[i] + count))
        lead[i] = 0
    cycle = [(space.names[i], _steps_of(space, state, i)) for state, i in found.cycle]
    return Schedule(where, space.names, merged(tuple(turns)), merged(tuple(cycle)))


def _steps_of(space: Space, state: int, i: int) -> int:
    """Return how many steps a task's transition from a state has."""
    node = space.nodes[i][state >> space.shifts[i] & NUMBER]
    return node.counts.get(state & node.mask, 1)
