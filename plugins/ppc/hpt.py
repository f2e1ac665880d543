"""The hashed page table of a guest: its layout, page sizes, hash, and invalidation.

:Kernel: arch/powerpc/include/asm/kvm_book3s_64.h and book3s/64/mmu-hash.h, and
    arch/powerpc/kvm/book3s_64_mmu_hv.c, v4.9 to v6.19 (fact sheet ppc, 4.2 and 4.3).

Values of V and R are in the old layout, as in the kernel's functions; see
:func:`kvmarch_ppc.hpte.hpte_old_to_new`. Book3S PR puts its shadow HPTEs into the
host's own table, which has the same entries.
"""

__all__ = [
    "HPTES_PER_GROUP",
    "KVM_DEFAULT_HPT_ORDER",
    "PAGE_SIZES",
    "VRMA_VSID",
    "HashLayout",
    "HashWord",
    "PageSize",
    "RbLarge",
    "RbSmall",
    "compute_tlbie_rb",
    "hpt_hash",
    "hpte_avpn",
    "hpte_rpn",
    "is_vrma_hpte",
    "kvmppc_actual_pgsz",
    "kvmppc_hpt_mask",
    "kvmppc_hpt_npte",
    "kvmppc_hpte_actual_page_shift",
    "kvmppc_hpte_base_page_shift",
    "kvmppc_hpte_page_shifts",
    "lp_encoding",
    "make_hash_layout",
    "make_pr_layout",
    "primary_group",
    "secondary_group",
    "slb_v",
    "vrma_hpte",
]

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import NamedTuple

from kvmarch_ppc.hpte import (
    HPTE_R_RPN,
    HPTE_V_AVPN,
    HPTE_V_BOLTED,
    HPTE_V_LARGE,
    HPTE_V_SECONDARY,
    GuestRpte,
    HpteR,
    HpteR30,
    HpteV,
    HpteV30,
    Protection,
    SegmentSize,
    hpte_kinds,
    hpte_v_kinds,
)
from kvmarch_ppc.layout import Layout, find_page_shift
from kvmarch_ppc.partition import PartitionHash0, PartitionHash1
from kvmarch_ppc.rmap import RMAP_KINDS

from kvmarch import EntryError, EntryFormat, EntryKind, Field


class HashWord(IntEnum):
    """What a hash guest's values are, where a radix guest has levels."""

    HPTE = 0
    """Both doublewords, 128 bits."""
    HPTE_V = 1
    HPTE_R = 2
    GUEST_RPTE = 3
    """The guest's own second doubleword, in the ``rev[]`` element of an HPTE."""
    PARTITION0 = 4
    """Partition-table entry, first doubleword: where the HPT is."""
    PARTITION1 = 5
    """Partition-table entry, second doubleword."""
    RMAP = 6
    """The memslot's word of a page."""


@dataclass(frozen=True, slots=True, eq=False)
class HashLayout(Layout):
    """HPTEs as they lie in memory."""

    isa300: bool
    """POWER9 and later: the segment size is in R."""
    rpn_mask: int
    avpn_mask: int


def _build(*, pr: bool, isa300: bool) -> Iterator[EntryKind]:
    mapping = ("valid", "invalidating")
    for kind, hpte in hpte_kinds(pr=pr, isa300=isa300).items():
        yield EntryKind(HashWord.HPTE, kind, hpte, maps=kind in mapping)
    for kind, v in hpte_v_kinds(pr=pr, isa300=isa300).items():
        yield EntryKind(HashWord.HPTE_V, kind, v)
    yield EntryKind(HashWord.HPTE_R, "rpte", HpteR30 if isa300 else HpteR)
    if pr:
        return
    yield EntryKind(HashWord.GUEST_RPTE, "guest-rpte", GuestRpte)
    if isa300:
        yield EntryKind(HashWord.PARTITION0, "root", PartitionHash0)
        yield EntryKind(HashWord.PARTITION1, "process-table", PartitionHash1)
    for kind, word in RMAP_KINDS.items():
        yield EntryKind(HashWord.RMAP, kind, word)


def _make_layout(mmu: str, page_size: int, *, isa300: bool) -> HashLayout:
    return HashLayout(
        mmu=mmu,
        page_shift=find_page_shift(page_size),
        rows=tuple(_build(pr=mmu == "pr", isa300=isa300)),
        isa300=isa300,
        rpn_mask=(HpteR30 if isa300 else HpteR).rpn.mask,
        avpn_mask=(HpteV30 if isa300 else HpteV).avpn.mask,
    )


