"""Values that tell the processor about stage 2: VTCR, VTTBR and TLBI operands.

:Kernel: kvm_get_vtcr(), kvm_get_vttbr(); asm/tlbflush.h

Sources: fact sheet arm64, 1.5 and rows 21 and 22 of 1.6.
"""

__all__ = [
    "MAX_TLBI_RANGE_PAGES",
    "RangeOp",
    "TlbiIpa",
    "Vtcr",
    "Vttbr",
    "Vttbr52",
    "kvm_get_vtcr",
    "kvm_get_vttbr",
    "range_pages",
    "tlbi_ipa",
    "tlbi_range_ops",
]

from collections.abc import Iterator
from typing import NamedTuple

from kvmarch_arm64.geometry import (
    KVM_PGTABLE_LAST_LEVEL,
    PARANGES,
    Geometry,
    kvm_ipa_limit,
)

from kvmarch import EntryFormat, Field

_INNER_SHAREABLE = 3
_WRITE_BACK = 1
_TG0 = {12: 0, 14: 2, 16: 1}
_TTL_GRANULES = {12: 1, 14: 2, 16: 3}
_IPA_SHIFT = 12
_LARGEST_SCALE = 3
_LARGEST_NUM = 31
_LPA2_ALIGN = 1 << 16


class Vtcr(EntryFormat):
    """VTCR_EL2: the stage-2 translation regime of a VM."""

    ds = Field(32, doc="52-bit descriptors with 4K and 16K granules (LPA2)")
    res1 = Field(31, fixed=1)
    ha = Field(21, doc="hardware sets the access flag")
    vs = Field(19, doc="VMIDs have 16 bits")
    ps = Field(18, 16, doc="PARange code of the output address size")
    tg0 = Field(15, 14, doc="granule: 0 4K, 1 64K, 2 16K")
    sh0 = Field(13, 12, fixed=_INNER_SHAREABLE, doc="walks are inner shareable")
    orgn0 = Field(11, 10, fixed=_WRITE_BACK, doc="walks are outer write-back")
    irgn0 = Field(9, 8, fixed=_WRITE_BACK, doc="walks are inner write-back")
    sl0 = Field(7, 6, doc="start level, counted down from the granule's base")
    t0sz = Field(5, 0, doc="64 minus the IPA bits")


class Vttbr(EntryFormat):
    """VTTBR_EL2: whose tables, and where they start."""

    vmid = Field(63, 48, doc="what TLB entries are tagged with")
    baddr = Field(47, 1, doc="root >> 1")
    cnp = Field(0, doc="CPUs may share translations (common, not private)")


class Vttbr52(EntryFormat):
    """VTTBR_EL2 with 52-bit physical addresses: the root is aligned to 64 bytes."""

    vmid = Vttbr.vmid
    baddr = Field(47, 6, parts=((5, 2),), doc="root >> 6")
    cnp = Vttbr.cnp


class TlbiIpa(EntryFormat):
    """The operand of TLBI IPAS2E1IS."""

    granule = Field(47, 46, doc="granule of the hint: 0 no hint, 1 4K, 2 16K, 3 64K")
    level = Field(45, 44, doc="level of the leaf")
    ipa = Field(39, 0, doc="ipa >> 12, whatever the granule")


class RangeOp(NamedTuple):
    """One instruction of a range invalidation."""

    start: int
    """The first address in bytes."""
    pages: int
    scale: int | None
    """Scale of a range instruction; None for one page by itself."""
    num: int


def kvm_get_vtcr(
    geometry: Geometry, parange_bits: int, *, vmid_bits: int = 16, ha: bool = True
) -> int:
    """Return VTCR_EL2 for a VM.

    :Kernel: kvm_get_vtcr(), in older releases kvm_arm_setup_stage2()
    :param parange_bits: physical address bits of the CPU; those that the descriptor
        has no room for do not count.
    :param ha: off with CONFIG_ARM64_HW_AFDBM=n (v6.3) or erratum AC03_CPU_38 (v6.5).
    """
    return Vtcr.pack(
        ds=geometry.lpa2,
        ha=ha,
        vs=vmid_bits == Vttbr.vmid.width,
        ps=PARANGES[
            kvm_ipa_limit(geometry.page_size, parange_bits, lpa2=geometry.lpa2)
        ],
        tg0=_TG0[geometry.page_shift],
        sl0=geometry.sl0,
        t0sz=64 - geometry.ia_bits,
    )


def kvm_get_vttbr(
    root_pa: int, vmid: int, *, cnp: bool = False, pa_52: bool = False
) -> int:
    """Return VTTBR_EL2 for a root and a VMID.

    :Kernel: kvm_get_vttbr(), kvm_phys_to_vttbr()
    :param pa_52: the kernel is built for 52-bit physical addresses.
    :raises EntryError: the root or the VMID does not fit.
    """
    if pa_52:
        return Vttbr52.pack(
            vmid=vmid, baddr=root_pa >> Vttbr52.baddr.parts[0][1], cnp=cnp
        )
    return Vttbr.pack(vmid=vmid, baddr=root_pa >> Vttbr.baddr.low, cnp=cnp)


def tlbi_ipa(page_shift: int, ipa: int, level: int | None = None) -> int:
    """Return the operand that invalidates one IPA.

    :Kernel: __tlbi_level(), in stage-2 invalidations since (v5.7, v5.10]; the hint
        needs FEAT_TTL
    :param ipa: in bytes.
    :param level: of the leaf; None, or a level outside 0 to 3, gives no hint. Up to
        v6.7 level 0 gave none either.
    """
    if level is None or not 0 <= level <= KVM_PGTABLE_LAST_LEVEL:
        return TlbiIpa.pack(ipa=ipa >> _IPA_SHIFT)
    return TlbiIpa.pack(
        granule=_TTL_GRANULES[page_shift], level=level, ipa=ipa >> _IPA_SHIFT
    )


def range_pages(scale: int, num: int) -> int:
    """Return how many pages a range instruction covers.

    :Kernel: __TLBI_RANGE_PAGES()
    """
    return num + 1 << 5 * scale + 1


MAX_TLBI_RANGE_PAGES = range_pages(_LARGEST_SCALE, _LARGEST_NUM)
"""Pages that one call may ask for: 2^21. The whole VMID is flushed in such pieces."""


def tlbi_range_ops(geometry: Geometry, start: int, pages: int) -> Iterator[RangeOp]:
    """Yield the instructions that invalidate a range, in order.

    :Kernel: __flush_s2_tlb_range_op(), since v6.6 with FEAT_TLBIRANGE
    :param start: the first address in bytes.
    :param pages: at most :data:`MAX_TLBI_RANGE_PAGES`.
    """
    # Simplified: v6.6 and v6.7 begin with an odd page and go from the smallest scale
    # up; the same pages are covered.
    assert pages <= MAX_TLBI_RANGE_PAGES
    scale = _LARGEST_SCALE
    while pages > 0:
        if pages == 1 or (geometry.lpa2 and start % _LPA2_ALIGN):
            op = RangeOp(start, 1, None, 0)
        else:
            num = min(pages >> 5 * scale + 1, _LARGEST_NUM + 1) - 1
            if num < 0:
                scale -= 1
                continue
            op = RangeOp(start, range_pages(scale, num), scale, num)
            scale -= 1
        yield op
        start += op.pages << geometry.page_shift
        pages -= op.pages
