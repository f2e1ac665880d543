"""What changed in KVM/x86 from release to release, and the choices that follow.

Rows are the timeline of the fact sheet x86 (section 5) with the bugs of its section 6.
Where a release is from memory, ``source`` says so.
"""

__all__ = ["CHANGES", "CHOICES", "Rules"]

from functools import partial
from typing import Any, NamedTuple

from kvmarch_x86.mmio import (
    generation_mmio_spte_mask,
    generation_mmio_spte_mask_unshifted,
    get_mmio_spte_generation,
    get_mmio_spte_generation_unshifted,
)

from kvmarch import Change, Choice

_row = partial(Change, arch="x86")

CHANGES: tuple[Change, ...] = (
    _row(
        "x86-509-memslots",
        "Raise the number of memslots to 509",
        (3, 19),
        "1d4e7e3c0bca",
        source="generic 1.3 has the number; id, release and 125 before are from memory",
    ),
    _row(
        "x86-access-tracking",
        "Track accesses by taking permissions away where EPT has no A/D",
        (4, 11),
        "f160c7b7bb32",
        source="x86 5; the release is from memory there. The special bit 62 and the "
        "saved bits 52 and 54 were read in 6eeb4ef049e7, which moved them; up to v4.12 "
        "the special bit was set in tracked entries only, which is not modelled",
    ),
    _row(
        "x86-l1tf",
        "Split the gfn of MMIO entries against L1TF",
        (4, 19),
        "28a1f3ac1d0c",
        source="x86 1.6, 5; the release is from memory there",
    ),
    _row(
        "x86-mmio-generation-19",
        "Keep 19 bits of the memslot generation in MMIO entries, none implied",
        (5, 1),
        "cae7ed3c2cb0",
        source="generic 2.10 (bits 3-11 and 52-61); x86 6 D2",
    ),
    _row(
        "x86-slot-only-zap",
        "Zap only the memslot's pages when it is deleted or moved",
        (5, 1),
        "4e103134b862",
        (5, 3),
        source="x86 3.9; reverted by d012a06ab1d2 in the v5.3 cycle, from memory",
    ),
    _row(
        "x86-yielding-zap-all",
        "Zap everything, yielding, when a memslot is deleted or moved",
        (5, 3),
        "d012a06ab1d2",
        (5, 4),
        source="x86 3.9, 6 D10; v5.3 or v5.4 is unverified there",
    ),
    _row(
        "x86-spte-kinds",
        "Tell kinds of entries apart by bits 53:52, save permissions in 54 and 56",
        (5, 4),
        "6eeb4ef049e7",
        source="read in the patch; the release is from memory. Up to v5.5 the "
        "generation of MMIO entries overlapped these bits; here it has 54-62 at once",
    ),
    _row(
        "x86-mmio-generation-high",
        "Put the upper half of the generation into MMIO entries",
        (5, 10),
        "34c0f6f2695a",
        source="x86 6 D2",
    ),
    _row(
        "x86-rwlock",
        "Make mmu_lock a rwlock; let faults of the TDP MMU run in parallel",
        (5, 12),
        "a2855afc7ee8",
        source="x86 5 (08f07c800e9d, e25f0e0cd51b); this id is from memory",
    ),
    _row(
        "x86-retry-invalid-slot",
        "Retry page faults that hit an invalid memslot",
        (5, 12),
        "e0c378684b65",
        source="x86 6 D20; id and release are from memory",
    ),
    _row(
        "x86-mmu-present-bit",
        "Track MMU-present entries by bit 11; move the writability bits of EPT",
        (5, 13),
        "edea7c4fc215",
        source="x86 5; the release is from memory there",
    ),
    _row(
        "x86-mmio-generation-spares-present",
        "Exclude the MMU_PRESENT bit from the generation of MMIO entries",
        (5, 13),
        source="x86 6 D15: fixed before the release",
    ),
    _row(
        "x86-age-keeps-dirty",
        "Ageing in the TDP MMU leaves D alone",
        (5, 13),
        "6d9aafb96d5f",
        source="x86 6 D17; the release is from memory there",
    ),
    _row(
        "x86-fast-invalidation",
        "Invalidate the TDP MMU's roots when a memslot is deleted, zap them under "
        "mmu_lock for read",
        (5, 13),
        "b7cccd397f31",
        source="from memory (with 4c6654bd160d); x86 6 D3 and D4 place it before v5.16",
    ),
    _row(
        "x86-log-shared",
        "Write-protect for dirty logging with mmu_lock held for read (TDP MMU)",
        (5, 13),
        "24ae4cfaaa2e",
        source="from memory; x86 3.10 places it between v5.10 and v6.1",
    ),
    _row(
        "x86-tdp-fast-fault",
        "Enable fast page faults for the TDP MMU",
        (5, 15),
        "6e8eb2060cc7",
        source="x86 5; id and release are from memory",
    ),
    _row(
        "x86-obsolete-root-check",
        "Retry a page fault if its root was invalidated meanwhile",
        (5, 16),
        "a955cad84cda",
        source="x86 6 D3; the release is from memory there",
    ),
    _row(
        "x86-change-pte-clears-mmu-writable",
        "change_pte clears MMU-writable too",
        (5, 17),
        "f082d86ea685",
        source="x86 3.4; the release is from memory there",
    ),
    _row(
        "x86-write-protect-by-mmu-writable",
        "Skip write protection only if MMU-writable is clear as well",
        (5, 17),
        "7c8a4742c4ab",
        source="x86 6 D9; the release is from memory there",
    ),
    _row(
        "x86-fast-fault-huge",
        "Let a fast page fault make a huge page writable if its slot logs nothing",
        (5, 17),
        source="x86 3.2: between v5.10 and v6.1; v5.17 is unverified",
    ),
    _row(
        "x86-unmap-all-roots",
        "Notifiers unmap from invalid roots too",
        (5, 18),
        "d62007edf01f",
        source="x86 4",
    ),
    _row(
        "x86-zap-only-leafs",
        "Zap only leafs in notifiers and kvm_zap_gfn_range()",
        (5, 18),
        "f47e5bbbc92f",
        source="x86 4 (with acbda82a81c7: only with mmu_lock for write)",
    ),
    _row(
        "x86-change-pte-batches-flush",
        "change_pte in the TDP MMU leaves the flush to the caller",
        (5, 18),
        "93fa50f644e0",
        source="x86 4",
    ),
    _row(
        "x86-zap-all-unflushed",
        "Zapping all of the TDP MMU needs no remote flush",
        (5, 18),
        "77c8cd6b85af",
        source="x86 4",
    ),
    _row(
        "x86-atomic-spte-writes",
        "The TDP MMU exchanges volatile entries instead of storing",
        (5, 18),
        "ba3a6120a4e7",
        source="x86 6 D8",
    ),
    _row(
        "x86-free-obsolete-roots",
        "vCPUs put obsolete roots only, instead of reloading",
        (5, 18),
        "527d5cd7eece",
        source="x86 3.9; id and release are from memory",
    ),
    _row(
        "x86-eager-split",
        "Split huge pages of the TDP MMU when dirty logging begins",
        (5, 18),
        "a3fe5dbda0a4",
        source="x86 3.7; the id is from memory",
    ),
    _row(
        "x86-collapse-tables",
        "Zap tables, not their leafs, when dirty logging ends (TDP MMU)",
        (5, 19),
        "5ba7c4c6d1c7",
        source="x86 3.7 places it between v5.10 and v6.1; id, release from memory",
    ),
    _row(
        "x86-log-always-flushes",
        "Flush the memslot whenever dirty logging begins",
        (6, 0),
        "b64d740ea7dd",
        source="x86 3.6 places it before v6.1; id and release are from memory",
    ),
    _row(
        "x86-split-on-fault",
        "Split a huge page in place when a fault needs a small one",
        (6, 3),
        "c4b33d28ea51",
        source="x86 3.7; the release is from memory there",
    ),
    _row(
        "x86-roots-kept",
        "The TDP MMU keeps a reference to each root until it is invalidated",
        (6, 4),
        "edbdb43fc96b",
        source="x86 5; the release is from memory there",
    ),
    _row(
        "x86-early-retry",
        "Look for an invalidation before mmu_lock is taken",
        (6, 9),
        "d02c357e5bfa",
        source="x86 3.1; the release is from memory there",
    ),
    _row(
        "x86-nonpresent-value",
        "Empty entries hold bit 63",
        (6, 10),
        "7f01cab84928",
        source="x86 1.3; the release is from memory there",
    ),
    _row(
        "x86-invalid-root-unflushed",
        "Unmapping from an invalid root owes no flush",
        (6, 12),
        source="x86 3.3: between v6.1 and v6.12; v6.12 is unverified",
    ),
    _row(
        "x86-four-pass-zap",
        "Zap a root in passes over levels 1, 2, 3 and the root's",
        (6, 12),
        source="x86 3.9: between v6.1 and v6.12; v6.12 is unverified",
    ),
    _row(
        "x86-slot-zap-quirk",
        "Allow to zap only the memslot that is deleted (KVM_X86_QUIRK_SLOT_ZAP_ALL)",
        (6, 12),
        "aa8d1f48d353",
        source="x86 5",
    ),
    _row(
        "x86-software-ad",
        "Keep A and D in their bits even where hardware does not set them",
        (6, 13),
        source="x86 3.5 by pull text: the A/D overhaul of v6.13",
    ),
    _row(
        "x86-pfn-flags-at-fault",
        "Set page flags when a fault releases its page, not when an entry is dropped",
        (6, 13),
        source="x86 2, 3.1: in v7.2; v6.13 (one pull with the A/D overhaul) unverified",
    ),
    _row(
        "x86-young-unflushed",
        "Elide the TLB flush when ageing found a young entry",
        (6, 13),
        source="x86 3.5 by pull text",
    ),
    _row(
        "x86-recover-huge-pages",
        "Recover huge pages in place when dirty logging ends",
        (6, 13),
        "13e2e4f62a4b",
        source="x86 3.7",
    ),
    _row(
        "x86-spurious-first",
        "An access that a present leaf allows is spurious before anything is built",
        (6, 14),
        source="x86 3.1: in v7.2, not in v6.12; v6.14 is unverified",
    ),
    _row(
        "x86-lockless-aging",
        "Age entries without mmu_lock",
        (6, 15),
        "b146a9b34aed",
        source="x86 3.5",
    ),
    _row(
        "x86-mbec-layout",
        "Shuffle the software bits of entries to make room for user-execute",
        (7, 2),
        "9a67ab74021b",
        source="x86 1.3 (with be4e45f360a2); both ids stand among the changes merged "
        "for v7.2-rc1",
    ),
)

