"""Machines of MIPS for the tests of its operations."""

import importlib

import pytest
from driving import Driven

from kvmarch import plugins
from kvmarch.changes import Kernel
from kvmarch.kernel.reclaim import age


class Machine(Driven):
    """A machine with tables of 4K or 16K pages."""

    def __init__(self, k, options, pages, executable, **boot_options):
        super().__init__(k, options, pages, vma={"exec": executable}, **boot_options)
        self.layout = self.vm.arch.layout
        self.geometry = self.vm.arch.geometry

    def faults(self, gfn, how="read", vcpu=0):
        """Let a guest make one access; return why it was left with a fault."""
        before = len(self.named("guest_fault"))
        assert self.access(gfn, how, vcpu) == "done"
        return [event["why"] for event in self.named("guest_fault")[before:]]

    def age(self, page, how, pages=1):
        return self.do(age(self.mm, self.hva(page), self.hva(page + pages), how))

    def fields(self, gfn):
        """Return the fields of a leaf that are set, but for pfn and CCA."""
        kind, fields = self.decoded(gfn)
        assert kind in {"leaf", "none"}
        return {name for name, value in fields.items() if value} - {"pfn", "cca"}

    def of(self, value, pfn):
        """Return an entry that leads to a page of this machine."""
        return self.k.entry_repoint.fn(self.k, self.options, value, 1, pfn)

    def names(self, since=0):
        """Return the names of the events from a number on."""
        return [event.name for event in self.world.events[since:]]


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
