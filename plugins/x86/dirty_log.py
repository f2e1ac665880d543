"""Dirty logging: a memslot begins to log, and user space takes the log.

:Kernel: kvm_mmu_slot_apply_flags(), kvm_arch_mmu_enable_log_dirty_pt_masked(),
    kvm_arch_sync_dirty_log(); fact sheet x86, 3.6.
"""

__all__ = ["dirty_log_masked", "start_logging", "sync_dirty_log"]

from typing import TYPE_CHECKING

from kvmarch_x86.geometry import pages_per_hpage
from kvmarch_x86.rmap_mmu import (
    rmap_clear_dirty_slot,
    rmap_dirty_masked,
    rmap_write_protect_gfn,
    rmap_write_protect_slot,
)
from kvmarch_x86.tdp_huge import split_huge_now, split_huge_pages
from kvmarch_x86.tdp_log import (
    clear_dirty_slot,
    tdp_dirty_masked,
    wrprot_gfn,
    wrprot_range,
)
from kvmarch_x86.translate import drain_pml

from kvmarch import (
    Flush,
    Memslot,
    Vm,
    kvm_flush_remote_tlbs_memslot,
    kvm_make_all_cpus_request,
    op,
)

if TYPE_CHECKING:
    from kvmarch_x86.state import X86Vm

# -- a memslot begins to log -------------------------------------------------------


@op(name="write-protect memslot")
def _protect_rmap(vm: Vm, slot: Memslot) -> Flush | None:
    """Take D, or W, from the leaves of a slot in the direct MMU."""
    if not vm.arch.pml:
        return rmap_write_protect_slot(vm, slot, 1)
    owed = rmap_clear_dirty_slot(vm, slot)
    more = rmap_write_protect_slot(vm, slot, 2)
    return more if owed is None else owed | more


async def _protect_tdp(vm: Vm, slot: Memslot) -> bool:
    """Take D, or W, from the leaves of a slot in the TDP MMU."""
    start, end = slot.base_gfn, slot.end_gfn
    if not vm.arch.pml:
        return await wrprot_range(vm, slot.as_id, start, end, 1)
    cleared = await clear_dirty_slot(vm, slot)
    protected = await wrprot_range(vm, slot.as_id, start, end, 2)
    return cleared or protected


async def start_logging(vm: Vm, slot: Memslot) -> None:
    """Make the first write to each page of a slot visible.

    With KVM_DIRTY_LOG_INITIALLY_SET every page counts as written, and nothing is
    protected until user space clears the log.

    :Kernel: kvm_mmu_slot_apply_flags(), kvm_mmu_slot_remove_write_access(). The flush
        comes after the unlock; up to v5.19 only if an entry changed.
    :Locking: slots_lock; takes mmu_lock, for read in the TDP MMU from v5.13 on.
    """
    arch = vm.arch
    lock, rules = vm.mmu_lock, arch.rules
    if vm.initially_set:
        return
    if arch.is_tdp:
        shared = arch.shares_log
        if rules.splits_eagerly and arch.eager_split:
            async with lock.read() if shared else lock.write(), vm.rcu.read():
                await split_huge_pages(vm, slot.as_id, slot.base_gfn, slot.end_gfn)
        async with lock.read() if shared else lock.write(), vm.rcu.read():
            changed = await _protect_tdp(vm, slot)
    else:
        async with lock.write():
            owed = await _protect_rmap(vm, slot)
        changed = owed is not None
    if changed or rules.log_flushes:
        await kvm_flush_remote_tlbs_memslot(vm, slot)


# -- user space takes the log ------------------------------------------------------


def _protect_huge(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Split or write-protect the huge pages that chosen pages are in.

    :Kernel: kvm_arch_mmu_enable_log_dirty_pt_masked() with INITIALLY_SET, v5.8 on
    """
    arch: X86Vm = vm.arch
    pages = pages_per_hpage(2)
    start = gfn + (mask & -mask).bit_length() - 1
    last = gfn + mask.bit_length() - 1
    owed: Flush | None = None
    for first in range(start & -pages, last + 1, pages):
        if arch.is_tdp:
            # Up to v6.7 an inclusive end was taken for an exclusive one (D18).
            stop = last + arch.rules.split_includes_last
            if (
                arch.rules.splits_eagerly
                and arch.eager_split
                and max(first, start) < stop
            ):
                split_huge_now(vm, slot.as_id, first, first + pages)
            flush = wrprot_gfn(vm, slot.as_id, max(first, start), 2)
        else:
            flush = rmap_write_protect_gfn(
                vm, slot, max(first, start), min_level=2, due="return"
            )
        owed = flush if owed is None else owed | flush
    return owed


def dirty_log_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Make the next write to chosen pages visible again.

    :Kernel: kvm_arch_mmu_enable_log_dirty_pt_masked()
    :Locking: mmu_lock for write.
    """
    owed = _protect_huge(vm, slot, gfn, mask) if vm.initially_set else None
    if vm.arch.is_tdp:
        flush = tdp_dirty_masked(vm, slot, gfn, mask)
    else:
        flush = rmap_dirty_masked(vm, slot, gfn, mask)
    return flush if owed is None else owed | flush


@op(name="drain PML buffers")
def _drain(vm: Vm) -> None:
    for vcpu in vm.vcpus:
        if vcpu.arch.pml_buffer:
            drain_pml(vcpu)


async def sync_dirty_log(vm: Vm, slot: Memslot) -> None:
    """Bring what processors have logged into the bitmap.

    Every exit drains the log of its vCPU, so it is enough to make all of them exit.

    :Kernel: kvm_arch_sync_dirty_log(), kvm_flush_pml_buffers(); with PML only
    """
    if not vm.arch.pml:
        return
    await kvm_make_all_cpus_request(vm, "pml_flush")
    await _drain(vm)
