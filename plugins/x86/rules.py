"""The choices of KVM/x86 that are values: layouts, and what is yes or no.

Changes are those of :mod:`kvmarch_x86.changes`.
"""

__all__ = ["CHOICES", "Rules"]

from typing import Any, NamedTuple

from kvmarch_x86.mmio import (
    generation_mmio_spte_mask,
    generation_mmio_spte_mask_unshifted,
    get_mmio_spte_generation,
    get_mmio_spte_generation_unshifted,
)

from kvmarch import Choice

# -- layouts and generations -------------------------------------------------------

x86_layout = Choice("x86_layout", "which bits entries have: a layout's name")
x86_generation = Choice("x86_generation", "how MMIO entries hold the generation")

_LAYOUTS = (
    ("4.11", "x86-access-tracking"),
    ("4.11", "x86-mmio-generation-19"),
    ("5.10", "x86-spte-kinds"),
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
# With mmu_lock shared there are frozen entries; v5.12 has another value for them.
_FROZEN = {"5.10": "5.12"}
_later(
    x86_layout,
    tuple((_FROZEN.get(name, name), change) for name, change in _LAYOUTS),
    "x86-rwlock",
)
x86_generation.add("3.16")
x86_generation.add("4.2", "generation-twice")
_later(x86_generation, _GENERATIONS, "x86-access-tracking")
_later(x86_generation, _GENERATIONS, "x86-access-tracking", "generation-twice")

x86_place_generation = Choice(
    "x86_place_generation", "where an MMIO entry gets its generation"
)
x86_read_generation = Choice(
    "x86_read_generation", "how an MMIO entry's generation is read"
)
x86_place_generation.add(generation_mmio_spte_mask)
x86_read_generation.add(get_mmio_spte_generation)
x86_place_generation.add(generation_mmio_spte_mask_unshifted, "x86-mmio-generation-19")
x86_read_generation.add(get_mmio_spte_generation_unshifted, "x86-mmio-generation-19")
x86_place_generation.add(
    generation_mmio_spte_mask, "x86-mmio-generation-19", "x86-mmio-generation-high"
)
x86_read_generation.add(
    get_mmio_spte_generation, "x86-mmio-generation-19", "x86-mmio-generation-high"
)

# -- values ------------------------------------------------------------------------


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
    retries_uncached: bool
    """A read without memslot that the MMIO cache does not name is tried again."""
    early_retry: bool
    """A fault looks for invalidations before it takes mmu_lock."""
    dirty_over_writable: bool
    """A new leaf that may be written has D whatever it replaces."""
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
    """Walkers of the TDP MMU are RCU readers; roots may be zapped beside them."""
    frees_by_rcu: bool
    """Tables of the TDP MMU are freed after a grace period, not after a flush."""
    invalidates_roots: bool
    """Deleting a memslot makes roots invalid and zaps them later."""
    zaps_all_shared: bool
    """Deleting a memslot zaps roots that stay valid with mmu_lock for read."""
    keeps_roots: bool
    """The TDP MMU holds a reference to each root of its own."""
    two_passes: bool
    """A root is zapped below its first GiBs before its own entries are."""
    four_passes: bool
    """A root is zapped level by level."""
    restarts_at_entry: bool
    """A walk that has given way goes on at the entry at which it did."""
    unmap_yields: bool
    """A notifier that may block gives way while it unmaps."""
    unmap_holds_roots: bool
    """A notifier holds a reference to the root that it unmaps from."""
    flush_over_roots: bool
    """Before it gives way, a walk pays what it owes for earlier roots as well."""
    freezes: bool
    """What is removed with mmu_lock shared is frozen until it was flushed."""
    flushes_zap_all: bool
    """Zapping everything is followed by a flush."""
    protects_mmu_writable: bool
    """Write protection is skipped only if MMU-writable is clear as well."""
    logs_shared: bool
    """Dirty logging begins with mmu_lock for read."""
    log_flushes: bool
    """Beginning to log flushes whether or not an entry changed."""
    split_includes_last: bool
    """Clearing the log splits the huge page of the last gfn too."""
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
    "retries_uncached": ("x86-retry-protected-only", False),
    "early_retry": ("x86-early-retry", True),
    "dirty_over_writable": ("x86-no-dirty-over-writable", False),
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
    "frees_by_rcu": ("x86-rcu-tables", True),
    "invalidates_roots": ("x86-fast-invalidation", True),
    "zaps_all_shared": ("x86-zap-all-shared", True),
    "keeps_roots": ("x86-roots-kept", True),
    "two_passes": ("x86-two-pass-zap", True),
    "four_passes": ("x86-four-pass-zap", True),
    "restarts_at_entry": ("x86-iterator-restarts", True),
    "unmap_yields": ("x86-unmap-yields", True),
    "unmap_holds_roots": ("x86-unmap-holds-roots", True),
    "flush_over_roots": ("x86-flush-over-roots", True),
    "freezes": ("x86-frozen-sptes", True),
    "flushes_zap_all": ("x86-zap-all-unflushed", False),
    "protects_mmu_writable": ("x86-write-protect-by-mmu-writable", True),
    "logs_shared": ("x86-log-shared", True),
    "log_flushes": ("x86-log-always-flushes", True),
    "split_includes_last": ("x86-split-includes-last", True),
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
    _choice("mmu_lock_kind", "spinlock", "x86-rwlock", "rwlock", "what mmu_lock is"),
    _choice("user_slots_before", 125, "x86-509-memslots", 509, "memslots before v5.15"),
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
