"""A layout: the masks that KVM/arm64 works with in one configuration, as plain ints.

:Kernel: the constants of arch/arm64/include/asm/kvm_pgtable.h.

Every mask is read off the formats of :mod:`kvmarch_arm64.formats`.
"""

__all__ = ["Decoded", "Layout", "decode", "formats", "make_layout"]

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from kvmarch_arm64.formats import (
    INVALID_ENCODINGS,
    SOFTWARE_BITS,
    Descriptor,
    ExecuteNever,
    Leaf,
    MemAttr,
    MemAttrFwb,
    Options,
    Table,
    build_formats,
)
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL, find_page_shift

from kvmarch import EntryError, FormatError

_VALID = Descriptor.valid.mask
_TYPE = Table.kind.mask


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """One configuration's entries; made by :func:`make_layout`, compared by identity.

    A pair of ``_mask`` and ``_value`` is a test: ``entry & mask == value``.
    """

    name: str
    """Granule and the options that differ from the usual ones."""
    page_shift: int
    lpa2: bool
    fwb: bool
    dic: bool
    """Every mapping of memory is made executable (CTR_EL0.DIC)."""
    xnx: bool
    invalid: str
    software: str
    rows: tuple[tuple[int, str, type[Descriptor]], ...]
    """Level, kind and format of every entry."""

    addr_mask: int
    """Address bits that an entry holds in place."""
    addr_high_mask: int
    """The address bits above those, in an address..."""
    addr_high_shift: int
    """...and how far an entry moves them down."""

    leaf_attr_mask: int
    """Every bit of a leaf but valid, type and address."""
    leaf_attrs: int
    """What every new leaf holds: access flag, and shareability if there is one."""
    normal: int
    normal_nc: int
    device: int
    """memattr of the three memory types."""
    memattr_mask: int
    xn: int
    """Nobody may execute."""
    xn_by_exec: tuple[int | None, ...]
    """xn by ``px | ux << 1``; None for what the CPU cannot express."""
    sw_mask: int
    """The four software bits."""
    perms_mask: int
    """KVM_PTE_LEAF_ATTR_S2_PERMS: R, W and xn."""
    live_mask: int
    """Bits of a leaf that may change while it is valid."""

    exec_mask: int
    exec_values: frozenset[int]
    """An entry is executable if ``entry & exec_mask`` is one of these."""
    cacheable_mask: int
    cacheable_value: int
    locked_mask: int
    locked_value: int
    """The test for an entry whose break-before-make is in progress; matches none in
    releases without one."""
    locked: int | None
    """What the break step stores; None in releases that store 0."""
    counted_mask: int
    """An entry holds a reference on its table if one of these bits is set."""


class Decoded(NamedTuple):
    """What a value means."""

    kind: str
    """A kind of :func:`formats`, or ``unknown``."""
    format: type[Descriptor] | None
    """None if no format accepts the value."""
    fields: dict[str, int]
    """The fields by name, highest bit first."""


