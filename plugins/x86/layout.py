"""A layout: the masks that KVM/x86 works with in one configuration, as plain ints.

:Kernel: the shadow_*_mask variables, set by kvm_mmu_reset_all_pte_masks(),
    kvm_mmu_set_ept_masks() and kvm_mmu_set_mmio_spte_mask().

Every mask is read off the formats of :mod:`kvmarch_x86.spte_formats`.
"""

__all__ = ["Decoded", "Layout", "decode", "formats", "make_layout", "refusals"]

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from kvmarch_x86.geometry import MAX_LEVEL, MemType
from kvmarch_x86.releases import GENERATIONS, RELEASES, saved_bits
from kvmarch_x86.spte_fields import AdKind, EptEntry, Spte
from kvmarch_x86.spte_formats import PAGINGS, Options, build_formats

from kvmarch import EntryError, FormatError

NEVER = (0, 1)
"""A mask and a value that no entry matches: ``entry & 0 == 1``."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Layout:
    """One configuration's entries; made by :func:`make_layout`, compared by identity.

    A pair of ``_mask`` and ``_value`` is a test: ``entry & mask == value``.
    """

    name: str
    """Release, paging kind and the options that differ from the usual ones."""
    release: str
    paging: str
    ad: bool
    """Hardware sets A and D."""
    nx_huge_pages: bool
    """Huge pages are not executable (the iTLB multihit mitigation)."""
    rows: tuple[tuple[int, str, type[Spte]], ...]
    """Level, kind and format of every entry."""

    present_mask: int
    """KVM counts an entry as mapped if one of these bits is set..."""
    absent_mask: int
    absent_value: int
    """...unless it matches this pair."""
    nonpresent: int
    """SHADOW_NONPRESENT_VALUE: what an empty entry holds."""
    frozen: int | None
    """REMOVED_SPTE, later FROZEN_SPTE; None in releases without a shared lock."""

    leaf_bits: int
    """What every leaf holds: present for KVM, readable, A/D kind."""
    nonleaf_bits: int
    """What every entry that points at a table holds, besides the table."""
    pfn_mask: int
    large_mask: int
    """PT_PAGE_SIZE_MASK"""
    writable_mask: int
    """PT_WRITABLE_MASK"""
    shadow_present_mask: int
    shadow_x_mask: int
    shadow_xu_mask: int
    """The second execute bit of the 7.2 layout, 0 elsewhere."""
    shadow_nx_mask: int
    shadow_me_value: int
    memtype_mask: int
    memtype_default: int
    """Write-back, guest PAT ignored; 0 in NPT."""

    shadow_host_writable_mask: int
    shadow_mmu_writable_mask: int
    lockless_mask: int
    """Bits that must all be set before W may be set without mmu_lock."""
    shadow_accessed_mask: int
    shadow_dirty_mask: int
    ad_mask: int
    """The A/D kind; 0 in the 4.2 layout."""
    ad_disabled: int
    """The A/D kind "disabled"; matches no entry of the 4.2 layout."""
    ad_wrprot_only: int
    shadow_acc_track_mask: int
    """What access tracking clears; all clear means tracked."""
    saved_mask: int
    saved_shift: int
    """What access tracking saves, and how far it moves it."""
    no_ad_mask: int
    no_ad_value: int
    """Matches entries whose A and D must be guessed from the two masks below."""
    no_ad_accessed_mask: int
    no_ad_dirty_mask: int

    mmio_mask: int
    mmio_value: int
    """The test for an MMIO entry; matches none where none can be made."""
    shadow_mmio_value: int
    """What every MMIO entry holds; 0 if none can be made."""
    shadow_mmio_access_mask: int
    mmio_gfn_mask: int
    """The part of the gfn that stays in place."""
    mmio_gfn_bits: int
    shadow_nonpresent_or_rsvd_mask: int
    """Address bits set against L1TF; the gfn's own are moved above them."""
    mmio_gen_low_mask: int
    mmio_gen_low_shift: int
    mmio_gen_high_mask: int
    mmio_gen_high_shift: int
    """The generation's parts, and how far left they are moved."""
    mmio_gen_mask: int
    """The slice of the memslots' generation that counts."""
    mmio_gen_bias: int
    mmio_gen_in_progress: int
    mmio_gen_wrap_mask: int
    mmio_gen_wrap_value: int
    """The test for a slice that has wrapped."""

    change_pte_keeps: int
    """The writability bits that change_pte leaves as they are."""
    guest_mtrr: bool
    """With non-coherent DMA a leaf gets the guest's MTRR type."""

    def __repr__(self) -> str:
        return f"Layout({self.name})"


