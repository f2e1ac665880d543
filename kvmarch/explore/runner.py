"""A program run step by step from its beginning, with accesses measured."""

__all__ = ["Measured", "Runner"]

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from kvmarch.explore.cells import Cells, Image, Log, watched
from kvmarch.explore.program import Program
from kvmarch.explore.schedule import merged
from kvmarch.explore.standpoint import place_of
from kvmarch.machine.run import Task, begin, take_step
from kvmarch.machine.world import Violation


class Measured:
    """A step that was run, and what it touched.

    Steps commute if neither writes what the other reads. What a step has only added to
    an unordered variable, or taken from it, is its own: it writes that and does not
    read it, so that two readers of a lock commute, and one who looks at them does not.

    :param reads: objects that it touched, a bit for each; those that it wrote too.
    :param moved: whether it could; one that must wait has read what it waits for.
    """

    __slots__ = ("key", "lost", "moved", "reads", "task", "writes")

    def __init__(self, task: int, key: Any) -> None:
        self.task = task
        self.key = key
        self.reads = self.writes = 0
        self.moved = False
        self.lost: tuple[Violation, ...] = ()


class _Touched(NamedTuple):
    """Cells that a step has touched; among them those that it has written or updated.

    :param updated: unordered ones of which it has seen nothing but its own.
    """

    cells: frozenset[int]
    written: frozenset[int]
    updated: frozenset[int]


def _moves(before: Any, after: Any) -> int:
    """Return how many names were added to an unordered list, or taken from it.

    :param before: a sorted tuple of names, or of such tuples.
    """
    if any(isinstance(item, tuple) for item in (*before, *after)):
        return sum(_moves(*pair) for pair in zip(before, after, strict=True))
    one, other = Counter(before), Counter(after)
    return (one - other).total() + (other - one).total()