@cache
def make_layout(
    page_size: int = 4096,
    *,
    lpa2: bool = False,
    fwb: bool = False,
    dic: bool = False,
    xnx: bool = False,
    invalid: str = "locked",
    software: str = "plain",
    as_s1: bool = False,
    decoded_exec: bool = False,
) -> Layout:
    """Return the layout of a configuration; the same arguments give the same object.

    :param page_size: the granule in bytes.
    :param lpa2: 52-bit addresses with 4K and 16K (v6.8 on); 64K has them without.
    :param fwb: FEAT_S2FWB, stage 2 forces the memory type.
    :param dic: CTR_EL0.DIC, no I-cache maintenance needed.
    :param xnx: FEAT_XNX and a kernel that uses it (v6.19 on).
    :param invalid: how notes look, a key of
        :data:`~kvmarch_arm64.formats.INVALID_ENCODINGS`.
    :param software: what software bits hold, a key of
        :data:`~kvmarch_arm64.formats.SOFTWARE_BITS`.
    :param as_s1: normal memory takes the type of stage 1 (host stage 2, v7.0 on).
    :param decoded_exec: an entry that only one of EL1 and EL0 may execute counts as
        executable (v7.1); before, as not executable.
    :raises FormatError: the combination does not exist.
    """
    page_shift = find_page_shift(page_size)
    if lpa2 and page_size == 65536:
        raise FormatError("LPA2 is for 4096 and 16384 byte pages")
    for what, name, known in (
        ("encoding of invalid entries", invalid, INVALID_ENCODINGS),
        ("use of the software bits", software, SOFTWARE_BITS),
    ):
        if name not in known:
            raise FormatError(f"no {what} {name!r}; there is {', '.join(known)}")
    rows = build_formats(Options(page_shift, lpa2, fwb, xnx, invalid, software))
    by_kind = {(level, kind): fmt for level, kind, fmt in rows}
    page = by_kind[KVM_PGTABLE_LAST_LEVEL, "page"]
    field = page.fields
    (high, low), *rest = field["pfn"].parts
    addr_high_mask = addr_high_shift = 0
    for top, bottom in rest:
        addr_high_shift = high + 1 - bottom
        addr_high_mask = (2 << top) - (1 << bottom) << addr_high_shift
    memattr, xn = field["memattr"], field["xn"]
    types: type[MemAttr | MemAttrFwb] = MemAttrFwb if fwb else MemAttr
    normal: int = MemAttrFwb.AS_S1 if as_s1 and fwb else types.NORMAL
    never, *some = _xn_codes(xnx=xnx)
    xn_by_exec = (xn.place(never), *(None if c is None else xn.place(c) for c in some))
    # Until v7.1 only an xn of zero counts, so that PX and UX alone do not.
    executable = {v for v in xn_by_exec[1:] if v is not None} if decoded_exec else {0}
    lock = by_kind.get((KVM_PGTABLE_LAST_LEVEL, "locked"))
    return Layout(
        name=_name(
            page_size,
            {
                "lpa2": lpa2,
                "fwb": fwb,
                "dic": dic,
                "xnx": xnx,
                "as-s1": as_s1,
                "decoded-exec": decoded_exec,
                f"{software}-software": software != "plain",
                f"invalid-{invalid}": True,
            },
        ),
        page_shift=page_shift,
        lpa2=lpa2,
        fwb=fwb,
        dic=dic,
        xnx=xnx,
        invalid=invalid,
        software=software,
        rows=rows,
        addr_mask=(2 << high) - (1 << low),
        addr_high_mask=addr_high_mask,
        addr_high_shift=addr_high_shift,
        leaf_attr_mask=page.known & ~(_VALID | _TYPE | field["pfn"].mask),
        leaf_attrs=page.kind_value & ~(_VALID | _TYPE) | Leaf.af.mask,
        normal=memattr.place(normal),
        normal_nc=memattr.place(types.NORMAL_NC),
        device=memattr.place(types.DEVICE_nGnRE),
        memattr_mask=memattr.mask,
        xn=xn.place(never),
        xn_by_exec=xn_by_exec,
        sw_mask=SOFTWARE_BITS[software].known,
        perms_mask=Leaf.r.mask | Leaf.w.mask | xn.mask,
        live_mask=page.live_changes,
        exec_mask=_VALID | xn.mask,
        exec_values=frozenset(_VALID | value for value in executable),
        cacheable_mask=_VALID | memattr.mask,
        cacheable_value=_VALID | memattr.place(normal),
        locked_mask=0 if lock is None else lock.kind_mask,
        locked_value=1 if lock is None else lock.kind_value,
        locked=None if lock is None else lock.kind_value,
        counted_mask=_VALID if invalid == "remains" else (1 << Descriptor.width) - 1,
    )


def _name(page_size: int, extras: dict[str, bool]) -> str:
    return " ".join([f"{page_size >> 10}K", *(k for k, on in extras.items() if on)])


def _xn_codes(*, xnx: bool) -> tuple[int, int | None, int | None, int]:
    """Return the value of xn by ``px | ux << 1`` (fact sheet arm64, 1.3)."""
    if xnx:
        return (
            ExecuteNever.XN,
            ExecuteNever.PX,
            ExecuteNever.UX,
            ExecuteNever.PX_UX,
        )
    return (1, None, None, 0)


def formats(layout: Layout) -> tuple[tuple[int, str, type[Descriptor]], ...]:
    """Return level, kind and format of every entry of a layout, level 0 first."""
    return layout.rows


def decode(layout: Layout, entry: int, level: int) -> Decoded:
    """Return what a value means as an entry of this level.

    A value that KVM cannot have written there is ``unknown``, never the nearest kind.

    :raises EntryError: there is no such level, or the value has more than 64 bits.
    """
    if not 0 <= level <= KVM_PGTABLE_LAST_LEVEL:
        raise EntryError(
            f"stage 2 has levels 0 to {KVM_PGTABLE_LAST_LEVEL}, not {level}"
        )
    if not 0 <= entry < 1 << Descriptor.width:
        raise EntryError(f"{entry:#x} is no {Descriptor.width}-bit value")
    # An owner id of 0 is the same value as an empty entry, which comes first.
    for at, kind, fmt in layout.rows:
        if at == level and fmt.accepts(entry):
            return Decoded(kind, fmt, fmt.unpack(entry))
    return Decoded("unknown", None, {})
