"""A second engine that keeps no states: one run per trace, as an audit of the first.

Two schedules that differ only in the order of steps that commute are one trace. Every
trace is run once and none is begun in vain: optimal dynamic partial-order reduction
(Abdulla, Aronsson, Jonsson and Sagonas, POPL 2014) with source sets, wakeup trees and
sleep sets. Whether steps commute is found out by running them.

It shares with the first engine how accesses are watched, and nothing else: no
standpoints, no merging, no transitions that are looked up.

A step that can wait is enabled by what it reads, which others write. The cells that it
reads while it waits are taken as one object, so that the order of all steps on them is
part of the trace. Readers of a lock, of SRCU and of RCU commute with each other as long
as nobody waits for them: they add and take away their own names only. If somebody does,
they are ordered like all others: of two readers neither of which can leave before the
other has entered, no single one could be put behind who waits for both.

That a step can wait, or that the same step touches different cells in different states,
is learnt; a search that has learnt something begins anew.
"""

__all__ = ["Lost", "Traces", "explore_stateless"]

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvmarch.errors import ExploreError
from kvmarch.explore.ends import End, end_of
from kvmarch.explore.program import Program
from kvmarch.explore.runner import Measured, Runner
from kvmarch.explore.search import Bounds
from kvmarch.machine.world import Violation

DEPTH = 2_000
"""Steps of a trace at which the search is cut, so that a retry loop cannot hang it."""


@dataclass(slots=True)
class Lost:
    """A property that is lost somewhere.

    :param turns: a schedule on which it is lost, as task names and numbers of steps.
    :param count: complete traces that lose it.
    """

    violation: Violation
    turns: tuple[tuple[str, int], ...]
    count: int = 0


