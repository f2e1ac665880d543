"""Livelock: which endless schedules are fair."""

import pytest

from kvmarch.explore.programs import SmallProgram, add, load, store, wait
from kvmarch.explore.search import explore


def program(streams):
    """A task waits until nobody is active, and then ends the others."""
    made = SmallProgram()
    active, going = made.variable("active"), made.variable("going", 1)

    async def stream():
        while True:
            await add(active, 1)
            await add(active, -1)
            on = await load(going)
            if not on:
                return

    async def waiter():
        await wait(active, 0)
        await store(going, 0)

    made.task("waiter", waiter)
    for number in range(streams):
        made.task(f"stream{number}", stream)
    return made


@pytest.mark.parametrize(
    ("streams", "lost"),
    [
        pytest.param(1, [], id="it-can-move-in-every-turn"),
        pytest.param(2, ["ends"], id="two-never-let-go-together"),
    ],
)
def test_a_task_that_waits_for_others_that_never_end(streams, lost):
    search = explore(program(streams))

    assert list(search.found) == lost
