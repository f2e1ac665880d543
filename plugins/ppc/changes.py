"""What changed in KVM on PowerPC from release to release.

Rows are the timeline of the fact sheet ppc (section 7), the bugs of its section 8 and
the hazards of its section 9. Where a release is uncertain, ``source`` says so. Hazards
that no release has fixed are rows that were never merged: ``--with`` adds the fix.
"""

__all__ = ["CHANGES", "CHOICES"]

from functools import partial

from kvmarch import Change, Choice, Memslot, Vm

_row = partial(Change, arch="ppc")

CHANGES: tuple[Change, ...] = (
    _row(
        "ppc-dirty-log-owed-c",
        "Invalidate writable HPTEs for the dirty log if no vCPU runs, even if C is 0",
        (3, 16),
        "6c576e74fd91",
        source="ppc 7, P5; the release is unverified there",
    ),
    _row(
        "ppc-h-protect-readonly",
        "H_PROTECT never makes a real HPTE writable",
        (3, 19),
        "b4a839009a08",
        source="ppc 7, P3; the release is unverified there",
    ),
    _row(
        "ppc-h-remove-late-rc",
        "H_REMOVE reads R and C after the tlbie",
        (4, 3),
        "1e5bf454f587",
        source="ppc 7, P4: 2015; the release is unverified",
    ),
    _row(
        "ppc-512-slots",
        "Raise the number of user memslots from 32 to 512",
        (4, 5),
        source="generic 1.3: 32 in v4.4, 512 in v5.10; v4.5 is unverified",
    ),
    _row(
        "ppc-one-dirty-bitmap",
        "One dirty bitmap for hash and radix, set by whole leaves without overrun",
        (4, 15),
        "e641a317830b",
        source="ppc 7, P17: between v4.12 and v4.19, v4.15 is unverified. The rmap's "
        "CHANGED and change-order fields before it are not modelled",
    ),
    _row(
        "ppc-radix-clear-all",
        "Unmapping a leaf clears all of it, not PRESENT alone",
        (4, 18),
        source="ppc 3.6: after the v4.17 era, in the v4.19 tree",
    ),
    _row(
        "ppc-radix-or-bits",
        "Do not clear the partition PTE when RC or write bits do not match",
        (4, 19),
        source="ppc 3.5 f, 7: in the v4.19 tree",
    ),
    _row(
        "ppc-radix-host-pte",
        "Take size and value of a leaf from the host's PTE",
        (4, 19),
        "71d29f43b633",
        source="ppc 7, P8",
    ),
    _row(
        "ppc-radix-null-host-pte",
        "Retry the fault if the host's page table has no PTE (THP collapse)",
        (4, 19),
        "6579804c4317",
        source="ppc 7, P9",
    ),
    _row(
        "ppc-radix-small-when-logging",
        "Map single pages when doing dirty page logging",
        (5, 0),
        source="ppc 7: between v4.19 and v5.4, v5.0 is unverified",
    ),
    _row(
        "ppc-radix-flush-on-flags",
        "Flush guest mappings when turning dirty tracking on or off, and flush "
        "memslots under mmu_lock",
        (5, 0),
        source="ppc 3.8, 3.9, 7: between v4.19 and v5.4, v5.0 is unverified",
    ),
    _row(
        "ppc-radix-clear-dirty-locked",
        "Clear DIRTY under mmu_lock, with that of nested PTEs",
        (5, 0),
        "ae59a7e1945b",
        source="ppc 7; the release is unverified there. That it brought mmu_lock into "
        "the dirty log was read in patches of 2020 that build on it",
    ),
    _row(
        "ppc-hash-host-pte",
        "Use __gfn_to_pfn_memslot in the hash fault, and attributes of the host's PTE",
        (5, 6),
        "cd758a9b57ee",
        source="ppc 7, P10; the release is unverified there",
    ),
    _row(
        "ppc-host-pte-present",
        "Retry the fault if the host's PTE is not present",
        (5, 7),
        "ae49dedaa92b",
        source="ppc 7, P10",
    ),
    _row(
        "ppc-host-pte-locked",
        "Read the host's PTE under mmu_lock, after a retry check",
        (5, 8),
        source="ppc 7, P11: the series of 2020-04; also the re-check of a dirty leaf "
        "under mmu_lock and the end of a warning (3.8, P7b)",
    ),
    _row(
        "ppc-radix-flush-seq",
        "Increment the sequence count in the memslot flush",
        (5, 8),
        "11362b1befea",
        source="ppc 7, P7",
    ),
    _row(
        "ppc-gfn-range-loop",
        "Unmap and age the whole gfn range, not its first page",
        (5, 13),
        "32b48bf8514c",
        source="ppc 7, P1: fixed before the release",
    ),
    _row(
        "ppc-gfn-range-variable",
        "Unmap each gfn of a hash guest, not the first one again and again",
        (5, 13),
        source="ppc 7, P2: fixed before the release, the id was not seen",
    ),
    _row(
        "ppc-refcounted-pages",
        "Release the faulted-in page under mmu_lock (PR, e500)",
        (6, 13),
        source="ppc 5, 7: between v6.12 and v6.14; v6.13 has __kvm_faultin_pfn (3.5)",
    ),
    _row(
        "ppc-e500-writable",
        "e500: track host-writability of pages",
        (6, 13),
        "f2104bf22f04",
        source="ppc 7",
    ),
    _row(
        "ppc-radix-leaf-in-slot",
        "A large leaf lies inside its memslot",
        None,
        source="ppc 9, L2: a hazard in every release; no fix was seen",
    ),
    _row(
        "ppc-radix-soft-dirty",
        "A fault need not find the page soft-dirty because one before it did, or not",
        None,
        source="ppc 3.5 step 8f: a hazard in every release that unshares; no fix was "
        "seen",
    ),
    _row(
        "ppc-radix-unmap-gpa",
        "Unmap what hangs under a new leaf at its guest address, not the host's",
        None,
        source="ppc 9, L3: a hazard in every release; no fix was seen",
    ),
    _row(
        "ppc-flush-memslot-everywhere",
        "PR and e500 drop what they have of a memslot that goes or changes its flags",
        None,
        source="ppc 9, L1: a hazard in every release; no fix was seen. That PR does "
        "nothing when logging begins either was read in "
        "kvmppc_core_commit_memory_region_pr()",
    ),
    _row(
        "ppc-shadow-fault-fails",
        "PR and e500 end KVM_RUN with an error if the host has no page for a fault",
        None,
        source="a hazard in every release; no fix was seen: kvmppc_mmu_map_page() "
        "returns -EINVAL, and only -EIO ends KVM_RUN; e500 ignores the error",
    ),
    _row(
        "ppc-pr-dirty-log-xchg",
        "PR takes the dirty bitmap word by word before it unmaps the slot",
        None,
        source="ppc 5 and kvm_vm_ioctl_get_dirty_log_pr(): copied, and cleared after "
        "the unmapping; a hazard in every release, no fix was seen",
    ),
)

user_slots_before = Choice("user_slots_before", "user memslots before v5.15")
user_slots_before.add(32)
user_slots_before.add(512, "ppc-512-slots")
harvests = Choice("generic_dirty_log", "whether GET_DIRTY_LOG flushes by itself")
harvests.add(False)
reclaims_tables = Choice(
    "reclaims_tables", "whether MADV_DONTNEED frees tables that it leaves empty"
)
reclaims_tables.add(False)
"""PT_RECLAIM depends on !HAVE_ARCH_TLB_REMOVE_TABLE, which powerpc selects (v7.2)."""
take_dirty_log = Choice("take_dirty_log", "how the MMU takes the dirty bitmap")


@take_dirty_log.when()
async def _by_mmu(vm: Vm, slot: Memslot) -> int:
    """Look up what the MMU does, as kvm->arch.kvm_ops says."""
    bits: int = await vm.arch.ops.take_dirty_log(vm, slot)
    return bits


CHOICES: tuple[Choice, ...] = (
    user_slots_before,
    harvests,
    reclaims_tables,
    take_dirty_log,
)
