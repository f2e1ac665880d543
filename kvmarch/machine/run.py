"""Run tasks once, along one schedule."""

__all__ = ["Outcome", "Task", "begin", "run", "run_along", "run_path", "take_step"]

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from kvmarch.errors import ModelError
from kvmarch.machine.steps import BLOCKED, Path, check_sleep, directly
from kvmarch.machine.world import World

STEP_BOUND = 10_000_000
"""Steps after which a run is cut, so that a retry loop cannot hang it."""


class Task:
    """A thread of the kernel or a vCPU: what it runs, and which locks it holds.

    :param start: makes the path; called once, when the task is first scheduled.
    """

    __slots__ = (
        "atomic",
        "done",
        "held",
        "name",
        "path",
        "pending",
        "result",
        "start",
        "top",
        "tops",
    )

    def __init__(self, name: str, start: Callable[[], Path[Any]]) -> None:
        self.name = name
        self.start = start
        self.path: Path[Any] | None = None
        self.pending: Any = None
        self.held: list[tuple[Any, str]] = []
        self.top = -1
        """The highest rank among the locks that are held."""
        self.tops: list[int] = []
        """What it was before each of them was taken."""
        self.atomic = 0
        self.done = False
        self.result: Any = None

    def __repr__(self) -> str:
        return f"Task({self.name})"

    def rank_again(self) -> None:
        """Find the highest rank anew, when a lock is dropped that is not the last."""
        self.top, self.tops = -1, []
        for lock, _mode in self.held:
            if lock.kind.rank:
                self.tops.append(self.top)
                self.top = max(self.top, lock.kind.rank)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    ``end`` is ``done``, ``stuck`` (every task waits) or ``cut`` (by the bound).
    """

    end: str
    steps: int
    schedule: tuple[tuple[str, int], ...]


def run(
    world: World,
    tasks: Sequence[Task],
    schedule: Iterable[tuple[str, int]] = (),
    *,
    bound: int = STEP_BOUND,
) -> Outcome:
    """Run the tasks along a schedule, and then each in turn until it is done.

    A task that waits for a lock or a grace period gives way to the next one.

    :param schedule: pairs of task name and number of steps.
    :raises ModelError: the schedule names no task, or one that cannot move.
    """
    begun = world.steps
    taken = _follow(world, tasks, schedule)
    end = "done"
    while not all(task.done for task in tasks):
        moved_any = False
        for task in tasks:
            if task.done:
                continue
            moved = _go_on(world, task, begun + bound)
            if moved:
                taken.append((task.name, moved))
            # A path without a single step ends and has not moved.
            if moved or task.done:
                moved_any = True
        if world.steps - begun >= bound:
            end = "cut"
            break
        if not moved_any:
            end = "stuck"
            _stuck(world, tasks)
            break
    _close(tasks)
    return Outcome(end, world.steps - begun, tuple(taken))


def _stuck(world: World, tasks: Sequence[Task]) -> None:
    """Record that no task can move."""
    waiting = "; ".join(f"{t.name} waits at {t.pending!r}" for t in tasks if not t.done)
    world.violate("ends", f"no task can move: {waiting}")


def run_along(
    world: World, tasks: Sequence[Task], schedule: Iterable[tuple[str, int]]
) -> Outcome:
    """Run the tasks along a schedule, and stop where it ends.

    The outcome's ``end`` is ``done``, ``stuck`` or, if a task can still move, ``open``.

    :raises ModelError: the schedule names no task, or one that cannot move.
    """
    begun = world.steps
    taken = _follow(world, tasks, schedule)
    for task in tasks:
        if task.path is None:
            # Whether it waits at its first step can only be seen once it stands there.
            _advance(world, task, 0)
    left = [task for task in tasks if not task.done]
    end = "done" if not left else "stuck"
    seen = len(world.violations), len(world.events)
    for task in left:
        world.current = task
        # A step that waits has changed nothing; any other one ends the question.
        if task.pending.op.fn(*task.pending.args) is not BLOCKED:
            end = "open"
            break
    # What the step that was tried has shown is not of this schedule.
    del world.violations[seen[0] :], world.events[seen[1] :]
    world.current = None
    if end == "stuck":
        _stuck(world, tasks)
    _close(tasks)
    return Outcome(end, world.steps - begun, tuple(taken))


def _follow(
    world: World, tasks: Sequence[Task], schedule: Iterable[tuple[str, int]]
) -> list[tuple[str, int]]:
    by_name = {task.name: task for task in tasks}
    taken: list[tuple[str, int]] = []
    for name, count in schedule:
        task = by_name.get(name)
        if task is None:
            raise ModelError(f"schedule: no task {name!r}")
        moved = _advance(world, task, count)
        taken.append((name, moved))
        if moved < count:
            why = "is done" if task.done else f"waits at {task.pending!r}"
            raise ModelError(f"schedule: {name} {why} after {moved} of {count} steps")
    return taken


def run_path(world: World, path: Path[Any], name: str = "main") -> Any:
    """Run one path to its end and return its result.

    :raises ModelError: it waits for something that nobody will do.
    """
    task = Task(name, lambda: path)
    outcome = run(world, [task])
    if outcome.end != "done":
        raise ModelError(f"{name} is {outcome.end} at {task.pending!r}")
    return task.result


def _go_on(world: World, task: Task, stop_at: int) -> int:
    """Move one task as far as it goes, up to a number of steps of the machine."""
    count = stop_at - world.steps
    if world.observer is not None:
        return _advance(world, task, count)
    with directly(world, stop_at):
        return _advance(world, task, count)


def _advance(world: World, task: Task, count: int) -> int:
    """Take up to ``count`` steps of one task; fewer when it ends or must wait."""
    world.current = task
    if task.path is None:
        task.path = task.start()
    send = task.path.send
    observe = world.observer
    step = task.pending
    blocked = BLOCKED
    begun = world.steps
    stop_at = begun + count
    try:
        if step is None:
            step = send(None)
        while world.steps < stop_at:
            operation = step.op
            if operation.sleeps:
                check_sleep(world, operation)
            value = operation.fn(*step.args)
            if value is blocked:
                break
            world.steps += 1
            if observe is not None:
                observe(task, step)
            step = send(value)
        task.pending = step
    except StopIteration as stop:
        _end(world, task, stop.value)
    finally:
        world.current = None
    return world.steps - begun


def _end(world: World, task: Task, result: Any) -> None:
    task.done, task.result, task.pending = True, result, None
    if task.held:
        holds = ", ".join(lock.name for lock, _ in task.held)
        world.violate("locks", f"{task.name} ends and still holds {holds}")


def begin(world: World, task: Task) -> None:
    """Bring a task to its first step, which it does not take yet."""
    world.current = task
    task.path = task.start()
    _send(world, task, None)
    world.current = None


def take_step(world: World, task: Task) -> bool:
    """Take one step of a task that has begun; return whether it could move.

    For those who drive tasks step by step; steps are not counted.
    """
    world.current = task
    step = task.pending
    if step.op.sleeps:
        check_sleep(world, step.op)
    value = step.op.fn(*step.args)
    moved = value is not BLOCKED
    if moved:
        _send(world, task, value)
    world.current = None
    return moved


def _send(world: World, task: Task, value: Any) -> None:
    assert task.path is not None
    try:
        task.pending = task.path.send(value)
    except StopIteration as stop:
        _end(world, task, stop.value)


def _close(tasks: Iterable[Task]) -> None:
    for task in tasks:
        if task.path is not None and not task.done:
            task.path.close()
