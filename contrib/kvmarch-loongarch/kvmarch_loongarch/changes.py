"""What changed in KVM/LoongArch.

Fact sheet loongarch, section 4. What nobody can see in this model has no row: the two
barriers of v6.11 and v7.1, and the LL/SC flag of v6.14.
"""

__all__ = ["CHANGES"]

from kvmarch import Change


def _change(
    name: str,
    subject: str,
    since: tuple[int, int] | None,
    commit: str = "",
    *,
    source: str,
) -> Change:
    full = f"loongarch-{name}"
    return Change(full, subject, since, commit, arch="loongarch", source=source)


CHANGES = (
    _change(
        "flush-gpa-late",
        "Delay the flush of a faulting address to the entry, with interrupts off",
        (6, 11),
        "b5d4e2325db2",
        source="loongarch 4, 5 bug 5",
    ),
    _change(
        "huge-unless-table",
        "Map a huge page only where the secondary table has no small one",
        (6, 11),
        "2f56f9ea4dc3",
        source="loongarch 4, 5 bug 3",
    ),
    _change(
        "readonly-not-logged",
        "Do not write-protect read-only slots for their dirty log",
        (6, 11),
        "b072cbf0233b",
        source="loongarch 4, 5 bug 8",
    ),
    _change(
        "initially-all-set",
        "Write-protect nothing when all pages count as dirty in the beginning",
        (6, 11),
        "8c3470425270",
        source="loongarch 4",
    ),
    _change(
        "fast-path-ref",
        "Hold the page that the fast path marks after mmu_lock",
        (6, 11),
        "ebf00272da5c",
        source="loongarch 4, 5 bug 6",
    ),
    _change(
        "faultin-pfn",
        "Use kvm_faultin_pfn(), mark no page in the fast path, release in mmu_lock",
        (6, 13),
        "14d02b7ff912",
        source="loongarch 4: v6.12..v6.14; v6.13 is unverified",
    ),
    _change(
        "full-gpa-size",
        "Let the guest use all bits of an address that the CPU has",
        (6, 14),
        source="loongarch 1.2: v6.12..v6.14; the release is unverified",
    ),
    _change(
        "ptw-keeps-tlb",
        "With a hardware walker flush a faulting address only if it was not writable",
        (6, 16),
        "05d70ebf74c9",
        source="loongarch 4",
    ),
    _change(
        "writeable-bit-9",
        "Keep in bit 9 that the host allows writing, so that clean entries have no W",
        (6, 17),
        "f58c9aa1065f",
        source="loongarch 4, 5 bug 1",
    ),
    _change(
        "address-error",
        "Raise an address error in a guest that goes beyond its addresses",
        (6, 18),
        source="loongarch 1.2, 4: v6.14..v6.18; the release is unverified",
    ),
    _change(
        "slot-flags-kept",
        "Keep the huge-page flags of a slot when only its flags change",
        (7, 2),
        source="loongarch 4, 5 bug 2: v7.1.3..v7.2.6; the release is unverified",
    ),
    _change(
        "release-takes-mmu-lock",
        "Take mmu_lock in kvm_arch_flush_shadow_all()",
        None,
        source="loongarch 5 bug 10: posted in May 2026, not in v7.3.4",
    ),
)
