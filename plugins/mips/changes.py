"""What changed in KVM/MIPS, and the choices that depend on it.

Fact sheet mips, sections 8 and 9. VZ (v4.12) and the end of trap and emulate (v5.13)
are values of the option ``mmu``; the SPECIAL bit (about v5.3) is one of ``layout``.
"""

__all__ = ["CHANGES", "CHOICES"]

from kvmarch_mips import fault, notifier, teardown, tlb

from kvmarch import Change, Choice

CHANGES = (
    Change(
        "mips-vpn2-mask",
        "Fix VPN2_MASK for addresses above 4 GiB in the local TLB invalidation",
        (5, 8),
        "5816c76dea11",
        arch="mips",
        source="mips 8, 9 M11: v5.4..v5.10; committed in May 2020",
    ),
    Change(
        "mips-16-memslots",
        "Increase KVM_USER_MEM_SLOTS from 8 to 16",
        (5, 8),
        arch="mips",
        source="mail of the patch, May 2020; the release is unverified",
    ),
    Change(
        "mips-young-by-default",
        "Make user space mappings young by default",
        (5, 12),
        "f685a533a7fa",
        until=(5, 13),
        arch="mips",
        source="mips 6.4; reverted",
    ),
    Change(
        "mips-generic-flush",
        "Leave flushes to the generic code, which calls prepare_flush_shadow",
        (5, 13),
        arch="mips",
        source="mips 2, 8, 9 M2: cleanup posted on 2021-04-02, v5.11..v5.14",
    ),
    Change(
        "mips-gfn-hooks",
        "Notifier hooks by gfn, so that test_age looks at a page",
        (5, 13),
        "d923ff258423",
        arch="mips",
        source="mips 8, 9 M3",
    ),
    Change(
        "mips-faultin-pfn",
        "Use kvm_faultin_pfn() and release the page inside mmu_lock",
        (6, 13),
        arch="mips",
        source="mips 8, 9 M10: patches 69 to 72 of 85, October 2024",
    ),
    Change(
        "mips-exclusive-end",
        "Treat the end of a notifier's range as exclusive",
        None,
        arch="mips",
        source="mips 9 M4; never posted",
    ),
    Change(
        "mips-set-spte-present-only",
        "Let change_pte leave an absent entry alone",
        None,
        arch="mips",
        source="mips 9 M5; never posted",
    ),
    Change(
        "mips-release-takes-mmu-lock",
        "Take mmu_lock in kvm_arch_flush_shadow_all()",
        None,
        arch="mips",
        source="mips 8, 9 M1: posted in May 2026, not in v7.1.3",
    ),
)

mk_pte_young = Choice("mk_pte_young", "whether protection_map gives a young PTE")
mk_pte_young.add(False)
mk_pte_young.add(True, "mips-young-by-default")

user_slots_before = Choice("user_slots_before", "KVM_USER_MEM_SLOTS before v5.15")
user_slots_before.add(8)
user_slots_before.add(16, "mips-16-memslots")

CHOICES = (
    mk_pte_young,
    user_slots_before,
    *tlb.CHOICES,
    *fault.CHOICES,
    *notifier.CHOICES,
    *teardown.CHOICES,
)
