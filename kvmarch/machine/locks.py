"""Locks that know who holds them in which mode, and SRCU.

A lock has a rank: a task may only take locks of higher rank than those that it
holds. Wrong order, wrong mode and sleeping in atomic context are recorded as
losses of the property ``locks``, as lockdep would report them, and the run goes on.
"""

__all__ = ["Lock", "LockClass", "Rcu", "Srcu"]

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvmarch.errors import ModelError
from kvmarch.machine.steps import BLOCKED, Op, Scope, Step
from kvmarch.machine.tlb import Ledger
from kvmarch.machine.world import Part, World


@dataclass(frozen=True, slots=True)
class LockClass:
    """What is true of every lock of one kind.

    :param rank: place in the lock order; higher ones are taken later.
    :param sleeps: a mutex or semaphore, as against a spinning lock.
    :param shared: has a read mode.
    :param bars_srcu: must not be taken inside a kvm->srcu read section, because
        its holder may wait for the grace period.
    :param nests: several locks of the class may be held at once.
    """

    name: str
    rank: int
    sleeps: bool = False
    shared: bool = False
    bars_srcu: bool = False
    nests: bool = False


class Lock(Part):
    """One lock: ``async with lock.write():`` or, if it is shared, ``lock.read():``.

    :param ledger: flushes of which those must have been paid that are due before the
        lock is dropped.
    """

    variables = ("writer", "readers")
    unordered = ("readers",)

    def __init__(
        self,
        world: World,
        kind: LockClass,
        name: str = "",
        ledger: Ledger | None = None,
    ) -> None:
        self.world = world
        self.kind = kind
        self.name = name or kind.name
        self.ledger = ledger
        self.writer: str | None = None
        self.readers: list[str] = []
        self._as_writer = (self, "write")
        self._as_reader = (self, "read")
        self._spins = 0 if kind.sleeps else 1
        self._rank = kind.rank
        self._write = Scope(
            Step(Op(self._take_write, name=f"lock {self.name}"), ()),
            Step(Op(self._drop_write, name=f"unlock {self.name}"), ()),
        )
        self._read = Scope(
            Step(Op(self._take_read, name=f"read-lock {self.name}"), ()),
            Step(Op(self._drop_read, name=f"read-unlock {self.name}"), ()),
        )

    def __repr__(self) -> str:
        return f"Lock({self.name})"

    def write(self) -> Scope:
        """Hold the lock exclusively."""
        return self._write

    def read(self) -> Scope:
        """Hold the lock shared.

        :raises ModelError: the lock has no read mode.
        """
        if not self.kind.shared:
            raise ModelError(f"{self.name} has no read mode")
        return self._read

    def take_write(self) -> Step[Any]:
        """Return the step that takes the lock exclusively."""
        return self._write.enter

    def drop_write(self) -> Step[Any]:
        """Return the step that gives the exclusive lock back."""
        return self._write.leave

    def take_read(self) -> Step[Any]:
        """Return the step that takes the lock shared."""
        return self._read.enter

    def drop_read(self) -> Step[Any]:
        """Return the step that gives the shared lock back."""
        return self._read.leave

    def bars(self, mode: str) -> tuple[tuple["Lock", str], ...]:
        """Return the ways to take the lock that a holder bars: part and variable."""
        way = (self, "writer")
        return (way,) if mode == "read" else (way, (self, "readers"))

    def takes(self, step: Step[Any]) -> tuple[tuple["Lock", str], ...]:
        """Return the way in which a step takes the lock, if it does."""
        if step is self._write.enter:
            return ((self, "writer"),)
        return ((self, "readers"),) if step is self._read.enter else ()

    def mode(self) -> str | None:
        """Return how the running task holds the lock: write, read or not at all."""
        for lock, mode in self.world.current.held:
            if lock is self:
                return str(mode)
        return None

    def require(self, mode: str, who: str) -> None:
        """Record a loss unless the running task holds the lock at least so.

        :param mode: ``write``, or ``read`` for either mode.
        :param who: the function that requires it.
        """
        held = self.mode()
        if held not in {mode, "write"}:
            have = f"only for {held}" if held else "not at all"
            self.world.violate(
                "locks", f"{who} needs {self.name} for {mode}; it is held {have}"
            )

    def _check(self) -> None:
        task = self.world.current
        kind = self.kind
        if kind.sleeps and task.atomic:
            holds = ", ".join(lock.name for lock, _ in task.held)
            self.world.violate(
                "locks", f"{self.name} may sleep and is taken while {holds} is held"
            )
        for lock, _ in task.held:
            if lock is self:
                self.world.violate(
                    "locks", f"{self.name} is taken twice by {task.name}"
                )
            elif kind.bars_srcu and isinstance(lock, Srcu):
                if lock.guards_memslots:
                    self.world.violate(
                        "locks", f"{self.name} is taken inside {lock.name} read section"
                    )
            elif lock.kind.rank > kind.rank or (
                lock.kind.rank == kind.rank and not kind.nests
            ):
                self.world.violate(
                    "locks", f"{self.name} is taken while {lock.name} is held"
                )

    def _take_write(self) -> Any:
        if self.writer is not None or self.readers:
            return BLOCKED
        task = self.world.current
        self._hold(task, self._as_writer)
        self.writer = task.name
        return None

    def _take_read(self) -> Any:
        if self.writer is not None:
            return BLOCKED
        task = self.world.current
        self._hold(task, self._as_reader)
        self.readers.append(task.name)
        return None

    def _hold(self, task: Any, how: tuple["Lock", str]) -> None:
        """Put the lock on a task's list."""
        rank, top = self._rank, task.top
        # The common case needs no look at the list: a lock that neither sleeps nor
        # bars readers, above all that are held.
        if top >= rank or not self._spins:
            self._check()
        task.held.append(how)
        task.tops.append(top)
        task.top = rank if rank > top else top
        task.atomic += self._spins

    def _drop_write(self) -> None:
        self._drop(self._as_writer)
        self.writer = None

    def _drop_read(self) -> None:
        self._drop(self._as_reader)
        self.readers.remove(self.world.current.name)

    def _drop(self, how: tuple["Lock", str]) -> None:
        if self.ledger is not None and self.ledger.owed:
            self.ledger.settle(f"unlock of {self.name}", due="unlock")
        task = self.world.current
        held = task.held
        if held and held[-1] is how:
            held.pop()
            task.top = task.tops.pop()
        elif how in held:
            held.remove(how)
            task.rank_again()
        else:
            raise ModelError(
                f"{task.name} unlocks {self.name}, which it does not hold for {how[1]}"
            )
        task.atomic -= self._spins


