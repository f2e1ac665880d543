"""Cycles that go on for ever: found, run once around, and made short."""

import pytest
from endless import locked, stepping_aside, streams

from kvmarch.errors import ExploreError
from kvmarch.explore.endless import Endless, moves_of
from kvmarch.explore.programs import SmallProgram, add, load, store
from kvmarch.explore.schedule import Schedule, schedule_of
from kvmarch.explore.search import explore
from kvmarch.explore.shorten import shorten


def polling(*, setter=False):
    """A task polls a flag, and comes to it over another one."""
    program = SmallProgram()
    flag, door = program.variable("flag"), program.variable("door")

    async def poll():
        await store(door, 1)
        while True:
            await add(door, 1)
            seen = await load(flag)
            await add(door, -1)
            if seen:
                return

    async def other():
        await store(flag, 1 if setter else 0)

    program.task("poller", poll)
    program.task("other", other)
    return program


def schedule_at(program, **how):
    search = explore(program, **how)
    return schedule_of(search.space, search.found["ends"], "here")


def round_of(program, schedule):
    with Endless.of(program) as endless:
        return endless.round(
            *(
                moves_of(schedule.tasks, turns)
                for turns in (schedule.turns, schedule.cycle)
            )
        )


FOUND = [
    pytest.param(polling, {}, "here:a1b1~a3", "queued", id="polling"),
    pytest.param(
        locked, {"fairness": "unfair"}, "here:~a3", "unfair", id="unfair-lock"
    ),
    pytest.param(stepping_aside, {}, "here:~a1b1a1b1a1b1", "queued", id="polite"),
    pytest.param(streams, {}, "here:~b1c1b1c1", "queued", id="streams"),
]


@pytest.mark.parametrize(("make", "how", "text", "fairness"), FOUND)
def test_a_livelock_is_found_with_a_shortest_cycle(make, how, text, fairness):
    program = make()
    schedule = schedule_at(program, **how)
    expected = Schedule.parse(text, "here", schedule.tasks)
    found = round_of(make(), schedule)

    assert (schedule.steps, schedule.around) == (expected.steps, expected.around)
    assert (found.differs, found.fairness, found.able) == ("", fairness, ())
    assert [v.property for v in found.lost] == ["ends"]
    # What is expected is one, too.
    assert round_of(make(), expected).fairness == fairness


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize(("make", "how", "text", "fairness"), FOUND)
def test_every_search_finds_a_cycle_that_comes_back(make, how, text, fairness, reduce):
    for order in ("breadth", "depth"):
        schedule = schedule_at(make(), order=order, reduce=reduce, **how)

        assert round_of(make(), schedule).fairness == fairness


def test_a_cycle_that_forgets_who_could_move_is_no_livelock():
    program = polling(setter=True)
    found = round_of(program, Schedule.parse("here:a1~a3", "here", ("poller", "other")))

    assert found.lost == ()
    assert found.able == ("other",)


def test_a_lock_that_is_given_up_goes_to_who_waits_unless_it_is_unfair():
    schedule = Schedule.parse("here:~a3", "here", ("poller", "teller"))
    found = round_of(locked(), schedule)

    assert found.fairness == "unfair"
    assert found.lost[0].sentence.endswith("(locks: unfair)")


@pytest.mark.parametrize(
    ("turns", "differs"),
    [
        pytest.param("a1b1~a2", "poller", id="place"),
        pytest.param("~a4", "poller", id="before-the-loop"),
        pytest.param("a2~b1", "other", id="other"),
    ],
)
def test_what_does_not_come_back_says_what_differs(turns, differs):
    schedule = Schedule.parse(f"here:{turns}", "here", ("poller", "other"))
    found = round_of(polling(), schedule)

    assert differs in found.differs
    assert found.lost == ()


def test_a_value_that_grows_does_not_come_back():
    program = SmallProgram()
    count = program.variable("count")

    async def up():
        while True:
            await add(count, 1)

    program.task("up", up)
    found = round_of(program, Schedule.parse("here:~a1", "here", ("up",)))

    assert found.differs == "count.value"


def test_a_step_that_cannot_be_taken_is_refused():
    schedule = Schedule.parse("here:b2~a3", "here", ("poller", "other"))

    with pytest.raises(ExploreError, match="other cannot take a step"):
        round_of(polling(), schedule)


@pytest.mark.parametrize(
    ("given", "least"),
    [
        pytest.param("a4b1a3~a6", "b1a1~a3", id="rounds-before-and-twice"),
        pytest.param("a2b1~a3", "a1b1~a3", id="entered-late"),
    ],
)
def test_a_cycle_is_made_shorter(given, least):
    names = ("poller", "other")
    schedule = Schedule.parse(f"here:{given}", "here", names)
    shorter, lost = shorten(polling(), schedule)

    assert lost == "ends"
    assert (shorter.steps, shorter.around) == (2, 3)
    assert shorter == Schedule.parse(f"here:{least}", "here", names)


def test_a_cycle_that_loses_nothing_cannot_be_made_shorter():
    schedule = Schedule.parse("here:a1~a3", "here", ("poller", "other"))

    with pytest.raises(ExploreError, match="does not lose ends"):
        shorten(polling(setter=True), schedule)
