"""Stage-2 descriptors: what hardware reads and what KVM keeps where it does not.

:Kernel: arch/arm64/include/asm/kvm_pgtable.h and hyp/pgtable.c, v5.10 to v7.1; the
    pgprot macros of the old MMU write the same bits (fact sheet arm64, 1.7).

Each bit is stated once, here. Positions are those of the fact sheet arm64, sections
1.3 and 1.4. A bit that KVM never sets (11, DBM, Contiguous, 63:59 of a valid entry) is
no field: an entry that has it was not made by KVM.
"""

__all__ = [
    "INVALID_ENCODINGS",
    "SOFTWARE_BITS",
    "Descriptor",
    "Donation",
    "Empty",
    "ExecuteNever",
    "Invalid",
    "InvalidType",
    "Leaf",
    "Locked10",
    "Locked63",
    "MemAttr",
    "MemAttrFwb",
    "Options",
    "Owner9",
    "Owner63",
    "PkvmPageState",
    "Poisoned",
    "Table",
    "build_formats",
]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

from kvmarch_arm64.geometry import (
    KVM_PGTABLE_LAST_LEVEL,
    block_levels,
    kvm_granule_shift,
)

from kvmarch import EntryFormat, Field


class MemAttr(IntEnum):
    """MemAttr[3:0] without FEAT_S2FWB: combined with what stage 1 says."""

    DEVICE_nGnRE = 1
    NORMAL_NC = 5
    NORMAL = 0xF


class MemAttrFwb(IntEnum):
    """MemAttr[3:0] with FEAT_S2FWB: stage 2 has the last word."""

    DEVICE_nGnRE = 1
    NORMAL_NC = 5
    NORMAL = 6
    AS_S1 = 7
    """The host's own stage 2 (pKVM), since v7.0."""


class ExecuteNever(IntEnum):
    """XN[1:0] with FEAT_XNX; the order is hardware's."""

    PX_UX = 0
    """EL1 and EL0 may execute."""
    UX = 1
    XN = 2
    """Nobody may; the same bits as the single XN bit of older releases."""
    PX = 3


class PkvmPageState(IntEnum):
    """Who else has a page, in hypervisor and guest tables (host tables to v6.12)."""

    OWNED = 0
    SHARED_OWNED = 1
    SHARED_BORROWED = 2


class InvalidType(IntEnum):
    """enum kvm_invalid_pte_type of v7.1."""

    LOCKED = 1
    DONATION = 2
    POISONED = 3


class Descriptor(EntryFormat):
    """Any entry."""

    valid = Field(0, doc="hardware uses the entry")

    @classmethod
    def may_change(cls, old: int, new: int) -> bool:
        """Return whether the new value may replace the old one by a single store.

        The break-before-make rule of the architecture. An entry that is or becomes
        invalid may always change: that is the break and the make. A valid one may
        change in permissions, access flag and software bits; address, memory type,
        shareability, and block against table need an invalid entry and a TLB
        invalidation in between.
        """
        # Simplified: the architecture also lets a read-only entry move to a page with
        # the same bytes, and with FEAT_BBM a block change its size; KVM's stage 2
        # relies on neither.
        if not (old & new & Descriptor.valid.mask):
            return True
        return not (old ^ new) & ~cls.live_changes


class Leaf(Descriptor):
    """A page or a block: memory that the guest may reach."""

    valid = Field(0, fixed=1, doc="hardware uses the entry")
    r = Field(6, doc="S2AP[0]: readable")
    w = Field(7, doc="S2AP[1]: writable")
    af = Field(10, doc="access flag; entries without it are never cached")

    _LIVE = ("r", "w", "af", "xn", "sw", "guest_level", "state")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.live_changes = sum(cls.fields[n].mask for n in cls._LIVE if n in cls.fields)


class Table(Descriptor):
    """A pointer to a table of the next level; nothing in it may change while valid."""

    valid = Field(0, fixed=1, doc="hardware uses the entry")
    kind = Field(1, fixed=1, doc="table")


class _InnerShareable(EntryFormat):
    """Without LPA2; with it the bits belong to the address."""

    sh = Field(9, 8, fixed=3, doc="SH[1:0]: inner shareable")


class _Combining(EntryFormat):
    memattr = Field(5, 2, enum=MemAttr, doc="memory type, combined with stage 1")


class _Forcing(EntryFormat):
    memattr = Field(5, 2, enum=MemAttrFwb, doc="memory type, forced (FWB)")


class _Xn(EntryFormat):
    xn = Field(54, doc="execute never")


class _Xnx(EntryFormat):
    xn = Field(54, 53, enum=ExecuteNever, doc="execute never, EL1 and EL0 apart")


class _Software(EntryFormat):
    sw = Field(58, 55, doc="SW3 to SW0, left to software")


class _SoftwareNested(EntryFormat):
    sw = Field(58, 57, doc="SW3 and SW2, left to software")
    guest_level = Field(56, 55, doc="level of the guest's own entry (shadow stage 2)")


class _SoftwarePkvm(EntryFormat):
    sw = Field(58, 57, doc="SW3 and SW2, left to software")
    state = Field(56, 55, enum=PkvmPageState, doc="pKVM page state")


class Invalid(Descriptor):
    """An entry that hardware ignores: it faults, and KVM may keep a note in it."""

    valid = Field(0, fixed=0, doc="hardware ignores the entry")


class Empty(Invalid):
    """Nothing is mapped; no note."""


class Owner63(Invalid):
    """pKVM annotation of v5.13 and v5.14: who owns the page; owner 0 is empty."""

    owner = Field(63, 56, doc="owner id; 1 is the hypervisor")


class Owner9(Invalid):
    """pKVM annotation of v5.15 to v7.0; owner 0 is empty."""

    owner = Field(9, 2, doc="owner id; 1 is the hypervisor")


