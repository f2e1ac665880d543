"""Faults of the old MMU.

:Kernel: user_mem_abort() of virt/kvm/arm/mmu.c and arch/arm/kvm/mmu.c, up to v5.9 (fact
    sheet arm64, 3.1, 3.10).
"""

__all__ = ["CHOICES", "user_mem_abort_old"]

import errno
from typing import TYPE_CHECKING

from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.oldmmu import stage2_get_leaf, stage2_set_pmd_huge, stage2_set_pte
from kvmarch_arm64.plan import (
    Known,
    account_page,
    adjust_size,
    find_vma,
    is_logging,
    is_writable,
)
from kvmarch_arm64.s2pte import (
    kvm_pfn_pte,
    kvm_pmd_mkhuge,
    kvm_s2pte_exec,
    kvm_s2pte_mkexec,
    kvm_s2pte_mkwrite,
    page_s2,
)

from kvmarch import (
    Choice,
    FaultIn,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    mmu_invalidate_retry,
    op,
    snapshot_mmu_seq,
)

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu

_LAST = KVM_PGTABLE_LAST_LEVEL

exec_by_level = Choice(
    "arm64_exec_by_level", "whether X is kept only for a mapping of the same size"
)
exec_by_level.add(False)
exec_by_level.add(True, "arm64-exec-by-level")

CHOICES = (exec_by_level,)


def _was_executable(vm: Vm, gfn: int, level: int) -> bool:
    """Return whether a permission fault may keep X.

    Before July 2020 the leaf's level did not matter: a block inherited X from a page,
    and its other I-cache lines were never invalidated.

    :Kernel: stage2_is_exec()
    """
    leaf, was = stage2_get_leaf(vm, gfn)
    if not leaf or (vm.k.arm64_exec_by_level and was != level):
        return False
    return kvm_s2pte_exec(vm.arch.layout, leaf)


@op(name="map under mmu_lock")
def _map(
    vcpu: Vcpu,
    slot: Memslot,
    gfn: int,
    access: str,
    why: str,
    found: FaultIn,
    known: Known,
) -> None:
    """Map a page or a block, unless an invalidation raced."""
    vm = vcpu.vm
    if mmu_invalidate_retry.fn(vm, known.seq):
        return
    mmu: Mmu = vm.arch
    layout = mmu.layout
    start, pages, pfn = gfn, 1, found.pfn
    if not is_logging(slot):
        start, pages, pfn = adjust_size(vm, slot, gfn, pfn, known.pages)
    # layout.dic also says that this release knows no XN for memory.
    new = kvm_pfn_pte(layout, pfn, page_s2(layout, xn=not layout.dic))
    if is_writable(slot, access, found):
        new = kvm_s2pte_mkwrite(new)
        vm.mark_page_dirty(slot, gfn)
    level = mmu.level_of[pages]
    if access == "exec" or (why == "permission" and _was_executable(vm, gfn, level)):
        new = kvm_s2pte_mkexec(layout, new)
    if level == _LAST:
        stage2_set_pte(vm, vcpu.arch, gfn, new, logging=is_logging(slot))
    else:
        stage2_set_pmd_huge(vm, vcpu.arch, start, kvm_pmd_mkhuge(new))


async def user_mem_abort_old(
    vcpu: Vcpu, slot: Memslot, gfn: int, access: str, why: str
) -> int:
    """Map a page; the sequence count is read after mmap_sem was dropped.

    :returns: 0 or an errno. A race that was lost is 0.
    """
    vm = vcpu.vm
    known: Known = await find_vma(vcpu, slot, gfn, True)
    if known.errno:
        return known.errno
    seq = await snapshot_mmu_seq(vm)
    known = known._replace(seq=seq)
    found = await faultin_pfn(vm, slot, gfn & -known.pages, access == "write")
    if found.error:
        return -errno.EFAULT
    async with vm.mmu_lock.write():
        await _map(vcpu, slot, gfn, access, why, found, known)
    await account_page(vm, found.pfn, is_writable(slot, access, found))
    return 0
