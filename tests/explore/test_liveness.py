import dis

from kvmarch.explore.liveness import live_names
from kvmarch.explore.programs import rest


def live_at_first_step(function, *args):
    path = function(*args)
    path.send(None)
    frame = path.cr_frame
    found = live_names(frame.f_code, frame.f_lasti)
    path.close()
    return found


async def dead_after(used):
    assert used
    await rest()


async def live_after(used):
    await rest()
    return used


async def overwritten(used):
    await rest()
    used = 1
    await rest()
    return used


async def on_one_branch(used, other):
    await rest()
    if other:
        return used
    return 0


async def in_a_loop(used):
    while True:
        await rest()
        if used:
            return
        used = 2


async def in_a_handler(used):
    try:
        await rest()
    except ValueError:
        return used
    return 0


async def in_a_closure(used):
    def look():
        return used

    await rest()
    await rest()
    return look


def test_only_what_may_still_be_read_is_live():
    assert "used" not in live_at_first_step(dead_after, 1)
    assert "used" in live_at_first_step(live_after, 1)
    assert "used" not in live_at_first_step(overwritten, 1)
    assert live_at_first_step(on_one_branch, 1, 2) >= {"used", "other"}


def test_a_loop_and_a_handler_keep_what_they_read():
    assert "used" in live_at_first_step(in_a_loop, 0)
    assert "used" in live_at_first_step(in_a_handler, 0)


def test_a_closure_keeps_its_cells():
    assert live_at_first_step(in_a_closure, 1) >= {"used", "look"}


def test_nothing_is_live_after_the_last_instruction():
    last = list(dis.get_instructions(live_after.__code__))[-1].offset

    assert live_names(live_after.__code__, last + 100) == frozenset()
