"""What changed in KVM/x86 from release to release.

Rows are the timeline of the fact sheet x86 (section 5) with the bugs of its section 6.
Where a release is from memory, ``source`` says so.
"""

__all__ = ["CHANGES"]

from functools import partial

from kvmarch import Change

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
