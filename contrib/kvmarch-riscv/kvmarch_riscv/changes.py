"""What changed in KVM/RISC-V's G-stage, release by release (fact sheet riscv, 4).

Where the sheet only brackets a change between two trees, the row says so. Rows of v7.3
are in no release that kvmarch knows; ``--with`` applies them.
"""

__all__ = ["CHANGES"]

from kvmarch import Change

_SHEET = "riscv 4"

_ROWS: tuple[tuple[str, str, tuple[int, int] | None, str, str], ...] = (
    (
        "hfence-ring",
        "Flush by requests to the VM's vCPUs, not by fences on all CPUs",
        (5, 19),
        "13acfec2dbcc",
        _SHEET,
    ),
    (
        "tlb-sanitize",
        "Drop the VMID's translations when a vCPU enters on another CPU",
        (5, 19),
        "92e450507d56",
        "riscv 4; 5, bug 8",
    ),
    (
        "ioremap-uncached",
        "Map pages of devices uncached (PAGE_KERNEL_IO)",
        (6, 1),
        "",
        "riscv 1.4, 4: v6.1 tree",
    ),
    (
        "seq-in-mmap-lock",
        "Read the sequence count before mmap_lock is dropped",
        (6, 4),
        "2ed90cb0938a",
        "riscv 4; 5, bug 1",
    ),
    (
        "release-under-lock",
        "Use __kvm_faultin_pfn(), and release the page with mmu_lock held",
        (6, 13),
        "",
        "riscv 4: between v6.12 and v6.14",
    ),
    (
        "gstage-snapshot",
        "Walk from the root that the operation began with (gstage.c)",
        (6, 17),
        "dd82e35638d6",
        _SHEET,
    ),
    (
        "flush-if-changed",
        "Flush only if the entry has changed",
        (6, 17),
        "eaa98ba20be0",
        _SHEET,
    ),
    (
        "range-flush",
        "Implement kvm_arch_flush_remote_tlbs_range()",
        (6, 17),
        "ca539ba4bc98",
        _SHEET,
    ),
    (
        "hfence-vmid",
        "Carry the VMID in each request for a fence",
        (6, 17),
        "4c933f3a39de",
        "riscv 4; 5, bug 9",
    ),
    (
        "ioremap-user",
        "Map pages of devices with U, so that guests can use them",
        (6, 17),
        "9bca8be646e0",
        "riscv 4; 5, bug 2",
    ),
    (
        "no-premap",
        "Map pages of devices in faults only, not when a memslot is made",
        (6, 18),
        "8c5fa3764fac",
        "riscv 3.11; that a refusal unmapped before: recording of 6.12",
    ),
    (
        "initially-set",
        "Defer write-protection if the bitmap starts all set",
        (6, 19),
        "",
        "riscv 3.6, 4: v6.19 tree",
    ),
    (
        "thp",
        "Map transparent huge pages of 2 MiB",
        (7, 0),
        "ed7ae7a34bea",
        _SHEET,
    ),
    (
        "wp-whole-leaf",
        "Write-protect a huge leaf as soon as one of its pages is meant",
        (7, 1),
        "a216e24fc947",
        "riscv 4; 5, bug 4",
    ),
    (
        "split-on-fault",
        "Look at the leaf that is there before mapping, and split a huge one",
        (7, 1),
        "6ad36f39a769",
        "riscv 4; 5, bug 5",
    ),
    (
        "mmu-rwlock",
        "Make mmu_lock a rwlock",
        (7, 2),
        "",
        "riscv 2, 4: between v7.1.3 and v7.2.6",
    ),
    (
        "dirty-fast-path",
        "Make a page writable under the read lock when its writes are logged",
        (7, 2),
        "",
        "riscv 3.2, 4: v7.2.6 tree",
    ),
    (
        "flush-once",
        "Flush a range once, after the walk over it",
        (7, 2),
        "",
        "riscv 3.3, 4: v7.2.6 tree",
    ),
    (
        "walk-aligns",
        "Step over a hole to the next aligned address",
        (7, 2),
        "",
        "riscv 3.3; 5, bug 6: v7.2.6 tree",
    ),
    (
        "svvptc",
        "Flush nothing for an entry that was empty, if the CPU has Svvptc",
        (7, 2),
        "",
        "riscv 3.1, 4: v7.2.6 tree",
    ),
    (
        "hugetlb-fits",
        "Map a page of hugetlbfs as one leaf only if it lies alike in the slot",
        (7, 2),
        "",
        "riscv 4; 5, bug 7: v7.2.6 tree",
    ),
    (
        "eager-split",
        "Split the huge leaves of a slot when logging begins",
        (7, 3),
        "",
        "riscv 3.6, 4: v7.3.4 tree",
    ),
    (
        "wp-masked",
        "Write-protect the pages of the mask, and not those between them",
        (7, 3),
        "",
        "riscv 3.6, 4: v7.3.4 tree",
    ),
    (
        "hfence-fallback-alone",
        "Let only those vCPUs flush all whose ring is full",
        (7, 3),
        "",
        "riscv 3.10; 5, bug 10: v7.3.4 tree",
    ),
    (
        "hfence-wrap",
        "Flush all where the end of a range for a fence wraps",
        (7, 3),
        "",
        "riscv 5, bug 11: v7.3.4 tree",
    ),
    (
        "retry-releases-unused",
        "Release the page of a fault that has to be tried again as not used",
        (7, 3),
        "",
        "riscv 5, bug 16: v7.3.4 tree",
    ),
    (
        "gpa-limit-inclusive",
        "Let a slot end where the guest-physical addresses do",
        (7, 3),
        "",
        "riscv 3.11, 4: v7.3.4 tree",
    ),
    (
        "pgd-recheck",
        "Look for the root again after an unmap has dropped mmu_lock",
        None,
        "",
        "riscv 5, bug 3; never posted",
    ),
    (
        "fast-path-checks-host",
        "Let the fast path of dirty logging ask whether the host has the page writable",
        None,
        "",
        "riscv 5, bug 13; never posted",
    ),
    (
        "split-cache-locked",
        "Free the pages set aside for splitting with mmu_lock held",
        None,
        "",
        "riscv 5, bug 15; never posted",
    ),
    (
        "unmap-whole-leaf",
        "Unmap a huge leaf as soon as one of its pages is meant",
        None,
        "",
        "riscv 6, H1; never posted",
    ),
    (
        "ages-every-leaf",
        "Age every leaf of a range, whatever its size",
        None,
        "",
        "riscv 3.5; never posted, arm64 has df6556adf27b",
    ),
    (
        "maps-faulting-gpa",
        "Map a transparent huge page at the gpa of the fault, not at its start",
        None,
        "",
        "recorded on v7.2.13: the guest never gets on; never posted",
    ),
    (
        "frees-tables",
        "Free the tables below the root with it",
        None,
        "",
        "riscv 3.3; never posted",
    ),
)

CHANGES: tuple[Change, ...] = (
    *(
        Change(f"riscv-{name}", subject, since, commit, arch="riscv", source=source)
        for name, subject, since, commit, source in _ROWS
    ),
    Change(
        "riscv-unmap-trylock",
        "Try to take mmu_lock in the unmap hook, whose caller holds it",
        (7, 0),
        "dec9ed994434",
        until=(7, 2),
        arch="riscv",
        source="riscv 3.3; 5, bug 3",
    ),
)
