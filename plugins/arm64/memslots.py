"""Memslots and dirty logging.

:Kernel: kvm_arch_prepare_memory_region(), kvm_arch_commit_memory_region(),
    kvm_arch_flush_shadow_memslot(), kvm_arch_mmu_enable_log_dirty_pt_masked(),
    kvm_mmu_split_huge_pages() (fact sheet arm64, 3.3, 3.5).

Simplified: arm64 has no dirty logging before v4.0; here it is as it was then.
"""

__all__ = [
    "CHOICES",
    "kvm_arch_commit_memory_region",
    "kvm_arch_flush_shadow_memslot",
    "kvm_arch_prepare_memory_region",
]

import errno
from typing import TYPE_CHECKING

from kvmarch_arm64.changes import PGTABLE
from kvmarch_arm64.pgtable import (
    kvm_pgtable_stage2_split,
    kvm_pgtable_stage2_wrprotect,
)
from kvmarch_arm64.ranges import stage2_wp_range, unmap_stage2_range

from kvmarch import (
    Choice,
    Flush,
    Memslot,
    Vm,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_memslot,
    op,
)

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

user_slots_before = Choice(
    "user_slots_before", "how many memslots user space had before v5.15"
)
user_slots_before.add(32)
user_slots_before.add(512, "arm64-memslots-512")

limit_is_inside = Choice(
    "arm64_limit_is_inside", "whether a slot may end at the IPA limit"
)
limit_is_inside.add(False)
limit_is_inside.add(True, "arm64-ipa-limit-inclusive")

initially_set_log = Choice(
    "initially_set_log", "whether a dirty bitmap may start with every bit set"
)
initially_set_log.add(False)
initially_set_log.add(True, "arm64-initially-all-set")

heeds_all_set = Choice(
    "arm64_heeds_all_set", "whether a bitmap that starts all set defers protection"
)
heeds_all_set.add(False)
heeds_all_set.add(True, "arm64-initially-all-set")

_SPLIT = (PGTABLE, "arm64-eager-split")

# -------------------------------------------------------------------------
# Prepare, delete
# -------------------------------------------------------------------------


def kvm_arch_prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse a slot beyond the IPA size; a deletion is not looked at.

    :returns: 0 or EFAULT.
    """
    if new is None or change == "delete":
        return 0
    limit = vm.arch.end_gfn
    if new.end_gfn > limit or (new.end_gfn == limit and not vm.k.arm64_limit_is_inside):
        return errno.EFAULT
    return 0


async def kvm_arch_flush_shadow_memslot(vm: Vm, slot: Memslot) -> None:
    """Unmap all of a slot that is deleted or moved. No flush is left to be done."""
    async with vm.mmu_lock.write():
        await unmap_stage2_range(vm, slot.base_gfn, slot.end_gfn, True)


# -------------------------------------------------------------------------
# Eager splitting: since v6.5, and only if user space chose a chunk size
# -------------------------------------------------------------------------


@op(name="split chunk")
def _split_chunk(vm: Vm, start: int, end: int) -> int:
    return kvm_pgtable_stage2_split(vm, start, end)


@op(name="top up split_page_cache", sleeps=True)
def _top_up_split_cache(vm: Vm, chunk: int) -> int:
    """Set pages aside for one chunk; return 0 or -ENOMEM.

    :Kernel: need_split_memcache_topup_or_resched(), kvm_mmu_split_nr_page_tables()
    """
    mmu: Mmu = vm.arch
    tables = 0
    for shift in mmu.shifts[1:-1]:
        tables += -(-chunk >> shift)
    if mmu.split_page_cache < tables:
        if vm.out_of_tables:
            return -errno.ENOMEM
        mmu.split_page_cache = tables
    return 0


@op(name="is there a root?")
def _has_root(vm: Vm) -> bool:
    return vm.arch.pgt is not None


async def kvm_mmu_split_huge_pages(vm: Vm, start: int, end: int) -> None:
    """Replace the blocks of a range by pages, as far as memory goes.

    :Kernel: kvm_mmu_split_huge_pages(), since v6.5
    :Locking: mmu_lock held for write; dropped to top up the cache.
    """
    # Simplified: dropped before each chunk, where the kernel does so only if the
    # cache runs short or somebody waits for the lock.
    chunk = vm.arch.split_chunk
    at = start
    while chunk and at < end:
        stop = min(end, at + chunk)
        await vm.mmu_lock.drop_write()
        short = await _top_up_split_cache(vm, chunk)
        await vm.mmu_lock.take_write()
        if short:
            return
        there = await _has_root(vm)
        if not there:
            return
        ret = await _split_chunk(vm, at, stop)
        if ret:
            return
        at = stop


@op(name="read split_page_cache")
def _split_cache(vm: Vm) -> int:
    pages: int = vm.arch.split_page_cache
    return pages


@op(name="free split_page_cache")
def _free_split_cache(vm: Vm, pages: int) -> None:
    if vm.arch.split_page_cache < pages:
        vm.world.violate("table-memory", "split_page_cache is freed twice")
    vm.arch.split_page_cache = 0


free_split_cache = Choice(
    "arm64_free_split_cache", "how the pages set aside for splitting are freed"
)


@free_split_cache.when()
async def free_split_page_cache(vm: Vm) -> None:
    """Free the pages set aside for splitting; no lock protects them.

    :Kernel: kvm_mmu_free_memory_cache(&mmu->split_page_cache), since v6.5
    """
    pages = await _split_cache(vm)
    if pages:
        await _free_split_cache(vm, pages)


@free_split_cache.when("arm64-split-cache-locked")
async def _free_with_lock(vm: Vm) -> None:
    """Free them with mmu_lock held, as whoever fills the cache has it."""
    async with vm.mmu_lock.write():
        await free_split_page_cache(vm)


# -------------------------------------------------------------------------
# Commit
# -------------------------------------------------------------------------

flush_after_wp = Choice(
    "arm64_flush_after_wp", "what is flushed once a slot is write-protected"
)


@flush_after_wp.when()
async def _flush_vmid(vm: Vm, slot: Memslot) -> None:
    """Flush the whole VMID (up to v6.5)."""
    await kvm_flush_remote_tlbs(vm)


flush_after_wp.add(kvm_flush_remote_tlbs_memslot, "arm64-range-tlbi")

split_after_wp = Choice(
    "arm64_split_after_wp", "what else happens when dirty logging is switched on or off"
)


@split_after_wp.when()
async def _no_split(vm: Vm, slot: Memslot | None, logging: bool) -> None:
    """Leave blocks to the faults (up to v6.4)."""


@split_after_wp.when(*_SPLIT)
async def _split(vm: Vm, slot: Memslot | None, logging: bool) -> None:
    """Split the slot's blocks; without logging free what was set aside (v6.5 on)."""
    if not logging:
        await vm.k.arm64_free_split_cache(vm)
    elif slot is not None and vm.arch.split_chunk:
        async with vm.mmu_lock.write():
            await kvm_mmu_split_huge_pages(vm, slot.base_gfn, slot.end_gfn)


