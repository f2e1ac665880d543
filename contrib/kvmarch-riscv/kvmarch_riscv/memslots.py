"""Memslots, the dirty log, and eager splitting.

:Kernel: kvm_arch_prepare_memory_region(), kvm_arch_commit_memory_region(),
    kvm_arch_flush_shadow_memslot(), kvm_arch_mmu_enable_log_dirty_pt_masked() of
    arch/riscv/kvm/mmu.c (fact sheet riscv, 3.6, 3.11).
"""

__all__ = [
    "CHOICES",
    "commit_memory_region",
    "flush_shadow_memslot",
    "prepare_memory_region",
]

import errno
from typing import TYPE_CHECKING

from kvmarch import (
    Choice,
    Flush,
    Memslot,
    Vm,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_memslot,
    kvm_flush_remote_tlbs_range,
    op,
)

from kvmarch_riscv.geometry import level_pages
from kvmarch_riscv.gstage import SplitCache, split_huge, top_up
from kvmarch_riscv.ranges import unmap_now, wp_now

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm

_PMD_PAGES = level_pages(1)

# -------------------------------------------------------------------------
# Prepare, delete
# -------------------------------------------------------------------------

limit_is_inside = Choice(
    "riscv_limit_is_inside", "whether a slot may end where the addresses do"
)
limit_is_inside.add(False)
limit_is_inside.add(True, "riscv-gpa-limit-inclusive")


@op(name="prepare memory region")
def _refused(vm: Vm, new: Memslot) -> int:
    limit: int = vm.arch.gfns
    if new.end_gfn > limit or (new.end_gfn == limit and not vm.k.riscv_limit_is_inside):
        return errno.EFAULT
    if new.readonly:
        return 0
    start, end = new.userspace_addr, new.hva(new.end_gfn, vm.page_shift)
    met = (vma for vma in vm.mm.vmas if vma.start < end and start < vma.end)
    return 0 if all(vma.write for vma in met) else errno.EPERM


@op(name="unmap memslot")
def _unmap_slot(vm: Vm, slot: Memslot) -> bool:
    pgd = vm.arch.pgd
    return pgd is not None and unmap_now(vm, pgd, slot.base_gfn, slot.end_gfn)


refusal_unmaps = Choice(
    "riscv_refusal_unmaps", "whether a slot of memory that is read-only is unmapped"
)
refusal_unmaps.add(True)
refusal_unmaps.add(False, "riscv-no-premap")


