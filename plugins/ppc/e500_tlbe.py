"""TLB entries of e500 guests: what KVM writes into the host's TLB, and its notes.

:Kernel: arch/powerpc/kvm/e500.h and e500_mmu_host.c, v5.11 to v6.14.

There is no table: an entry goes into the TLB with tlbwe, from the registers MAS1,
MAS2, and MAS3 and MAS7 as one value. Positions are those of the fact sheet ppc, section
6; IPROT, TID, TS and U0 to U3 are there without positions or not at all, and were read
in asm/mmu-book3e.h.
"""

__all__ = [
    "BOOK3E_PAGESZ_4K",
    "BOOK3E_PAGESZ_16M",
    "E500_TLB_BITMAP",
    "E500_TLB_MAS2_ATTR",
    "E500_TLB_TLB0",
    "E500_TLB_VALID",
    "E500_TLB_WRITABLE",
    "PERMISSIONS",
    "E500Layout",
    "E500Word",
    "Mas1",
    "Mas2",
    "Mas73",
    "ShadowEntry",
    "TlbeRef",
    "TlbeRefWritable",
    "get_tlb_bytes",
    "kvmppc_e500_ref_setup",
    "kvmppc_e500_setup_stlbe",
    "make_e500_layout",
    "tlbe_is_writable",
]

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from kvmarch_ppc.layout import Layout, find_page_shift

from kvmarch import EntryError, EntryFormat, EntryKind, Field

PAGE_SHIFTS = {4096: 12}
"""PAGE_SHIFT by page size in bytes; e500 kernels have one."""
BOOK3E_PAGESZ_4K = 2
BOOK3E_PAGESZ_16M = 14
_TSIZE_BIAS = 10
"""TSIZE is log2 of the bytes, minus this."""


class E500Word(IntEnum):
    """What an e500 guest's values are, where other MMUs have levels."""

    MAS1 = 0
    MAS2 = 1
    MAS7_3 = 2
    TLBE_REF = 3
    """``flags`` of the tlbe_ref that KVM keeps for each entry of the guest's TLB."""


class _Register(EntryFormat):
    # tlbwe replaces an entry as a whole.
    live_changes = (1 << EntryFormat.width) - 1


class Mas1(_Register):
    """Whose entry it is, and its size."""

    width = 32

    valid = Field(31, fixed=1, doc="MAS1_VALID")
    iprot = Field(30, fixed=0, doc="MAS1_IPROT: never for a guest's entry")
    tid = Field(29, 16, doc="MAS1_TID: address space, added when the entry is written")
    ts = Field(12, doc="MAS1_TS: translation space")
    tsize = Field(11, 7, doc="MAS1_TSIZE: log2 of the bytes, minus 10")


class _Attributes(_Register):
    x0 = Field(6, doc="MAS2_X0")
    x1 = Field(5, doc="MAS2_X1")
    w = Field(4, doc="write-through")
    i = Field(3, doc="caching inhibited")
    m = Field(2, doc="memory coherence")
    g = Field(1, doc="guarded")
    e = Field(0, doc="little-endian")


class Mas2(_Attributes):
    """Which address it is for, and the memory type."""

    epn = Field(63, 12, doc="effective page number")


class Mas73(_Register):
    """What it maps, and who may do what: MAS7 above MAS3."""

    rpn = Field(63, 12, doc="real page number")
    user = Field(9, 6, doc="U0 to U3: the guest's")
    ux = Field(5, doc="user execute")
    sx = Field(4, doc="supervisor execute")
    uw = Field(3, doc="user write")
    sw = Field(2, doc="supervisor write")
    ur = Field(1, doc="user read")
    sr = Field(0, doc="supervisor read")


class TlbeRef(_Attributes):
    """An entry of the guest's TLB that the host's TLB may hold."""

    width = 32

    valid = Field(31, fixed=1, doc="E500_TLB_VALID")
    bitmap = Field(30, doc="E500_TLB_BITMAP: backed by slots of the host's TLB1")
    tlb0 = Field(29, doc="E500_TLB_TLB0: entry of TLB1, backed by the host's TLB0")


class TlbeRefWritable(TlbeRef):
    """The same from v6.13 on (03b755b2aa48 and others of its series)."""

    writable = Field(28, doc="E500_TLB_WRITABLE: the host may write the page")


class Unbacked(_Register):
    """An entry of the guest's TLB that is nowhere in the host's."""

    width = 32


