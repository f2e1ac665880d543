"""Fixtures of the core's tests: the toy architecture, and machines that run it."""

import importlib
import inspect
from pathlib import Path

import pytest

from kvmarch import plugins
from kvmarch.changes import Kernel
from kvmarch.kernel.boot import boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import PFN_SHIFT, Vma
from kvmarch.machine.run import Task, _advance, run, run_path
from kvmarch.machine.world import World
from kvmarch.scenarios import play as player
from kvmarch.scenarios.file import load

THIRD_PARTY = str(Path(__file__).parent / "third_party")
HVA = 0x7F00_0000_0000


async def _alone(step):
    return await step


def path_of(what):
    """Return a path: what is one already, or one that takes a single step."""
    return what if inspect.iscoroutine(what) else _alone(what)


class Actor:
    """A task that a test moves from step to step."""

    def __init__(self, world, name, path):
        self.world = world
        self.task = Task(name, lambda: path_of(path))
        self._looked = False

    @property
    def next(self):
        """Return the name of the step that comes next; empty when it is done."""
        if not self._looked:
            _advance(self.world, self.task, 0)
            self._looked = True
        return "" if self.task.done else self.task.pending.op.name

    def step(self):
        """Take one step; return whether it could be taken."""
        return bool(self.next) and _advance(self.world, self.task, 1) == 1

    def to(self, name):
        """Move until the step of this name comes next."""
        while self.next != name:
            assert self.next, f"{self.task.name} never comes to {name!r}"
            assert self.step(), f"{self.task.name} waits at {self.next!r}"
        return self

    def past(self, name):
        """Move until the step of this name has been taken."""
        self.to(name)
        assert self.step(), f"{self.task.name} waits at {name!r}"
        return self

    def waits(self):
        """Move as far as it goes; return the name of the step at which it waits."""
        while self.step():
            pass
        return self.next

    def end(self):
        """Move to the end and return the path's result."""
        waits = self.waits()
        assert not waits, f"{self.task.name} waits at {waits!r}"
        return self.task.result

    def close(self):
        """Abandon the path."""
        if self.task.path is None:
            self.task.path = self.task.start()
        if not self.task.done:
            self.task.path.close()


class Driver:
    """A world, and tasks that run in it."""

    def __init__(self, world):
        self.world = world
        self.actors = []

    def do(self, what, name="main"):
        """Run one path or step to its end and return its result."""
        return run_path(self.world, path_of(what), name)

    def trace(self, what, name="main"):
        """Run one path; return the names of the steps that it took."""
        names = []
        self.world.observer = lambda _task, step: names.append(step.op.name)
        self.do(what, name)
        self.world.observer = None
        return names

    def race(self, schedule=(), **paths):
        """Run several paths along a schedule and then in turn."""
        tasks = [
            Task(name, lambda path=path: path_of(path)) for name, path in paths.items()
        ]
        return run(self.world, tasks, schedule)

    def actor(self, name, what):
        """Return a task that the test moves by hand."""
        actor = Actor(self.world, name, what)
        self.actors.append(actor)
        return actor

    def interleave(self, *actors, turn=5):
        """Move actors by so many steps in turn until all are done."""
        while not all(actor.task.done for actor in actors):
            moved = [actor.step() for actor in actors for _ in range(turn)]
            assert any(moved), [actor.next for actor in actors]

    @property
    def lost(self):
        """Return the ids of the properties that were lost."""
        return [violation.property for violation in self.world.violations]

    def named(self, name):
        """Return the data of every event of a name."""
        return [event.data for event in self.world.events if event.name == name]


class Bench(Driver):
    """A machine with some memory at :data:`HVA`, written by the host already."""

    hva = HVA

    def __init__(self, k, options, pages, **boot_options):
        self.k = k
        self.machine = boot(k, options, **boot_options)
        super().__init__(self.machine.world)
        self.vm, self.mm = self.machine.vm, self.machine.mm
        self.host = self.machine.host
        self.vcpu = self.vm.vcpus[0]
        self.page = options["page_size"]
        self.pages = pages
        if pages:
            self.mm.add_vma(Vma(HVA, self.at(pages), mergeable=True))
            populate(self.mm, HVA, self.at(pages))

    def at(self, page):
        """Return the hva of a page."""
        return HVA + page * self.page

    def slot(self, slot=0, flags=0, gfn=0, pages=None, page=0):
        """Create or change a memslot; return 0 or the errno."""
        count = self.pages if pages is None else pages
        size, gpa = count * self.page, gfn * self.page
        region = Region(slot, flags, gpa, size, self.at(page))
        return self.do(set_memory_region(self.vm, region))

    def access(self, gfn, how="read"):
        """Let the guest make one access, and stay in the guest."""
        return self.do(guest_access(self.vcpu, gfn, how), "vcpu0")

    def entry(self, gfn):
        """Return the lowest entry of a gfn."""
        return self.k.entry.fn(self.vm, gfn)[0]

    def pfn(self, page):
        """Return the pfn that the host maps at a page; 0 if none."""
        return self.mm.pte(self.vpn(page)) >> PFN_SHIFT

    def vpn(self, page):
        """Return the virtual page number of a page."""
        return HVA // self.page + page


def pytest_addoption(parser):
    parser.addoption(
        "--promote",
        action="store_true",
        help="write what commands print now into the documents",
    )


def pytest_make_parametrize_id(config, val, argname):
    """Write releases as people do."""
    known = argname == "release" and isinstance(val, tuple)
    return f"v{val[0]}.{val[1]}" if known else None


@pytest.fixture
def toy_module(monkeypatch):
    """The toy architecture's module."""
    monkeypatch.syspath_prepend(THIRD_PARTY)
    return importlib.import_module("kvmarch_toy")


@pytest.fixture
def toy(toy_module):
    """The toy architecture, checked."""
    return plugins.check("toy", toy_module, "kvmarch-toy", "1.0")


@pytest.fixture
def toys(toy):
    """What the loader would give if the toy were all there is."""
    return plugins.Plugins([toy], [])


@pytest.fixture
def driver():
    """An empty world to run steps in."""
    made = Driver(World())
    yield made
    for actor in made.actors:
        actor.close()


@pytest.fixture
def link(toy):
    """Assemble a toy kernel; ``fixed`` replaces operations of it."""

    def make(release=(6, 1), plus=(), minus=(), **replaced):
        k = plugins.link(toy, release, plus, minus)
        if not replaced:
            return k
        return Kernel(k.release, k.arch, k.applied, {**k.choices, **replaced})

    return make


@pytest.fixture
def bench_class():
    """The class of machines that tests drive."""
    return Bench


@pytest.fixture
def bench(toy, link):
    """Boot a toy machine of a release."""
    made = []

    def make(release=(6, 1), plus=(), minus=(), pages=16, replaced=None, **options):
        k = link(release, plus, minus, **(replaced or {}))
        one = Bench(k, toy.info.settle(release, {}), pages, **options)
        made.append(one)
        return one

    yield make
    for one in made:
        for actor in one.actors:
            actor.close()


@pytest.fixture
def scenario(tmp_path):
    """Write a scenario file and load it."""

    def make(text, name="test"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text, "utf-8")
        return load(path)

    return make


@pytest.fixture
def play(toy, link, scenario):
    """Play a scenario, given as text or loaded, on the toy."""

    def make(what, release=(6, 1), plus=(), minus=(), **options):
        loaded = scenario(what) if isinstance(what, str) else what
        k = link(release, plus, minus)
        return player.play(loaded, k, toy.info.settle(release, {}), **options)

    return make
