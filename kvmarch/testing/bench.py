"""Machines that a test drives by hand: a world, a VM with memory, tasks in turn."""

__all__ = ["HVA", "Actor", "Bench", "Driver", "path_of"]

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from kvmarch.changes import Kernel
from kvmarch.errors import ScenarioError
from kvmarch.kernel.boot import boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import PFN_SHIFT, Vma
from kvmarch.machine.run import Outcome, Task, begin, run, run_path, take_step
from kvmarch.machine.steps import Path
from kvmarch.machine.world import World
from kvmarch.scenarios.file import line_of
from kvmarch.scenarios.records import Memory
from kvmarch.scenarios.verb import check_own_line
from kvmarch.scenarios.verbs import Context, find_verb, make_gpcs, values

HVA = 0x7F00_0000_0000
"""Where a bench's memory begins in the process."""


async def _alone(step: Any) -> Any:
    return await step


def path_of(what: Any) -> Path[Any]:
    """Return a path: what is one already, or one that takes a single step."""
    return what if inspect.iscoroutine(what) else _alone(what)


class Actor:
    """A task that a test moves from step to step."""

    def __init__(self, world: World, name: str, path: Any) -> None:
        self.world = world
        self.task = Task(name, lambda: path_of(path))

    @property
    def next(self) -> str:
        """Return the name of the step that comes next; empty when it is done."""
        if self.task.path is None:
            begin(self.world, self.task)
        return "" if self.task.done else str(self.task.pending.op.name)

    def step(self) -> bool:
        """Take one step; return whether it could be taken."""
        if not self.next:
            return False
        world, step = self.world, self.task.pending
        moved = take_step(world, self.task)
        if moved:
            world.steps += 1
            if world.observer is not None:
                world.observer(self.task, step)
        return moved

    def to(self, name: str) -> "Actor":
        """Move until the step of this name comes next."""
        while self.next != name:
            assert self.next, f"{self.task.name} never comes to {name!r}"
            assert self.step(), f"{self.task.name} waits at {self.next!r}"
        return self

    def past(self, name: str) -> "Actor":
        """Move until the step of this name has been taken."""
        self.to(name)
        assert self.step(), f"{self.task.name} waits at {name!r}"
        return self

    def waits(self) -> str:
        """Move as far as it goes; return the name of the step at which it waits."""
        while self.step():
            pass
        return self.next

    def end(self) -> Any:
        """Move to the end and return the path's result."""
        waits = self.waits()
        assert not waits, f"{self.task.name} waits at {waits!r}"
        return self.task.result

    def close(self) -> None:
        """Abandon the path."""
        if self.task.path is None:
            self.task.path = self.task.start()
        if not self.task.done:
            self.task.path.close()