@cache
def make_hash_layout(page_size: int = 65536, *, isa300: bool = False) -> HashLayout:
    """Return the layout of a Book3S HV hash guest; same arguments, same object.

    :param page_size: the host's base page in bytes.
    :param isa300: POWER9 and later, which also have a partition table.
    :raises FormatError: there are no such pages.
    """
    return _make_layout("hash", page_size, isa300=isa300)


@cache
def make_pr_layout(page_size: int = 65536, *, isa300: bool = False) -> HashLayout:
    """Return the layout of Book3S PR's shadow HPTEs; same arguments, same object.

    :param page_size: the host's base page in bytes.
    :param isa300: POWER9 and later.
    :raises FormatError: there are no such pages.
    """
    return _make_layout("pr", page_size, isa300=isa300)


class PageSize(NamedTuple):
    """What the low bits of a large page's RPN stand for."""

    lp: int
    """R bits 15:12."""
    high: int | None
    """R bits 19:16; None if they belong to the address."""
    base: int
    """log2 of the segment's base page."""
    actual: int
    """log2 of the page."""


PAGE_SIZES = (
    PageSize(lp=0, high=0, base=24, actual=24),
    PageSize(lp=1, high=None, base=16, actual=16),
    PageSize(lp=3, high=0, base=34, actual=34),
    PageSize(lp=7, high=None, base=12, actual=16),
    PageSize(lp=8, high=0, base=16, actual=24),
    PageSize(lp=8, high=3, base=12, actual=24),
)
"""Large pages by the low bits of the RPN; everything else is invalid."""


class LargePage(EntryFormat):
    """The low bits of a large page's RPN, which overlap the address."""

    high = Field(19, 16, doc="more of the encoding, or address")
    lp = Field(15, 12, doc="encoding of the page size")


_BASE_SHIFT = 12
"""log2 of the base page of HPTEs without HPTE_V_LARGE."""
_LP_SHIFT = LargePage.lp.low
_LP_BYTE = LargePage.known >> _LP_SHIFT
_ACTUAL = 8
"""How far kvmppc_hpte_page_shifts() moves the page up beside its base page."""
_BASE_MASK = (1 << _ACTUAL) - 1


def _page_shifts() -> tuple[int, ...]:
    shifts = [0] * (_LP_BYTE + 1)
    for code in range(_LP_BYTE + 1):
        fields = LargePage.unpack(code << _LP_SHIFT)
        for size in PAGE_SIZES:
            if size.lp == fields["lp"] and size.high in (None, fields["high"]):
                large = size.actual << _ACTUAL if size.actual != size.base else 0
                shifts[code] = large | size.base
    return tuple(shifts)


_PAGE_SHIFTS = _page_shifts()


def kvmppc_hpte_page_shifts(v: int, r: int) -> int:
    """Return log2 of an HPTE's page, and above bit 8 if the base page is smaller.

    :Kernel: kvmppc_hpte_page_shifts()
    :returns: base page, plus 256 times the page where they differ; 0 if invalid.
    """
    if not v & HPTE_V_LARGE:
        return _BASE_SHIFT
    return _PAGE_SHIFTS[r >> _LP_SHIFT & _LP_BYTE]


def kvmppc_hpte_base_page_shift(v: int, r: int) -> int:
    """Return log2 of the segment's base page; 0 if invalid.

    :Kernel: kvmppc_hpte_base_page_shift()
    """
    return kvmppc_hpte_page_shifts(v, r) & _BASE_MASK


def kvmppc_hpte_actual_page_shift(v: int, r: int) -> int:
    """Return log2 of the page; 0 if invalid.

    :Kernel: kvmppc_hpte_actual_page_shift()
    """
    shifts = kvmppc_hpte_page_shifts(v, r)
    return shifts >> _ACTUAL or shifts


def kvmppc_actual_pgsz(v: int, r: int) -> int:
    """Return the page size in bytes; 0 if invalid.

    :Kernel: kvmppc_actual_pgsz()
    """
    shift = kvmppc_hpte_actual_page_shift(v, r)
    return 1 << shift if shift else 0