async def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse a slot beyond the addresses, or a writable one of memory that is not.

    To v6.17 pages of devices were mapped here, and a refusal took back what might have
    been: everything in the range of the new slot.

    :Kernel: kvm_arch_prepare_memory_region(), kvm_riscv_gstage_iounmap()
    :returns: 0, EFAULT or EPERM.
    """
    if new is None or change == "delete":
        return 0
    why = await _refused(vm, new)
    if why == errno.EPERM and change != "flags_only" and vm.k.riscv_refusal_unmaps:
        async with vm.mmu_lock.write():
            await _unmap_slot(vm, new)
    return why


async def flush_shadow_memslot(vm: Vm, slot: Memslot) -> None:
    """Unmap all of a slot; since v7.2 the flush comes after mmu_lock is dropped.

    :Kernel: kvm_arch_flush_shadow_memslot()
    """
    async with vm.mmu_lock.write():
        owes = await _unmap_slot(vm, slot)
    if owes:
        await kvm_flush_remote_tlbs_range(vm, slot.base_gfn, slot.end_gfn)


# -------------------------------------------------------------------------
# Eager splitting, since v7.3
# -------------------------------------------------------------------------


@op(name="split a huge leaf")
def _split(vm: Vm, gfn: int) -> bool:
    """Split what is larger than a page at a gfn; return whether a flush is owed."""
    pgd = vm.arch.pgd
    if pgd is None:
        return False
    owes = split_huge(vm, pgd, gfn, 0, SplitCache(vm), flush=False)
    if owes:
        vm.ledger.owe(gfn, gfn + _PMD_PAGES, due="return")
    return owes


@op(name="top up pgd_split_page_cache", sleeps=True)
def _top_up(vm: Vm) -> bool:
    """Set pages aside for one split; return whether there is memory for them."""
    return top_up(vm, SplitCache(vm), vm.arch.levels)


@op(name="does pgd_split_page_cache run short?")
def _runs_short(vm: Vm) -> bool:
    arch: RiscvVm = vm.arch
    return arch.split_page_cache < arch.levels


@op(name="is there a root?")
def _has_root(vm: Vm) -> bool:
    return vm.arch.pgd is not None


async def split_huge_pages(vm: Vm, start: int, end: int) -> None:
    """Split every huge leaf of a range, as far as memory for tables goes.

    :Kernel: mmu_split_huge_pages(), since v7.3
    :Locking: mmu_lock held for write; dropped to set pages aside, with nothing owed.
    """
    # Simplified: dropped when the cache runs short, not when somebody waits too.
    at = start & -_PMD_PAGES
    first = at
    owes = False
    while at < end:
        short = await _runs_short(vm)
        if short:
            if owes:
                await kvm_flush_remote_tlbs_range(vm, first, at)
                first = at
                owes = False
            await vm.mmu_lock.drop_write()
            enough = await _top_up(vm)
            await vm.mmu_lock.take_write()
            if not enough:
                break
        there = await _has_root(vm)
        if not there:
            break
        more = await _split(vm, at)
        owes = owes or more
        at += _PMD_PAGES
    if owes:
        await kvm_flush_remote_tlbs_range(vm, first, end)


split_after_wp = Choice(
    "riscv_split_after_wp", "what happens to huge leaves when logging begins"
)


@split_after_wp.when()
async def _leave_huge(vm: Vm, slot: Memslot) -> None:
    """Leave them to the faults (to v7.2)."""


@split_after_wp.when("riscv-eager-split")
async def _split_slot(vm: Vm, slot: Memslot) -> None:
    """Split them all, unless kvm.eager_page_split is off (v7.3 on)."""
    if vm.arch.eager_split:
        async with vm.mmu_lock.write():
            await split_huge_pages(vm, slot.base_gfn, slot.end_gfn)


# -------------------------------------------------------------------------
# Commit
# -------------------------------------------------------------------------

initially_set_log = Choice(
    "initially_set_log", "whether a dirty bitmap may start with every bit set"
)
initially_set_log.add(False)
initially_set_log.add(True, "riscv-initially-set")

heeds_all_set = Choice(
    "riscv_heeds_all_set", "whether a bitmap that starts all set defers protection"
)
heeds_all_set.add(False)
heeds_all_set.add(True, "riscv-initially-set")

flush_after_wp = Choice(
    "riscv_flush_after_wp", "what is flushed once a slot is write-protected"
)


@flush_after_wp.when()
async def _flush_all(vm: Vm, slot: Memslot, owes: bool) -> None:
    """Flush the VM, though each entry was flushed already (to v6.16)."""
    await kvm_flush_remote_tlbs(vm)


@flush_after_wp.when("riscv-range-flush")
async def _flush_slot(vm: Vm, slot: Memslot, owes: bool) -> None:
    """Flush the slot (v6.17 on)."""
    await kvm_flush_remote_tlbs_memslot(vm, slot)


@flush_after_wp.when("riscv-range-flush", "riscv-flush-once")
async def _flush_if_owed(vm: Vm, slot: Memslot, owes: bool) -> None:
    """Flush the slot if an entry has changed (v7.2 on)."""
    if owes:
        await kvm_flush_remote_tlbs_memslot(vm, slot)


@op(name="write-protect memslot")
def _protect_slot(vm: Vm, slot: Memslot) -> bool:
    pgd = vm.arch.pgd
    if pgd is None or not wp_now(vm, pgd, slot.base_gfn, slot.end_gfn):
        return False
    vm.ledger.owe(slot.base_gfn, slot.end_gfn, due="return")
    return True


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Write-protect a slot whose writes are logged from now on.

    Nothing is done when logging ends: W comes back by later faults.

    :Kernel: kvm_arch_commit_memory_region()
    """
    if new is None or change == "delete" or not new.logs_dirty:
        return
    if vm.manual_protect and vm.initially_set and vm.k.riscv_heeds_all_set:
        return
    async with vm.mmu_lock.write():
        owes = await _protect_slot(vm, new)
    await vm.k.riscv_flush_after_wp(vm, new, owes)
    await vm.k.riscv_split_after_wp(vm, new)


# -------------------------------------------------------------------------
# The dirty log
# -------------------------------------------------------------------------

dirty_log_masked = Choice(
    "dirty_log_masked", "how pages are protected again when the log is fetched"
)


def _span(gfn: int, mask: int) -> tuple[int, int]:
    """Return the first page of a mask, and the one after its last."""
    return gfn + (mask & -mask).bit_length() - 1, gfn + mask.bit_length()


@dirty_log_masked.when()
def _wp_span(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Write-protect from the lowest to the highest page of the mask (to v7.2).

    The generic caller flushes, after mmu_lock was dropped.
    """
    start, end = _span(gfn, mask)
    pgd = vm.arch.pgd
    if pgd is None or not wp_now(vm, pgd, start, end):
        return None
    return vm.ledger.owe(start, end, due="return")


@dirty_log_masked.when("riscv-wp-masked")
def _wp_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Write-protect the pages of the mask (v7.3 on).

    :Kernel: kvm_riscv_gstage_wp_pt_masked()
    """
    pgd = vm.arch.pgd
    owed = None
    for bit in range(mask.bit_length()):
        at = gfn + bit
        if mask >> bit & 1 and pgd is not None and wp_now(vm, pgd, at, at + 1):
            owed = vm.ledger.owe(at, at + 1, due="return") | owed
    return owed


@op(name="write-protect masked")
def _protect_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    return _wp_masked(vm, slot, gfn, mask)


@dirty_log_masked.when("riscv-wp-masked", "riscv-eager-split")
async def _wp_masked_and_split(
    vm: Vm, slot: Memslot, gfn: int, mask: int
) -> Flush | None:
    """Split huge leaves too, if the bitmap started all set (v7.3 on)."""
    owed = await _protect_masked(vm, slot, gfn, mask)
    if vm.manual_protect and vm.initially_set and vm.arch.eager_split:
        start = gfn + (mask & -mask).bit_length() - 1
        await split_huge_pages(vm, start, gfn + mask.bit_length())
    return owed


CHOICES = (
    limit_is_inside,
    refusal_unmaps,
    split_after_wp,
    initially_set_log,
    heeds_all_set,
    flush_after_wp,
    dirty_log_masked,
)
