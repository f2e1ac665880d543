"""Leafs of the direct MMU: found by reverse map, matched in bulk, dropped.

:Kernel: rmap_head and the walks over it in arch/x86/kvm/mmu.c, later
    arch/x86/kvm/mmu/mmu.c, v3.16 to v7.2; fact sheet x86, section 2.
"""

__all__ = [
    "RmapRange",
    "drop_leafs",
    "for_each_rmap",
    "forget_lost_rmaps",
    "leafs",
    "leafs_with",
    "mark_page",
    "store_spte",
]

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from kvmarch_x86.geometry import LEVEL_BITS, PAGE_SHIFT
from kvmarch_x86.layout import Layout
from kvmarch_x86.spte import (
    is_accessed_spte,
    is_dirty_spte,
    is_last_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from kvmarch_x86.state import ENTRIES

from kvmarch import Match, Table, Vm

ALL_BITS = (1 << 64) - 1


class RmapRange(NamedTuple):
    """The entries of one table that the reverse maps of a range of gfns may hold."""

    table: Table
    level: int
    start: int
    """Index of the first entry."""
    stop: int
    """Index after the last one."""


def for_each_rmap(
    vm: Vm, as_id: int, start: int, end: int, *, min_level: int = 1, max_level: int = 3
) -> Iterator[RmapRange]:
    """Yield where leafs for ``start`` to ``end`` (gfn, end exclusive) can be.

    A huge page counts as soon as it overlaps the range. Tables that a new root has
    made obsolete are among them, as their leafs are in the reverse maps.

    :Kernel: slot_rmap_walk_init() and _next()
    """
    pages_at, tables = vm.arch.mmu_page_hash, vm.tables
    for level in range(min_level, max_level + 1):
        shift = LEVEL_BITS * (level - 1)
        span = ENTRIES << shift
        for base in range(start & -span, end, span):
            found = pages_at.get((as_id, level, base))
            if found:
                first = max(start - base, 0) >> shift
                stop = min((end - base - 1 >> shift) + 1, ENTRIES)
                for pa in found:
                    yield RmapRange(tables.at(pa), level, first, stop)


@cache
def leafs(layout: Layout, level: int) -> tuple[Match, ...]:
    """Return what tells leafs of a level, tracked ones too, from other entries."""
    return leafs_with(layout, level, 0)


@cache
def leafs_with(layout: Layout, level: int, bits: int) -> tuple[Match, ...]:
    """Return what tells leafs of a level in which all of some bits are set.

    As few bits as possible are looked at: each costs a pass over a table.
    """
    large = layout.large_mask if level > 1 else 0
    present = layout.present_mask
    if not layout.absent_mask and present & present - 1 == 0:
        # A bit of its own says that an entry is present.
        return (Match(present | large | bits),)
    mmio = next((fmt for _, kind, fmt in layout.rows if kind == "mmio"), None)
    matches = []
    for at, kind, fmt in layout.rows:
        if at != level or kind not in {"leaf", "tracked"}:
            continue
        mask = value = large
        readable = fmt.fields.get("r") or fmt.fields["p"]
        mask |= readable.mask
        if kind == "leaf":
            value |= readable.mask
        else:
            mask |= layout.ad_mask
            value |= layout.ad_disabled
        if mmio is not None:
            both = mask & mmio.kind_mask
            if value & both == mmio.kind_value & both:
                # Another bit must keep MMIO entries out: one that is fixed otherwise
                # in the leaf, or one that only MMIO entries have.
                differ = fmt.kind_mask & mmio.kind_mask
                differ &= fmt.kind_value ^ mmio.kind_value
                differ = differ or mmio.kind_value & ~fmt.known
                assert differ, f"{layout.name}: a {kind} may look like an MMIO entry"
                mark = differ & -differ
                mask |= mark
                value |= fmt.kind_value & mark
        if bits & mask & ~value == 0:
            matches.append(Match(mask | bits, value | bits))
    return tuple(matches)


def mark_page(vm: Vm, spte: int, *, accessed: bool, dirty: bool, who: str) -> None:
    """Tell the page of a leaf that it was accessed or written.

    :Kernel: kvm_set_pfn_accessed(), kvm_set_pfn_dirty() up to v6.12; from v6.13 the
        fault does that when it gives the page back.
    """
    if vm.arch.rules.marks_when_dropped and (accessed or dirty):
        pfn = spte_to_pfn(vm.arch.layout, spte)
        vm.host.mark(pfn, accessed=accessed, dirty=dirty, who=who)


def drop_leafs(vm: Vm, table: Table, start: int, stop: int, who: str) -> int:
    """Clear the leafs in a run of entries, and tell their pages what they know.

    :Kernel: drop_spte(), mmu_spte_clear_track_bits(), kvm_zap_all_rmap_sptes()
    :returns: how many there were.
    """
    layout, level = vm.arch.layout, table.level
    if stop - start == 1:
        return _drop_one(vm, table, start, who)
    marks = vm.arch.rules.marks_when_dropped
    dropped = 0
    for match in leafs(layout, level):
        if marks and table.count(match, start, stop):
            _mark_pages(vm, table, start, stop, match, who)
        dropped += table.change(
            match, start, stop, clear=ALL_BITS, put=layout.nonpresent
        )
    return dropped


def _drop_one(vm: Vm, table: Table, index: int, who: str) -> int:
    layout = vm.arch.layout
    spte = table.get(index)
    if not is_shadow_present_pte(layout, spte) or not is_last_spte(
        layout, spte, table.level
    ):
        return 0
    table.set(index, layout.nonpresent)
    accessed, dirty = is_accessed_spte(layout, spte), is_dirty_spte(layout, spte)
    mark_page(vm, spte, accessed=accessed, dirty=dirty, who=who)
    return 1


def _mark_pages(
    vm: Vm, table: Table, start: int, stop: int, match: Match, who: str
) -> None:
    layout, mark = vm.arch.layout, vm.host.mark
    mask, value = match.mask, match.value
    if not layout.ad:
        for _index, spte in table.used(start, stop):
            if spte & mask == value:
                accessed = is_accessed_spte(layout, spte)
                dirty = is_dirty_spte(layout, spte)
                mark_page(vm, spte, accessed=accessed, dirty=dirty, who=who)
        return
    # The same for the usual layouts without a call per entry but one.
    pfn_mask, a, d = (
        layout.pfn_mask,
        layout.shadow_accessed_mask,
        layout.shadow_dirty_mask,
    )
    for _index, spte in table.used(start, stop):
        if spte & mask == value and spte & (a | d):
            pfn = (spte & pfn_mask) >> PAGE_SHIFT
            mark(pfn, accessed=spte & a != 0, dirty=spte & d != 0, who=who)


def store_spte(vm: Vm, table: Table, index: int, new: int, who: str) -> bool:
    """Change a leaf that keeps its page, and tell the page what gets lost.

    :Kernel: mmu_spte_update()
    :returns: whether TLBs must be flushed before mmu_lock is dropped.
    """
    layout = vm.arch.layout
    old = table.get(index)
    table.set(index, new)
    if not is_shadow_present_pte(layout, old):
        return False
    if layout.ad or layout.saved_mask:
        # Layout 4.2 without A/D stops before it looks at accessed and dirty.
        accessed = is_accessed_spte(layout, old) and not is_accessed_spte(layout, new)
        dirty = is_dirty_spte(layout, old) and not is_dirty_spte(layout, new)
        mark_page(vm, old, accessed=accessed, dirty=dirty, who=who)
    needs_flush: bool = vm.k.x86_rmap_update_flushes.fn(layout, old, new)
    return needs_flush


def forget_lost_rmaps(vm: Vm, as_id: int, start: int, end: int, who: str) -> None:
    """Follow what a reverse map still holds of entries that were overwritten.

    The kernel finds no leaf there, or memory that is no table any more, and warns or
    dies; then the reverse map is empty.

    :Kernel: for_each_rmap_spte(), which asserts that each entry is present
    """
    lost = vm.arch.lost_rmaps
    for key in [key for key in lost if key[0] == as_id and _overlaps(key, start, end)]:
        for pa, index in lost.pop(key):
            spte = vm.tables.at(pa).get(index)
            vm.warn(
                not is_shadow_present_pte(vm.arch.layout, spte),
                f"{who}: the reverse map of gfn {key[2]:#x} leads to {spte:#x}",
            )


def _overlaps(key: tuple[int, int, int], start: int, end: int) -> bool:
    _as_id, level, gfn = key
    return gfn < end and start < gfn + (1 << LEVEL_BITS * (level - 1))