# -- layouts and generations ---------------------------------------------------------

x86_layout = Choice("x86_layout", "which bits entries have: a layout's name")
x86_generation = Choice("x86_generation", "how MMIO entries hold the generation")

_LAYOUTS = (
    ("4.11", "x86-access-tracking"),
    ("5.10", "x86-spte-kinds"),
    ("5.12", "x86-rwlock"),
    ("6.1", "x86-mmu-present-bit"),
    ("6.12", "x86-nonpresent-value"),
    ("6.13", "x86-software-ad"),
    ("7.2", "x86-mbec-layout"),
)
_GENERATIONS = (
    ("5.1", "x86-mmio-generation-19"),
    ("5.10", "x86-spte-kinds"),
    ("5.13-rc", "x86-mmu-present-bit"),
    ("6.1", "x86-mmio-generation-spares-present"),
    ("7.2", "x86-mbec-layout"),
)


def _later(choice: Choice, rows: tuple[tuple[str, str], ...], *base: str) -> None:
    """Add a variant per row; each needs its change and all those above it."""
    needs = list(base)
    for value, change in rows:
        needs.append(change)
        choice.add(value, *needs)


x86_layout.add("4.2")
_later(x86_layout, _LAYOUTS)
x86_generation.add("3.16")
x86_generation.add("4.2", "generation-twice")
_later(x86_generation, _GENERATIONS)
_later(x86_generation, _GENERATIONS, "generation-twice")