_READS = ("read0", "read1")
"""Modes in which a reader holds SRCU: by the index on which it counts."""

_SRCU = LockClass("srcu", rank=0, sleeps=True, shared=True, nests=True)


class Srcu(Part):
    """Sleepable RCU with two indices.

    :Kernel: __srcu_read_lock(), __srcu_read_unlock(), synchronize_srcu(); generic
        facts 2.11. A reader counts on the index that was current when it began; a
        grace period waits for the inactive index, flips, and waits for the other.
    :param guards_memslots: this is kvm->srcu, inside which slots_lock, vcpu->mutex
        and kvm->lock must not be taken.
    """

    variables = ("idx", "readers", "synchronizing")
    unordered = ("readers",)
    kind = _SRCU

    def __init__(
        self, world: World, name: str, *, guards_memslots: bool = False
    ) -> None:
        self.world = world
        self.name = name
        self.guards_memslots = guards_memslots
        self.idx = 0
        self.readers: list[list[str]] = [[], []]
        self.synchronizing = False
        """A grace period is on; the next one begins when it has ended."""
        self._lock = Step(Op(self._enter, name=f"srcu_read_lock {name}"), ())
        self._unlock = Step(Op(self._leave, name=f"srcu_read_unlock {name}"), ())
        self._scope = Scope(self._lock, self._unlock)
        self._flip = Step(Op(self._turn, name=f"flip {name}"), ())
        self._begin = Step(
            Op(self._start, name=f"synchronize_srcu {name}", sleeps=True), ()
        )
        waits = f"wait for readers of {name}"
        self._wait = Step(Op(self._empty, name=waits), ())
        self._wait_and_end = Step(Op(self._end, name=waits), ())

    def __repr__(self) -> str:
        return f"Srcu({self.name})"

    def read(self) -> Scope:
        """Be a reader: ``async with srcu.read():``."""
        return self._scope

    async def synchronize(self) -> None:
        """Wait until every reader that began before this call has left.

        Both waits are needed, because a reader may read the index and count on it
        only later. Grace periods follow one another: a flip of another one in
        between would make the second wait look at the wrong index.
        """
        await self._begin
        await self._wait
        await self._flip
        await self._wait_and_end

    def held(self) -> bool:
        """Return whether the running task is a reader."""
        return any(lock is self for lock, _ in self.world.current.held)

    def _enter(self) -> None:
        task = self.world.current
        idx = self.idx
        self.readers[idx].append(task.name)
        task.held.append((self, _READS[idx]))

    def _leave(self) -> None:
        task = self.world.current
        held = task.held
        for at in range(len(held) - 1, -1, -1):
            lock, mode = held[at]
            if lock is self:
                del held[at]
                self.readers[_READS.index(mode)].remove(task.name)
                return
        raise ModelError(f"{task.name} leaves {self.name}, in which it is no reader")

    def _start(self) -> Any:
        if self.synchronizing:
            return BLOCKED
        self.synchronizing = True
        if self.held():
            self.world.violate(
                "locks",
                f"synchronize of {self.name} inside its own read section never ends",
            )
        return None

    def _empty(self) -> Any:
        return BLOCKED if self.readers[self.idx ^ 1] else None

    def _turn(self) -> None:
        self.idx ^= 1

    def _end(self) -> Any:
        if self.readers[self.idx ^ 1]:
            return BLOCKED
        self.synchronizing = False
        return None