class Decoded(NamedTuple):
    """What a value means."""

    kind: str
    """``leaf``, ``tracked``, ``table``, ``mmio``, ``frozen``, ``none``, ``unknown``."""
    format: type[Spte] | None
    """None if no format accepts the value."""
    fields: dict[str, int]
    """The fields by name, highest bit first."""


def _bits(fmt: type[Spte], *names: str) -> int:
    """Return the bits of some fields of a format; one that it lacks counts as none."""
    return sum(fmt.fields[name].mask for name in names if name in fmt.fields)


def _name(o: Options, *, exec_only: bool, nx_huge_pages: bool) -> str:
    extras = {
        "no-ad": not o.ad,
        "no-exec-only": not exec_only,
        "nx-huge": nx_huge_pages,
        "no-mmio": not o.mmio_caching,
        f"generation-{o.generation}": o.generation != o.release,
        f"l1tf-{o.l1tf_cache_bits}": o.l1tf_cache_bits is not None,
        f"c{o.c_bit}": o.c_bit is not None,
    }
    return " ".join([f"{o.release}-{o.paging}", *(k for k, on in extras.items() if on)])


@cache
def make_layout(
    release: str,
    paging: str,
    *,
    ad: bool = True,
    exec_only: bool = True,
    nx_huge_pages: bool = False,
    maxphyaddr: int = 46,
    l1tf_cache_bits: int | None = None,
    c_bit: int | None = None,
    mmio_caching: bool = True,
    generation: str | None = None,
) -> Layout:
    """Return the layout of a configuration; the same arguments give the same object.

    :param release: a key of :data:`kvmarch_x86.releases.RELEASES`, such as ``6.1``;
        each stands for the releases that are named there.
    :param paging: ``ept`` or ``npt``.
    :param ad: hardware sets A and D; always so with NPT.
    :param exec_only: EPT allows execute without read. Direct maps always allow read,
        so it shows in :attr:`Layout.shadow_present_mask` only.
    :param nx_huge_pages: huge pages are made without execute permission; no layout
        4.2 kernel can.
    :param maxphyaddr: bits of a host-physical address; with memory encryption, those
        that it leaves.
    :param l1tf_cache_bits: x86_cache_bits where the processor has the L1TF bug.
    :param c_bit: the number of the memory encryption bit (SME), NPT only.
    :param mmio_caching: whether MMIO entries are made (module parameter).
    :param generation: how MMIO entries hold the generation, if not as the release
        does: a key of :data:`kvmarch_x86.releases.GENERATIONS`.
    :raises FormatError: the combination does not exist.
    """
    if release not in RELEASES:
        raise FormatError(f"no x86 layout {release!r}; there is {', '.join(RELEASES)}")
    if paging not in PAGINGS:
        raise FormatError(f"no x86 paging {paging!r}; there is {', '.join(PAGINGS)}")
    generation = release if generation is None else generation
    if generation not in GENERATIONS:
        known = ", ".join(GENERATIONS)
        raise FormatError(f"no MMIO generation {generation!r}; there is {known}")
    if nx_huge_pages and not RELEASES[release].modern:
        raise FormatError(f"layout {release} knows no NX huge pages")
    o = Options(
        release=release,
        paging=paging,
        ad=ad,
        generation=generation,
        maxphyaddr=maxphyaddr,
        l1tf_cache_bits=l1tf_cache_bits,
        c_bit=c_bit,
        mmio_caching=mmio_caching,
    )
    rows = build_formats(o)
    by_kind = {(level, kind): fmt for level, kind, fmt in rows}
    leaf, table = by_kind[1, "leaf"], by_kind[2, "table"]
    frozen = by_kind.get((1, "frozen"))
    mmio = by_kind.get((1, "mmio"))
    ints = {
        "nonpresent": by_kind[1, "none"].kind_value,
        "leaf_bits": leaf.kind_value,
        "nonleaf_bits": table.kind_value | _bits(table, "accessed"),
        "pfn_mask": _bits(leaf, "pfn"),
        "large_mask": _bits(by_kind[2, "leaf"], "ps"),
        "writable_mask": _bits(leaf, "w"),
        "shadow_present_mask": _present(o, leaf, exec_only=exec_only),
        "shadow_x_mask": _bits(leaf, "x"),
        "shadow_xu_mask": _bits(leaf, "xu"),
        "shadow_nx_mask": _bits(leaf, "nx"),
        "shadow_me_value": _bits(leaf, "c"),
        **_memtype_masks(o, leaf),
        **_tracking_masks(o, leaf),
        **_generation_masks(o, wraps=mmio is not None),
    }
    mmio_masks = _mmio_masks(o, mmio)
    return Layout(
        name=_name(o, exec_only=exec_only, nx_huge_pages=nx_huge_pages),
        release=release,
        paging=paging,
        ad=ad,
        nx_huge_pages=nx_huge_pages,
        rows=rows,
        guest_mtrr=RELEASES[release].guest_mtrr,
        frozen=None if frozen is None else frozen.kind_value,
        **ints,
        **mmio_masks,
        **_present_test(leaf, frozen, mmio_masks),
    )


