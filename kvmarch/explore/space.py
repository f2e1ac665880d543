"""The transitions of a machine's tasks, each found once by running it.

A state is one number: a field for each task's standpoint and a field for each cell
that ever varied. A step's result depends on its standpoint and on the cells that it
reads; once that combination has been run, it is a look-up for ever after. What is not
yet known is run on the machine itself, which is put back and led along a schedule.
"""

__all__ = ["Space"]

from collections.abc import Callable
from typing import Any

from kvmarch.errors import ExploreError, NotSymmetricError
from kvmarch.explore.cells import Cells, Image, Log
from kvmarch.explore.digits import Digits
from kvmarch.explore.node import (
    BLOCKED_STEP,
    FIELD,
    NUMBER,
    Node,
    mark,
)
from kvmarch.explore.program import Program
from kvmarch.explore.route import moves_to
from kvmarch.explore.standpoint import place_of
from kvmarch.explore.symmetry import Symmetry
from kvmarch.machine.run import Task, begin, take_step
from kvmarch.machine.world import Violation

LOCAL_BOUND = 10_000
"""Steps in a row that touch nothing shared, after which a task is hung."""


class Space:
    """The state space of a program, made as it is walked.

    A transition is one step of one task that touches something shared, and the steps
    after it that touch nothing.

    :param program: the machine and its tasks.
    :param symmetric: take states that differ only by which twin is which for one.
    """

    def __init__(self, program: Program, *, symmetric: bool = False) -> None:
        self.program = program
        self.symmetric = symmetric
        self.symmetry: Symmetry | None = None
        self.world = program.world
        self.names = tuple(task.name for task in program.tasks())
        self.count = len(self.names)
        self.shifts = tuple(FIELD * i for i in range(self.count))
        self.where = (1 << FIELD * self.count) - 1
        """The part of a state that says where the tasks stand."""
        self.nodes: list[list[Node]] = [[] for _ in self.names]
        self.runs = 0
        """Steps that were run to find their transition."""
        self.resets = 0
        self._ids: list[dict[Any, int]] = [{} for _ in self.names]
        self.digits = Digits(self.count)
        self.done_of = [-1] * self.count
        """By task, the number of the standpoint at its end."""
        self.parents: dict[int, int] = {}
        """By state, the one from which it was first reached; filled by the search."""
        self.growth = [0]
        """How often anything was added to the control graphs."""
        self._tasks: list[Task] = []
        self._unsure: set[int] = set()
        """Tasks of which nobody has looked where they stand since the last replay."""
        self._at: int | None = None
        self.ends = Node("end"), Node("stuck")
        self.between = Node("between steps")
        self.initial = 0
        self.last: tuple[frozenset[int], frozenset[int]] = frozenset(), frozenset()
        """What the step that was run last has read, and what it has written."""
        self.lead: tuple[int, ...] = ()
        """By task, the steps before its first that touches something shared."""

    # -- setting up ------------------------------------------------------------

    def open(self) -> list[type]:
        """Take the machine's image; return the classes to be watched."""
        self.image = Image(self.program.roots(), self.program.fixed())
        self.cells = Cells(self.image)
        twins = self.program.twins() if self.symmetric else ()
        if twins:
            self.symmetry = Symmetry(twins, self.names, self.cells, self.digits)
            for group in twins:
                # Numbers of standpoints mean the same for all of them.
                ids = self._ids[group.tasks[0]]
                for i in group.tasks:
                    self._ids[i] = ids
        return [*{*self.cells.kinds, *self.program.pieces()}]

    def start(self, log: Log) -> None:
        """Find the first standpoints, with accesses written to ``log``."""
        self._log = log
        self.initial = 0
        self._begin()
        for i in range(self.count):
            task = self._tasks[i]
            self.initial |= self._standpoint(i, task) << self.shifts[i]
        self.initial, lead = self._run_lead(self.initial)
        if self.symmetry is not None:
            self._check_beginning(lead)
            self.symmetry.refresh()
        self.lead = tuple(lead)
        self._at = self.initial
        self.parents[self.initial] = -1

    def _check_beginning(self, lead: list[int]) -> None:
        assert self.symmetry is not None
        places = self.places(self.initial)
        for i in range(self.count):
            first = self.symmetry.peers(i)[0]
            if (places[i], lead[i]) != (places[first], lead[first]):
                raise NotSymmetricError(
                    f"{self.names[first]} and {self.names[i]} do not begin alike"
                )

    def _run_lead(self, state: int) -> tuple[int, list[int]]:
        """Take the first steps of each task that touch nothing shared."""
        lead: list[int] = []
        for i in range(self.count):
            taken = 0
            while not self._tasks[i].done:
                node_number = state >> self.shifts[i] & NUMBER
                node = self.nodes[i][node_number]
                transition, violations, moved = self._run(i, node, state)
                if violations and not node.reads:
                    raise ExploreError(
                        f"{self.names[i]} loses {violations[0].property} before it "
                        "touches anything shared: no schedule has to be searched"
                    )
                if node.reads or not moved:
                    if moved:
                        # It was a step too far: begin again without it.
                        self._begin()
                        for j, count in enumerate((*lead, taken)):
                            for _ in range(count):
                                self._step(j)
                    break
                state += transition
                taken += 1
                if taken > LOCAL_BOUND:
                    raise ExploreError(
                        f"{self.names[i]} takes step after step and touches nothing "
                        "shared: it never suspends to any purpose"
                    )
            lead.append(taken)
        return state, lead

    def restore(self) -> None:
        """Put the machine back as it was."""
        for task in self._tasks:
            if task.path is not None and not task.done:
                task.path.close()
        self.image.restore()
        self.world.violations.clear()
        self._at = None

    def _begin(self) -> None:
        """Put the machine back as it was, with tasks that have not begun."""
        self.resets += 1
        self.restore()
        self._tasks = self.program.tasks()
        self._log.clear()
        for task in self._tasks:
            begin(self.world, task)
            if self._log.read or self._log.stored or self.world.violations:
                raise ExploreError(
                    f"{task.name} looks at the machine before its first step: when "
                    "it does so is not of any schedule"
                )
        self.world.current = None
        self.cells.now = [0] * len(self.cells.names)

    # -- on the machine --------------------------------------------------------

    def _step(self, i: int) -> bool:
        """Take one step of a task; return whether it could move."""
        return take_step(self.world, self._tasks[i])

    def load(self, state: int) -> None:
        """Bring the machine to a state that the search has reached."""
        if self._at == state:
            return
        self._replay(state)
        self._log.clear()
        self._at = state
        self._read_numbers(state)

    def _replay(self, state: int) -> None:
        moves = moves_to(self, state)
        self._begin()
        for i, count in enumerate(self.lead):
            for _ in range(count):
                self._step(i)
        for i, count in moves:
            for _ in range(count):
                self._step(i)
        # To look at all the locals of a task is dear: done before its step is run.
        self._unsure = set(range(self.count))
        self.world.violations.clear()

    def _check(self, i: int, state: int) -> None:
        """Compare where a task stands with what a state says.

        :raises ExploreError: it stands elsewhere; what was found is not to be
            believed.
        """
        self._unsure.discard(i)
        task = self._tasks[i]
        number = state >> self.shifts[i] & NUMBER
        if self._standpoint(i, task) != number:
            raise ExploreError(
                f"{task.name} stands at {task.pending!r} and should stand at "
                f"{self.nodes[i][number].name!r}: a step depends on something that "
                "is no variable of a part"
            )

    def differences(self, state: int) -> list[str]:
        """Lead the machine to a state; return each cell in which it differs.

        For tests: there must be none.
        """
        cells = self.cells
        self._replay(state)
        for i in range(self.count):
            self._check(i, state)
        for owner, name in (*self._log.read, *self._log.stored):
            # A piece is another object in each run.
            cells.cell(owner, name)
        found = []
        for cell, name in enumerate(cells.names):
            number = self.digits.number_in(state, cell)
            if number or cells.values[cell][0] is not None:
                seen = cells.look(cell)
                if seen != number:
                    found.append(f"{name}: {seen}, not {number}")
        self._log.clear()
        self._at = None
        return found

    def _read_numbers(self, state: int) -> None:
        now = self.cells.now = [0] * len(self.cells.names)
        for cell in self.digits.of:
            now[cell] = self.digits.number_in(state, cell)

    def peers(self, i: int) -> tuple[int, ...]:
        """Return a task and those with which it can be exchanged."""
        return (i,) if self.symmetry is None else self.symmetry.peers(i)

    def sorted(self, state: int) -> int:
        """Return the state that stands for all that differ by who is who only."""
        return state if self.symmetry is None else self.symmetry.sort(state)

    # -- standpoints -----------------------------------------------------------

    def _standpoint(self, i: int, task: Task) -> int:
        key: Any = place_of(task, self.cells)
        name = "end" if key is None else task.pending.op.name
        if key is not None and self.symmetry is not None:
            key = self.symmetry.key(i, key)
        number = self._ids[i].get(key)
        if number is None:
            number = self._ids[i][key] = len(self.nodes[i])
            if number > NUMBER:
                raise ExploreError(f"{self.names[i]} has too many standpoints")
            self.growth[0] += 1
            for j in self.peers(i):
                self.nodes[j].append(Node(name, self.shifts[j], self.growth))
                if key is None:
                    self.done_of[j] = number
            if key is not None:
                self._note_locks(self.nodes[i][number], task)
        return number

    def _note_locks(self, node: Node, task: Task) -> None:
        """Note at which locks a step waits, and which are held while it is next."""
        cells = self.cells
        bars: set[int] = set()
        for lock, mode in task.held:
            if hasattr(lock, "bars"):
                bars |= {cells.cell(*way) for way in lock.bars(mode)}
        node.bars = frozenset(bars)
        taken: Any = getattr(task.pending.op.fn, "__self__", None)
        if hasattr(taken, "takes"):
            ways = taken.takes(task.pending)
            node.waits = frozenset(cells.cell(*way) for way in ways)

    def places(self, state: int) -> list[int]:
        """Return by task the number of its standpoint."""
        return [state >> shift & NUMBER for shift in self.shifts]

    # -- transitions -----------------------------------------------------------

    def find(self, state: int, i: int) -> Any:
        """Return a transition that is not known yet: run it, and some that follow.

        :returns: the change of the state, or BLOCKED_STEP.
        """
        number = state >> self.shifts[i] & NUMBER
        known = self.nodes[i][number].recall(state)
        if known is not None:
            return known
        self.load(state)
        wanted = self._find_here(state, i)
        self._run_ahead(i)
        if self.symmetry is not None:
            self.symmetry.refresh()
        return wanted

    def known(self, state: int, i: int) -> Any:
        """Return a task's transition; None if it is done or was never run here."""
        number = state >> self.shifts[i] & NUMBER
        if number == self.done_of[i]:
            return None
        node = self.nodes[i][number]
        change = node.known.get(state & node.mask)
        return node.recall(state) if change is None else change

    def change(self, state: int, i: int) -> Any:
        """Return a task's transition, run if it must be; None if the task is done.

        :returns: the change of the state, or BLOCKED_STEP.
        """
        change = self.known(state, i)
        if change is None and state >> self.shifts[i] & NUMBER != self.done_of[i]:
            change = self.find(state, i)
        return change

    def _find_here(self, state: int, i: int) -> Any:
        """Run a task's step from the state that the machine is in.

        The steps after it that touch nothing belong to the transition. One that was
        never run has to be run to know: if it touches something, it is found too.
        """
        if i in self._unsure:
            self._check(i, state)
        node = self.nodes[i][state >> self.shifts[i] & NUMBER]
        delta, violations, moved = self._run(i, node, state)
        if not moved:
            node.know(state, BLOCKED_STEP, 1)
            return BLOCKED_STEP
        first: Any = None
        steps = 1
        task = self._tasks[i]
        while True:
            here = state + delta
            following = (
                None if task.done else self.nodes[i][here >> self.shifts[i] & NUMBER]
            )
            if following is not None and not following.reads:
                if not following.known:
                    more, lost, moved = self._run(i, following, here)
                    if moved and not following.reads:
                        following.know(here, mark(more, lost), 1)
                        delta, violations, steps = (
                            delta + more,
                            violations + lost,
                            steps + 1,
                        )
                        continue
                    change = self._settle(node, state, delta, violations, steps)
                    first = change if first is None else first
                    if not moved:
                        following.know(here, BLOCKED_STEP, 1)
                        self._at = here
                        return first
                    # The machine has gone on: what it found belongs to the next step.
                    node, state = following, here
                    delta, violations, steps = more, lost, 1
                    continue
                more = following.known[here & following.mask]
                if more is not BLOCKED_STEP:
                    if not self._step(i):
                        raise ExploreError(f"{following.name} waits and did not before")
                    self._log.clear()
                    self.world.violations.clear()
                    delta, steps = delta + int(more), steps + 1
                    violations += getattr(more, "violations", ())
                    if steps > LOCAL_BOUND:
                        raise ExploreError(
                            f"{self.names[i]} takes step after step and touches "
                            "nothing shared: it never suspends to any purpose"
                        )
                    continue
            change = self._settle(node, state, delta, violations, steps)
            self._at = here
            return change if first is None else first

    def _settle(
        self,
        node: Node,
        state: int,
        delta: int,
        violations: tuple[Any, ...],
        steps: int,
    ) -> Any:
        change = mark(delta, violations)
        node.know(state, change, steps)
        return change

    def _run_ahead(self, i: int) -> None:
        """Go on from where the machine stands while there is something to find."""
        while self._at is not None:
            state = self._at
            for j in (i, *(j for j in range(self.count) if j != i)):
                number = state >> self.shifts[j] & NUMBER
                if number == self.done_of[j]:
                    continue
                node = self.nodes[j][number]
                if state & node.mask in node.known or node.recall(state) is not None:
                    continue
                if self._find_here(state, j) is not BLOCKED_STEP:
                    break
            else:
                return

    def _run(
        self, i: int, node: Node, state: int
    ) -> tuple[int, tuple[Violation, ...], bool]:
        """Run one step with its accesses watched.

        :returns: the change of the state, what was lost, and whether it could move.
        """
        self.runs += 1
        log, world = self._log, self.world
        log.clear()
        moved = self._step(i)
        violations = tuple(world.violations)
        world.violations.clear()
        delta = 0
        if moved:
            task = self._tasks[i]
            delta = (self._standpoint(i, task) << self.shifts[i]) - (
                state & NUMBER << self.shifts[i]
            )
        delta += self._account(node)
        return delta, violations, moved

    def _account(self, node: Node) -> int:
        """Find out what was read and written; return the change of the cells."""
        cells = self.cells
        read = {cells.cell(owner, name) for owner, name in self._log.read}
        stored = {cells.cell(owner, name) for owner, name in self._log.stored}
        touched = read | stored
        before = {cell: cells.now[cell] for cell in touched}
        delta = sum(self._look(cell) for cell in sorted(touched))
        self._log.clear()
        stored |= {cell for cell in touched if cells.now[cell] != before[cell]}
        self.last = frozenset(read), frozenset(stored)
        own = {cell for cell in stored if cell in cells.unordered}
        node.touch(stored - own, own)
        self.digits.depend(node, touched)
        return delta

    def _look(self, cell: int) -> int:
        """Note a cell's value; return what that changes in the state."""
        cells = self.cells
        number = cells.look(cell)
        before = cells.now[cell]
        cells.now[cell] = number
        if number == before:
            return 0
        return self.digits.change(cell, before, number)

    # -- questions between steps -----------------------------------------------

    def ask(self, node: Node, state: int, question: Callable[[], Any]) -> Any:
        """Return the answer to a question about a state, once per what it reads."""
        part = state & node.mask
        answer = node.known.get(part)
        if answer is None:
            answer = node.recall(state)
        if answer is None:
            self.load(state)
            for i in (*self._unsure,):
                self._check(i, state)
            self._log.clear()
            answer = question()
            self.world.violations.clear()
            self._at = None
            cells = self.cells
            log = (*self._log.read, *self._log.stored)
            touched = {cells.cell(owner, name) for owner, name in log}
            self._log.clear()
            self.digits.depend(node, touched)
            node.know(state, answer, 1)
        return answer
