"""Entries of a hashed page table (HPTEs): their two doublewords, V and R.

:Kernel: arch/powerpc/include/asm/book3s/64/mmu-hash.h and kvm_book3s_64.h, and
    arch/powerpc/kvm/book3s_hv_rm_mmu.c and book3s_64_mmu_hv.c, v4.9 to v6.19.

Each bit is stated once, here; positions are those of the fact sheet ppc, section 4.1.
There are two layouts: KVM's code compares in the old one, POWER9 and later read another
one (ISA 3.0) from memory. A whole HPTE as one value has 128 bits, V above R, as its 16
bytes lie in memory.
"""

__all__ = [
    "HPTE_GR_MODIFIED",
    "HPTE_R_C",
    "HPTE_R_KEY",
    "HPTE_R_PP",
    "HPTE_R_PP0",
    "HPTE_R_R",
    "HPTE_R_RPN",
    "HPTE_V_ABSENT",
    "HPTE_V_AVPN",
    "HPTE_V_BOLTED",
    "HPTE_V_HVLOCK",
    "HPTE_V_LARGE",
    "HPTE_V_SECONDARY",
    "HPTE_V_VALID",
    "GuestRpte",
    "Hpte",
    "HpteR",
    "HpteR30",
    "HpteV",
    "HpteV30",
    "HpteVPr",
    "Protection",
    "SegmentSize",
    "hpte_is_mmio",
    "hpte_is_writable",
    "hpte_join",
    "hpte_kinds",
    "hpte_make_absent",
    "hpte_make_mmio",
    "hpte_make_readonly",
    "hpte_new_to_old",
    "hpte_old_to_new",
    "hpte_set_pa",
    "hpte_split",
    "hpte_state",
    "hpte_v_kinds",
]

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from kvmarch import EntryError, EntryFormat, Field

WORD = EntryFormat.width
"""Bits of a doubleword."""
_ONES = (1 << WORD) - 1


class SegmentSize(IntEnum):
    """B; 2 and 3 are reserved, but up to v5.15 H_ENTER let them pass."""

    S256M = 0
    S1T = 1
    RESERVED_2 = 2
    RESERVED_3 = 3


class Protection(IntEnum):
    """PP0 and PP: what keys 0 and 1 of the segment may do; R, W, or X for neither."""

    RWXX = 0
    RWRX = 1
    RWRW = 2
    RXRX = 3
    RESERVED_4 = 4
    RESERVED_5 = 5
    RXXX = 6
    RESERVED_7 = 7


class Live(EntryFormat):
    """An entry that hardware may use while VALID is set."""

    valid = Field(0, doc="HPTE_V_VALID: hardware uses the HPTE")

    @classmethod
    def may_change(cls, old: int, new: int) -> bool:
        """Return whether the new value may replace the old one by a single store.

        VALID is cleared, and the entry invalidated by tlbie, before anything changes
        but locks, ABSENT, R and C (fact sheet ppc, 4.8 to 4.11).
        """
        if not old & new & cls.fields["valid"].mask:
            return True
        return super().may_change(old, new)


class _V(Live):
    bolted = Field(4, doc="HPTE_V_BOLTED: software")
    lock = Field(3, doc="HPTE_V_LOCK: software, the host's own bit lock")
    large = Field(2, doc="HPTE_V_LARGE: not 4K, R says which size")
    secondary = Field(1, doc="HPTE_V_SECONDARY: in the group of the secondary hash")

    # In tables of guests the bit is the guest's, and nobody touches it.
    live_changes = lock.mask


class _VHv(_V):
    hvlock = Field(6, doc="HPTE_V_HVLOCK: KVM's bit lock")
    absent = Field(5, doc="HPTE_V_ABSENT: valid for the guest, not for hardware")

    live_changes = hvlock.mask | absent.mask


class _Address(EntryFormat):
    b = Field(63, 62, enum=SegmentSize, doc="segment size")
    avpn = Field(61, 7, doc="virtual page: the address from bit 23 on")


class _Address30(EntryFormat):
    avpn = Field(51, 7, doc="virtual page: the address from bit 23 on")


class HpteV(_VHv, _Address):
    """First doubleword, as KVM's code has it: which address, and the state."""


class HpteV30(_VHv, _Address30):
    """First doubleword in memory since ISA 3.0."""


class HpteVPr(_V, _Address):
    """First doubleword of a shadow HPTE of Book3S PR, in the host's own table."""


class HpteVPr30(_V, _Address30):
    """First doubleword of a shadow HPTE of Book3S PR since ISA 3.0."""


class _R(EntryFormat):
    pp = Field(1, 0, parts=((63, 63),), enum=Protection, doc="PP0 and PP")
    key = Field(11, 9, parts=((61, 60),), doc="storage key: KEY_LO, then KEY_HI")
    r = Field(8, doc="HPTE_R_R: referenced, set by hardware too")
    c = Field(7, doc="HPTE_R_C: changed, set by hardware too")
    w = Field(6, doc="write-through")
    i = Field(5, doc="caching inhibited")
    m = Field(4, doc="memory coherence")
    g = Field(3, doc="guarded")
    n = Field(2, doc="no execute")

    # While VALID is set in the other doubleword.
    live_changes = r.mask | c.mask


