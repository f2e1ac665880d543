"""Loops without end: which of them fairness forbids."""

import pytest
from endless import locked, set_to, stepping_aside, waiting

from kvmarch.explore.audit import compare_engines
from kvmarch.explore.programs import SmallProgram, cmpxchg, load, store
from kvmarch.explore.search import Bounds, explore
from kvmarch.explore.verdict import verdict_of


def ends(program, **how):
    return verdict_of(explore(program, **how), "ends").verdict


@pytest.mark.parametrize("reduce", [False, True])
def test_a_loop_that_ends_when_the_other_task_moves_is_no_livelock(reduce):
    program, flag = waiting()
    program.task("setter", lambda: set_to(flag, 1))

    assert ends(program, reduce=reduce) == "never"


@pytest.mark.parametrize("reduce", [False, True])
def test_a_flag_that_nobody_sets_is_waited_for_for_ever(reduce):
    program, flag = waiting()
    program.task("other", lambda: set_to(flag, 0))

    search = explore(program, reduce=reduce)

    assert verdict_of(search, "ends").verdict == "always"
    assert "waiter can go on for ever" in search.found["ends"].violation.sentence


@pytest.mark.parametrize("reduce", [False, True])
def test_a_flag_that_is_set_and_cleared_may_be_missed(reduce):
    program, flag = waiting()

    async def both():
        await store(flag, 1)
        await store(flag, 0)

    program.task("setter", both)

    assert ends(program, reduce=reduce) == "sometimes"


@pytest.mark.parametrize("reduce", [False, True])
def test_two_tasks_that_keep_each_other_from_finishing_are_a_livelock(reduce):
    search = explore(stepping_aside(), reduce=reduce)

    assert verdict_of(search, "ends").verdict == "sometimes"
    assert "one and two" in search.found["ends"].violation.sentence


@pytest.mark.parametrize("reduce", [False, True])
def test_a_lost_race_that_is_tried_again_is_no_livelock(reduce):
    program = SmallProgram()
    count = program.variable("count")

    async def count_up():
        while True:
            seen = await load(count)
            done = await cmpxchg(count, seen, seen + 1)
            if done:
                return

    for name in ("one", "two", "three"):
        program.task(name, count_up)

    search = explore(program, reduce=reduce)

    assert not search.found
    assert len(search.ends) == 1


@pytest.mark.parametrize("reduce", [False, True])
def test_a_lock_is_given_to_who_waits_for_it(reduce):
    assert ends(locked(), reduce=reduce) == "never"


def test_attempts_that_only_bound_a_run_close_the_loop():
    program = SmallProgram()
    flag = program.variable("flag")

    async def bounded():
        _spins = 0
        while _spins < 1000:
            _spins += 1
            seen = await load(flag)
            if seen:
                return

    program.task("waiter", bounded)
    program.task("setter", lambda: set_to(flag, 1))

    search = explore(program)

    assert not search.found
    assert search.states == 3


def test_the_engine_without_states_is_cut_where_a_loop_has_no_end():
    program, flag = waiting()
    program.task("setter", lambda: set_to(flag, 1))

    comparison = compare_engines(program, bounds=Bounds(depth=50))

    assert comparison.traces.cut == "a trace of 50 steps"
    assert not comparison.complete
    assert comparison.differences == []
    assert comparison.traces.verdict("ends") == "unknown"


@pytest.mark.parametrize(
    ("fairness", "verdict"),
    [pytest.param("queued", "never"), pytest.param("unfair", "sometimes")],
)
def test_an_unfair_lock_may_pass_over_who_waits(fairness, verdict):
    search = explore(locked(), fairness=fairness)

    assert verdict_of(search, "ends").verdict == verdict
    if verdict == "sometimes":
        assert search.found["ends"].violation.sentence.endswith("(locks: unfair)")
