"""Entries of the G-stage, bit by bit.

:Kernel: asm/pgtable-bits.h, asm/pgtable-64.h, as far as arch/riscv/kvm uses them (fact
    sheet riscv, 1.1, 1.4).
"""

__all__ = [
    "Device",
    "Empty",
    "KernelDevice",
    "KernelDevicePbmt",
    "Leaf",
    "Leaf1G",
    "Leaf2M",
    "Pbmt",
    "PlainDevice",
    "Table",
    "leaf_format",
]

from enum import IntEnum

from kvmarch import EntryFormat, Field

_ANY = (1 << EntryFormat.width) - 1
"""The privileged architecture knows no break-before-make: any store is allowed over
any entry, and a fence makes it seen."""


class Pbmt(IntEnum):
    """Page-based memory types of Svpbmt."""

    PMA = 0
    NC = 1
    IO = 2


class Empty(EntryFormat):
    """No entry. KVM looks at all bits, not at V: what is not 0 is one."""

    live_changes = _ANY


class _Valid(EntryFormat):
    live_changes = _ANY

    n = Field(63, fixed=0, doc="Svnapot: one of a run of equal leaves; never set here")
    pbmt = Field(62, 61, fixed=0, doc="memory type of Svpbmt")
    v = Field(0, fixed=1, doc="valid")


class Table(_Valid):
    """A pointer to a table of the next lower level: V, and nothing else."""

    ppn = Field(53, 10, doc="page number of the table")
    rsw = Field(9, 8, fixed=0, doc="software")
    attributes = Field(7, 4, fixed=0, doc="D, A, G and U must be 0 in a pointer")
    rwx = Field(3, 1, fixed=0, doc="R, W and X are 0: not a leaf")


class _AnyLeaf(_Valid):
    ppn = Field(53, 10, doc="page number")
    rsw = Field(9, 8, fixed=0, doc="software; KVM uses neither bit")
    d = Field(7, fixed=1, doc="dirty: set when the entry is made, never cleared")
    a = Field(6, doc="accessed: set when the entry is made, cleared by aging")
    g = Field(5, fixed=0, doc="global: ignored in the G-stage")
    u = Field(4, fixed=1, doc="user: without it every access of a guest faults")
    x = Field(3, fixed=1, doc="execute: KVM asks for it always, but of devices")
    w = Field(2, doc="write")
    r = Field(1, fixed=1, doc="read")


class Leaf(_AnyLeaf):
    """A page of 4 KiB."""


class Leaf2M(_AnyLeaf):
    """A page of 2 MiB; one that is not aligned faults."""

    ppn = Field(53, 19, shift=9, doc="page number")


class Leaf1G(_AnyLeaf):
    """A page of 1 GiB; one that is not aligned faults."""

    ppn = Field(53, 28, shift=18, doc="page number")


class PlainDevice(_AnyLeaf):
    """A page of a device, such as an interrupt file in the kernel: no X."""

    a = Field(6, fixed=1, doc="accessed")
    x = Field(3, fixed=0, doc="execute")


class Device(PlainDevice):
    """The same with Svpbmt: uncached."""

    pbmt = Field(62, 61, fixed=2, doc="memory type of Svpbmt: IO")


class KernelDevice(_AnyLeaf):
    """A page of a device before 9bca8be646e0 (v6.17): G instead of U.

    No guest can use it (fact sheet riscv, 5, bug 2).
    """

    a = Field(6, fixed=1, doc="accessed")
    g = Field(5, fixed=1, doc="global: ignored in the G-stage")
    u = Field(4, fixed=0, doc="user: without it every access of a guest faults")
    x = Field(3, fixed=0, doc="execute")


class KernelDevicePbmt(KernelDevice):
    """The same with Svpbmt, from v6.1 on."""

    pbmt = Field(62, 61, fixed=2, doc="memory type of Svpbmt: IO")


_LEAVES: tuple[type[_AnyLeaf], ...] = (Leaf, Leaf2M, Leaf1G)


def leaf_format(level: int) -> type[EntryFormat]:
    """Return the format of a leaf of a level."""
    return _LEAVES[level]
