"""Guest page faults: from the exit to the mapped page.

:Kernel: gstage_page_fault() of arch/riscv/kvm/vcpu_exit.c; kvm_riscv_mmu_map(), since
    v6.17, kvm_riscv_gstage_map() and kvm_riscv_stage2_map() before (fact sheet riscv,
    3.1, 3.2).

A fault that races with an invalidation returns 0: the guest faults again. There is no
loop in the kernel, and no entry for MMIO.
"""

__all__ = ["CHOICES", "page_fault"]

import errno
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmarch import (
    BLOCKED,
    Choice,
    FaultIn,
    FaultResult,
    HostPte,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    host_mapping,
    mmu_invalidate_retry,
    mmu_invalidate_retry_gfn,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

from kvmarch_riscv.geometry import INDEX_BITS
from kvmarch_riscv.gstage import map_page_now, top_up
from kvmarch_riscv.hfence import hfence_gvma_vmid_gpa
from kvmarch_riscv.pte import W, is_leaf
from kvmarch_riscv.walk import get_leaf

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm

_PMD_PAGES = 1 << INDEX_BITS

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

mmu_lock_kind = Choice("mmu_lock_kind", "whether mmu_lock has a read mode")
mmu_lock_kind.add("spinlock")
mmu_lock_kind.add("rwlock", "riscv-mmu-rwlock")

seq_in_mmap_lock = Choice(
    "riscv_seq_in_mmap_lock",
    "whether the sequence count is read before mmap_lock is dropped",
)
seq_in_mmap_lock.add(False)
seq_in_mmap_lock.add(True, "riscv-seq-in-mmap-lock")

maps_thp = Choice("riscv_maps_thp", "whether transparent huge pages are mapped as such")
maps_thp.add(False)
maps_thp.add(True, "riscv-thp")

checks_hugetlb = Choice(
    "riscv_checks_hugetlb", "whether a page of hugetlbfs must lie alike in the slot"
)
checks_hugetlb.add(False)
checks_hugetlb.add(True, "riscv-hugetlb-fits")

adjusts_gpa = Choice(
    "riscv_adjusts_gpa",
    "whether a transparent huge page is mapped at its start, not where the fault was",
)
# It makes a difference where smaller leaves are in the way: that of the start is
# changed then, and the guest faults again, for ever.
adjusts_gpa.add(True)
adjusts_gpa.add(False, "riscv-maps-faulting-gpa")

releases_locked = Choice(
    "riscv_releases_locked", "whether the page is let go before mmu_lock is dropped"
)
releases_locked.add(False)
releases_locked.add(True, "riscv-release-under-lock")

retry_unused = Choice(
    "riscv_retry_unused", "whether the page of a fault that lost a race counts as used"
)
retry_unused.add(False)
retry_unused.add(True, "riscv-retry-releases-unused")


# -------------------------------------------------------------------------
# The dirty log's fast path, since v7.2
# -------------------------------------------------------------------------

write_fault_fast = Choice(
    "riscv_write_fault_fast", "whether a logged write can be allowed in place"
)
host_allows = Choice(
    "riscv_host_allows", "whether the fast path asks what the host allows"
)


@write_fault_fast.when()
async def _no_fast_path(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Take the slow path always (to v7.1)."""
    return False


@host_allows.when()
def _ask_nothing(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Take whatever is mapped for writable (v7.2 on; fact sheet 5, bug 13)."""
    return True


@host_allows.when("riscv-fast-path-checks-host")
def _ask_host_pte(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Look at the host's PTE. Simplified: others keep this in a bit of the entry."""
    entry, _pages = host_mapping.fn(vm, slot, gfn)
    return HostPte.write.get(entry) != 0


@op(name="set W and D")
def _write_enable(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Mark the page dirty and make its leaf writable, if there is a small one.

    Simplified: the loop around the exchange is one step. mmu_lock is held for read, so
    that other entries of this path are all that can come in between; they set the same
    bits.
    """
    root = vm.arch.pgd
    if root is None:
        return False
    table, index, level, entry = get_leaf(vm, root, gfn)
    if level or not is_leaf(entry) or not vm.k.riscv_host_allows.fn(vm, slot, gfn):
        return False
    vm.mark_page_dirty(slot, gfn)
    if not entry & W:
        table.set(index, entry | W)
        hfence_gvma_vmid_gpa(vm, gfn, 0)
    return True


@write_fault_fast.when("riscv-mmu-rwlock", "riscv-dirty-fast-path")
async def _fast_path(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Allow a write where a leaf is there already, under the read lock.

    :Kernel: kvm_riscv_mmu_dirty_log_write_fault_fast(), since v7.2
    """
    done: bool = False
    seq = await snapshot_mmu_seq(vm)
    async with vm.mmu_lock.read():
        stale = await mmu_invalidate_retry_gfn(vm, seq, gfn)
        if not stale:
            done = await _write_enable(vm, slot, gfn)
    return done


# -------------------------------------------------------------------------
# What is to be mapped
# -------------------------------------------------------------------------


class Known(NamedTuple):
    """What a fault knows before it looks for the page.

    :param seq: mmu_invalidate_seq.
    :param pages: of the leaf, as far as the VMA says.
    :param ret: -ENOMEM if no pages can be set aside, -EFAULT if there is no VMA.
    """

    seq: int = 0
    pages: int = 1
    ret: int = 0


def _fits(vm: Vm, slot: Memslot, gfn: int, pages: int) -> bool:
    """Return whether a block around a gfn lies alike in guest and host, and inside.

    :Kernel: fault_supports_gstage_huge_mapping(), since v7.0
    """
    if (slot.base_gfn ^ slot.userspace_addr >> vm.page_shift) & pages - 1:
        return False
    first = gfn & -pages
    return first >= slot.base_gfn and first + pages <= slot.end_gfn


@op(name="top up the page cache, find VMA")
def _find_vma(vcpu: Vcpu, slot: Memslot, gfn: int, logging: bool) -> Any:
    """Set pages aside for tables, and look at the VMA behind a gfn.

    mmap_lock is held for read around this look, so it waits for a writer and holds
    nothing afterwards. A vCPU that has enough pages from an earlier fault allocates
    none. Simplified: the pages are set aside once mmap_lock is free, where the kernel
    does so before it waits (to v6.3, after the look).

    :Kernel: kvm_mmu_topup_memory_cache(), stage2_cache_topup() in v5.16; vma_lookup()
    """
    vm = vcpu.vm
    arch: RiscvVm = vm.arch
    if vm.mm.mmap_lock.writer is not None:
        return BLOCKED
    if not top_up(vm, vcpu.arch, arch.levels):
        return Known(ret=-errno.ENOMEM)
    vma = vm.mm.find_vma(slot.hva(gfn, vm.page_shift))
    if vma is None:
        return Known(ret=-errno.EFAULT)
    huge = (
        vma.hugetlb
        and not logging
        and (_fits(vm, slot, gfn, _PMD_PAGES) or not vm.k.riscv_checks_hugetlb)
    )
    return Known(vm.mmu_invalidate_seq, _PMD_PAGES if huge else 1)


def _adjust(
    vm: Vm, slot: Memslot, gfn: int, pfn: int, logging: bool
) -> tuple[int, int]:
    """Return level and first page of what the host maps with one entry.

    :Kernel: transparent_hugepage_adjust(), since v7.0; pages of 2 MiB only
    """
    if logging or not vm.k.riscv_maps_thp or not _fits(vm, slot, gfn, _PMD_PAGES):
        return 0, pfn
    vma = vm.mm.find_vma(slot.hva(gfn, vm.page_shift))
    if vma is None or vma.hugetlb:
        return 0, pfn
    _entry, pages = host_mapping.fn(vm, slot, gfn)
    return (1, pfn & -_PMD_PAGES) if pages >= _PMD_PAGES else (0, pfn)


@op(name="map under mmu_lock")
def _map(
    vcpu: Vcpu, slot: Memslot, gfn: int, found: FaultIn, known: Known, writable: bool
) -> tuple[int, bool]:
    """Map the page unless an invalidation raced.

    :returns: 0 or a negative errno, and whether the page counts as used.
    """
    vm = vcpu.vm
    if mmu_invalidate_retry.fn(vm, known.seq):
        return 0, not vm.k.riscv_retry_unused
    logging = slot.logs_dirty and not slot.readonly
    level, pfn, at = int(known.pages > 1), found.pfn, gfn
    if not level:
        level, pfn = _adjust(vm, slot, gfn, pfn, logging)
        if level and vm.k.riscv_adjusts_gpa:
            at = gfn & -_PMD_PAGES
    if writable:
        # One page, the first of a huge one of hugetlbfs.
        vm.mark_page_dirty(slot, gfn & -known.pages)
        if not vm.k.riscv_releases_locked:
            vm.host.mark(found.pfn, dirty=True, accessed=False, who="riscv map")
    ret = map_page_now(vm, at, level, pfn, vcpu.arch, writable)
    return ret, ret in {0, -errno.EEXIST}


@op(name="release the page")
def _release(vm: Vm, pfn: int, used: bool, dirty: bool) -> None:
    """Mark the page if it counts as used, and give its reference back.

    :Kernel: kvm_release_faultin_page() from v6.13; kvm_set_pfn_accessed() and
        kvm_release_pfn_clean() before
    """
    if used:
        vm.host.mark(pfn, dirty=dirty, accessed=True, who="riscv map")
    release_pfn.fn(vm, pfn)


async def _gstage_map(vcpu: Vcpu, slot: Memslot, gfn: int, write: bool) -> int:
    """Map the page behind a gfn; return 0 or a negative errno.

    :Kernel: kvm_riscv_mmu_map()
    """
    vm = vcpu.vm
    logging = slot.logs_dirty and not slot.readonly
    if write and logging:
        done = await vm.k.riscv_write_fault_fast(vm, slot, gfn)
        if done:
            return 0
    known = await _find_vma(vcpu, slot, gfn, logging)
    if known.ret:
        return known.ret
    if not vm.k.riscv_seq_in_mmap_lock:
        seq = await snapshot_mmu_seq(vm)
        known = known._replace(seq=seq)
    found = await faultin_pfn(vm, slot, gfn & -known.pages, write)
    if found.error:
        return -errno.EFAULT
    writable = found.writable and (write or not logging)
    inside = vm.k.riscv_releases_locked
    async with vm.mmu_lock.write():
        ret, used = await _map(vcpu, slot, gfn, found, known, writable)
        if inside:
            await _release(vm, found.pfn, used, writable)
    if not inside:
        # kvm_set_pfn_accessed() does not ask whether the page was mapped.
        await _release(vm, found.pfn, True, False)
    return ret


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a guest page fault.

    A slot that is being deleted has no hva, and a read-only one none to write to; both
    are MMIO. An instruction cannot be fetched from there: KVM_RUN fails, since v7.3
    with an access fault in the guest, which has nothing to handle it here.

    :Kernel: gstage_page_fault()
    :Locking: a reader of kvm->srcu.
    """
    slot = await slot_of(vcpu, gfn)
    write = access == "write"
    if slot is None or slot.invalid or (write and slot.readonly):
        return "error" if access == "exec" else "mmio"
    ret = await _gstage_map(vcpu, slot, gfn, write)
    return "guest" if ret == 0 else "error"


CHOICES = (
    mmu_lock_kind,
    seq_in_mmap_lock,
    maps_thp,
    checks_hugetlb,
    adjusts_gpa,
    releases_locked,
    retry_unused,
    write_fault_fast,
    host_allows,
)
