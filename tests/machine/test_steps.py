"""Steps and scopes: what suspends a path, and what does not."""

import pytest

from kvmarch.machine.run import Task
from kvmarch.machine.steps import BLOCKED, Op, Scope, Step, directly, op
from kvmarch.machine.world import World


@op
def add(box, value):
    box.append(value)
    return len(box)


@op(name="slow add", sleeps=True)
def slow(box, value):
    box.append(value)


async def alone(awaitable):
    return await awaitable


def take(step):
    """Do what a step describes, as whoever drives a path does."""
    return step.op.fn(*step.args)


def described(awaitable):
    """Return the step that an awaitable hands to whoever drives it."""
    path = alone(awaitable)
    step = path.send(None)
    path.close()
    return step


async def twice(box):
    first = await add(box, "a")
    second = await add(box, "b")
    return first, second


def test_calling_an_op_only_describes_the_action():
    box = []

    step = described(add(box, 1))

    assert isinstance(step, Step)
    assert (step.op, step.args, box) == (add, (box, 1), [])
    assert repr(step) == "add"


def test_running_a_step_does_the_action():
    box = []

    step = described(add(box, 1))

    assert take(step) == 1
    assert add.fn(box, 2) == 2
    assert box == [1, 2]


def test_an_op_has_the_functions_name_or_its_own():
    assert (add.name, add.sleeps) == ("add", False)
    assert (slow.name, slow.sleeps) == ("slow add", True)
    assert repr(slow) == "Op(slow add)"
    assert Op(len).name == "len"


def test_arguments_are_given_by_position():
    with pytest.raises(TypeError, match="keyword"):
        add([], value=1)


def test_awaiting_a_step_hands_it_to_the_driver():
    box = []
    path = twice(box)

    first = path.send(None)
    second = path.send(take(first))
    with pytest.raises(StopIteration) as ended:
        path.send(take(second))

    assert (first.op, second.op) == (add, add)
    assert ended.value.value == (1, 2)
    assert box == ["a", "b"]


def test_a_scope_takes_one_step_in_and_one_out():
    box = []
    scope = Scope(add(box, "in"), add(box, "out"))

    async def path():
        async with scope:
            await add(box, "inside")

    running = path()
    for _ in range(3):
        take(running.send(None))
    with pytest.raises(StopIteration):
        running.send(None)

    assert box == ["in", "inside", "out"]


def test_closing_a_path_inside_a_scope_takes_no_step():
    box = []
    scope = Scope(add(box, "in"), add(box, "out"))

    async def path():
        async with scope:
            await add(box, "inside")

    running = path()
    take(running.send(None))
    running.send(None)
    running.close()

    assert box == ["in"]


def test_an_error_inside_a_scope_takes_no_step():
    box = []
    scope = Scope(add(box, "in"), add(box, "out"))

    async def path():
        async with scope:
            raise ValueError("inside")

    running = path()
    take(running.send(None))
    with pytest.raises(ValueError, match="inside"):
        running.send(None)

    assert box == ["in"]


def test_blocked_prints_itself():
    assert repr(BLOCKED) == "BLOCKED"


def test_a_step_is_done_on_the_spot_inside_directly():
    box = []
    world = World()
    world.current = Task("t", lambda: None)

    with directly(world, world.steps + 1), pytest.raises(StopIteration) as done:
        alone(add(box, "now")).send(None)

    assert (done.value.value, box, world.steps) == (1, ["now"], 1)


def test_a_step_beyond_the_bound_is_handed_out():
    box = []
    world = World()

    with directly(world, world.steps):
        step = described(add(box, "later"))

    assert (step.op, box) == (add, [])
