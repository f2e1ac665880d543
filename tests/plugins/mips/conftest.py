"""Machines of MIPS for the tests of its operations."""

import importlib

import pytest

from kvmarch import plugins
from kvmarch.changes import Kernel
from kvmarch.kernel.boot import boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.reclaim import age
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import PFN_SHIFT, Vma
from kvmarch.machine.run import Task, _advance, run_path
from kvmarch.machine.steps import Step

HVA = 0x7F00_0000_0000


async def _alone(step):
    return await step


class Machine:
    """A booted machine whose process has some memory, written already."""

    def __init__(self, k, options, pages, executable, **boot_options):
        self.k = k
        self.options = options
        self.machine = boot(k, options, **boot_options)
        self.world, self.vm = self.machine.world, self.machine.vm
        self.mm, self.host = self.machine.mm, self.machine.host
        self.vcpu = self.vm.vcpus[0]
        self.layout = self.vm.arch.layout
        self.geometry = self.vm.arch.geometry
        self.page_size = options["page_size"]
        self.pages = pages
        end = self.hva(pages)
        self.mm.add_vma(Vma(HVA, end, exec=executable, mergeable=True))
        populate(self.mm, HVA, end)

    def do(self, what, name="main"):
        """Run a path, or one step, to its end."""
        path = _alone(what) if isinstance(what, Step) else what
        return run_path(self.world, path, name)

    def hva(self, page):
        return HVA + page * self.page_size

    def region(self, slot=0, flags=0, gfn=0, pages=None, page=0):
        """Return the path of a memslot change, deletion for no pages."""
        count = self.pages if pages is None else pages
        size = self.page_size
        region = Region(slot, flags, gfn * size, count * size, self.hva(page))
        return set_memory_region(self.vm, region)

    def slot(self, slot=0, **what):
        """Change a memslot; return it."""
        assert self.do(self.region(slot, **what)) == 0
        return self.vm.memslots[0].by_id(slot)

    def access(self, gfn, how="read", vcpu=0):
        """Let a guest make one access, and stay in the guest."""
        return self.do(guest_access(self.vm.vcpus[vcpu], gfn, how), f"vcpu{vcpu}")

    def faults(self, gfn, how="read", vcpu=0):
        """Let a guest make one access; return why it was left with a fault."""
        before = len(self.events("guest_fault"))
        assert self.access(gfn, how, vcpu) == "done"
        return [event["why"] for event in self.events("guest_fault")[before:]]

    def age(self, page, how, pages=1):
        return self.do(age(self.mm, self.hva(page), self.hva(page + pages), how))

    def entry(self, gfn):
        """Return the lowest entry of a gfn."""
        return self.k.entry.fn(self.vm, gfn)[0]

    def fields(self, gfn):
        """Return the fields of a leaf that are set, but for pfn and CCA."""
        kind, fields = self.k.decode.fn(
            self.k, self.options, *self.k.entry.fn(self.vm, gfn)
        )
        assert kind in {"leaf", "none"}
        return {name for name, value in fields.items() if value} - {"pfn", "cca"}

    def mapped(self, *gfns):
        """Return those of some gfns that have a leaf."""
        return [
            gfn
            for gfn in gfns or range(self.pages)
            if self.k.entry_pfn.fn(self.k, self.options, *self.k.entry.fn(self.vm, gfn))
            is not None
        ]

    def pfn(self, page):
        """Return the pfn that the host maps at a page."""
        return self.mm.pte(HVA // self.page_size + page) >> PFN_SHIFT

    def of(self, value, pfn):
        """Return an entry that leads to a page of this machine."""
        return self.k.entry_repoint.fn(self.k, self.options, value, 1, pfn)

    def events(self, name):
        """Return the data of every event of a name."""
        return [event.data for event in self.world.events if event.name == name]

    def names(self, since=0):
        """Return the names of the events from a number on."""
        return [event.name for event in self.world.events[since:]]

    @property
    def lost(self):
        """Return the ids of the properties that were lost."""
        return [violation.property for violation in self.world.violations]

    # -- tasks that a test moves by hand --

    def task(self, name, path):
        return Task(name, lambda: path)

    def to(self, task, until):
        """Move a task until the step of a name comes next."""
        _advance(self.world, task, 0)
        while not task.done and task.pending.op.name != until:
            assert _advance(self.world, task, 1), f"{task} waits at {task.pending}"
        assert not task.done, f"{task} never comes to {until}"

    def step(self, task):
        """Take one step of a task; return whether it could be taken."""
        _advance(self.world, task, 0)
        return _advance(self.world, task, 1) == 1

    def end(self, task):
        """Move a task to its end and return its result."""
        _advance(self.world, task, 0)
        while not task.done:
            assert _advance(self.world, task, 1), f"{task} waits at {task.pending}"
        return task.result


@pytest.fixture
def mips():
    """The architecture, checked."""
    return plugins.check("mips", importlib.import_module("kvmarch_mips"), "kvmarch", "")


@pytest.fixture
def machine(mips):
    """Boot a machine of a release; options are given as text."""

    def make(
        release=(6, 1),
        plus=(),
        minus=(),
        pages=16,
        executable=False,
        boot=(),
        replaced=(),
        **options,
    ):
        k = plugins.link(mips, release, plus, minus)
        if replaced:
            k = Kernel(k.release, k.arch, k.applied, {**k.choices, **dict(replaced)})
        settled = mips.info.settle(release, options)
        return Machine(k, settled, pages, executable, **dict(boot))

    return make
