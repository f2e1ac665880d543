"""Machines of arm64 for the tests of its operations."""

import importlib

import pytest

from kvmarch import kvm_flush_remote_tlbs, op, plugins
from kvmarch.kernel.boot import boot
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import PFN_SHIFT, WRITE, HostPte, Vma
from kvmarch.machine.run import Task, _advance, run_path
from kvmarch.machine.steps import Step

HVA = 0x7F00_0000_0000


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
        self.mmu = self.vm.arch
        self.page_size = options["page_size"]
        self.pages = pages
        self.mm.add_vma(Vma(HVA, self.hva(pages), huge=huge, mergeable=True))
        populate(self.mm, HVA, self.hva(pages), huge=huge)

    def do(self, what, name="main"):
        """Run a path, or one step, to its end."""
        path = _alone(what) if isinstance(what, Step) else what
        return run_path(self.world, path, name)

    # -- tasks that a test moves by hand ------------------------------------------

    def task(self, name, path):
        return Task(name, lambda: path)

    def advance(self, task, until):
        """Move a task until the step of a name comes next."""
        _advance(self.world, task, 0)
        while not task.done and task.pending.op.name != until:
            assert _advance(self.world, task, 1), f"{task} waits at {task.pending}"
        assert not task.done, f"{task} never came to {until}"

    def step(self, task, count=1):
        """Move a task by some steps; return how many it took."""
        return _advance(self.world, task, count)

    def finish(self, task):
        """Move a task to its end and return its result."""
        while not task.done:
            assert _advance(self.world, task, 1), f"{task} waits at {task.pending}"
        return task.result

    def locked(self, step):
        """Run a step or a path with mmu_lock held, and pay what it owes."""

        async def path():
            async with self.vm.mmu_lock.write():
                result = await step
                if self.vm.ledger.owed:
                    await kvm_flush_remote_tlbs(self.vm)
            return result

        return self.do(path())

    # -- the VM ---------------------------------------------------------------------

    def hva(self, page):
        return HVA + page * self.page_size

    def region(self, slot=0, flags=0, gfn=0, pages=None, page=0):
        """Return the path of a memslot change; deletion for no pages."""
        size, count = self.page_size, self.pages if pages is None else pages
        region = Region(slot, flags, gfn * size, count * size, self.hva(page))
        return set_memory_region(self.vm, region)

    def slot(self, slot=0, **what):
        """Change a memslot; return it."""
        assert self.do(self.region(slot, **what)) == 0
        return self.vm.memslots[0].by_id(slot)

    def guest(self, gfn, how="read", vcpu=0):
        """Return the path of one guest access."""
        return guest_access(self.vm.vcpus[vcpu], gfn, how)

    def access(self, *gfns, how="read", vcpu=0):
        """Let a guest access pages, and stay in the guest; return the last result."""
        result = None
        for gfn in gfns:
            result = self.do(self.guest(gfn, how, vcpu), f"vcpu{vcpu}")
        return result

    @property
    def split(self):
        """Return the step that splits the blocks of a range."""
        pgtable = importlib.import_module("kvmarch_arm64.pgtable")
        return op(name="split")(pgtable.kvm_pgtable_stage2_split)

    def change(self, gfn, new):
        """Store an entry over the live one of a gfn."""
        walk = importlib.import_module("kvmarch_arm64.walk")
        table, index, _level, old = walk.leaf_of(self.vm, gfn)
        walk.change_attributes(self.vm, table, index, old, new)

    # -- looks ------------------------------------------------------------------------

    def entry(self, gfn):
        return self.k.entry.fn(self.vm, gfn)[0]

    def level(self, gfn):
        return self.k.entry.fn(self.vm, gfn)[1]

    def kind(self, gfn):
        entry, level = self.k.entry.fn(self.vm, gfn)
        return self.k.decode.fn(self.k, self.vm.options, entry, level)[0]

    def field(self, gfn, name):
        entry, level = self.k.entry.fn(self.vm, gfn)
        return self.k.decode.fn(self.k, self.vm.options, entry, level)[1][name]

    def table(self, gfn, level=3):
        """Return the table that holds a gfn's entry of a level; None for none."""
        where = self.k.leaf_table.fn(self.vm, gfn, level)
        return None if where is None else self.vm.tables.at(where[0])

    def pfn(self, page):
        return self.mm.pte(HVA // self.page_size + page) >> PFN_SHIFT

    def host_pte(self, page, pfn):
        """Return the host PTE that changes a page to another frame."""
        return HostPte.pfn.set(self.mm.pte(HVA // self.page_size + page), pfn)

    def protect(self, *pages):
        """Let the host map pages read-only from now on, without telling KVM."""
        for page in pages:
            self.mm.ptes[HVA // self.page_size + page] &= ~WRITE

    def exits(self, vcpu=0):
        return self.vm.vcpus[vcpu].exits.total()

    def events(self, name):
        """Return the data of every event of a name."""
        return [event.data for event in self.world.events if event.name == name]

    @property
    def lost(self):
        """Return the ids of the properties that were lost."""
        return [violation.property for violation in self.world.violations]

    def assert_counted(self):
        """Check that each table counts its entries, and that none is locked."""
        layout = self.mmu.layout
        for table in self.vm.tables.live.values():
            entries = [entry for _index, entry in table.used(0, table.size)]
            counted = [entry for entry in entries if entry & layout.counted_mask]
            assert table.refs == 1 + len(counted)
            assert layout.locked is None or layout.locked not in entries


@pytest.fixture
def arm64():
    """The architecture, checked."""
    module = importlib.import_module("kvmarch_arm64")
    return plugins.check("arm64", module, "kvmarch", "0")


@pytest.fixture
def machine(arm64):
    """Boot a machine of a release, with options as text."""

    def make(release, *, plus=(), minus=(), pages=16, huge=False, vcpus=1, **options):
        given = {name: str(value) for name, value in options.items()}
        k = plugins.link(
            arm64, release, *([f"arm64-{n}" for n in names] for names in (plus, minus))
        )
        settled = arm64.info.settle(release, given)
        return Machine(k, settled, pages, huge, vcpus=vcpus)

    return make
