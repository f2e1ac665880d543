"""Machines of PowerPC for the tests of its operations."""

import importlib

import pytest
from driving import Driven

from kvmarch import plugins
from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.mmap import madvise_dontneed
from kvmarch.machine.run import Task, _advance


class Actor:
    """A task that a test moves from step to step."""

    def __init__(self, world, name, path):
        self.world = world
        self.task = Task(name, lambda: path)
        _advance(world, self.task, 0)

    @property
    def next(self):
        """Return the name of the step that comes next; empty when it is done."""
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
        if not self.task.done:
            self.task.path.close()


class Machine(Driven):
    """A machine that remembers the tasks that a test moves."""

    def __init__(self, k, options, pages, huge, **boot_options):
        super().__init__(k, options, pages, vma={"huge": huge}, **boot_options)
        self.actors = []

    def actor(self, name, path):
        """Return a task that the test moves by hand."""
        actor = Actor(self.world, name, path)
        self.actors.append(actor)
        return actor

    def dontneed(self, page=0, pages=1):
        """Return the path of MADV_DONTNEED."""
        return madvise_dontneed(self.mm, self.hva(page), self.hva(page + pages))

    def dirty(self, slot=0):
        """Return errno and bitmap of KVM_GET_DIRTY_LOG."""
        return self.do(get_dirty_log(self.vm, slot))

    def age(self, how, page=0, pages=1):
        """Ask KVM alone whether pages were used."""
        callback = getattr(self.vm.k, how)
        return self.do(callback(self.vm, self.hva(page), self.hva(page + pages)))

    def destroy(self):
        """Close the VM."""
        self.do(destroy_vm(self.vm, self.machine.subscriptions["vm"]))

    def flags(self, gfn, pfn=None):
        """Return an entry without the address of a page, which it must have."""
        value = self.entry(gfn)
        level = self.level(gfn)
        pfn = self.pfn(gfn) if pfn is None else pfn
        assert self.k.entry_pfn.fn(self.k, self.options, value, level) == pfn
        return self.k.entry_repoint.fn(self.k, self.options, value, level, 0)

    def exits(self, gfn):
        """Return why the guest left at accesses to a gfn."""
        return [e["why"] for e in self.events("guest_fault") if e["gfn"] == gfn]


@pytest.fixture
def ppc():
    """The architecture, checked."""
    module = importlib.import_module("kvmarch_ppc")
    return plugins.check("ppc", module, "kvmarch", "0")


@pytest.fixture
def machine(ppc):
    """Boot a machine of a release, with options as text."""
    made = []

    def make(release, *, plus=(), minus=(), pages=16, huge=False, vcpus=1, **options):
        given = {name: str(value) for name, value in options.items()}
        k = plugins.link(ppc, release, plus, minus)
        settled = ppc.info.settle(release, given)
        one = Machine(k, settled, pages, huge, vcpus=vcpus)
        made.append(one)
        return one

    yield make
    for one in made:
        for actor in one.actors:
            actor.close()


def _of(mmu):
    @pytest.fixture
    def make(machine):
        def boot_one(release, **options):
            return machine(release, mmu=mmu, **options)

        return boot_one

    make.__doc__ = f"Boot a machine with the MMU {mmu}."
    return make


radix, hashed, pr, e500 = (_of(mmu) for mmu in ("radix", "hash", "pr", "e500"))
