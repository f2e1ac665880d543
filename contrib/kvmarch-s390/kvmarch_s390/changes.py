"""What changed in KVM/s390 as far as guest memory goes (fact sheet s390, 5)."""

__all__ = ["CHANGES"]

from kvmarch import Change

CHANGES = (
    Change(
        "s390-faultin-pfn",
        "Replace gmap_fault() by __kvm_faultin_pfn() and a link; move bits of PGSTEs",
        (6, 14),
        arch="s390",
        source="s390 5: a series without a single commit",
    ),
    Change(
        "s390-own-tables",
        "Own page tables and the generic MMU notifier, in place of the host's tables",
        (7, 0),
        "a2f2798fa6d1",
        arch="s390",
        source="s390 1, 5 (with e38c884df921, a2c17f9270cc)",
    ),
    Change(
        "s390-faultin-again",
        "A fault that was overtaken by an invalidation tries again, as it says",
        (7, 1),
        arch="s390",
        source="s390 6 bug 7: pull request of 2026-06-02; fixes e907ae530133",
    ),
    Change(
        "s390-small-slots",
        "Let memslots have any size and place in pages of 4 KiB",
        (7, 1),
        arch="s390",
        source="s390 5",
    ),
    Change(
        "s390-large-region3",
        "Map 2 GiB by one region-3 entry",
        (7, 2),
        arch="s390",
        source="s390 5",
    ),
)
