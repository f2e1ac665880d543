"""Which steps commute for the engine without states, and that nothing is lost by it."""

import pytest

from kvmarch.explore.audit import compare_engines
from kvmarch.explore.programs import SmallProgram, add, load, store
from kvmarch.explore.stateless import explore_stateless
from kvmarch.machine.locks import Rcu
from kvmarch.machine.steps import op


def reading(scope, *steps):
    async def path():
        async with scope:
            for step in steps:
                await step()

    return path


def readers(kind, count):
    """Return readers of one lock who touch nothing else that is shared."""
    program = SmallProgram()
    if kind == "rcu":
        rcu = Rcu(program.world)
        program.world.add("rcu", rcu)
        scope = rcu.read()
    else:
        scope = (program.lock if kind == "lock" else program.srcu)(kind).read()
    for number in range(count):
        program.task(f"reader{number}", reading(scope))
    return program, scope


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("kind", ["lock", "srcu", "rcu"])
def test_readers_that_nobody_waits_for_commute(kind, count):
    program, _scope = readers(kind, count)
    comparison = compare_engines(program)

    assert comparison.traces.traces == 1
    assert comparison.differences == []


def test_readers_of_one_writer_are_ordered_with_it():
    program = SmallProgram()
    lock = program.lock("lock")
    for number in range(2):
        program.task(f"reader{number}", reading(lock.read()))
    program.task("writer", reading(lock.write()))
    comparison = compare_engines(program)

    assert comparison.differences == []
    assert comparison.traces.blocked == 0
    # Each reader before or after the writer; and those who are ordered, ordered.
    assert comparison.traces.traces >= 4


def test_readers_who_need_each_other_go_before_the_writer_or_after_it():
    program = SmallProgram()
    lock, x, y = program.lock("lock"), program.variable("x"), program.variable("y")
    seen = program.variable("seen")
    program.task(
        "one",
        reading(lock.read(), lambda: add(x, 1), lambda: load(y), lambda: add(x, 1)),
    )
    program.task("two", reading(lock.read(), lambda: load(x), lambda: add(y, 1)))

    async def write():
        async with lock.write():
            got = await load(x)
            other = await load(y)
            await store(seen, 10 * got + other)

    program.task("writer", write)
    comparison = compare_engines(program)

    assert comparison.differences == []
    assert comparison.traces.blocked == 0
    assert comparison.complete


@op
def count_readers(lock, variable):
    variable.value = len(lock.readers)


@op
def join_and_count(lock, variable):
    """Count the readers, and become one, in a step."""
    variable.value = len(lock.readers)
    lock.readers.append("me")


def test_who_looks_at_readers_does_not_commute_with_them():
    program, _scope = readers("lock", 2)
    lock = program.world.parts["lock"]
    count = program.variable("count")
    program.task("looker", lambda: count_readers(lock, count))
    comparison = compare_engines(program)

    assert comparison.differences == []
    assert {value for end in comparison.traces.ends for _key, value in end.values} == {
        1,
        2,
    }


def test_who_looks_and_joins_in_a_step_is_no_mere_reader():
    program, _scope = readers("lock", 1)
    lock = program.world.parts["lock"]
    count = program.variable("count")
    program.task("joiner", lambda: join_and_count(lock, count))
    comparison = compare_engines(program)

    assert comparison.differences == []
    assert len(comparison.traces.ends) == 2


def test_what_follows_a_wait_is_no_part_of_what_is_waited_for():
    program = SmallProgram()
    lock, x = program.lock("lock"), program.variable("x")

    async def lock_and_use():
        async with lock.write():
            await add(x, 1)

    for name in ("one", "two"):
        program.task(name, lock_and_use)
    for number in range(3):
        own = program.variable(f"own{number}")
        program.task(f"other{number}", lambda own=own: add(own, 1))

    traces = explore_stateless(program)

    assert (traces.traces, traces.blocked) == (2, 0)
