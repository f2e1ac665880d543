"""Machines of arm64 for the tests of its operations."""

import importlib

import pytest
from driving import Driven

from kvmarch import kvm_flush_remote_tlbs, op, plugins
from kvmarch.machine.host import HostPte


class Machine(Driven):
    """A machine with tables of stage 2."""

    def __init__(self, k, options, pages, huge, **boot_options):
        super().__init__(k, options, pages, vma={"huge": huge}, **boot_options)
        self.mmu = self.vm.arch

    def access(self, *gfns, how="read", vcpu=0):
        """Let a guest access pages, and stay in the guest; return the last result."""
        result = None
        for gfn in gfns:
            result = super().access(gfn, how, vcpu)
        return result

    def locked(self, step):
        """Run a step or a path with mmu_lock held, and pay what it owes."""

        async def path():
            async with self.vm.mmu_lock.write():
                result = await step
                if self.vm.ledger.owed:
                    await kvm_flush_remote_tlbs(self.vm)
            return result

        return self.do(path())

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

    def field(self, gfn, name):
        return self.decoded(gfn)[1][name]

    def table(self, gfn, level=3):
        """Return the table that holds a gfn's entry of a level; None for none."""
        where = self.k.leaf_table.fn(self.vm, gfn, level)
        return None if where is None else self.vm.tables.at(where[0])

    def host_pte(self, page, pfn):
        """Return the host PTE that changes a page to another frame."""
        return HostPte.pfn.set(self.mm.pte(self.vpn(page)), pfn)

    def exits(self, vcpu=0):
        return self.vm.vcpus[vcpu].exits.total()

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