class _RealPage(EntryFormat):
    rpn = Field(59, 12, doc="real page; its low bits say the size of a large one")


class _Ts(EntryFormat):
    ts = Field(62, doc="HPTE_R_TS")


class HpteR(_R, _RealPage, _Ts):
    """Second doubleword, as KVM's code has it: what is mapped, and how."""


class HpteR30(_R, _Ts):
    """Second doubleword in memory since ISA 3.0."""

    b = Field(59, 58, enum=SegmentSize, doc="segment size")
    # The fact sheet leaves the end of the RPN open; HPTE_R_RPN_3_0 is 56:12.
    rpn = Field(56, 12, doc="real page; its low bits say the size of a large one")


class GuestRpte(_R, _RealPage):
    """The second doubleword that the guest gave, always in the old layout."""

    modified = Field(
        62, doc="HPTE_GR_MODIFIED: changed since the HPT was last read out"
    )

    # Hardware never sees it.
    live_changes = _ONES


HPTE_V_VALID, HPTE_V_ABSENT = HpteV.valid.mask, HpteV.absent.mask
HPTE_V_HVLOCK, HPTE_V_BOLTED = HpteV.hvlock.mask, HpteV.bolted.mask
HPTE_V_LARGE, HPTE_V_SECONDARY = HpteV.large.mask, HpteV.secondary.mask
HPTE_V_AVPN = HpteV.avpn.mask
HPTE_R_R, HPTE_R_C = HpteR.r.mask, HpteR.c.mask
HPTE_R_KEY = HpteR.key.mask
HPTE_R_RPN = HpteR.rpn.mask
HPTE_R_PP0 = HpteR.pp.place(Protection.RXXX ^ Protection.RWRW)
HPTE_R_PP = HpteR.pp.mask ^ HPTE_R_PP0
HPTE_GR_MODIFIED = GuestRpte.modified.mask

_MMIO_KEY = (1 << HpteR.key.width) - 1
_STATE_MASK = HPTE_V_VALID | HPTE_V_ABSENT
_PP_MASK = HpteR.pp.mask
_PP_RXRX = HpteR.pp.place(Protection.RXRX)
_PP_RXXX = HpteR.pp.place(Protection.RXXX)
_KEY_PP0 = HPTE_R_KEY | HPTE_R_PP0
_COMMON_BITS = HpteV30.known
"""HPTE_V_COMMON_BITS: where both layouts of V agree."""
_B_30 = HpteR30.b.mask
_B_MOVE = HpteV.b.low - HpteR30.b.low


class Hpte(Live):
    """Both doublewords as one value."""

    width = 2 * WORD
    valid = Field(WORD, doc="HPTE_V_VALID: hardware uses the HPTE")


class HpteAbsent(Hpte):
    """A page that the guest has mapped and the host has not."""

    key = _R.key

    @classmethod
    def check(cls, entry: int) -> None:
        """Refuse what is not an entry of this kind.

        :raises EntryError: with the bits or the field at fault.
        """
        super().check(entry)
        if entry & HPTE_R_KEY == HPTE_R_KEY:
            raise EntryError(f"{entry:#x}: key {_MMIO_KEY} marks emulated MMIO")

    @classmethod
    def accepts(cls, entry: int) -> bool:
        """Return whether the value is an entry of this kind without stray bits."""
        return super().accepts(entry) and entry & HPTE_R_KEY != HPTE_R_KEY


# Kinds of HPTEs by their state bits. Both are set under HVLOCK only, in the moment
# before the HPTE is invalidated.
_STATES: Mapping[str, Mapping[str, int]] = {
    "free": {"valid": 0, "absent": 0},
    "valid": {"valid": 1, "absent": 0},
    "absent": {"valid": 0, "absent": 1},
    "invalidating": {"valid": 1, "absent": 1, "hvlock": 1},
}
_STATES_PR: Mapping[str, Mapping[str, int]] = {
    "free": {"valid": 0},
    "valid": {"valid": 1},
}
_FIRST_DWORD: Mapping[tuple[bool, bool], type[Live]] = {
    (False, False): HpteV,
    (False, True): HpteV30,
    (True, False): HpteVPr,
    (True, True): HpteVPr30,
}
"""By whether the table is PR's and whether it is as in ISA 3.0."""
_STATE_OF = {
    _STATE_MASK & sum(HpteV.fields[name].place(bit) for name, bit in bits.items()): kind
    for kind, bits in _STATES.items()
}


def _like(field: Field, *, up: int = 0, fixed: int | None = None) -> Field:
    """Return a field some bits higher, or with one value only."""
    (top, low), *rest = ((top + up, low + up) for top, low in field.parts)
    return Field(
        top, low, fixed=fixed, parts=tuple(rest), enum=field.enum, doc=field.doc
    )


