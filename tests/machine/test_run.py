"""Running tasks along a schedule, and how a run ends."""

import pytest

from kvmarch.errors import ModelError
from kvmarch.machine.locks import Lock, LockClass
from kvmarch.machine.run import Task, run, run_along, run_path
from kvmarch.machine.steps import BLOCKED, op
from kvmarch.machine.world import World

SPIN = LockClass("spin", rank=10)
MUTEX = LockClass("mutex", rank=20, sleeps=True)


@op
def put(log, value):
    log.append(value)


@op(name="gate")
def gate(opened):
    return None if opened else BLOCKED


async def puts(log, name, count=3):
    for number in range(count):
        await put(log, f"{name}{number}")
    return name


@pytest.fixture
def world():
    return World()


def tasks(log, *names):
    return [Task(name, lambda name=name: puts(log, name)) for name in names]


def test_without_a_schedule_each_task_runs_in_turn(world):
    log = []

    outcome = run(world, tasks(log, "a", "b"))

    assert log == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert outcome.end == "done"
    assert outcome.steps == world.steps == 6
    assert outcome.schedule == (("a", 3), ("b", 3))


def test_a_schedule_is_followed_and_then_each_in_turn(world):
    log = []

    outcome = run(world, tasks(log, "a", "b"), [("b", 1), ("a", 2), ("b", 1)])

    assert log == ["b0", "a0", "a1", "b1", "a2", "b2"]
    assert outcome.schedule == (("b", 1), ("a", 2), ("b", 1), ("a", 1), ("b", 1))


def test_the_schedule_of_an_outcome_replays_the_run(world):
    log, again = [], []
    outcome = run(world, tasks(log, "a", "b"), [("b", 2), ("a", 1)])

    replayed = run(World(), tasks(again, "a", "b"), outcome.schedule)

    assert (again, replayed.schedule) == (log, outcome.schedule)


def test_results_are_kept(world):
    (task,) = tasks([], "a")
    run(world, [task])

    assert (task.result, task.done, task.pending) == ("a", True, None)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        pytest.param([("c", 1)], "schedule: no task 'c'", id="no-such-task"),
        pytest.param(
            [("a", 4)], "schedule: a is done after 3 of 4 steps", id="task-is-done"
        ),
        pytest.param(
            [("w", 2)], "schedule: w waits at gate after 0 of 2 steps", id="task-waits"
        ),
    ],
)
def test_a_schedule_that_cannot_be_followed(world, schedule, message):
    async def waiter():
        await gate([])

    with pytest.raises(ModelError, match=message):
        run(world, [*tasks([], "a"), Task("w", waiter)], schedule)


def test_a_task_that_waits_gives_way(world):
    log, opened = [], []

    async def waiter():
        await gate(opened)
        await put(log, "through")

    async def opener():
        await put(opened, True)

    outcome = run(world, [Task("waiter", waiter), Task("opener", opener)])

    assert outcome.end == "done"
    assert log == ["through"]
    assert outcome.schedule == (("opener", 1), ("waiter", 2))


def test_a_blocked_step_is_not_counted(world):
    seen = []
    world.observer = lambda task, step: seen.append((task.name, step.op.name))

    async def waiter():
        await gate([])

    run(world, [Task("waiter", waiter)])

    assert world.steps == 0
    assert seen == []


def test_when_nobody_can_move_the_run_is_stuck(world):
    one, other = Lock(world, MUTEX, "one"), Lock(world, MUTEX, "other")

    async def take(first, second):
        async with first.write(), second.write():
            pass

    outcome = run(
        world,
        [
            Task("a", lambda: take(one, other)),
            Task("b", lambda: take(other, one)),
        ],
        [("a", 1), ("b", 1)],
    )

    ends = [v for v in world.violations if v.property == "ends"]
    assert outcome.end == "stuck"
    assert [v.sentence for v in ends] == [
        "no task can move: a waits at lock other; b waits at lock one"
    ]