async def kvm_arch_commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Write-protect a slot whose writes are logged from now on.

    When logging ends nothing is done: blocks come back by later faults.
    """
    if new is None or not new.logs_dirty:
        await vm.k.arm64_split_after_wp(vm, new, False)
        return
    if vm.manual_protect and vm.initially_set and vm.k.arm64_heeds_all_set:
        return
    async with vm.mmu_lock.write():
        await stage2_wp_range(vm, new.base_gfn, new.end_gfn)
    await vm.k.arm64_flush_after_wp(vm, new)
    await vm.k.arm64_split_after_wp(vm, new, True)


# -------------------------------------------------------------------------
# The dirty log
# -------------------------------------------------------------------------

dirty_log_masked = Choice(
    "dirty_log_masked", "how pages are protected again when the log is fetched"
)


@dirty_log_masked.when()
def _wp_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Write-protect from the lowest to the highest page of the mask.

    Clean pages in between lose W as well.

    :Kernel: kvm_mmu_write_protect_pt_masked(),
        kvm_arch_mmu_enable_log_dirty_pt_masked()
    """
    # Simplified: mmu_lock is not dropped, though the range may cross a chunk.
    pgd = vm.arch.pgt
    start = gfn + (mask & -mask).bit_length() - 1
    end = gfn + mask.bit_length()
    if pgd is None or not kvm_pgtable_stage2_wrprotect(vm, pgd, start, end):
        return None
    return vm.ledger.owe(start, end, due="return")


@op(name="write-protect masked")
def _protect(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    return _wp_masked(vm, slot, gfn, mask)


@dirty_log_masked.when(*_SPLIT, "arm64-clear-log-split")
async def _wp_masked_and_split(
    vm: Vm, slot: Memslot, gfn: int, mask: int
) -> Flush | None:
    """Write-protect, and split blocks if the bitmap started all set (v6.5 on)."""
    owed = await _protect(vm, slot, gfn, mask)
    if vm.manual_protect and vm.initially_set:
        start = gfn + (mask & -mask).bit_length() - 1
        await kvm_mmu_split_huge_pages(vm, start, gfn + mask.bit_length())
    return owed


CHOICES = (
    user_slots_before,
    limit_is_inside,
    initially_set_log,
    heeds_all_set,
    free_split_cache,
    flush_after_wp,
    split_after_wp,
    dirty_log_masked,
)