class Rcu(Part):
    """RCU as page-table walkers use it: readers, and work that waits for them.

    A callback runs in the step in which the last reader leaves that was inside
    when it was queued: the earliest moment that RCU allows.
    """

    variables = ("readers", "queue")
    unordered = ("readers",)
    kind = LockClass("rcu", rank=0, nests=True)

    def __init__(self, world: World, name: str = "rcu") -> None:
        self.world = world
        self.name = name
        self.readers: list[str] = []
        self.queue: list[tuple[list[str], Callable[[], None]]] = []
        self._scope = Scope(
            Step(Op(self._enter, name="rcu_read_lock"), ()),
            Step(Op(self._leave, name="rcu_read_unlock"), ()),
        )

    def read(self) -> Scope:
        """Be a reader: ``async with rcu.read():``; no sleeping inside."""
        return self._scope

    def call(self, callback: Callable[[], None]) -> None:
        """Run the callback once every present reader has left (call_rcu)."""
        if self.readers:
            self.queue.append((list(self.readers), callback))
        else:
            callback()

    def _enter(self) -> None:
        task = self.world.current
        self.readers.append(task.name)
        task.held.append((self, "read"))
        task.atomic += 1

    def _leave(self) -> None:
        task = self.world.current
        self.readers.remove(task.name)
        task.held.remove((self, "read"))
        task.atomic -= 1
        if not self.queue:
            return
        waiting = self.queue
        self.queue = []
        for readers, callback in waiting:
            if task.name in readers:
                readers.remove(task.name)
            if readers:
                self.queue.append((readers, callback))
            else:
                callback()
