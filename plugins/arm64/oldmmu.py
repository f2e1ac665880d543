"""The old MMU: stage 2 written with the host's page-table macros.

:Kernel: virt/kvm/arm/mmu.c, arch/arm/kvm/mmu.c before v4.12; up to v5.9 (fact sheet
    arm64, 3.10). mmu_lock is a spinlock and held everywhere here.

pgd, pud and pmd are the entries of levels 0, 1 and 2. There are no PUD blocks, because
only hugetlb would give one.
"""

__all__ = ["CHOICES", "stage2_get_leaf", "stage2_set_pmd_huge", "stage2_set_pte"]

from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.pgtable import install_table
from kvmarch_arm64.pte import kvm_pte_table
from kvmarch_arm64.ranges import unmap_step
from kvmarch_arm64.state import Arm64Vcpu, Mmu
from kvmarch_arm64.tlbi import kvm_tlb_flush_vmid_ipa
from kvmarch_arm64.walk import VALID, leaf_of, stage2_walk

from kvmarch import Choice, Vm
from kvmarch import Table as Entries

_LAST = KVM_PGTABLE_LAST_LEVEL
_PMD = _LAST - 1

skips_unchanged = Choice(
    "arm64_skips_unchanged", "whether an entry is left alone that stays the same"
)
skips_unchanged.add(False)
skips_unchanged.add(True, "arm64-skip-unchanged")

unmaps_table = Choice(
    "arm64_unmaps_table", "whether a table is unmapped before a block takes its place"
)
unmaps_table.add(False)
unmaps_table.add(True, "arm64-block-over-table")

CHOICES = (skips_unchanged, unmaps_table)


def _get_table(
    vm: Vm, cache: Arm64Vcpu | None, gfn: int, target: int, *, dissolve: bool
) -> tuple[Entries, int] | None:
    """Return the table of a level that holds a gfn's entry, and the index.

    :Kernel: stage2_get_pud(), stage2_get_pmd(), stage2_dissolve_pmd()
    :param cache: whose set-aside pages become missing tables; None if none may.
    :param dissolve: a block on the way is removed.
    :returns: None if a table is missing, or a block is in the way.
    """
    mmu: Mmu = vm.arch
    found = stage2_walk(vm, gfn, target)
    if found is None:
        return None
    table, index, level, entry = found
    while level < target:
        if entry & VALID:
            if not dissolve:
                return None
            table.set(index, 0)
            kvm_tlb_flush_vmid_ipa(vm, gfn)
            table.refs -= 1
        if cache is None or not cache.mmu_page_cache:
            return None
        cache.mmu_page_cache -= 1
        table = install_table(vm, table, index, gfn, level)
        level += 1
        index, entry = gfn >> mmu.shifts[level] & mmu.index_mask, 0
    return table, index


def stage2_set_pte(
    vm: Vm, cache: Arm64Vcpu | None, gfn: int, new: int, *, logging: bool
) -> None:
    """Map one page; do nothing if a table is missing that cannot be made.

    An entry that is present is broken first, and keeps its reference.

    :Kernel: stage2_set_pte(), up to v5.9
    :param logging: KVM_S2PTE_FLAG_LOGGING_ACTIVE: a block in the way is dissolved.
    """
    # Simplified: without the flag the kernel does not look for a block and would
    # take it for a table; start() has unmapped it by then, so that cannot happen.
    where = _get_table(vm, cache, gfn, _LAST, dissolve=logging)
    if where is None:
        return
    table, index = where
    old = table.get(index)
    if old & VALID:
        if old == new and vm.k.arm64_skips_unchanged:
            return
        table.set(index, 0)
        kvm_tlb_flush_vmid_ipa(vm, gfn)
    else:
        table.refs += 1
    table.set(index, new)


def stage2_set_pmd_huge(vm: Vm, cache: Arm64Vcpu, gfn: int, new: int) -> None:
    """Map one block of level 2.

    Up to v5.0 a table that is in the place is taken for a block of another frame: it
    leaks, and its pages stay cached (fact sheet 6 row 5). The VM_BUG_ON that would
    notice is compiled out of usual kernels; it is an event here.

    :Kernel: stage2_set_pmd_huge(), up to v5.9
    """
    where = _get_table(vm, cache, gfn, _PMD, dissolve=False)
    if where is None:
        return
    if vm.k.arm64_unmaps_table and kvm_pte_table(where[0].get(where[1]), _PMD):
        pages: int = vm.arch.pmd_pages
        unmap_step(vm, 0, gfn & -pages, (gfn & -pages) + pages)
        # Tables above it may be empty, and so be gone, by now.
        where = _get_table(vm, cache, gfn, _PMD, dissolve=False)
        if where is None:
            return
    table, index = where
    old = table.get(index)
    if old & VALID:
        if old == new and vm.k.arm64_skips_unchanged:
            return
        if kvm_pte_table(old, _PMD):
            vm.world.note("vm_bug_on", who="stage2_set_pmd_huge", gfn=gfn)
        table.set(index, 0)
        kvm_tlb_flush_vmid_ipa(vm, gfn)
    else:
        table.refs += 1
    table.set(index, new)


def stage2_get_leaf(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the valid leaf of a gfn and its level; 0 and 0 if there is none.

    :Kernel: stage2_get_leaf_entry(), stage2_is_exec()
    """
    found = leaf_of(vm, gfn)
    return (0, 0) if found is None else (found[3], found[2])
