"""Shorten a schedule that loses a property: fewer steps, then fewer turns.

Candidates leave steps out or bring turns of a task together, and are run from the
beginning; a step that cannot be taken is skipped. What is found is a least one under
these changes; the shortest of all is what a search breadth first finds.
"""

__all__ = ["shorten"]

from collections.abc import Iterator, Sequence
from itertools import groupby

from kvmarch.errors import ExploreError
from kvmarch.explore.cells import Image
from kvmarch.explore.endless import Endless, Moves, Round, moves_of
from kvmarch.explore.program import Program
from kvmarch.explore.schedule import Schedule, merged
from kvmarch.machine.run import Task, begin, take_step
from kvmarch.machine.world import Violation


def shorten(
    program: Program, schedule: Schedule, wanted: str = "", *, always: bool = False
) -> tuple[Schedule, str]:
    """Return a shorter schedule that loses the same property, and the property.

    :param wanted: the property; if it is empty, the one that is lost last.
    :param always: ask the program's questions between all steps.
    :raises ExploreError: the schedule does not lose it.
    """
    if schedule.cycle and wanted in {"", "ends"}:
        return _shorten_cycle(program, schedule), "ends"
    trial = _Trial(program, always=always)
    try:
        given = moves_of(schedule.tasks, (*schedule.turns, *schedule.cycle))
        lost = trial.lost_on(given)
        if not lost or wanted not in {"", *lost}:
            what = wanted or "any property"
            raise ExploreError(f"the schedule {schedule} does not lose {what}")
        trial.wanted = wanted or lost[-1]
        best = trial.loses(given)
        assert best is not None
        found: Moves | None = best
        while found is not None:
            best = found
            found = _better(trial, best, _with_less(best))
            if found is None:
                found = _better(trial, best, _with_fewer_turns(best))
    finally:
        trial.begin()
        trial.close()
    return _schedule(schedule, best), trial.wanted


def _schedule(given: Schedule, moves: Moves, cycle: Moves = ()) -> Schedule:
    turns = [
        merged(tuple((given.tasks[i], 1) for i in part)) for part in (moves, cycle)
    ]
    return Schedule(given.where, given.tasks, *turns)


def _shorten_cycle(program: Program, schedule: Schedule) -> Schedule:
    """Return a shorter schedule that goes round for ever.

    :raises ExploreError: it does not.
    """
    first = moves_of(schedule.tasks, schedule.turns)
    cycle = moves_of(schedule.tasks, schedule.cycle)
    with Endless.of(program) as endless:
        given = endless.round(first, cycle)
        if not given.lost:
            raise ExploreError(f"the schedule {schedule} does not lose ends")

        def better(candidates: Iterator[tuple[Moves, Moves]]) -> bool:
            nonlocal first, cycle
            size = _sizes(first, cycle)
            for pair in candidates:
                if _sizes(*pair) < size and _is_like(given, endless, *pair):
                    first, cycle = pair
                    return True
            return False

        while (
            better((less, cycle) for less in _with_less(first))
            or better((first, less) for less in _with_less(cycle) if less)
            or better(_begun_earlier(first, cycle))
            or better((fewer, cycle) for fewer in _with_fewer_turns(first))
            or better((first, fewer) for fewer in _with_fewer_turns(cycle))
        ):
            pass
    return _schedule(schedule, first, cycle)


def _is_like(given: Round, endless: Endless, first: Moves, cycle: Moves) -> bool:
    """Return whether a schedule goes round under the same fairness."""
    try:
        return endless.round(first, cycle).fairness == given.fairness
    except ExploreError:
        return False


def _begun_earlier(first: Moves, cycle: Moves) -> Iterator[tuple[Moves, Moves]]:
    """Yield the cycle entered one step earlier, if it may be the same one."""
    if first and first[-1] == cycle[-1]:
        yield first[:-1], (cycle[-1], *cycle[:-1])


def _sizes(first: Moves, cycle: Moves) -> tuple[int, int, int]:
    """Return what is to become smaller: steps to the cycle, steps of it, turns."""
    turns = [len(list(groupby(part))) for part in (first, cycle)]
    return len(first), len(cycle), sum(turns)


