"""Formats of the entries (SPTEs) that one configuration of KVM/x86 can hold.

The classes of :mod:`kvmarch_x86.spte_fields` are combined as the row of the release
says (:mod:`kvmarch_x86.releases`); the options decide widths and what is left out.
"""

__all__ = ["LEAF_LEVELS", "PAGINGS", "Options", "build_formats"]

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from kvmarch_x86.geometry import LEVEL_BITS, MAX_LEVEL, PAGE_SHIFT
from kvmarch_x86.releases import GENERATIONS, RELEASES
from kvmarch_x86.spte_fields import (
    AdKind,
    AdKindOn,
    EptLeaf,
    EptMmio,
    EptTable,
    Large,
    NptLeaf,
    NptMmio,
    NptTable,
    Spte,
    UserExecute,
)

from kvmarch import Field, FormatError

PAGINGS = ("ept", "npt")
LEAF_LEVELS = (1, 2, 3)
LAST_PA_BIT = 51
"""The highest bit of an entry that can hold an address."""
L1TF_BITS = 5
"""How many address bits guard against L1TF: SHADOW_NONPRESENT_OR_RSVD_MASK_LEN."""


@dataclass(frozen=True)
class Options:
    """What decides the entries of one VM besides the guest.

    :param release: a key of :data:`RELEASES`.
    :param paging: ``ept`` or ``npt``.
    :param ad: hardware sets A and D; NPT always does.
    :param generation: a key of :data:`GENERATIONS`.
    :param maxphyaddr: bits of a host-physical address, without those that memory
        encryption took away.
    :param l1tf_cache_bits: address bits of the level 1 cache where the processor has
        the L1TF bug (x86_cache_bits), None where it has not.
    :param c_bit: the number of the memory encryption bit, None without SME.
    :param mmio_caching: make MMIO entries at all.
    """

    release: str
    paging: str
    ad: bool
    generation: str
    maxphyaddr: int
    l1tf_cache_bits: int | None
    c_bit: int | None
    mmio_caching: bool

    def __post_init__(self) -> None:
        if not 32 <= self.maxphyaddr <= LAST_PA_BIT + 1:
            raise FormatError(f"maxphyaddr {self.maxphyaddr} is not in 32 to 52")
        if self.paging == "npt":
            self._check_npt()
        elif self.c_bit is not None:
            raise FormatError("a C bit exists with NPT only")
        cache_bits = self.l1tf_cache_bits
        if cache_bits is not None:
            if not RELEASES[self.release].modern:
                raise FormatError(f"layout {self.release} knows no L1TF")
            if not 32 <= cache_bits <= LAST_PA_BIT - L1TF_BITS:
                raise FormatError(f"l1tf_cache_bits {cache_bits} is not in 32 to 46")

    def _check_npt(self) -> None:
        if not self.ad:
            raise FormatError("NPT without hardware A/D does not exist")
        if self.l1tf_cache_bits is not None:
            raise FormatError("L1TF is a bug of processors with EPT")
        if self.c_bit is None:
            return
        if not RELEASES[self.release].modern:
            raise FormatError(f"layout {self.release} knows no memory encryption")
        if not self.maxphyaddr <= self.c_bit <= LAST_PA_BIT:
            raise FormatError(
                f"c_bit {self.c_bit} is not in maxphyaddr ({self.maxphyaddr}) to 51"
            )


def _like(
    field: Field, *, fixed: int | None = None, enum: type[IntEnum] | None = None
) -> Field:
    """Return a field at the same bits with another rule."""
    (top, bottom), *rest = field.parts
    return Field(top, bottom, fixed=fixed, parts=tuple(rest), enum=enum, doc=field.doc)


def _make(
    name: str,
    doc: str,
    bases: tuple[type[Spte], ...],
    fields: Mapping[str, Field | None],
) -> type[Spte]:
    """Return a format that combines some bases; a field of None is dropped."""
    made: type[Spte] = type(name, bases, {"__doc__": doc, **fields})
    return made


def _pfn(level: int, maxphyaddr: int) -> Field:
    if level == 1:
        return Field(maxphyaddr - 1, PAGE_SHIFT, doc="host frame")
    shift = LEVEL_BITS * (level - 1)
    low = PAGE_SHIFT + shift
    return Field(maxphyaddr - 1, low, shift=shift, doc="first host frame")


def _ad_kind(o: Options, *, leaf: bool) -> dict[str, Field | None]:
    """Return the A/D kind and what it means for A and D.

    Kind wrprot-only is for leafs of EPT tables; NPT has nothing like PML.
    """
    release = RELEASES[o.release]
    fields: dict[str, Field | None] = {}
    kinds = [base.fields.get("ad_kind") for base in release.common[o.paging]]
    kind = next(filter(None, kinds), None)
    if kind is not None:
        if not o.ad:
            fields["ad_kind"] = _like(kind, fixed=AdKind.DISABLED)
        elif leaf and o.paging == "ept":
            fields["ad_kind"] = _like(kind, enum=AdKindOn)
        else:
            fields["ad_kind"] = _like(kind, fixed=AdKind.ENABLED)
    if not o.ad and not (leaf and release.ad_in_software):
        fields["accessed"] = None
        if leaf:
            fields["dirty"] = None
    return fields