def _present(o: Options, leaf: type[Spte], *, exec_only: bool) -> int:
    """Return shadow_present_mask (fact sheet x86, 1.2)."""
    if o.paging == "npt":
        return _bits(leaf, "p")
    with_exec_only, without = RELEASES[o.release].present_read
    readable = with_exec_only if exec_only else without
    return _bits(leaf, "suppress_ve") | (_bits(leaf, "r") if readable else 0)


def _memtype_masks(o: Options, leaf: type[Spte]) -> dict[str, int]:
    if o.paging == "npt":
        return {"memtype_mask": 0, "memtype_default": 0}
    return {
        "memtype_mask": _bits(leaf, "memtype", "ipat"),
        "memtype_default": (
            leaf.fields["memtype"].place(MemType.WB) | leaf.fields["ipat"].place(1)
        ),
    }


def _tracking_masks(o: Options, leaf: type[Spte]) -> dict[str, int]:
    """Return what belongs to writability, A, D and access tracking (1.3, 1.4)."""
    release = RELEASES[o.release]
    host, mmu = _bits(leaf, "host_writable"), _bits(leaf, "mmu_writable")
    kind = leaf.fields.get("ad_kind")
    ad_mask, ad_disabled = NEVER
    if kind is not None:
        ad_mask, ad_disabled = kind.mask, kind.place(AdKind.DISABLED)
    saved_mask, saved_shift = saved_bits(o.release, o.paging)
    track = 0
    if saved_mask:
        track = EptEntry.r.mask | EptEntry.w.mask | EptEntry.x.mask | saved_mask
    no_ad, by_access, by_write = (ad_mask, ad_disabled), track, EptEntry.w.mask
    if release.ad_in_software:
        no_ad = NEVER
    elif kind is None and not o.ad:
        # Layout 4.2 without A/D: every mapped page counts as accessed and dirty.
        no_ad, by_access, by_write = (0, 0), EptEntry.r.mask, EptEntry.r.mask
    return {
        "shadow_host_writable_mask": host,
        "shadow_mmu_writable_mask": mmu,
        "lockless_mask": host | mmu if release.lockless_host else mmu,
        "shadow_accessed_mask": _bits(leaf, "accessed"),
        "shadow_dirty_mask": _bits(leaf, "dirty"),
        "change_pte_keeps": mmu if release.change_pte_keeps else 0,
        "ad_mask": ad_mask,
        "ad_disabled": ad_disabled,
        "ad_wrprot_only": (
            0 if kind is None or kind.width == 1 else kind.place(AdKind.WRPROT_ONLY)
        ),
        "shadow_acc_track_mask": track,
        "saved_mask": saved_mask,
        "saved_shift": saved_shift,
        "no_ad_mask": no_ad[0],
        "no_ad_value": no_ad[1],
        "no_ad_accessed_mask": by_access,
        "no_ad_dirty_mask": by_write,
    }


