"""Small programs that may go on for ever."""

from kvmarch.explore.programs import SmallProgram, add, load, store, wait


async def spin(flag):
    """Poll a flag."""
    while True:
        seen = await load(flag)
        if seen:
            return


async def set_to(flag, value):
    await store(flag, value)


def waiting():
    """Return a program in which one task polls a flag, and the flag."""
    program = SmallProgram()
    flag = program.variable("flag")
    program.task("waiter", lambda: spin(flag))
    return program, flag


def locked():
    """A task polls under a lock until another one has had it."""
    program = SmallProgram()
    flag, lock = program.variable("flag"), program.lock("lock")

    async def poll():
        seen = 0
        while True:
            async with lock.write():
                seen = await load(flag)
            if seen:
                return

    async def tell():
        async with lock.write():
            await store(flag, 1)

    program.task("poller", poll)
    program.task("teller", tell)
    return program


def stepping_aside():
    """Two tasks give way to each other and come again."""
    program = SmallProgram()
    want = [program.variable("want0"), program.variable("want1")]

    async def polite(own, other):
        while True:
            await store(own, 1)
            taken = await load(other)
            if not taken:
                break
            await store(own, 0)
        await store(own, 0)

    program.task("one", lambda: polite(want[0], want[1]))
    program.task("two", lambda: polite(want[1], want[0]))
    return program


def streams():
    """A task waits until nobody is active, and two never let go together."""
    program = SmallProgram()
    active = program.variable("active")

    async def stream():
        while True:
            await add(active, 1)
            await add(active, -1)

    program.task("waiter", lambda: wait(active, 3))
    program.task("stream0", stream)
    program.task("stream1", stream)
    return program