def hpte_v_kinds(*, pr: bool, isa300: bool) -> dict[str, type[Live]]:
    """Return the formats of a first doubleword by kind.

    Kinds are ``free``, ``valid``, ``absent`` and ``invalidating``; PR has the first
    two. Emulated MMIO is ``absent`` here: only the second doubleword tells.
    """
    v = _FIRST_DWORD[pr, isa300]
    kinds: dict[str, type[Live]] = {}
    for kind, bits in (_STATES_PR if pr else _STATES).items():
        fields: dict[str, Any] = {
            name: _like(v.fields[name], fixed=bit) for name, bit in bits.items()
        }
        fields["__doc__"] = f"First doubleword of an HPTE: {kind}."
        kinds[kind] = type(f"{v.__name__}{kind.capitalize()}", (v,), fields)
    return kinds


def hpte_kinds(*, pr: bool, isa300: bool) -> dict[str, type[Hpte]]:
    """Return the formats of a whole HPTE by kind.

    Kinds are those of :func:`hpte_v_kinds` and ``mmio``: absent, and key 31.
    """
    r: type[EntryFormat] = HpteR30 if isa300 else HpteR
    kinds: dict[str, type[Hpte]] = {}

    def add(kind: str, v: type[Live], base: type[Hpte], **more: Field) -> None:
        fields: dict[str, Any] = {
            name: _like(field, up=WORD, fixed=field.fixed)
            for name, field in v.fields.items()
        }
        fields |= {**r.fields, **more}
        fields["__doc__"] = f"An HPTE, V above R: {kind}."
        fields["live_changes"] = v.live_changes << WORD | r.live_changes
        kinds[kind] = type(f"Hpte{kind.capitalize()}", (base,), fields)

    for kind, v in hpte_v_kinds(pr=pr, isa300=isa300).items():
        if kind == "absent":
            add("absent", v, HpteAbsent)
            add("mmio", v, Hpte, key=_like(HpteR.key, fixed=_MMIO_KEY))
        else:
            add(kind, v, Hpte)
    return kinds


def hpte_join(v: int, r: int) -> int:
    """Return both doublewords as one value."""
    return v << WORD | r


def hpte_split(hpte: int) -> tuple[int, int]:
    """Return V and R of a whole HPTE."""
    return hpte >> WORD, hpte & _ONES


def hpte_state(v: int, r: int) -> str:
    """Return the kind of an HPTE of a KVM HV guest, in either layout.

    :returns: a kind of :func:`hpte_kinds`; HVLOCK is not looked at.
    """
    return "mmio" if hpte_is_mmio(v, r) else _STATE_OF[v & _STATE_MASK]


def hpte_is_mmio(v: int, r: int) -> bool:
    """Return whether an HPTE is for a page without a memslot: absent, and key 31."""
    return v & _STATE_MASK == HPTE_V_ABSENT and r & HPTE_R_KEY == HPTE_R_KEY


def hpte_make_absent(v: int, r: int) -> tuple[int, int]:
    """Return V and R of an HPTE whose host page is not mapped (any more)."""
    return v & ~HPTE_V_VALID | HPTE_V_ABSENT, r & ~HPTE_R_KEY


def hpte_make_mmio(v: int, r: int) -> tuple[int, int]:
    """Return V and R of an HPTE for a page without a memslot.

    :param r: the guest's second doubleword.
    """
    return v & ~HPTE_V_VALID | HPTE_V_ABSENT, r | HPTE_R_KEY


def hpte_is_writable(ptel: int) -> bool:
    """Return whether anybody may write through a second doubleword.

    :Kernel: hpte_is_writable()
    """
    pp = ptel & _PP_MASK
    return pp not in (_PP_RXRX, _PP_RXXX)


def hpte_make_readonly(ptel: int) -> int:
    """Return a second doubleword without write permission; nobody gains any.

    :Kernel: hpte_make_readonly()
    """
    if ptel & HPTE_R_PP0 or not ptel & HPTE_R_PP:
        return ptel & ~HPTE_R_PP | _PP_RXXX
    return ptel | _PP_RXRX


def hpte_set_pa(ptel: int, pa: int, psize: int) -> int:
    """Return the guest's second doubleword with the host's address in it.

    The bits of the RPN that say the page size stay; key and PP0 stay above it.

    :Kernel: kvmppc_do_h_enter(). The fact sheet gives results only; what stays was
        read in the function.
    :param pa: host real address in bytes.
    :param psize: page size in bytes.
    """
    return ptel & (_KEY_PP0 | psize - 1) | pa


def hpte_old_to_new(v: int, r: int) -> tuple[int, int]:
    """Return V and R in the ISA 3.0 layout.

    :Kernel: hpte_old_to_new_v(), hpte_old_to_new_r()
    """
    return v & _COMMON_BITS, r & ~_B_30 | v >> _B_MOVE & _B_30


def hpte_new_to_old(v: int, r: int) -> tuple[int, int]:
    """Return V and R in the old layout.

    :Kernel: hpte_new_to_old_v(), hpte_new_to_old_r()
    """
    return v & _COMMON_BITS | (r & _B_30) << _B_MOVE, r & ~_B_30