def _mmio_masks(o: Options, mmio: type[Spte] | None) -> dict[str, int]:
    """Return what MMIO entries hold besides the generation (1.6)."""
    if mmio is None:
        never_mask, never_value = NEVER
        return {
            "mmio_mask": never_mask,
            "mmio_value": never_value,
            "shadow_mmio_value": 0,
            "shadow_mmio_access_mask": 0,
            "mmio_gfn_mask": 0,
            "mmio_gfn_bits": 0,
            "shadow_nonpresent_or_rsvd_mask": 0,
        }
    guard = _bits(mmio, "l1tf")
    value = mmio.kind_value & ~guard
    mask = mmio.kind_mask & ~guard
    test = RELEASES[o.release].mmio_test
    if test == "set":
        mask = value
    elif test == "mark":
        mask = _bits(mmio, "mark")
    gfn = mmio.fields["gfn"]
    top, low = gfn.parts[0]
    return {
        "mmio_mask": mask,
        "mmio_value": value & mask,
        "shadow_mmio_value": value,
        # EPT entries hold bits of their own there.
        "shadow_mmio_access_mask": (
            _bits(mmio, "w", "user") if o.paging == "npt" else 0
        ),
        "mmio_gfn_mask": (1 << top + 1) - (1 << low),
        "mmio_gfn_bits": gfn.width,
        "shadow_nonpresent_or_rsvd_mask": guard,
    }


def _generation_masks(o: Options, *, wraps: bool) -> dict[str, int]:
    """Return how MMIO entries hold the generation (1.6)."""
    g = GENERATIONS[o.generation]
    field = g.field()
    (low_top, low), (_, high) = field.parts
    low_mask = (1 << low_top + 1) - (1 << low)
    mask = (1 << g.bits) - 1
    wrap = (mask & ~(g.strides - 1), mask if g.wraps_at_end else 0)
    if RELEASES[o.release].wrap_needs_mmio and not wraps:
        wrap = NEVER
    return {
        "mmio_gen_low_mask": low_mask,
        "mmio_gen_low_shift": low - g.shift,
        "mmio_gen_high_mask": field.mask & ~low_mask,
        "mmio_gen_high_shift": high - (low_top - low + 1) - g.shift,
        "mmio_gen_mask": mask,
        "mmio_gen_bias": g.bias,
        "mmio_gen_in_progress": g.in_progress,
        "mmio_gen_wrap_mask": wrap[0],
        "mmio_gen_wrap_value": wrap[1],
    }


def _present_test(
    leaf: type[Spte], frozen: type[Spte] | None, mmio: dict[str, int]
) -> dict[str, int]:
    """Return the test for "KVM has mapped this" (1.3)."""
    absent = (mmio["mmio_mask"], mmio["mmio_value"])
    if "mmu_present" in leaf.fields:
        present, absent = _bits(leaf, "mmu_present"), NEVER
    elif "ad_kind" in leaf.fields:
        # No present entry of v5.12 has the bit of its REMOVED_SPTE.
        present = (1 << leaf.width) - 1
        present ^= 0 if frozen is None else frozen.kind_value
    else:
        present = _bits(leaf, "r", "p")
    return {
        "present_mask": present,
        "absent_mask": absent[0],
        "absent_value": absent[1],
    }


def formats(layout: Layout) -> list[tuple[int, str, type[Spte]]]:
    """Return level, kind and format of every entry of a layout.

    An empty or frozen entry has one format, listed at every level.
    """
    return list(layout.rows)


def decode(layout: Layout, entry: int, level: int) -> Decoded:
    """Return what a value means in a table of this level.

    A value that no format accepts is ``unknown``; :func:`refusals` tells why. Formats
    of one level exclude each other, so no value has two meanings. The empty format
    and the test for MMIO are the layout's: with the wrong options values are unknown.

    :raises EntryError: the value is no 64-bit value, or there is no such level.
    """
    _check(entry, level)
    for at, kind, fmt in layout.rows:
        if at == level and fmt.accepts(entry):
            return Decoded(kind, fmt, fmt.unpack(entry))
    return Decoded("unknown", None, {})


def refusals(layout: Layout, entry: int, level: int) -> list[tuple[str, str]]:
    """Return, for each kind of entry at a level, why the value is none.

    :returns: kind and reason; kinds that accept the value are left out.
    :raises EntryError: the value is no 64-bit value, or there is no such level.
    """
    _check(entry, level)
    reasons = []
    for at, kind, fmt in layout.rows:
        if at == level:
            try:
                fmt.check(entry)
            except EntryError as error:
                reasons.append((kind, str(error)))
    return reasons


def _check(entry: int, level: int) -> None:
    if not 0 <= entry < 1 << Spte.width:
        raise EntryError(f"{entry:#x} is no {Spte.width}-bit value")
    if not 1 <= level <= MAX_LEVEL:
        raise EntryError(f"level {level} is not in 1 to {MAX_LEVEL}")