def _leaf(o: Options, level: int) -> type[Spte]:
    release = RELEASES[o.release]
    hardware = EptLeaf if o.paging == "ept" else NptLeaf
    bases = (*release.common[o.paging], release.writable[o.paging], hardware)
    fields = {**_ad_kind(o, leaf=True), "pfn": _pfn(level, o.maxphyaddr)}
    if o.c_bit is not None:
        fields["c"] = Field(o.c_bit, doc="encrypted; clear for a device's memory")
    if level > 1:
        bases = (Large, *bases)
    size = ("4K", "2M", "1G")[level - 1]
    doc = f"A leaf of {size} in layout {o.release}, {o.paging.upper()}."
    return _make(f"Page{size}", doc, bases, fields)


def _tracked(leaf: type[Spte], saved: type[Spte], *, software_a: bool) -> type[Spte]:
    """Return the format of an aged leaf without hardware A/D (fact sheet x86, 1.4)."""
    fields: dict[str, Field | None] = {
        name: _like(leaf.fields[name], fixed=0)
        for name in ("r", "w", "x", "xu")
        if name in leaf.fields
    }
    if software_a:
        fields["accessed"] = None
    doc = f"{leaf.__doc__} Aged: hardware finds nothing present."
    return _make(f"Tracked{leaf.__name__}", doc, (saved, leaf), fields)


def _table(o: Options) -> type[Spte]:
    hardware = EptTable if o.paging == "ept" else NptTable
    common = RELEASES[o.release].common[o.paging]
    fields = {**_ad_kind(o, leaf=False), "pfn": _pfn(1, o.maxphyaddr)}
    if UserExecute in common:
        fields["xu"] = _like(UserExecute.xu, fixed=1)
    if o.c_bit is not None:
        fields["c"] = Field(o.c_bit, fixed=1, doc="encrypted")
    doc = f"A pointer to a table in layout {o.release}, {o.paging.upper()}."
    return _make("Table", doc, (*common, hardware), fields)


def _reserved(o: Options) -> Field | None:
    """Return the reserved address bits that make NPT hardware refuse an MMIO entry."""
    if RELEASES[o.release].all_reserved:
        low = o.maxphyaddr
    elif o.c_bit is None:
        low = max(o.maxphyaddr, LAST_PA_BIT)
    else:
        # svm_adjust_mmio_mask() steps over a C bit that directly follows the address;
        # read in the function, not in the fact sheet.
        low = o.maxphyaddr + (o.c_bit == o.maxphyaddr)
    if low > LAST_PA_BIT:
        return None
    ones = (1 << LAST_PA_BIT - low + 1) - 1
    return Field(LAST_PA_BIT, low, fixed=ones, doc="reserved: hardware refuses it")


def _mmio(o: Options) -> type[Spte] | None:
    """Return the format of MMIO entries, None where they cannot or shall not be made.

    Without a reserved address bit the 4.2 and 5.10 layouts make an entry that is not
    present for hardware; later ones make none.
    """
    marks = RELEASES[o.release].mark[o.paging]
    fields: dict[str, Field | None] = {"gen": GENERATIONS[o.generation].field()}
    gfn_doc = "guest frame"
    cache_bits = o.l1tf_cache_bits
    if cache_bits is None:
        fields["gfn"] = Field(o.maxphyaddr - 1, PAGE_SHIFT, doc=gfn_doc)
    else:
        guard = cache_bits - L1TF_BITS
        moved = (cache_bits + L1TF_BITS - 1, cache_bits)
        ones = (1 << L1TF_BITS) - 1
        fields["gfn"] = Field(guard - 1, PAGE_SHIFT, parts=(moved,), doc=gfn_doc)
        fields["l1tf"] = Field(cache_bits - 1, guard, fixed=ones, doc="against L1TF")
    hardware: type[Spte] = EptMmio
    if o.paging == "npt":
        reserved = _reserved(o)
        if reserved is not None:
            fields["reserved"] = reserved
        elif not marks:
            return None
        fields["p"] = Field(0, fixed=int(reserved is not None), doc="present")
        hardware = NptMmio
    if not o.mmio_caching:
        return None
    doc = f"A gfn without a slot in layout {o.release}, {o.paging.upper()}."
    return _make("Mmio", doc, (*marks, hardware), fields)


def build_formats(o: Options) -> tuple[tuple[int, str, type[Spte]], ...]:
    """Return level, kind and format of every entry that a configuration can hold.

    Kinds are ``leaf``, ``tracked``, ``table``, ``mmio``, ``frozen`` and ``none``. MMIO
    entries are made at level 1 only; the last two fit every level.
    """
    release = RELEASES[o.release]
    rows: list[tuple[int, str, type[Spte]]] = []
    table = _table(o)
    mmio = _mmio(o)
    for level in range(1, MAX_LEVEL + 1):
        if level in LEAF_LEVELS:
            leaf = _leaf(o, level)
            rows.append((level, "leaf", leaf))
            if not o.ad and release.saved is not None:
                tracked = _tracked(
                    leaf, release.saved, software_a=release.ad_in_software
                )
                rows.append((level, "tracked", tracked))
        if level > 1:
            rows.append((level, "table", table))
        elif mmio is not None:
            rows.append((level, "mmio", mmio))
        if release.frozen is not None:
            rows.append((level, "frozen", release.frozen))
        rows.append((level, "none", release.nonpresent))
    return tuple(rows)
