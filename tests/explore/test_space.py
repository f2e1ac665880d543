import pytest

from kvmarch.errors import ExploreError
from kvmarch.explore.programs import SmallProgram, add, load, rest, store
from kvmarch.explore.schedule import schedule_of
from kvmarch.explore.search import Found, explore
from kvmarch.machine.run import run_along
from kvmarch.machine.steps import op
from kvmarch.machine.world import Part, Violation


def only_schedule(program):
    """Return the schedule of the only end, after it was run."""
    search = explore(program)
    (end,) = search.ends
    turns = schedule_of(search.space, Found(Violation("", "", ""), end, -1, 0), "p")
    assert run_along(program.world, program.tasks(), turns.turns).end == "done"
    return search, turns


def test_steps_that_touch_nothing_belong_to_the_one_before():
    program = SmallProgram()
    x = program.variable("x")

    async def path():
        await rest()
        await store(x, 1)
        await rest()
        await rest()
        await add(x, 1)
        await rest()

    program.task("one", path)
    search, schedule = only_schedule(program)

    assert search.states == 3
    assert schedule.turns == (("one", 6),)


def test_a_task_that_touches_nothing_takes_no_part():
    program = SmallProgram()
    x = program.variable("x")

    async def idle():
        await rest()
        await rest()

    async def no_step():
        pass

    async def busy():
        await store(x, 1)

    program.task("idle", idle)
    program.task("none", no_step)
    program.task("busy", busy)
    search, schedule = only_schedule(program)

    assert search.states == 2
    assert schedule.turns == (("idle", 2), ("busy", 1))


def test_a_loop_that_touches_nothing_is_refused():
    program = SmallProgram()
    x = program.variable("x")

    async def path():
        await load(x)
        while True:
            await rest()

    program.task("one", path)

    with pytest.raises(ExploreError, match="touches nothing shared"):
        explore(program)


def test_what_is_read_before_the_first_step_is_refused():
    program = SmallProgram()
    x = program.variable("x")

    async def path():
        seen = x.value
        await store(x, seen + 1)

    program.task("one", path)

    with pytest.raises(ExploreError, match="one looks at the machine before its first"):
        explore(program)


def test_what_is_lost_before_anything_is_touched_is_refused():
    program = SmallProgram()
    x = program.variable("x")

    @op
    def lose():
        program.violation("lost")

    async def path():
        await lose()
        await store(x, 1)

    program.task("one", path)

    with pytest.raises(ExploreError, match="one loses lost before it touches"):
        explore(program)


def test_a_step_that_depends_on_what_is_no_variable_is_found_out():
    program = SmallProgram()
    x, y = program.variable("x"), program.variable("y")
    hidden = []

    @op
    def count():
        hidden.append(1)
        return len(hidden) + x.value

    async def path():
        seen = await count()
        await store(x, seen)
        await add(y, 1)

    program.task("one", path)
    program.task("two", path)

    with pytest.raises(ExploreError, match="is no variable of a part"):
        explore(program)


def test_a_part_that_is_made_by_a_step_is_refused():
    program = SmallProgram()
    x = program.variable("x")

    class Late(Part):
        variables = ("value",)

        def __init__(self):
            self.value = 1

    program.variables = [Late()]

    @op
    def make():
        made = Late()
        x.value = made
        return made.value

    async def path():
        await make()

    program.roots = lambda: [x, program.variables[0]]
    program.task("one", path)

    with pytest.raises(ExploreError, match="was made after the search began"):
        explore(program)


def test_the_machine_is_put_back_after_the_search():
    program = SmallProgram()
    x = program.variable("x", 5)

    async def path():
        await add(x, 1)

    program.task("one", path)
    explore(program)

    assert x.value == 5
    assert not hasattr(type(x), "value")