def test_a_run_is_cut_by_its_bound(world):
    log = []

    outcome = run(world, tasks(log, "a", "b"), bound=4)

    assert (outcome.end, outcome.steps) == ("cut", 4)
    assert log == ["a0", "a1", "a2", "b0"]
    assert world.violations == []


def test_a_run_that_ends_at_its_bound_was_not_cut(world):
    outcome = run(world, tasks([], "a"), bound=4)

    assert outcome.end == "done"


def test_an_endless_loop_is_cut_inside_a_scope_without_a_complaint(world):
    lock = Lock(world, MUTEX)

    async def forever():
        async with lock.write():
            while True:
                await put([], 0)

    outcome = run(world, [Task("a", forever)], bound=50)

    assert (outcome.end, outcome.steps) == ("cut", 50)


def test_a_task_that_ends_with_a_lock_held_is_reported(world):
    lock = Lock(world, SPIN)

    async def forgets():
        await lock.take_write()

    run(world, [Task("a", forgets)])

    assert [(v.property, v.sentence) for v in world.violations] == [
        ("locks", "a ends and still holds spin")
    ]


def test_sleeping_under_a_spinlock_is_reported(world):
    lock = Lock(world, SPIN)
    sleepy = op(name="allocate", sleeps=True)(lambda: None)

    async def sleeps():
        async with lock.write():
            await sleepy()

    run(world, [Task("a", sleeps)])

    assert [v.sentence for v in world.violations] == [
        "allocate may sleep while spin is held"
    ]


def test_sleeping_under_a_mutex_is_fine(world):
    lock = Lock(world, MUTEX)
    sleepy = op(name="allocate", sleeps=True)(lambda: None)

    async def sleeps():
        async with lock.write():
            await sleepy()

    run(world, [Task("a", sleeps)])

    assert world.violations == []


def test_the_observer_sees_each_step_after_it_was_taken(world):
    log, seen = [], []
    world.observer = lambda task, step: seen.append((task.name, step.args[1], len(log)))

    run(world, tasks(log, "a"))

    assert seen == [("a", "a0", 1), ("a", "a1", 2), ("a", "a2", 3)]


def test_run_path_returns_the_result(world):
    assert run_path(world, puts([], "x")) == "x"


def test_run_path_refuses_to_wait_for_nobody(world):
    async def waiter():
        await gate([])

    with pytest.raises(ModelError, match="main is stuck at gate"):
        run_path(world, waiter())


def test_a_path_without_steps_is_done(world):
    async def nothing():
        return "nothing"

    outcome = run(world, [Task("a", nothing)])

    assert (outcome.end, outcome.steps, outcome.schedule) == ("done", 0, ())
    assert world.violations == []


def test_a_path_is_made_when_its_task_is_scheduled_first(world):
    made = []

    def start():
        made.append(world.current.name)
        return puts([], "a", 1)

    task = Task("a", start)
    before = list(made)
    run(world, [task])

    assert (before, made) == ([], ["a"])
    assert repr(task) == "Task(a)"


# -- along a schedule and no further -----------------------------------------------


@op(name="lose")
def lose(world):
    world.violate("mine", "it is lost")


async def puts_and_loses(log, world):
    await put(log, 1)
    await lose(world)


def test_a_run_along_a_schedule_stops_where_it_ends():
    world, log = World(), []
    tasks = [Task("a", lambda: puts_and_loses(log, world))]

    outcome = run_along(world, tasks, [("a", 1)])

    assert (outcome.end, outcome.steps, log) == ("open", 1, [1])
    assert world.violations == []
    assert world.events == []


def test_a_run_along_a_schedule_to_its_end_is_done():
    world = World()

    outcome = run_along(world, [Task("a", lambda: puts([], "a"))], [("a", 3)])

    assert (outcome.end, outcome.steps) == ("done", 3)


def test_a_run_along_a_schedule_after_which_nobody_can_move_is_stuck():
    world = World()

    async def waits():
        await put([], 1)
        await gate([])

    outcome = run_along(world, [Task("a", waits)], [("a", 1)])

    assert outcome.end == "stuck"
    assert [v.property for v in world.violations] == ["ends"]
