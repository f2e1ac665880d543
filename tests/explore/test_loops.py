"""Which loops over a step can be told apart, and which say that they cannot."""

import pytest

from kvmarch.errors import ExploreError
from kvmarch.explore.audit import compare_engines
from kvmarch.explore.programs import SmallProgram, add, load, store
from kvmarch.explore.search import explore
from kvmarch.explore.stateless import explore_stateless


def explored(path):
    """Explore a path that counts its turns, beside a task that touches the count."""
    program = SmallProgram()
    total = program.variable("total")
    program.task("loop", lambda: path(total))
    program.task("other", lambda: once(total))
    search = explore(program)
    ends = explore_stateless(program).ends
    assert len(ends) == len(search.ends) == 1
    # Each of the four turns is one more place for the other task's step.
    assert search.states == 10
    return search


async def once(total):
    await add(total, 10)


async def over_a_tuple(total):
    for n in (0, 0, 0, 0):
        await add(total, n + 1)


async def over_a_range(total):
    for _ in range(4):
        await add(total, 1)


async def over_enumerate(total):
    for _n, _value in enumerate((7, 7, 7, 7)):
        await add(total, 1)


async def over_zip(total):
    for _n, _value in zip((7, 7, 7, 7), (8, 8, 8, 8), strict=True):
        await add(total, 1)


async def over_a_list(total):
    for _ in [7, 7, 7, 7]:
        await add(total, 1)


async def over_a_generator(total):
    for _ in (n for n in (7, 7, 7, 7)):
        await add(total, 1)


async def over_a_named_generator(total):
    numbers = (n for n in (7, 7, 7, 7))
    for _ in numbers:
        await add(total, 1)


async def over_map(total):
    for _ in map(abs, (7, 7, 7, 7)):
        await add(total, 1)


@pytest.mark.parametrize(
    "path", [over_a_tuple, over_a_range, over_enumerate, over_zip, over_a_list]
)
def test_a_loop_shows_how_far_it_has_come(path):
    explored(path)


@pytest.mark.parametrize("path", [over_a_generator, over_a_named_generator, over_map])
def test_a_loop_that_hides_how_far_it_has_come_is_refused(path):
    with pytest.raises(ExploreError, match=r"how far|position cannot be seen"):
        explored(path)


# -- what a loop runs over was read before ------------------------------------------


def reads_then_loops(over):
    """Return a task that reads a variable, forgets it, and loops over it.

    The other task makes the variable what it was before, so that only what is still to
    come in the loop tells two of the states apart.
    """
    program = SmallProgram()
    flag, total = program.variable("flag"), program.variable("total")

    async def reader():
        seen = await load(flag)
        for number in over(seen):
            await add(total, number)

    async def writer():
        await store(flag, 1)
        await store(flag, 0)

    program.task("reader", reader)
    program.task("writer", writer)
    return program


def generated(seen):
    return (number for number in (1, seen))


OVER = {
    "tuple": lambda seen: (1, seen),
    "list": lambda seen: [1, seen],
    "dict": lambda seen: {1: 0, seen + 2: 0},
    "values": lambda seen: {0: 1, 1: seen}.values(),
    "range": lambda seen: range(1, 5 - seen, 2 - seen),
    "reversed tuple": lambda seen: reversed((seen, 1)),
    "reversed list": lambda seen: reversed([seen, 1]),
}


@pytest.mark.parametrize("over", OVER.values(), ids=OVER)
def test_what_is_left_of_a_loop_counts(over):
    assert compare_engines(reads_then_loops(over)).differences == []


async def enumerated(flag, total):
    seen = await load(flag)
    for _n, number in enumerate((1, seen)):
        await add(total, number)


async def zipped(flag, total):
    seen = await load(flag)
    for _n, number in zip((1, 1), (1, seen), strict=True):
        await add(total, number)


async def on_the_stack(flag, total):
    seen = [await load(flag), 1]
    last = seen.pop(0) + await add(total, 0)
    await store(total, last)


async def in_a_list_on_the_stack(flag, total):
    seen = [await load(flag)]
    both = [*seen, await add(total, 0)]
    await store(total, both[0])


@pytest.mark.parametrize(
    "path", [enumerated, zipped, on_the_stack, in_a_list_on_the_stack]
)
def test_what_no_name_shows_counts(path):
    program = SmallProgram()
    flag, total = program.variable("flag"), program.variable("total")

    async def writer():
        await store(flag, 1)
        await store(flag, 0)

    program.task("reader", lambda: path(flag, total))
    program.task("writer", writer)

    assert compare_engines(program).differences == []


def test_a_generator_is_refused():
    with pytest.raises(ExploreError, match=r"generator .* is kept over a step"):
        compare_engines(reads_then_loops(generated))