x86_place_generation = Choice(
    "x86_place_generation", "where an MMIO entry gets its generation"
)
x86_read_generation = Choice(
    "x86_read_generation", "how an MMIO entry's generation is read"
)
x86_place_generation.add(generation_mmio_spte_mask)
x86_read_generation.add(get_mmio_spte_generation)
x86_place_generation.add(
    generation_mmio_spte_mask_unshifted, "x86-mmio-generation-19"
)
x86_read_generation.add(get_mmio_spte_generation_unshifted, "x86-mmio-generation-19")
x86_place_generation.add(
    generation_mmio_spte_mask, "x86-mmio-generation-19", "x86-mmio-generation-high"
)
x86_read_generation.add(
    get_mmio_spte_generation, "x86-mmio-generation-19", "x86-mmio-generation-high"
)

# -- values ----------------------------------------------------------------------------


class Rules(NamedTuple):
    """What a kernel does, as far as it is yes or no; each field is a choice."""

    checks_root: bool
    """A fault is stale if its root is obsolete."""
    retries_invalid_slot: bool
    """A fault on a memslot that is INVALID is tried again, not answered as MMIO."""
    fast_fault: bool
    """The TDP MMU has fast page faults."""
    fast_fault_huge: bool
    """A fast page fault may make a huge page writable."""
    early_retry: bool
    """A fault looks for invalidations before it takes mmu_lock."""
    spurious_first: bool
    """A fault that a present leaf allows already builds nothing."""
    splits_on_fault: bool
    """A fault that needs a small page splits a huge one in place."""
    marks_when_dropped: bool
    """Dropping or cleaning an entry sets the page's flags."""
    age_clears_dirty: bool
    """Ageing in the TDP MMU clears D with A."""
    ages_invalid: bool
    """Ageing looks at invalid roots too."""
    atomic_writes: bool
    """The TDP MMU exchanges volatile entries and acts on what it finds."""
    unmaps_invalid: bool
    """Notifiers unmap from invalid roots too."""
    flushes_invalid: bool
    """Unmapping from an invalid root owes a flush."""
    only_leaves: bool
    """Notifiers drop leaves, not tables."""
    uses_rcu: bool
    """Tables are freed after a grace period, not after a flush."""
    invalidates_roots: bool
    """Deleting a memslot makes roots invalid and zaps them later."""
    keeps_roots: bool
    """The TDP MMU holds a reference to each root of its own."""
    four_passes: bool
    """A root is zapped level by level."""
    flushes_zap_all: bool
    """Zapping everything is followed by a flush."""
    protects_mmu_writable: bool
    """Write protection is skipped only if MMU-writable is clear as well."""
    logs_shared: bool
    """Dirty logging begins with mmu_lock for read."""
    log_flushes: bool
    """Beginning to log flushes whether or not an entry changed."""
    splits_eagerly: bool
    """Huge pages are split when dirty logging begins."""
    collapses_tables: bool
    """When logging ends whole tables go, not their leaves."""
    recovers: bool
    """When logging ends huge pages are made again in place."""
    l1tf: bool
    """MMIO entries guard against L1TF where the processor needs it."""