def _size(moves: Moves) -> tuple[int, int]:
    return len(moves), len(list(groupby(moves)))


def _better(trial: "_Trial", best: Moves, candidates: Iterator[Moves]) -> Moves | None:
    """Return the first of the candidates that loses the property and is smaller."""
    for candidate in candidates:
        found = trial.loses(candidate)
        if found is not None and _size(found) < _size(best):
            return found
    return None


def _with_less(moves: Moves) -> Iterator[Moves]:
    """Yield sequences with steps left out: many first, of one task or of all."""
    of = [list(range(len(moves)))]
    of += [
        [at for at, task in enumerate(moves) if task == who]
        for who in sorted(set(moves))
    ]
    size = len(moves) // 2
    while size:
        for places in of:
            for first in range(0, len(places), size):
                gone = set(places[first : first + size])
                yield tuple(who for at, who in enumerate(moves) if at not in gone)
        size //= 2


def _with_fewer_turns(moves: Moves) -> Iterator[Moves]:
    """Yield sequences in which two turns of a task have become one."""
    turns = [tuple(group) for _task, group in groupby(moves)]
    for first, turn in enumerate(turns):
        for second in range(first + 2, len(turns)):
            if turns[second][0] != turn[0]:
                continue
            between = turns[first + 1 : second]
            before, after = turns[:first], turns[second + 1 :]
            earlier = [*before, turn, turns[second], *between, *after]
            later = [*before, *between, turn, turns[second], *after]
            for order in (earlier, later):
                yield tuple(who for each in order for who in each)


class _Trial:
    """Runs sequences of steps, each from the beginning."""

    def __init__(self, program: Program, *, always: bool) -> None:
        self.program = program
        self.world = program.world
        self.always = always
        self.wanted = ""
        self.image = Image(program.roots(), program.fixed())
        self.tasks: list[Task] = []
        self._known: dict[Moves, Moves | None] = {}

    def begin(self) -> None:
        """Put the machine back, with tasks that have taken no step."""
        self.close()
        self.image.restore()
        self.tasks = self.program.tasks()
        for task in self.tasks:
            begin(self.world, task)
        self.world.violations.clear()

    def close(self) -> None:
        """Abandon the tasks."""
        for task in self.tasks:
            if task.path is not None and not task.done:
                task.path.close()
        self.tasks = []

    def loses(self, moves: Moves) -> Moves | None:
        """Return the steps that were taken until the property was lost, if it was."""
        if moves not in self._known:
            self._known[moves] = self._until_lost(moves)
        return self._known[moves]

    def lost_on(self, moves: Moves) -> list[str]:
        """Return the properties that are lost on a sequence of steps, the last last.

        Of those that the last step loses, the first counts as the last.
        """
        self.begin()
        lost: list[str] = []
        for i in moves:
            _moved, found = self._step(i)
            lost += [v.property for v in reversed(found)]
        lost += [v.property for v in reversed(self._at_rest())]
        return lost

    def _until_lost(self, moves: Moves) -> Moves | None:
        self.begin()
        taken = []
        for i in moves:
            moved, lost = self._step(i)
            if moved:
                taken.append(i)
            if self._has(lost):
                return tuple(taken)
        return tuple(taken) if self._has(self._at_rest()) else None

    def _has(self, lost: Sequence[Violation]) -> bool:
        return any(violation.property == self.wanted for violation in lost)

    def _step(self, i: int) -> tuple[bool, list[Violation]]:
        """Take a step if it can be taken; return whether, and what it has lost."""
        task, world = self.tasks[i], self.world
        if task.done:
            return False, []
        moved = take_step(world, task)
        lost = list(world.violations) if moved else []
        world.violations.clear()
        if moved and self.always:
            lost += self.program.always()
            world.violations.clear()
        return moved, lost

    def _at_rest(self) -> list[Violation]:
        """Return what is lost at the end, if no task can move."""
        lost: list[Violation] = []
        waiting = [i for i, task in enumerate(self.tasks) if not task.done]
        for i in waiting:
            moved, _found = self._step(i)
            if moved:
                return []
        if waiting:
            lost.append(Violation("ends", "no task can move", ""))
        lost += self.program.at_rest("stuck" if waiting else "done")
        self.world.violations.clear()
        return lost
