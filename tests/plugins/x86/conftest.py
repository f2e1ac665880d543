"""Machines of x86 for the tests of its operations."""

import importlib

import pytest

from kvmarch import kvm_flush_remote_tlbs, plugins
from kvmarch.kernel.boot import boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import PFN_SHIFT, Vma
from kvmarch.machine.run import Task, _advance, run_path
from kvmarch.machine.steps import Step

HVA = 0x7F00_0000_0000
PAGE = 4096


async def _alone(step):
    return await step


class Machine:
    """A booted machine whose process has some memory, written already."""

    def __init__(self, k, options, pages, huge, **boot_options):
        self.k = k
        self.machine = boot(k, options, **boot_options)
        self.world, self.vm = self.machine.world, self.machine.vm
        self.mm, self.host = self.machine.mm, self.machine.host
        self.vcpu = self.vm.vcpus[0]
        self.layout = self.vm.arch.layout
        self.pages = pages
        self.mm.add_vma(Vma(HVA, self.hva(pages), huge=huge, mergeable=True))
        populate(self.mm, HVA, self.hva(pages), huge=huge)

    def do(self, what, name="main"):
        """Run a path, or one step, to its end."""
        path = _alone(what) if isinstance(what, Step) else what
        return run_path(self.world, path, name)

    def advance(self, task, until):
        """Move a task until the step of a name comes next; False if it ends before."""
        _advance(self.world, task, 0)
        while not task.done and task.pending.op.name != until:
            if not _advance(self.world, task, 1):
                return False
        return not task.done

    def task(self, name, path):
        """Return a task that a test moves by hand."""
        return Task(name, lambda: path)

    def finish(self, task):
        """Move a task to its end and return its result."""
        while not task.done:
            assert _advance(self.world, task, 1), f"{task} waits at {task.pending}"
        return task.result

    def locked(self, function, *args, **named):
        """Call a plain function with mmu_lock held, then pay what it owes."""

        async def path():
            async with self.vm.mmu_lock.write():
                result = await Step(_Call(function, named), args)
                if self.vm.ledger.owed:
                    await kvm_flush_remote_tlbs(self.vm)
            return result

        return self.do(path())

    def unmap(self, slot, start, end, may_block=True):
        """Unmap a range as a notifier does, and pay what it returns as owed."""

        async def path():
            async with self.vm.mmu_lock.write():
                owed = await self.k.unmap_gfn_range(
                    self.vm, slot, start, end, may_block
                )
                if owed is not None:
                    await kvm_flush_remote_tlbs(self.vm)
            return owed

        return self.do(path())

    def hva(self, page):
        return HVA + page * PAGE

    def slot(self, slot=0, flags=0, gfn=0, pages=None, page=0):
        """Create, change or (with no pages) delete a memslot."""
        count = self.pages if pages is None else pages
        region = Region(slot, flags, gfn * PAGE, count * PAGE, self.hva(page))
        errno = self.do(set_memory_region(self.vm, region))
        assert errno == 0
        return self.vm.memslots[0].by_id(slot)

    def access(self, gfn, how="read", vcpu=0):
        """Let a guest make one access, and stay in the guest."""
        return self.do(guest_access(self.vm.vcpus[vcpu], gfn, how), f"vcpu{vcpu}")

    def entry(self, gfn):
        """Return the lowest entry of a gfn."""
        return self.k.entry.fn(self.vm, gfn)[0]

    def level(self, gfn):
        return self.k.entry.fn(self.vm, gfn)[1]

    def mapped(self, *gfns):
        """Return those of some gfns that have a leaf."""
        wanted = gfns or range(self.pages)
        return [
            g
            for g in wanted
            if self.k.entry_pfn.fn(
                self.k, self.vm.options, *self.k.entry.fn(self.vm, g)
            )
            is not None
        ]

    def pfn(self, page):
        """Return the pfn that the host maps at a page."""
        return self.mm.pte((HVA // PAGE) + page) >> PFN_SHIFT

    def page(self, page):
        return self.host.pages[self.pfn(page)]

    def protect(self, *pages):
        """Let the host map pages read-only from now on, without telling KVM."""
        for page in pages:
            self.mm.ptes[HVA // PAGE + page] &= ~2

    def events(self, name):
        """Return the data of every event of a name."""
        return [event.data for event in self.world.events if event.name == name]

    @property
    def lost(self):
        """Return the ids of the properties that were lost."""
        return [violation.property for violation in self.world.violations]


class _Call:
    """A plain function with keyword arguments, as the operation of a step."""

    sleeps = False

    def __init__(self, function, named):
        self.name = function.__name__
        self.fn = lambda *args: function(*args, **named)


@pytest.fixture
def x86():
    """The architecture, checked."""
    module = importlib.import_module("kvmarch_x86")
    return plugins.check("x86", module, "kvmarch", "0")


@pytest.fixture
def machine(x86):
    """Boot a machine of a release, with options as text."""

    def make(release, *, plus=(), minus=(), pages=16, huge=False, vcpus=1, **options):
        given = {name: str(value) for name, value in options.items()}
        k = plugins.link(x86, release, plus, minus)
        settled = x86.info.settle(release, given)
        return Machine(k, settled, pages, huge, vcpus=vcpus)

    return make


@pytest.fixture
def rmap(machine):
    """Boot a machine with the direct MMU with reverse maps."""

    def make(release, **options):
        return machine(release, mmu="rmap", **options)

    return make
