"""What changed in the direct MMU with reverse maps, besides what both MMUs share."""

__all__ = ["RMAP_CHANGES", "RMAP_CHOICES"]

from kvmarch_x86.layout import Layout
from kvmarch_x86.spte import (
    is_accessed_spte,
    is_dirty_spte,
    is_mmu_writable_spte,
    is_writable_pte,
    spte_can_locklessly_be_made_writable,
)

from kvmarch import Change, Choice

RMAP_CHANGES: tuple[Change, ...] = (
    Change(
        "x86-age-ranges",
        "Age ranges of hvas; without A bits, make faults that are under way retry",
        (3, 18),
        "57128468080a",
        arch="x86",
        source="x86 3.5 (kvm_age_hva() of 4.2); id and release are from memory",
    ),
    Change(
        "x86-flush-changed-ad",
        "Flush when A or D of a leaf changes, whichever way",
        (4, 0),
        "7e71a59b2522",
        arch="x86",
        source="read in 4.2; id and release are from memory",
    ),
    Change(
        "x86-unique-fault-results",
        "A spurious fault ends before its neighbours are looked at",
        (5, 10),
        "c4371c2a682e",
        arch="x86",
        source="read in 5.10, absent from 4.2; id and release are from memory",
    ),
    Change(
        "x86-mmio-over-present",
        "Write an MMIO entry without a look at the leaf that it replaces",
        (5, 13),
        "a54aa15c6bda",
        (7, 0),
        arch="x86",
        source="x86 6 D16 ended it (aad885e77496, v7.0-rc6); read in 5.15, absent from "
        "5.10; the first id and release are from memory",
    ),
    Change(
        "x86-prefetch-trailing",
        "Prefetch the neighbours after the last mapped one too",
        (5, 16),
        "c6cecc4b9324",
        arch="x86",
        source="read in the patch of August 2021; absent from 5.15.85",
    ),
)


def _choice(name: str, doc: str, change: str) -> Choice:
    choice = Choice(name, doc)
    choice.add(False)
    choice.add(True, change)
    return choice


update_flushes = Choice(
    "x86_rmap_update_flushes",
    "whether a leaf that keeps its page has changed so that TLBs must be flushed",
)
"""All variants take a leaf of now and one of then: mmu_spte_update(), x86 3.8."""


def _loses_write(layout: Layout, old: int, new: int) -> bool:
    return spte_can_locklessly_be_made_writable(layout, old) and not is_writable_pte(
        layout, new
    )


@update_flushes.when()
def _flush_lost_write(layout: Layout, old: int, new: int) -> bool:
    """Flush if W is taken away (to v3.19; that A and D did not count is unverified)."""
    return _loses_write(layout, old, new)


@update_flushes.when("x86-flush-changed-ad")
def _flush_changed_ad(layout: Layout, old: int, new: int) -> bool:
    """Flush if W is taken away, or A or D changes at all (v4.0 to v4.10)."""
    ad = layout.shadow_accessed_mask | layout.shadow_dirty_mask
    return _loses_write(layout, old, new) or (old ^ new) & ad != 0


@update_flushes.when("x86-flush-changed-ad", "x86-access-tracking")
def _flush_lost_ad(layout: Layout, old: int, new: int) -> bool:
    """Flush if W is taken away, or the leaf is accessed or dirty no more (v4.11 on)."""
    return (
        _loses_write(layout, old, new)
        or (is_accessed_spte(layout, old) and not is_accessed_spte(layout, new))
        or (is_dirty_spte(layout, old) and not is_dirty_spte(layout, new))
    )


@update_flushes.when("x86-flush-changed-ad", "x86-access-tracking", "x86-software-ad")
def _flush_lost_mmu_writable(layout: Layout, old: int, new: int) -> bool:
    """Flush if MMU-writable is taken away (v6.13 on)."""
    return is_mmu_writable_spte(layout, old) and not is_mmu_writable_spte(layout, new)


RMAP_CHOICES: tuple[Choice, ...] = (
    update_flushes,
    _choice(
        "x86_rmap_age_bumps_seq",
        "whether ageing by unmapping makes faults that are under way retry",
        "x86-age-ranges",
    ),
    _choice(
        "x86_rmap_spurious_ends",
        "whether a fault that changes nothing prefetches nothing",
        "x86-unique-fault-results",
    ),
    _choice(
        "x86_rmap_mmio_overwrites",
        "whether an MMIO entry is written over a leaf as if there were none",
        "x86-mmio-over-present",
    ),
    _choice(
        "x86_rmap_prefetch_trailing",
        "whether prefetch goes on after the last mapped neighbour",
        "x86-prefetch-trailing",
    ),
)
