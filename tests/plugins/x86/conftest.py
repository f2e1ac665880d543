"""Machines of x86 for the tests of its operations."""

import importlib

import pytest
from driving import Driven

from kvmarch import kvm_flush_remote_tlbs, plugins
from kvmarch.machine.steps import Step


class Machine(Driven):
    """A machine with TDP or rmap tables."""

    def __init__(self, k, options, pages, huge, **boot_options):
        super().__init__(k, options, pages, vma={"huge": huge}, **boot_options)
        self.layout = self.vm.arch.layout

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

    def page(self, page):
        return self.host.pages[self.pfn(page)]


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
