"""What a fault finds out about the host, and what it decides to map.

:Kernel: user_mem_abort(), fault_supports_stage2_huge_mapping(),
    transparent_hugepage_adjust() (fact sheet arm64, 3.1).
"""

__all__ = [
    "CHOICES",
    "Known",
    "account_page",
    "adjust_size",
    "find_vma",
    "is_logging",
    "is_writable",
    "needs_pages",
    "plan_leaf",
]

import errno
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmarch import (
    BLOCKED,
    LOG_DIRTY_PAGES,
    READONLY,
    Choice,
    FaultIn,
    Memslot,
    Vcpu,
    Vm,
    host_mapping,
    op,
    release_pfn,
)

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu

checks_ends = Choice(
    "arm64_checks_block_ends", "whether a block must lie inside the slot at both ends"
)
checks_ends.add(False)
checks_ends.add(True, "arm64-block-ends")

always_tops_up = Choice(
    "arm64_always_tops_up", "whether permission faults set pages aside for tables too"
)
always_tops_up.add(False)
always_tops_up.add(True, "arm64-permission-fault-topup")

CHOICES = (checks_ends, always_tops_up)


class Known(NamedTuple):
    """What a fault knows before it looks for the page.

    :param seq: mmu_invalidate_seq.
    :param pages: of a leaf, as far as the VMA says: those of a block for hugetlb.
    """

    seq: int
    pages: int
    errno: int = 0
    """With which the fault ends, if it is not 0."""


def is_logging(slot: Memslot) -> bool:
    """Return whether faults are to map pages one by one: never in a read-only slot.

    :Kernel: memslot_is_logging()
    """
    return slot.flags & (LOG_DIRTY_PAGES | READONLY) == LOG_DIRTY_PAGES


@op(name="find VMA, top up the page cache")
def find_vma(vcpu: Vcpu, slot: Memslot, gfn: int, tops_up: bool) -> Any:
    """Look at the VMA behind a gfn, and set pages aside for tables.

    mmap_lock is held for read around this one look, so it waits for a writer and
    holds nothing afterwards.

    A vCPU that has enough of them from an earlier fault allocates none.

    :Kernel: find_vma_intersection(), vma_lookup(); kvm_mmu_topup_memory_cache(),
        mmu_topup_memory_cache() up to v5.8
    :returns: :class:`Known`, with the sequence as it is before mmap_lock is dropped.
    """
    vm = vcpu.vm
    mm = vm.mm
    if mm.mmap_lock.writer is not None:
        return BLOCKED
    vma = mm.find_vma(slot.hva(gfn, vm.page_shift))
    if vma is None:
        return Known(0, 0, -errno.EFAULT)
    if tops_up or vm.k.arm64_always_tops_up:
        own, most = vcpu.arch, vm.arch.cache_min_pages
        if own.mmu_page_cache < most:
            if vm.out_of_tables:
                return Known(0, 0, -errno.ENOMEM)
            own.mmu_page_cache = most
    pages: int = vm.arch.pmd_pages
    if not (vma.hugetlb and not is_logging(slot) and _block_fits(vm, slot, gfn, pages)):
        pages = 1
    return Known(vm.mmu_invalidate_seq, pages)


def _block_fits(vm: Vm, slot: Memslot, gfn: int, pages: int) -> bool:
    """Return whether a block around a gfn has the same place in guest and host.

    :Kernel: fault_supports_stage2_huge_mapping(), before v5.0 the check of
        user_mem_abort(), which does not look at the slot's ends
    """
    mask = pages - 1
    if (slot.base_gfn ^ slot.userspace_addr >> vm.page_shift) & mask:
        return False
    first = gfn & ~mask
    if first >= slot.base_gfn and first + pages <= slot.end_gfn:
        return True
    return not vm.k.arm64_checks_block_ends


def adjust_size(
    vm: Vm, slot: Memslot, gfn: int, pfn: int, pages: int
) -> tuple[int, int, int]:
    """Return gfn, pages and pfn of the largest leaf that the host's mapping allows.

    :Kernel: transparent_hugepage_adjust()
    :param pages: what the VMA said; a block is not asked about again.
    """
    if pages > 1:
        # Simplified: a frame that no block may begin with is mapped alone, where the
        # kernel maps as many pages as the block would have.
        return (gfn & -pages, pages, pfn) if pfn % pages == 0 else (gfn, 1, pfn)
    # Simplified: releases before v5.15 (6011cf68c885) ask the struct page instead
    # of the page table; both say the same while no invalidation is in progress.
    block: int = vm.arch.pmd_pages
    _pte, mapped = host_mapping.fn(vm, slot, gfn)
    if mapped >= block and _block_fits(vm, slot, gfn, block):
        return gfn & -block, block, pfn & -block
    return gfn, 1, pfn


def needs_pages(slot: Memslot, access: str, why: str) -> bool:
    """Return whether a fault may have to make tables (v5.10 on)."""
    return why != "permission" or (is_logging(slot) and access == "write")


def is_writable(slot: Memslot, access: str, found: FaultIn) -> bool:
    """Return whether a mapping gets W: with logging only for a write."""
    return found.writable and (access == "write" or not is_logging(slot))


def plan_leaf(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    known: Known,
) -> tuple[int, int, int, int]:
    """Return gfn, pages and pfn of the leaf, and its attributes.

    No pages means that the leaf stays as large as it is and only gets permissions.
    """
    mmu: Mmu = vcpu.vm.arch
    start, pages, pfn = gfn, 1, found.pfn
    logging = is_logging(slot)
    granule = 0
    if why == "permission":
        granule = 1 << mmu.shifts[vcpu.arch.fault_level]
    if not logging:
        # A block that lacks a permission stays, whatever the host's mapping is.
        if granule > 1:
            pages = granule
        else:
            start, pages, pfn = adjust_size(vcpu.vm, slot, gfn, pfn, known.pages)
    if pages == granule:
        pages = 0
    executable = access == "exec" or mmu.layout.dic
    writable = found.writable and (access == "write" or not logging)
    return start, pages, pfn, mmu.attrs[writable | executable << 1]


@op(name="account and release page")
def account_page(vm: Vm, pfn: int, dirty: bool) -> None:
    """Set the flags of a page that was faulted in, and give its reference back.

    :Kernel: kvm_set_pfn_accessed(), kvm_set_pfn_dirty(), kvm_release_pfn_clean();
        kvm_release_faultin_page() since v6.13
    """
    vm.host.mark(pfn, dirty=dirty, accessed=True, who="user_mem_abort")
    release_pfn.fn(vm, pfn)