def lp_encoding(base: int, actual: int) -> tuple[int, int]:
    """Return HPTE_V_LARGE (or 0) and the low bits of the RPN for a page size.

    :param base: log2 of the segment's base page.
    :param actual: log2 of the page.
    :raises EntryError: POWER7 to POWER9 have no such combination.
    """
    if base == actual == _BASE_SHIFT:
        return 0, 0
    for size in PAGE_SIZES:
        if (size.base, size.actual) == (base, actual):
            low = LargePage.pack(lp=size.lp, high=size.high or 0)
            return HPTE_V_LARGE, low
    known = ", ".join(f"{s.base}/{s.actual}" for s in PAGE_SIZES)
    raise EntryError(
        f"no page of 2^{actual} bytes with base 2^{base}; there is 12/12, {known}"
    )


def hpte_rpn(ptel: int, psize: int, page_shift: int) -> int:
    """Return the number of the first base page of a second doubleword.

    :Kernel: hpte_rpn()
    :param psize: size of the HPTE's page in bytes.
    :param page_shift: PAGE_SHIFT of the host.
    :returns: a gfn from ``guest_rpte``, a pfn from the real one.
    """
    return (ptel & HPTE_R_RPN & -psize) >> page_shift


KVM_DEFAULT_HPT_ORDER = 24
"""log2 of the bytes of an HPT."""
HPTES_PER_GROUP = 8
_HPTE_SHIFT = 4
_GROUP_SHIFT = 7


def kvmppc_hpt_npte(order: int) -> int:
    """Return how many HPTEs a table of 2^order bytes has.

    :Kernel: kvmppc_hpt_npte()
    """
    return 1 << order - _HPTE_SHIFT


def kvmppc_hpt_mask(order: int) -> int:
    """Return the mask that makes a hash a group of a table of 2^order bytes.

    :Kernel: kvmppc_hpt_mask()
    """
    return (1 << order - _GROUP_SHIFT) - 1


SEGMENT_SHIFTS = (28, 40)
"""By segment size, log2 of its bytes: SID_SHIFT and SID_SHIFT_1T."""
_ADDRESS_SHIFT = 16
"""How far V moves an address down; so does the VSID in an SLB entry."""
_1T_HASH_SHIFT = 25
_AVPN_LOW = HpteV.avpn.low


def slb_v(vsid: int, ssize: int) -> int:
    """Return what KVM keeps of a segment: B and the VSID, as an SLB entry has them.

    :param ssize: a :class:`~kvmarch_ppc.hpte.SegmentSize`.
    """
    shift = SEGMENT_SHIFTS[ssize] - _ADDRESS_SHIFT
    return HpteV.b.place(ssize) | vsid << shift


def hpte_avpn(slb: int, ea: int, pshift: int) -> int:
    """Return V of an address without its state: B and AVPN.

    :Kernel: kvmppc_hv_find_lock_hpte()
    :param slb: the segment, from :func:`slb_v`.
    :param ea: effective address in bytes.
    :param pshift: log2 of the base page.
    """
    somask = (1 << SEGMENT_SHIFTS[HpteV.b.get(slb)]) - 1
    avpn = slb & ~(somask >> _ADDRESS_SHIFT) | (ea & somask) >> _ADDRESS_SHIFT
    return avpn & -(1 << max(_AVPN_LOW, pshift - _ADDRESS_SHIFT))


def hpt_hash(vsid: int, ea: int, pshift: int, ssize: int) -> int:
    """Return the hash of an address, not yet cut to a table.

    :Kernel: hpt_hash(), kvmppc_hv_find_lock_hpte()
    """
    somask = (1 << SEGMENT_SHIFTS[ssize]) - 1
    page = (ea & somask) >> pshift
    if ssize == SegmentSize.S1T:
        return vsid ^ vsid << _1T_HASH_SHIFT ^ page
    return vsid ^ page


def primary_group(hash_: int, order: int) -> int:
    """Return the group of a hash; its first HPTE has eight times the number."""
    return hash_ & kvmppc_hpt_mask(order)


def secondary_group(hash_: int, order: int) -> int:
    """Return the group where HPTEs with HPTE_V_SECONDARY are."""
    return ~hash_ & kvmppc_hpt_mask(order)


VRMA_VSID = 0x1FFFFFF
"""The segment through which a guest without translation is mapped."""
_VRMA_SLOT = HPTES_PER_GROUP - 1
_VRMA_PERMS = HpteR.pack(r=1, c=1, m=1, pp=Protection.RWXX)
_VRMA_V = slb_v(VRMA_VSID, SegmentSize.S1T)
_VRMA_V_MASK = -(1 << SEGMENT_SHIFTS[SegmentSize.S1T] - _ADDRESS_SHIFT)


