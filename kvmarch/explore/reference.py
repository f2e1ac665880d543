"""Programs of which the literature says how many traces they have.

``indexer`` and ``filesystem`` are from Flanagan and Godefroid (POPL 2005),
``lastzero`` is from Abdulla, Aronsson, Jonsson and Sagonas (POPL 2014).
"""

__all__ = [
    "filesystem",
    "handshake",
    "indexer",
    "lastzero",
    "lockers",
    "philosophers",
    "readers",
    "writers",
]

from collections.abc import Callable
from functools import partial
from typing import Any

from kvmarch.explore.programs import SmallProgram, Variable, cmpxchg, load, store
from kvmarch.machine.locks import Lock
from kvmarch.machine.steps import Path


def _give(
    program: SmallProgram, name: str, path: Callable[..., Path[Any]], *args: Any
) -> None:
    program.task(name, partial(path, *args))


async def _load(x: Variable) -> None:
    await load(x)


async def _store(x: Variable, value: int) -> None:
    await store(x, value)


def readers(count: int) -> SmallProgram:
    """Return one writer and readers of one variable: 2^N traces."""
    program = SmallProgram()
    x = program.variable("x")
    _give(program, "writer", _store, x, 1)
    for n in range(count):
        _give(program, f"reader{n}", _load, x)
    return program


def writers(count: int) -> SmallProgram:
    """Return writers of one variable: N! traces."""
    program = SmallProgram()
    x = program.variable("x")
    for n in range(count):
        _give(program, f"writer{n}", _store, x, n + 1)
    return program


async def _lock(lock: Lock) -> None:
    async with lock.write():
        pass


def lockers(count: int) -> SmallProgram:
    """Return tasks that take one lock and drop it: N! traces."""
    program = SmallProgram()
    lock = program.lock("lock")
    for n in range(count):
        _give(program, f"task{n}", _lock, lock)
    return program


async def _find_last_zero(array: tuple[Variable, ...]) -> None:
    at = len(array) - 1
    while True:
        value = await load(array[at])
        if value == 0:
            return
        at -= 1


async def _successor(before: Variable, own: Variable) -> None:
    value = await load(before)
    await store(own, value + 1)


def lastzero(count: int) -> SmallProgram:
    """Return tasks that count up along an array, and one that looks for its last zero.

    With N of the former it has (N + 3) * 2^(N - 2) traces.
    """
    program = SmallProgram()
    array = tuple(program.variable(f"array{n}") for n in range(count + 1))
    _give(program, "finder", _find_last_zero, array)
    for n in range(1, count + 1):
        _give(program, f"task{n}", _successor, array[n - 1], array[n])
    return program


async def _insert(table: tuple[Variable, ...], own: int) -> None:
    for message in range(1, 5):
        word = message * 11 + own
        at = word * 7 % len(table)
        while True:
            done = await cmpxchg(table[at], 0, word)
            if done:
                break
            at = (at + 1) % len(table)


def indexer(count: int) -> SmallProgram:
    """Return tasks that put four messages each into a hash table: 8^(N - 11) traces.

    Up to 11 tasks nothing collides: 1 trace.
    """
    program = SmallProgram()
    table = tuple(program.variable(f"table{n}") for n in range(128))
    for n in range(count):
        _give(program, f"task{n}", _insert, table, n)
    return program


async def _allocate(
    inodes: tuple[tuple[Lock, Variable], ...],
    blocks: tuple[tuple[Lock, Variable], ...],
    own: int,
) -> None:
    inode_lock, inode = inodes[own % len(inodes)]
    await inode_lock.take_write()
    taken = await load(inode)
    if taken == 0:
        at = own % len(inodes) * 2 % len(blocks)
        while True:
            block_lock, busy = blocks[at]
            await block_lock.take_write()
            is_busy = await load(busy)
            if not is_busy:
                await store(busy, 1)
                await store(inode, at + 1)
                await block_lock.drop_write()
                break
            await block_lock.drop_write()
            at = (at + 1) % len(blocks)
    await inode_lock.drop_write()


def filesystem(count: int) -> SmallProgram:
    """Return tasks that give blocks to inodes: 2^(N - 13) traces from 14 tasks on."""
    program = SmallProgram()
    inodes = tuple(
        (program.lock(f"inode_lock{n}"), program.variable(f"inode{n}"))
        for n in range(32)
    )
    blocks = tuple(
        (program.lock(f"block_lock{n}"), program.variable(f"busy{n}"))
        for n in range(26)
    )
    for n in range(count):
        _give(program, f"task{n}", _allocate, inodes, blocks, n)
    return program


async def _eat(first: Lock, second: Lock) -> None:
    async with first.write(), second.write():
        pass


def philosophers(count: int, *, ordered: bool = True) -> SmallProgram:
    """Return philosophers who take the lower fork first: 2^N - 2 traces.

    :param ordered: otherwise each takes the fork on the left first, and all may wait.
    """
    program = SmallProgram()
    forks = [program.lock(f"fork{n}") for n in range(count)]
    for n in range(count):
        pair = n, (n + 1) % count
        first, second = sorted(pair) if ordered else pair
        _give(program, f"task{n}", _eat, forks[first], forks[second])
    return program


def handshake(*, swapped: bool = False) -> SmallProgram:
    """Return a program whose claim fails, where a published tester says that it holds.

    frontrun 0.7.0 explores too few orders of the two tasks. The claim that ``x == 0``
    and ``q == 1`` do not come together fails if the second task reads ``a`` first, the
    first one then runs to its end, and the second one goes on.

    :param swapped: the tasks in the other order.
    """
    program = SmallProgram()
    a, b, x, q, y = (program.variable(name) for name in "abxqy")
    lock = program.lock("lock")

    async def first() -> None:
        await store(a, 1)
        async with lock.write():
            pass
        await store(b, 1)

    async def second() -> None:
        async with lock.write():
            seen = await load(a)
            await store(x, seen)
        seen = await load(b)
        await store(q, seen)
        async with lock.write():
            seen = await load(a)
            await store(y, seen)

    tasks = {"first": first, "second": second}
    for name in sorted(tasks, reverse=swapped):
        program.task(name, tasks[name])
    program.claim("claim", lambda: not (x.value == 0 and q.value == 1))
    return program
