"""The two designs side by side: the host's tables up to v6.19, KVM's own since v7.0.

Nearly every operation is of one of them; the change ``s390-own-tables`` decides which.
"""

__all__ = ["CHOICES"]

from collections.abc import Callable, Iterator
from typing import Any

from kvmarch import Choice, KvmarchError, Part, Vm

from kvmarch_s390 import own, own_slots, own_tables, shared, shared_tables
from kvmarch_s390.common import no_hook, no_path, take_dirty_log
from kvmarch_s390.geometry import ROOTS, entries, pages


def _vm_create(mmu: str, create: Callable[[Vm, int, int], Part]) -> Any:
    """Return the hook that makes a VM's root, for guests of one design."""

    def make(vm: Vm) -> Part:
        """Make the tables down to the root.

        :raises KvmarchError: the kernel has the other design.
        """
        if vm.options["mmu"] != mmu:
            raise KvmarchError(
                f"s390: mmu={vm.options['mmu']} does not go with "
                f"{'' if mmu == 'own' else 'a kernel without '}s390-own-tables"
            )
        level = ROOTS[vm.options["root"]]
        return create(vm, level, pages(level) * entries(level))

    return make


_ROWS: tuple[tuple[str, str, Any, Any], ...] = (
    ("mmu_notifier", "whether KVM hears of what the host mm does", False, True),
    (
        "host_entry_changed",
        "what a change of a host entry does to the guest",
        shared_tables.entry_changed,
        None,
    ),
    (
        "transparent_hugepage",
        "whether a process with a VM may have huge pages",
        False,
        True,
    ),
    ("mmu_lock_kind", "whether mmu_lock has a read mode", "spinlock", "rwlock"),
    (
        "vm_create",
        "the tables of a new VM",
        _vm_create("shared", shared_tables.vm_create),
        _vm_create("own", own_tables.vm_create),
    ),
    (
        "translate",
        "what hardware makes of an access",
        shared_tables.translate,
        own_tables.translate,
    ),
    (
        "s390_prefix_guarded",
        "whether a page of a prefix may be written and is marked",
        shared_tables.prefix_guarded,
        own_tables.prefix_guarded,
    ),
    (
        "entry",
        "the lowest entry of a gfn",
        shared_tables.entry_of,
        own_tables.entry_of,
    ),
    (
        "leaf_table",
        "where an entry is",
        shared_tables.leaf_table,
        own_tables.leaf_table,
    ),
    (
        "page_fault",
        "how a fault of the guest is handled",
        shared.page_fault,
        own.page_fault,
    ),
    ("unmap_gfn_range", "the unmap hook", no_hook, own.unmap_gfn_range),
    ("age_gfn", "the aging hook", no_hook, own.age_gfn),
    ("test_age_gfn", "the test_young hook", no_hook, own.test_age_gfn),
    ("set_spte_gfn", "the change_pte hook: none in any release", no_hook, no_hook),
    (
        "prepare_memory_region",
        "what comes before a memslot is visible",
        shared.prepare_memory_region,
        own_slots.prepare_memory_region,
    ),
    (
        "commit_memory_region",
        "what comes after a memslot is visible",
        shared.commit_memory_region,
        no_path,
    ),
    ("flush_shadow_memslot", "the removal of an INVALID slot", no_path, no_path),
    ("flush_shadow_all", "the release of the mm", no_path, no_path),
    ("generic_dirty_log", "whether GET_DIRTY_LOG flushes by itself", False, False),
    (
        "dirty_log_masked",
        "the hook of a log that protects: none",
        no_hook,
        no_hook,
    ),
    (
        "sync_dirty_log",
        "how what was written is brought into the bitmap",
        shared.sync_dirty_log,
        own.sync_dirty_log,
    ),
    (
        "take_dirty_log",
        "how GET_DIRTY_LOG takes the bitmap",
        take_dirty_log,
        take_dirty_log,
    ),
    ("destroy_vm", "the end of the tables", shared.destroy_vm, own_slots.destroy_vm),
)
"""Operation, what it is about, what it is with the host's tables and with own ones."""


def _choices() -> Iterator[Choice]:
    for name, doc, over_shared, with_own in _ROWS:
        choice = Choice(name, doc)
        choice.add(over_shared)
        if with_own is not over_shared:
            choice.add(with_own, "s390-own-tables")
        yield choice


CHOICES = tuple(_choices())
