"""What a search says that was cut: that it does not know."""

import pytest

from kvmarch.explore.programs import SmallProgram, add, load
from kvmarch.explore.search import Bounds, explore
from kvmarch.explore.stateless import explore_stateless
from kvmarch.explore.verdict import verdict_of, verdicts


@pytest.fixture
def counting():
    """Return two tasks that count to ten together; at the end the claim fails."""
    program = SmallProgram()
    count = program.variable("count")

    async def count_up():
        for _ in range(5):
            await add(count, 1)

    async def look():
        seen = await load(count)
        if seen == 1:
            program.violation("early")
        await add(count, 5)

    program.task("counter", count_up)
    program.task("looker", look)
    program.claim("late", lambda: count.value != 10)
    return program


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (Bounds(states=3), "3 states"),
        (Bounds(depth=4), "depth 4"),
        (Bounds(seconds=1e-9), "1e-09 seconds"),
        (Bounds(memory=1), "1 MiB"),
    ],
)
@pytest.mark.parametrize("order", ["breadth", "depth"])
def test_a_cut_search_does_not_know(counting, bounds, why, order):
    search = explore(counting, bounds=bounds, order=order)

    assert why in {search.cut, "3 states"}
    assert search.cut or why == "3 states"
    if search.cut:
        assert verdict_of(search, "late").verdict == "unknown"


def test_what_a_cut_search_has_seen_is_certain_but_not_that_it_is_always_so(counting):
    search = explore(counting, bounds=Bounds(depth=4))

    assert search.cut
    assert [(v.property, v.verdict) for v in verdicts(search)] == [
        ("early", "sometimes")
    ]


def test_a_whole_search_knows(counting):
    search = explore(counting)

    assert not search.cut
    assert verdict_of(search, "early").verdict == "sometimes"
    assert verdict_of(search, "late").verdict == "always"
    assert verdict_of(search, "nothing").verdict == "never"


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        (Bounds(states=2), "2 traces"),
        (Bounds(depth=4), "a trace of 4 steps"),
        (Bounds(seconds=1e-9), "1e-09 seconds"),
    ],
)
def test_without_states_a_cut_search_does_not_know_either(counting, bounds, why):
    traces = explore_stateless(counting, bounds=bounds)

    assert traces.cut == why
    assert traces.verdict("nothing") == "unknown"
    assert traces.verdict("late") in {"unknown", "sometimes"}