E500_TLB_VALID, E500_TLB_BITMAP = TlbeRef.valid.mask, TlbeRef.bitmap.mask
E500_TLB_TLB0, E500_TLB_WRITABLE = TlbeRef.tlb0.mask, TlbeRefWritable.writable.mask
E500_TLB_MAS2_ATTR = _Attributes.known
PERMISSIONS = Mas73.known & ~Mas73.rpn.mask
"""MAS3_ATTRIB_MASK: what KVM takes from the guest's entry."""

_WRITE = Mas73.uw.mask | Mas73.sw.mask
_PAGE_SHIFT = Mas73.rpn.low


@dataclass(frozen=True, slots=True, eq=False)
class E500Layout(Layout):
    """Shadow entries and notes of an e500 guest."""

    writable: bool
    """Notes say whether the host may write the page."""


def _build(*, writable: bool) -> Iterator[EntryKind]:
    yield EntryKind(E500Word.MAS1, "mas1", Mas1)
    yield EntryKind(E500Word.MAS2, "mas2", Mas2)
    yield EntryKind(E500Word.MAS7_3, "mas7-3", Mas73, maps=True)
    ref = TlbeRefWritable if writable else TlbeRef
    yield EntryKind(E500Word.TLBE_REF, "ref", ref)
    yield EntryKind(E500Word.TLBE_REF, "none", Unbacked)


@cache
def make_e500_layout(page_size: int = 4096, *, writable: bool = True) -> E500Layout:
    """Return the layout of an e500 guest; the same arguments give the same object.

    :param page_size: the host's base page in bytes: 4096.
    :param writable: host writability is tracked, as from v6.13 on.
    :raises FormatError: there are no such pages.
    """
    return E500Layout(
        mmu="e500",
        page_shift=find_page_shift(page_size, PAGE_SHIFTS),
        rows=tuple(_build(writable=writable)),
        writable=writable,
    )


class ShadowEntry(NamedTuple):
    """One entry for the host's TLB."""

    mas1: int
    mas2: int
    mas7_3: int


def get_tlb_bytes(mas1: int) -> int:
    """Return how many bytes an entry maps.

    :Kernel: get_tlb_bytes()
    """
    return 1 << Mas1.tsize.get(mas1) + _TSIZE_BIAS


def tlbe_is_writable(mas7_3: int) -> bool:
    """Return whether the user or the supervisor may write.

    :Kernel: tlbe_is_writable()
    """
    return mas7_3 & _WRITE != 0


def kvmppc_e500_ref_setup(
    layout: E500Layout, attributes: int, *, writable: bool
) -> int:
    """Return the flags that KVM notes when it maps a page.

    :Kernel: kvmppc_e500_ref_setup()
    :param attributes: low bits of MAS2: X0, X1, G, E of the guest and WIMG of the host.
    :param writable: the host may write the page; noted from v6.13 on.
    """
    flags = E500_TLB_VALID | attributes & E500_TLB_MAS2_ATTR
    return flags | E500_TLB_WRITABLE if writable and layout.writable else flags


def kvmppc_e500_setup_stlbe(
    layout: E500Layout,
    flags: int,
    ea: int,
    pfn: int,
    permissions: int,
    *,
    tsize: int = BOOK3E_PAGESZ_4K,
    ts: int = 0,
) -> ShadowEntry:
    """Return the entry for the host's TLB, still without TID.

    :Kernel: kvmppc_e500_setup_stlbe()
    :param flags: from :func:`kvmppc_e500_ref_setup`.
    :param ea: effective address in bytes.
    :param pfn: host frame; it and ``ea`` are at the start of the entry's size.
    :param permissions: low bits of the guest's MAS3.
    :param tsize: log2 of the bytes, minus 10.
    :raises EntryError: address or frame are not aligned, or nothing is mapped.
    """
    if not flags & E500_TLB_VALID:
        raise EntryError(
            f"flags {flags:#x}: nothing is mapped, E500_TLB_VALID is clear"
        )
    below = (1 << tsize + _TSIZE_BIAS) - 1
    pa = pfn << _PAGE_SHIFT
    if (ea & Mas2.epn.mask | pa) & below:
        raise EntryError(f"{ea:#x} or frame {pfn:#x} is not aligned to {below + 1:#x}")
    # Simplified: e500mc. On e500v2 the guest's supervisor runs as host user: TS is
    # always 1, and supervisor permissions move to user ones.
    permissions &= PERMISSIONS
    if layout.writable and not flags & E500_TLB_WRITABLE:
        permissions &= ~_WRITE
    return ShadowEntry(
        mas1=Mas1.pack(ts=ts, tsize=tsize),
        mas2=ea & Mas2.epn.mask | flags & E500_TLB_MAS2_ATTR,
        mas7_3=pa | permissions,
    )