class Driver:
    """A world, and tasks that run in it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actors: list[Actor] = []

    def do(self, what: Any, name: str = "main") -> Any:
        """Run one path or step to its end and return its result."""
        return run_path(self.world, path_of(what), name)

    def trace(self, what: Any, name: str = "main") -> list[str]:
        """Run one path; return the names of the steps that it took."""
        names: list[str] = []
        self.world.observer = lambda _task, step: names.append(step.op.name)
        self.do(what, name)
        self.world.observer = None
        return names

    def race(self, schedule: Iterable[tuple[str, int]] = (), **paths: Any) -> Outcome:
        """Run several paths along a schedule and then in turn."""

        def task(name: str, path: Any) -> Task:
            return Task(name, lambda: path_of(path))

        tasks = [task(name, path) for name, path in paths.items()]
        return run(self.world, tasks, schedule)

    def actor(self, name: str, what: Any) -> Actor:
        """Return a task that the test moves by hand."""
        actor = Actor(self.world, name, what)
        self.actors.append(actor)
        return actor

    def interleave(self, *actors: Actor, turn: int = 5) -> None:
        """Move actors by so many steps in turn until all are done."""
        while not all(actor.task.done for actor in actors):
            moved = [actor.step() for actor in actors for _ in range(turn)]
            assert any(moved), [actor.next for actor in actors]

    def close(self) -> None:
        """Abandon every task that is not done."""
        for actor in self.actors:
            actor.close()

    @property
    def lost(self) -> list[str]:
        """Return the ids of the properties that were lost."""
        return [violation.property for violation in self.world.violations]

    def named(self, name: str) -> list[Mapping[str, Any]]:
        """Return the data of every event of a name."""
        return [event.data for event in self.world.events if event.name == name]


class Bench(Driver):
    """A machine with some memory at :data:`HVA`, written by the host already.

    :param options: every option of the architecture, see ``ArchInfo.settle``.
    :param pages: how many pages of memory there are; no memslot is made.
    :param thp: the host has huge pages there, where one fits whole.
    :param boot_options: as for :func:`kvmarch.kernel.boot.boot`, such as ``vcpus``.
    """

    hva = HVA

    def __init__(
        self,
        k: Kernel,
        options: Mapping[str, Any],
        pages: int,
        *,
        thp: bool = False,
        **boot_options: Any,
    ) -> None:
        self.k = k
        self.machine = boot(k, options, **boot_options)
        super().__init__(self.machine.world)
        self.vm, self.mm = self.machine.vm, self.machine.mm
        self.host = self.machine.host
        self.vcpu = self.vm.vcpus[0]
        self.page: int = options["page_size"]
        self.pages = pages
        if pages:
            self.mm.add_vma(Vma(HVA, self.at(pages), huge=thp, mergeable=True))
            populate(self.mm, HVA, self.at(pages), huge=thp)
        ram = HVA, pages * self.page
        self._context = Context(self.machine, {"ram": ram}, leave=k.arch_info.leaves_by)

    def do(self, what: Any, name: str = "main") -> Any:
        """Run a path, a step, or a line of a scenario to its end; return its result."""
        return super().do(self.line(what) if isinstance(what, str) else what, name)

    def actor(self, name: str, what: Any) -> Actor:
        """Return a task that the test moves by hand; a line of a scenario may be it."""
        path = self.line(what) if isinstance(what, str) else what
        return super().actor(name, path)

    def at(self, page: int) -> int:
        """Return the hva of a page."""
        return HVA + page * self.page

    def slot(
        self,
        slot: int = 0,
        flags: int = 0,
        gfn: int = 0,
        pages: int | None = None,
        page: int = 0,
    ) -> Any:
        """Create or change a memslot; return 0 or the errno."""
        count = self.pages if pages is None else pages
        size, gpa = count * self.page, gfn * self.page
        region = Region(slot, flags, gpa, size, self.at(page))
        return self.do(set_memory_region(self.vm, region))

    def access(self, gfn: int, how: str = "read") -> Any:
        """Let the guest make one access, and stay in the guest."""
        return self.do(guest_access(self.vcpu, gfn, how), "vcpu0")

    def line(self, text: str) -> Path[Any]:
        """Return the path of a scenario's line: ``dontneed memory=ram page=2 pages=1``.

        Every verb of scenarios can be written, the architecture's own too; the bench's
        memory is ``ram``.

        :raises ScenarioError: with what would be accepted.
        """
        ram, vcpus = Memory("ram", self.pages), len(self.vm.vcpus)
        line = line_of(text, ram, vcpus)
        why = check_own_line(line, self.k, {"ram": ram}, vcpus)
        if why:
            raise ScenarioError(f"a line: {text!r}: {why}")
        make_gpcs(self._context, (line,))
        known = find_verb(self.k, line.verb)
        return known.make(self._context, values(known, line.args))

    def entry(self, gfn: int) -> int:
        """Return the lowest entry of a gfn."""
        entry: int = self.k.entry.fn(self.vm, gfn)[0]
        return entry

    def pfn(self, page: int) -> int:
        """Return the pfn that the host maps at a page; 0 if none."""
        return self.mm.pte(self.vpn(page)) >> PFN_SHIFT

    def vpn(self, page: int) -> int:
        """Return the virtual page number of a page."""
        return HVA // self.page + page