@dataclass(slots=True)
class Traces:
    """What a search without states has found."""

    found: dict[str, Lost] = field(default_factory=dict)
    ends: dict[End, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    """By state at the end, a schedule that leads there."""
    traces: int = 0
    blocked: int = 0
    """Traces that were begun in vain; an optimal search has none."""
    passes: int = 1
    steps: int = 0
    seconds: float = 0.0
    cut: str = ""
    """Why the search is not complete; empty if it is."""

    def verdict(self, name: str) -> str:
        """Return whether a property is lost: never, sometimes, always or unknown."""
        lost = self.found.get(name)
        if lost is None:
            return "unknown" if self.cut else "never"
        if self.cut or lost.count < self.traces:
            return "sometimes"
        return "always"


class _Branch:
    """A node of a wakeup tree: who is to move, and what that touches."""

    __slots__ = ("children", "reads", "task", "writes")

    def __init__(self, task: int, reads: int, writes: int) -> None:
        self.task, self.reads, self.writes = task, reads, writes
        self.children: list[_Branch] = []


class _Frame:
    """A step of the trace that is being run, and what else is to be tried there."""

    __slots__ = ("before", "event", "lost", "past", "races", "sleep", "tree")

    def __init__(self, sleep: dict[int, tuple[int, int]], tree: list[_Branch]) -> None:
        self.sleep = sleep
        """Tasks of which every trace has been run that begins with them here."""
        self.tree = tree
        """What is still to be tried after this one."""
        self.event: Measured
        self.past = 0
        """Which steps of the trace happen before this one, itself included; bits."""
        self.before = -1
        """The step of the same task before."""
        self.races: tuple[int, ...] = ()
        """Steps that might as well have come after this one."""
        self.lost: tuple[Violation, ...] = ()


class _GrownError(Exception):
    """Something was learnt that makes the search begin anew."""


def _commute(reads: int, writes: int, other_reads: int, other_writes: int) -> bool:
    return not (writes & other_reads or reads & other_writes)


class _Walk:
    """One pass over all traces.

    :param always: ask the program's questions after every step.
    """

    def __init__(
        self, runner: Runner, bounds: Bounds, begun: float, *, always: bool
    ) -> None:
        self.runner = runner
        self.bounds = bounds
        self.begun = begun
        self.always = always
        self.result = Traces()
        self.frames: list[_Frame] = []
        self._last: list[int] = []
        self._first: tuple[Violation, ...] = ()
        self._tried: dict[Any, Measured | None] = {}
        """Steps that were run only to see what they would do, by schedule."""

    def walk(self) -> Traces:
        """Run every trace once.

        :raises _GrownError: something was learnt.
        """
        runner, result = self.runner, self.result
        runner.begin()
        self._last = [-1] * runner.count
        if self.always:
            self._first = runner.ask_always()
        self._extend({}, [])
        while self.frames and not result.cut:
            frame = self.frames[-1]
            event = frame.event
            frame.sleep[event.task] = event.reads, event.writes
            if not frame.tree:
                self.frames.pop()
                continue
            self.frames.pop()
            runner.replay([other.event.task for other in self.frames])
            self._extend(frame.sleep, frame.tree)
        return result

    def _out(self) -> str:
        bounds = self.bounds
        if bounds.states and self.result.traces >= bounds.states:
            return f"{bounds.states} traces"
        if bounds.seconds and time.perf_counter() - self.begun >= bounds.seconds:
            return f"{bounds.seconds} seconds"
        depth = bounds.depth or DEPTH
        if len(self.frames) >= depth:
            return f"a trace of {depth} steps"
        return ""

    # -- one trace -------------------------------------------------------------

    def _extend(self, sleep: dict[int, tuple[int, int]], tree: list[_Branch]) -> None:
        """Run a trace to its end, from where the frames and the machine stand."""
        runner, frames = self.runner, self.frames
        last = self._last = [-1] * runner.count
        for index, frame in enumerate(frames):
            last[frame.event.task] = index
        waiting: dict[int, Measured]
        while True:
            self.result.cut = self._out()
            if self.result.cut:
                return
            waiting = {}
            event = self._move(sleep, tree, waiting)
            if event is None:
                break
            below = tree.pop(0).children if tree else []
            frame = _Frame(sleep, tree)
            self._place(frame, event)
            frames.append(frame)
            last[event.task] = len(frames) - 1
            frame.lost = event.lost
            if self.always:
                frame.lost += runner.ask_always()
            self._check_grown()
            sleep = {
                task: (reads, writes)
                for task, (reads, writes) in sleep.items()
                if _commute(reads, writes, event.reads, event.writes)
            }
            tree = below
        self._check_grown()
        if any(not runner.is_done(task) for task in sleep):
            self.result.blocked += 1
        else:
            self._end()
        self._reverse_races(waiting)

    def _check_grown(self) -> None:
        if self.runner.grown:
            raise _GrownError

    def _move(
        self,
        sleep: dict[int, tuple[int, int]],
        tree: list[_Branch],
        waiting: dict[int, Measured],
    ) -> Measured | None:
        """Take the step that the wakeup tree wants, or any that is not asleep."""
        runner = self.runner
        if tree:
            event = runner.measure(tree[0].task)
            if not event.moved:
                if not runner.grown:
                    raise ExploreError(f"{runner.names[event.task]} waits in vain")
                # It was taken for a step that never waits; now it is known better.
                raise _GrownError
            return event
        for task in range(runner.count):
            if task in sleep or runner.is_done(task):
                continue
            event = runner.measure(task)
            if event.moved:
                return event
            waiting[task] = event
        return None

    def _place(self, frame: _Frame, event: Measured) -> None:
        """Find out which steps happen before the newest one, and which it races."""
        frame.event = event
        frame.before = self._last[event.task]
        frame.past, frame.races = self._order(event, frame.before)
        frame.past |= 1 << len(self.frames)

    def _order(self, event: Measured, before: int) -> tuple[int, tuple[int, ...]]:
        frames = self.frames
        own = past = frames[before].past if before >= 0 else 0
        races = []
        reads, writes = event.reads, event.writes
        can_wait = self.runner.can_wait(event)
        for index in range(len(frames) - 1, -1, -1):
            known = past >> index & 1
            if known and not can_wait:
                continue
            other = frames[index].event
            if _commute(reads, writes, other.reads, other.writes):
                continue
            # A step that waits may have to be put before one that lies further back.
            if not own >> index & 1:
                races.append(index)
            past |= frames[index].past
        return past, tuple(races)

    def _end(self) -> None:
        """Take note of a complete trace."""
        runner, result = self.runner, self.result
        result.traces += 1
        end = end_of(runner)
        tasks = [frame.event.task for frame in self.frames]
        result.ends.setdefault(end, runner.turns(tasks))
        seen: set[str] = set()
        for violation in self._first:
            self._lose(violation, [], seen)
        for index, frame in enumerate(self.frames):
            for violation in frame.lost:
                self._lose(violation, tasks[: index + 1], seen)
        for violation in runner.ask_at_rest():
            self._lose(violation, tasks, seen)

    def _lose(self, violation: Violation, tasks: list[int], seen: set[str]) -> None:
        name = violation.property
        found = self.result.found
        if name not in found:
            found[name] = Lost(violation, self.runner.turns(tasks))
        if name not in seen:
            seen.add(name)
            found[name].count += 1

    # -- races -----------------------------------------------------------------

    def _reverse_races(self, waiting: dict[int, Measured]) -> None:
        """Let every race of the trace that has ended come out the other way."""
        for frame in self.frames:
            for index in frame.races:
                self._reverse(index, frame.event)
        for event in waiting.values():
            _past, races = self._order(event, self._last[event.task])
            for index in races:
                self._reverse(index, event)

    def _reverse(self, index: int, event: Measured) -> None:
        """See to it that a step is taken before an earlier one."""
        frames = self.frames
        frame = frames[index]
        sequence = [
            other.event for other in frames[index + 1 :] if not other.past >> index & 1
        ]
        if self.runner.varies(event):
            measured = self._try(index, sequence, event.task)
            if measured is None:
                return
            event = measured
        sequence.append(event)
        own = frame.event
        if _starts(own.task, own.reads, own.writes, sequence):
            return
        for task, (reads, writes) in frame.sleep.items():
            if _starts(task, reads, writes, sequence):
                return
        _insert(frame.tree, sequence)

    def _try(self, index: int, sequence: list[Measured], task: int) -> Measured | None:
        """Run a step elsewhere; return what it touches there, None if it waits."""
        tasks = [frame.event.task for frame in self.frames[:index]]
        tasks += [event.task for event in sequence]
        key = (*tasks, task)
        if key not in self._tried:
            self.runner.replay(tasks)
            event = self.runner.measure(task)
            self._check_grown()
            self._tried[key] = event if event.moved else None
        return self._tried[key]


def _starts(task: int, reads: int, writes: int, sequence: list[Measured]) -> bool:
    """Return whether a step of a task may as well be the first of a sequence."""
    for event in sequence:
        if event.task == task:
            return True
        if not _commute(reads, writes, event.reads, event.writes):
            return False
    return True


def _insert(tree: list[_Branch], sequence: list[Measured]) -> None:
    """Add a sequence to a wakeup tree, unless a branch covers it."""
    while True:
        for branch in tree:
            if _starts(branch.task, branch.reads, branch.writes, sequence):
                break
        else:
            break
        for at, event in enumerate(sequence):
            if event.task == branch.task:
                sequence = [*sequence[:at], *sequence[at + 1 :]]
                break
        if not branch.children or not sequence:
            return
        tree = branch.children
    for event in sequence:
        branch = _Branch(event.task, event.reads, event.writes)
        tree.append(branch)
        tree = branch.children


def _passes(
    runner: Runner, bounds: Bounds, begun: float, *, always: bool
) -> Iterator[Traces]:
    """Yield the result of a pass that has learnt nothing, after those that have."""
    count = 0
    while True:
        count += 1
        runner.grown = False
        walk = _Walk(runner, bounds, begun, always=always)
        try:
            result = walk.walk()
        except _GrownError:
            continue
        result.passes = count
        yield result


def explore_stateless(
    program: Program, *, bounds: Bounds | None = None, always: bool = False
) -> Traces:
    """Run every trace of a program.

    A retry loop that can go on for ever has no end of traces: the search is cut.

    :param bounds: ``states`` bounds the traces, ``depth`` the steps of each.
    :param always: ask the program's questions between all steps.
    """
    begun = time.perf_counter()
    with Runner(program).watching() as runner:
        result = next(_passes(runner, bounds or Bounds(), begun, always=always))
        result.steps = runner.steps
    result.seconds = time.perf_counter() - begun
    return result