class Runner:
    """Runs a program again and again, and learns what its steps touch.

    :param program: the machine and its tasks.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.world = program.world
        self.names = tuple(task.name for task in program.tasks())
        self.count = len(self.names)
        self.steps = 0
        """Steps that were run."""
        self.grown = False
        """Whether anything was learnt that makes earlier traces doubtful."""
        self.tasks: list[Task] = []
        self._object: list[int] = []
        """By cell, the object to which it belongs: another cell or itself."""
        self._ordered: set[int] = set()
        """Cells whose updates others wait for, or ask for: no two of them commute."""
        self._touched: dict[Any, _Touched] = {}
        self._waits: set[Any] = set()
        self._varies: set[Any] = set()

    @contextmanager
    def watching(self) -> Iterator[Self]:
        """Watch the machine's accesses meanwhile, and put it back at the end."""
        self.image = Image(self.program.roots(), self.program.fixed())
        self.cells = Cells(self.image)
        self._log: Log
        with watched([*self.cells.kinds, *self.program.pieces()]) as self._log:
            yield self
            self.begin()

    # -- running ---------------------------------------------------------------

    def begin(self) -> None:
        """Put the machine back as it was, with tasks that have not begun."""
        for task in self.tasks:
            if task.path is not None and not task.done:
                task.path.close()
        self.image.restore()
        self.world.violations.clear()
        self.tasks = self.program.tasks()
        for task in self.tasks:
            begin(self.world, task)
        self.world.violations.clear()
        self.cells.now = [0] * len(self.cells.names)
        self._log.clear()

    def replay(self, tasks: Sequence[int]) -> None:
        """Begin anew and run one step of each of these tasks."""
        self.begin()
        for task in tasks:
            self._step(task)
        self.world.violations.clear()
        self._look()

    def state(self) -> tuple[dict[int, int], tuple[Hashable, ...]]:
        """Return where the machine stands: what has changed, and each task's place."""
        places = tuple(place_of(task, self.cells) for task in self.tasks)
        self._log.clear()
        values = {cell: number for cell, number in enumerate(self.cells.now) if number}
        return values, places

    def is_done(self, task: int) -> bool:
        """Return whether a task has ended."""
        return self.tasks[task].done

    def turns(self, tasks: Sequence[int]) -> tuple[tuple[str, int], ...]:
        """Return a sequence of steps as a schedule."""
        return merged(tuple((self.names[task], 1) for task in tasks))

    def _step(self, i: int) -> bool:
        self.steps += 1
        return take_step(self.world, self.tasks[i])

    # -- measuring -------------------------------------------------------------

    def measure(self, i: int) -> Measured:
        """Run a step and find out what it touches; if it must wait, what it reads."""
        step = self.tasks[i].pending
        event = Measured(i, (step.op, self.cells.freeze(step.args)))
        self._log.clear()
        event.moved = self._step(i)
        event.lost = tuple(self.world.violations) if event.moved else ()
        self.world.violations.clear()
        touched = self._look()
        self._learn(event, touched)
        own = touched.updated - self._ordered
        event.reads = self._objects(touched.cells - own)
        event.writes = self._objects(touched.written)
        return event

    def _look(self) -> _Touched:
        """Return what was touched since the log was cleared."""
        cells, log = self.cells, self._log
        stored = {cells.cell(owner, name) for owner, name in log.stored}
        looks = Counter(cells.cell(owner, name) for owner, name in log.read)
        touched = stored | looks.keys()
        updated = set()
        now = cells.now
        for cell in touched:
            number, before = cells.look(cell), now[cell]
            if number == before:
                continue
            now[cell] = number
            if cell in cells.unordered and cell not in stored:
                values = cells.values[cell]
                # Who looks at it once for each name that comes or goes does only that.
                if looks[cell] == _moves(values[before], values[number]):
                    updated.add(cell)
            stored.add(cell)
        log.clear()
        return _Touched(frozenset(touched), frozenset(stored), frozenset(updated))

    def _objects(self, cells: frozenset[int]) -> int:
        bits = 0
        for cell in cells:
            bits |= 1 << self._find(cell)
        return bits

    def _find(self, cell: int) -> int:
        of = self._object
        if cell >= len(of):
            of.extend(range(len(of), cell + 1))
        while of[cell] != cell:
            cell = of[cell]
        return cell

    def _join(self, cells: frozenset[int]) -> None:
        """Take cells as one object from now on."""
        if not cells <= self._ordered:
            self._ordered |= cells
            self.grown = True
        objects = sorted({self._find(cell) for cell in cells})
        for other in objects[1:]:
            self._object[other] = objects[0]
            self.grown = True

    # -- learning --------------------------------------------------------------

    def _learn(self, event: Measured, touched: _Touched) -> None:
        op = event.key[0]
        if not event.moved and op not in self._waits:
            self._waits.add(op)
            self.grown = True
        if op in self._waits:
            # What it waits for is what it looks at while it does: one that goes on
            # has touched what comes after it as well.
            if not event.moved:
                self._join(touched.cells)
            return
        known = self._touched.setdefault(event.key, touched)
        if known != touched and op not in self._varies:
            self._varies.add(op)
            self.grown = True

    def can_wait(self, event: Measured) -> bool:
        """Return whether a step may have to wait in another state."""
        return event.key[0] in self._waits

    def varies(self, event: Measured) -> bool:
        """Return whether a step may wait, or touch something else, in another state."""
        op = event.key[0]
        return op in self._waits or op in self._varies

    # -- questions -------------------------------------------------------------

    def ask_always(self) -> tuple[Violation, ...]:
        """Ask the program's questions between steps.

        What they read becomes one object, so that it is seen in every state.
        """
        self._log.clear()
        lost = self.program.always()
        self.world.violations.clear()
        self._join(self._look().cells)
        return lost

    def ask_at_rest(self) -> tuple[Violation, ...]:
        """Ask what is lost at the end; the machine is used up."""
        waiting = [task for task in self.tasks if not task.done]
        lost: tuple[Violation, ...] = ()
        if waiting:
            who = ", ".join(
                f"{task.name} waits at {task.pending.op.name!r}" for task in waiting
            )
            lost = (Violation("ends", f"no task can move: {who}", ""),)
        lost += self.program.at_rest("stuck" if waiting else "done")
        self.world.violations.clear()
        return lost
