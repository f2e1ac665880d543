"""The generic core's changes, choices and fixed steps, in one place."""

__all__ = ["CHANGES", "CHOICES", "FIXED"]

from typing import Any

from kvmarch.changes import Change, Choice
from kvmarch.kernel import (
    boot,
    dirty_log,
    gpc,
    gpc_invalidate,
    gpc_proposals,
    gpc_refresh,
    ksm,
    memory_region,
    mmap,
    mmu_notifier,
    notifier,
    notifier_proposals,
    vcpu,
)

CHANGES: tuple[Change, ...] = (
    Change(
        "bracketed-set-pte",
        "Wrap calls to set_pte_at_notify with invalidate_range_start and _end",
        (3, 7),
        "6bdb913f0a70",
        source="generic 2.5; the release is from memory there",
    ),
    Change(
        "notifier-unlink-first",
        "Unlink a notifier first, so that ->release is called once",
        (3, 9),
        "751efd8610d3",
        until=(3, 10),
        source="generic D18; the releases are from memory",
    ),
    Change(
        "notifier-del-init",
        "Call ->release before unlinking; let a notifier be unlinked twice",
        (3, 10),
        "d34883d4e35c",
        source="generic D18; the release is from memory",
    ),
    Change(
        "generation-twice",
        "Change the memslot generation twice, so that no value in flux stays valid",
        (3, 17),
        "ee3d1570b586",
        source="generic 2.10",
    ),
    Change(
        "mmio-cache-generation",
        "Tag the vCPU's MMIO cache with the memslot generation",
        (3, 17),
        "56f17dd3fbc4",
        source="generic 3",
    ),
    Change(
        "notifier-clear-young",
        "Add the clear_young callback, for idle page tracking",
        (4, 3),
        "1d7715c676a1",
        source="release and commit from memory; generic 2.14 has it without a release",
    ),
    Change(
        "generation-per-as",
        "Count generations of each address space apart",
        (4, 12),
        source="generic 2.10: between v4.4 and v4.15; v4.12 is unverified",
    ),
    Change(
        "set-spte-returns-flush",
        "kvm_set_spte_hva() returns whether the generic code has to flush",
        (5, 0),
        source="generic 2.5; cross-arch 1.1: after v4.19",
    ),
    Change(
        "generation-bit-63",
        "Mark an update in progress in bit 63 of the generation",
        (5, 1),
        "164bf7e56c5a",
        source="generic 2.10",
    ),
    Change(
        "memslots-updated-first",
        "Let the architecture handle a wrapped generation before it is stored",
        (5, 1),
        "152482580a1b",
        source="generic D3",
    ),
    Change(
        "dirty-clear-tail",
        "Let KVM_CLEAR_DIRTY_LOG clear up to the end of a slot of any size",
        (5, 3),
        source="generic D30: between v5.0 and v5.3; v5.3 is unverified",
    ),
    Change(
        "memslots-reinstalled",
        "Reinstall old memslots if the architecture refuses a deletion or move",
        (5, 7),
        source="generic D24: between v5.4 and v5.10; v5.7 is unverified",
    ),
    Change(
        "notifier-end-after-failed-start",
        "Call invalidate_range_end of all after a non-blocking start failed",
        (5, 12),
        "c2655835fd8c",
        source="generic 2.1",
    ),
    Change(
        "notifier-range-hva",
        "Track the range of invalidations; retry only faults on hvas inside it",
        (5, 12),
        "4a42d848db95",
        source="generic 2.4",
    ),
    Change(
        "gfn-notifiers",
        "Notifier handlers by gfn; assert the count in change_pte; elide mmu_lock "
        "for aging and change_pte",
        (5, 13),
        "c13fda237f08",
        source="generic 2.5, 2.6",
    ),
    Change(
        "slots-arch-lock",
        "Protect architecture data of memslots by slots_arch_lock",
        (5, 14),
        "b10a038e84d1",
        source="generic 2.8: between v5.11 and v5.14",
    ),
    Change(
        "mn-active-count",
        "Block memslot updates while invalidations are active; elide mmu_lock when "
        "no slot overlaps",
        (5, 15),
        "071064f14d87",
        source="generic 2.3, 2.8 (with 52ac8b358b0c)",
    ),
    Change(
        "memslots-32767",
        "Raise the number of memslots to 32767",
        (5, 15),
        source="generic 1.3",
    ),
    Change(
        "gpc",
        "Introduce gfn_to_pfn_cache",
        (5, 17),
        "982ed0de4753",
        source="generic 2.13",
    ),
    Change(
        "gpc-refresh-lock",
        "Fully serialize gfn=>pfn cache refresh via mutex",
        (6, 0),
        "93984f19e7bc",
        source="generic 2.13, D9",
    ),
    Change(
        "gpc-invalid-while-refreshing",
        "A GPC is invalid while a refresh resolves its page, and looks again under "
        "gpc->lock until no invalidation raced",
        (6, 0),
        "58cd407ca4c6",
        source="generic 2.13, D7, D8",
    ),
    Change(
        "gpc-unpinned",
        "Do not pin pages tracked by gfn=>pfn caches",
        (6, 0),
        "85165781c5d9",
        source="generic 2.13; which of its three commits this is, is from memory",
    ),
    Change(
        "gpc-init-once",
        "Initialize gfn_to_pfn_cache locks in a dedicated helper",
        (6, 1),
        "52491a38b2c2",
        source="generic 2.13, D10",
    ),
    Change(
        "gpc-active",
        "Reject attempts to consume or refresh an inactive GPC; list it before it is "
        "active, and until it is not",
        (6, 1),
        "ecbcf030b456",
        source="generic 2.13, D11",
    ),
    Change(
        "gpc-khva-offset",
        "Recompute the offset of a GPC's mapping when only the gpa moves",
        (6, 1),
        "8332f0ed4f18",
        source="generic D12",
    ),
    Change(
        "log-initially-set",
        "Let user space ask for dirty bitmaps that start with every bit set",
        (5, 7),
        "3c9bd4006bfc",
        source="the release is from memory",
    ),
    Change(
        "mprotect-upgrades",
        "mprotect() makes dirty exclusive pages writable without waiting for a fault",
        (6, 0),
        "64fe24a3e05e",
        source="the release is from memory; seen in v6.1",
    ),
    Change(
        "ksm-unshares",
        "KSM gives pages back by an unsharing fault, not by a write fault",
        (6, 2),
        source="from memory",
    ),
    Change(
        "mprotect-upgrades-all",
        "mprotect() makes clean and huge exclusive pages writable, too",
        (6, 2),
        source="the release is from memory: between v5.19 and v6.2",
    ),
    Change(
        "change-pte-skips-invalid",
        "change_pte leaves memslots alone that are INVALID",
        (6, 4),
        "2230f9e1171a",
        source="generic D14",
    ),
    Change(
        "notifier-range-gfn",
        "Track invalidations by gfn, slot by slot",
        (6, 8),
        "8569992d64b8",
        source="generic 2.4",
    ),
    Change(
        "destroy-checks-balance",
        "Assert at a VM's end that no invalidation is in progress, unless one is open",
        (6, 8),
        "d497a0fab8b8",
        source="generic 2.7",
    ),
    Change(
        "gpc-hva",
        "GPCs of a host address, without a memslot",
        (6, 9),
        "6addfcf27139",
        source="generic 2.13: between v6.8 and v6.11",
    ),
    Change(
        "change-pte-removed",
        "Remove the change_pte callback and set_pte_at_notify",
        (6, 10),
        "f3b65bbaed7c",
        source="generic 2.5 (with 997308f9ae72, f7842747d13d)",
    ),
    Change(
        "lockless-aging",
        "Walk memslots for aging without mmu_lock where an architecture can",
        (6, 15),
        "374ccd63600b",
        source="cross-arch 9",
    ),
    Change(
        "pt-reclaim",
        "MADV_DONTNEED frees tables that it leaves empty, on every architecture",
        (7, 0),
        source="seen in v7.2 on riscv; the release is from memory. Simplified: x86 "
        "does so from v6.14 on",
    ),
    *gpc_proposals.CHANGES,
    *notifier_proposals.CHANGES,
)

CHOICES: tuple[Choice, ...] = (
    *boot.CHOICES,
    *mmu_notifier.CHOICES,
    *notifier.CHOICES,
    *memory_region.CHOICES,
    *dirty_log.CHOICES,
    *ksm.CHOICES,
    *mmap.CHOICES,
    *vcpu.CHOICES,
    *gpc.CHOICES,
    *gpc_invalidate.CHOICES,
    *gpc_refresh.CHOICES,
)

FIXED: dict[str, Any] = {**notifier.FIXED, **gpc_refresh.FIXED}