_WHEN: dict[str, tuple[str, bool]] = {
    "checks_root": ("x86-obsolete-root-check", True),
    "retries_invalid_slot": ("x86-retry-invalid-slot", True),
    "fast_fault": ("x86-tdp-fast-fault", True),
    "fast_fault_huge": ("x86-fast-fault-huge", True),
    "early_retry": ("x86-early-retry", True),
    "spurious_first": ("x86-spurious-first", True),
    "splits_on_fault": ("x86-split-on-fault", True),
    "marks_when_dropped": ("x86-pfn-flags-at-fault", False),
    "age_clears_dirty": ("x86-age-keeps-dirty", False),
    "ages_invalid": ("x86-lockless-aging", False),
    "atomic_writes": ("x86-atomic-spte-writes", True),
    "unmaps_invalid": ("x86-unmap-all-roots", True),
    "flushes_invalid": ("x86-invalid-root-unflushed", False),
    "only_leaves": ("x86-zap-only-leafs", True),
    "uses_rcu": ("x86-rwlock", True),
    "invalidates_roots": ("x86-fast-invalidation", True),
    "keeps_roots": ("x86-roots-kept", True),
    "four_passes": ("x86-four-pass-zap", True),
    "flushes_zap_all": ("x86-zap-all-unflushed", False),
    "protects_mmu_writable": ("x86-write-protect-by-mmu-writable", True),
    "logs_shared": ("x86-log-shared", True),
    "log_flushes": ("x86-log-always-flushes", True),
    "splits_eagerly": ("x86-eager-split", True),
    "collapses_tables": ("x86-collapse-tables", True),
    "recovers": ("x86-recover-huge-pages", True),
    "l1tf": ("x86-l1tf", True),
}
"""By rule: the change that decides it, and the rule's value once it is applied."""


def _choice(name: str, before: Any, change: str, after: Any, doc: str) -> Choice:
    choice = Choice(name, doc)
    choice.add(before)
    choice.add(after, change)
    return choice


CHOICES: tuple[Choice, ...] = (
    x86_layout,
    x86_generation,
    x86_place_generation,
    x86_read_generation,
    *(
        _choice(f"x86_{name}", not value, change, value, f"the rule {name}")
        for name, (change, value) in _WHEN.items()
    ),
    _choice(
        "mmu_lock_kind", "spinlock", "x86-rwlock", "rwlock", "what mmu_lock is"
    ),
    _choice(
        "user_slots_before", 125, "x86-509-memslots", 509, "memslots before v5.15"
    ),
    _choice(
        "x86_reload_request",
        "mmu_reload",
        "x86-free-obsolete-roots",
        "mmu_free_obsolete_roots",
        "the request that makes vCPUs leave obsolete roots",
    ),
    _choice(
        "flush_if_young",
        True,
        "x86-young-unflushed",
        False,
        "whether clear_flush_young() flushes what was young",
    ),
)
