"""Machines of PowerPC for the tests of its operations."""

import importlib

import pytest
from driving import Driven

from kvmarch import plugins
from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.mmap import madvise_dontneed


class Machine(Driven):
    """A machine with any of the MMUs."""

    def __init__(self, k, options, pages, huge, **boot_options):
        super().__init__(k, options, pages, vma={"huge": huge}, **boot_options)

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
        return [e["why"] for e in self.named("guest_fault") if e["gfn"] == gfn]


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
        one.close()


def _of(mmu):
    @pytest.fixture
    def make(machine):
        def boot_one(release, **options):
            return machine(release, mmu=mmu, **options)

        return boot_one

    make.__doc__ = f"Boot a machine with the MMU {mmu}."
    return make


radix, hashed, pr, e500 = (_of(mmu) for mmu in ("radix", "hash", "pr", "e500"))