def vrma_hpte(page: int, porder: int, order: int) -> tuple[int, int, int]:
    """Return V, R and the index of the HPTE that maps a page of the VRMA.

    VALID is not set: V goes through H_ENTER.

    :Kernel: kvmppc_map_vrma()
    :param page: number of the page, in pages of the VRMA.
    :param porder: log2 of their size.
    :param order: log2 of the bytes of the HPT.
    """
    addr = page << porder
    large, low = lp_encoding(porder, porder)
    v = hpte_avpn(_VRMA_V, addr, _BASE_SHIFT) | HPTE_V_BOLTED | large
    group = primary_group(hpt_hash(VRMA_VSID, addr, porder, SegmentSize.S1T), order)
    return v, addr | low | _VRMA_PERMS, group * HPTES_PER_GROUP + _VRMA_SLOT


def is_vrma_hpte(v: int) -> bool:
    """Return whether a first doubleword is one of the VRMA's.

    :Kernel: is_vrma_hpte()
    """
    return v & _VRMA_V_MASK == _VRMA_V


class RbSmall(EntryFormat):
    """What tlbie takes in RB for a segment of 4K base pages."""

    ava = Field(63, 12, doc="virtual address")
    b = Field(9, 8, enum=SegmentSize, doc="segment size")
    ap = Field(7, 5, doc="page: 0 for 4K, 5 for 64K, 4 for 16M")
    large = Field(0, fixed=0, doc="L: base pages of 4K")


class RbLarge(EntryFormat):
    """What tlbie takes in RB for a segment of larger base pages."""

    ava = Field(63, 20, doc="virtual address")
    lp = Field(
        19, 12, doc="virtual address down to the page, then encoding of the size"
    )
    b = Field(9, 8, enum=SegmentSize, doc="segment size")
    aval = Field(7, 1, doc="more of the virtual address: its bits 19:13")
    large = Field(0, fixed=1, doc="L: base pages larger than 4K")


_AP = {12: 0, 16: RbSmall.ap.place(5), 24: RbSmall.ap.place(4)}
_VA_LOW_BITS = 11
"""How many bits of a page number the AVPN lacks at most: address bits 22:12."""
_VA_LOW_MASK = (1 << _VA_LOW_BITS) - 1
_VA_LOW_PLACE = _VA_LOW_MASK << _BASE_SHIFT
_AVA, _RB_B, _AVAL = RbSmall.ava.mask, RbSmall.b.mask, RbLarge.aval.mask
_AVAL_MOVE = 13 - RbLarge.aval.low
_B_LOW = HpteV.b.low
_B_MOVE = _B_LOW - RbSmall.b.low
_VSID_MOVES = tuple(shift - _ADDRESS_SHIFT for shift in SEGMENT_SHIFTS)
_LP, _RB_LARGE = LargePage.known, RbLarge.kind_value


def compute_tlbie_rb(v: int, r: int, pte_index: int) -> int:
    """Return what tlbie takes in RB to invalidate an HPTE.

    The part of the address that V does not have follows from the group: the hash
    without the VSID.

    :Kernel: compute_tlbie_rb(). The fact sheet has one result; the rest was read there.
    :param pte_index: number of the HPTE in the table.
    """
    shifts = kvmppc_hpte_page_shifts(v, r)
    base, actual = shifts & _BASE_MASK, shifts >> _ACTUAL or shifts
    group = pte_index // HPTES_PER_GROUP
    if v & HPTE_V_SECONDARY:
        group = ~group
    # Of B, the kernel too looks at the low bit alone.
    vsid = v >> _VSID_MOVES[v >> _B_LOW & 1]
    page = (group ^ vsid) & _VA_LOW_MASK
    address = (v & HPTE_V_AVPN) << _ADDRESS_SHIFT & _AVA
    b = v >> _B_MOVE & _RB_B
    if base <= _BASE_SHIFT:
        return address | page << _BASE_SHIFT | b | _AP.get(actual, 0)
    low = page << base
    size_mask = (1 << actual) - 1
    address = (address | low & _VA_LOW_PLACE) & ~size_mask
    return address | b | low >> _AVAL_MOVE & _AVAL | r & _LP & size_mask | _RB_LARGE