class Locked10(Invalid):
    """KVM_INVALID_PTE_LOCKED of v6.2 to v7.0: break-before-make is in progress."""

    locked = Field(10, fixed=1, doc="other walkers must give up")


class Locked63(Invalid):
    """KVM_INVALID_PTE_TYPE_LOCKED of v7.1."""

    type = Field(63, 60, fixed=InvalidType.LOCKED, enum=InvalidType, doc="what it is")


class Donation(Invalid):
    """A page that the host gave to the hypervisor or a guest, v7.1."""

    type = Field(63, 60, fixed=InvalidType.DONATION, enum=InvalidType, doc="what it is")
    extra = Field(59, 4, doc="the new owner's metadata")
    owner = Field(3, 1, doc="owner id; 1 is the hypervisor")


class Poisoned(Invalid):
    """A protected guest's page that the host took back by force, v7.1."""

    type = Field(63, 60, fixed=InvalidType.POISONED, enum=InvalidType, doc="what it is")


INVALID_ENCODINGS: Mapping[str, Mapping[str, type[Invalid]]] = {
    "zero": {},
    "remains": {},
    "owner63": {"owner": Owner63},
    "owner9": {"owner": Owner9},
    "locked": {"owner": Owner9, "locked": Locked10},
    "typed": {
        "locked": Locked63,
        "donation": Donation,
        "poisoned": Poisoned,
    },
}
"""Notes in invalid entries, besides the empty one, by name of the encoding.

``zero``: none, the old MMU up to v5.9. ``remains``: v5.10 to v5.12 clear bit 0 only.
``owner63``: v5.13 and v5.14. ``owner9``: v5.15 to v6.1. ``locked``: v6.2 to v7.0.
``typed``: v7.1 on.
"""

SOFTWARE_BITS: Mapping[str, type[EntryFormat]] = {
    "plain": _Software,
    "nested": _SoftwareNested,
    "pkvm": _SoftwarePkvm,
}
"""What the software bits of a leaf hold: nothing (the VM's own tables), shadow stage 2
(v6.11 on), hypervisor and guest tables of pKVM (v5.15 on)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What decides how entries look; see :func:`kvmarch_arm64.layout.make_layout`."""

    page_shift: int
    lpa2: bool
    fwb: bool
    xnx: bool
    invalid: str
    software: str


def _make(
    name: str, doc: str, bases: tuple[type[EntryFormat], ...], **fields: Field
) -> type[Descriptor]:
    made: type[Descriptor] = type(name, bases, {"__doc__": doc, **fields})
    return made


def _size(shift: int) -> str:
    return f"{1 << shift % 10}{'?KMGT'[shift // 10]}"


def _frame(o: Options, level: int, doc: str) -> Field:
    """Return the address field of an entry that maps what one of this level covers."""
    parts: tuple[tuple[int, int], ...] = ()
    if o.lpa2:
        parts = ((9, 8),)
    elif o.page_shift == 16:
        parts = ((15, 12),)
    low = kvm_granule_shift(o.page_shift, level)
    high = 49 if o.lpa2 else 47
    return Field(high, low, shift=low - o.page_shift, parts=parts, doc=doc)


def _leaf(o: Options, level: int) -> type[Descriptor]:
    size = _size(kvm_granule_shift(o.page_shift, level))
    bases: tuple[type[EntryFormat], ...] = (
        SOFTWARE_BITS[o.software],
        _Xnx if o.xnx else _Xn,
        _Forcing if o.fwb else _Combining,
        *(() if o.lpa2 else (_InnerShareable,)),
        Leaf,
    )
    page = level == KVM_PGTABLE_LAST_LEVEL
    noun = "page" if page else "block"
    return _make(
        f"{noun.capitalize()}{size}",
        f"A {noun} of {size}iB.",
        bases,
        pfn=_frame(o, level, "host frame" if page else "first host frame"),
        kind=Field(1, fixed=int(page), doc=noun),
    )


@cache
def _table(o: Options) -> type[Descriptor]:
    pfn = _frame(o, KVM_PGTABLE_LAST_LEVEL, "frame of the table")
    return _make("Table", "A pointer to the next table.", (Table,), pfn=pfn)


def _valid_formats(o: Options, level: int) -> Iterator[tuple[str, type[Descriptor]]]:
    if level == KVM_PGTABLE_LAST_LEVEL:
        yield "page", _leaf(o, level)
        return
    if level in block_levels(o.page_shift):
        yield "block", _leaf(o, level)
    yield "table", _table(o)


def build_formats(o: Options) -> tuple[tuple[int, str, type[Descriptor]], ...]:
    """Return level, kind and format of every entry that a configuration can hold.

    Kinds are ``page``, ``block``, ``table``, ``empty``, and by encoding of invalid
    entries ``owner``, ``locked``, ``donation``, ``poisoned`` or the valid kinds with
    ``-remains`` behind.
    """
    rows: list[tuple[int, str, type[Descriptor]]] = []
    for level in range(KVM_PGTABLE_LAST_LEVEL + 1):
        valid = list(_valid_formats(o, level))
        rows += [(level, kind, fmt) for kind, fmt in valid]
        rows.append((level, "empty", Empty))
        if o.invalid == "remains":
            for kind, fmt in valid:
                remains = _make(
                    f"{fmt.__name__}Remains",
                    f"What unmapping leaves of a {kind}; read as empty.",
                    (fmt,),
                    valid=Invalid.valid,
                )
                rows.append((level, f"{kind}-remains", remains))
        notes = INVALID_ENCODINGS[o.invalid]
        rows += [(level, kind, fmt) for kind, fmt in notes.items()]
    return tuple(rows)
