"""Faults: from a TLB exception to the mapped page.

Models kvm_mips_map_page() of arch/mips/kvm/mmu.c and its callers, v4.11 on (fact
sheet mips, section 5). The slow path retries inside the kernel, a reader of
kvm->srcu all the time.
"""

__all__ = ["CHOICES", "kvm_mips_map_page", "page_fault"]

from typing import TYPE_CHECKING, Any, NamedTuple

from kvmarch_mips.gpa_table import find_pte, pte_for_gpa
from kvmarch_mips.pte import (
    map_page_pte,
    pte_dirty,
    pte_mkdirty,
    pte_mkyoung,
    pte_pfn,
    pte_present,
    pte_write,
    pte_wrprotect,
    pte_young,
)
from kvmarch_mips.tlb import host_tlb_inv

from kvmarch import (
    BLOCKED,
    Choice,
    FaultResult,
    Vcpu,
    Vm,
    faultin_pfn,
    gfn_to_memslot,
    mmu_invalidate_retry,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

if TYPE_CHECKING:
    from kvmarch_mips.state import MipsVcpu, MipsVm

mips_releases_locked = Choice(
    "mips_releases_locked",
    "whether the page is let go, and marked, before mmu_lock is dropped",
)
mips_releases_locked.add(False)
mips_releases_locked.add(True, "mips-faultin-pfn")


class Mapped(NamedTuple):
    """An entry that a fault has found or made, and its buddy in the pair."""

    pte: int
    buddy: int


def _mark_page_dirty(vcpu: Vcpu, gfn: int) -> None:
    slot = gfn_to_memslot(vcpu.vm, gfn, vcpu.as_id)
    if slot is not None:
        vcpu.vm.mark_page_dirty(slot, gfn)


@op(name="_kvm_mips_map_page_fast")
def map_page_fast(vcpu: Vcpu, gfn: int, write: bool) -> tuple[Mapped | None, int]:
    """Make a present entry young, and for a write dirty.

    No sequence count is looked at, and no memslot: the entry was allowed when it was
    made, and an invalidation takes mmu_lock too.

    :Kernel: _kvm_mips_map_page_fast(), since v4.11.
    :Locking: mmu_lock.
    :returns: the entry, None if the slow path has to be taken; and the page to mark
        accessed after mmu_lock is dropped, -1 for none.
    """
    vm = vcpu.vm
    arch: MipsVm = vm.arch
    layout = arch.layout
    found = find_pte(vm, gfn)
    if found is None:
        return None, -1
    table, index = found
    pte = table.get(index)
    if not pte_present(layout, pte):
        return None, -1
    marked = -1
    if not pte_young(layout, pte):
        pte = pte_mkyoung(layout, pte)
        table.set(index, pte)
        if not arch.releases_locked:
            marked = pte_pfn(layout, pte)
    # An entry that counts as dirty is taken for writable. One that change_pte made
    # so, dirty and write-protected, makes the guest fault for ever.
    if write and not pte_dirty(layout, pte):
        if not pte_write(layout, pte):
            return None, marked
        pte = pte_mkdirty(layout, pte)
        table.set(index, pte)
        _mark_page_dirty(vcpu, gfn)
        if not arch.releases_locked:
            vm.host.mark(
                pte_pfn(layout, pte), dirty=True, accessed=False, who="map_page_fast"
            )
    return Mapped(pte, table.get(index ^ 1)), marked


@op(name="mmu_topup_memory_cache", sleeps=True)
def topup(vcpu: Vcpu) -> bool:
    """Have a page at hand for every table that the walk may have to make.

    A vCPU that has enough of them from an earlier fault allocates none.

    :Kernel: mmu_topup_memory_cache(), kvm_mmu_topup_memory_cache(); once per fault,
        before the retry label.
    :returns: whether there are enough; False is -ENOMEM.
    """
    # Simplified: filled to the minimum, where the kernel takes some more.
    arch: MipsVcpu = vcpu.arch
    need = vcpu.vm.arch.geometry.cache_min_pages
    if arch.mmu_page_cache < need:
        if vcpu.vm.out_of_tables:
            return False
        arch.mmu_page_cache = need
    return True


@op(name="set_pte")
def map_page(vcpu: Vcpu, gfn: int, pfn: int, writeable: bool, write: bool) -> Mapped:
    """Store the entry, whatever was there before.

    :Kernel: the end of kvm_mips_map_page().
    :Locking: mmu_lock.
    """
    vm = vcpu.vm
    arch: MipsVm = vm.arch
    table, index = pte_for_gpa(vm, vcpu.arch, gfn)
    pte = map_page_pte(arch.layout, pfn, writeable, write)
    table.set(index, pte)
    if writeable and write:
        _mark_page_dirty(vcpu, gfn)
    vm.host.mark(
        pfn,
        dirty=writeable and (write or arch.releases_locked),
        accessed=arch.releases_locked,
        who="map_page",
    )
    return Mapped(pte, table.get(index ^ 1))


@op(name="kvm_set_pfn_accessed")
def set_pfn_accessed(vm: Vm, pfn: int) -> None:
    """Mark a page accessed without holding a reference of it (M10, to v6.12)."""
    vm.host.mark(pfn, dirty=False, accessed=True, who="kvm_set_pfn_accessed")


@op(name="retry until no invalidation is in progress")
def _wait_for_invalidation(vm: Vm) -> Any:
    return BLOCKED if vm.mmu_invalidate_in_progress else None


async def kvm_mips_map_page(vcpu: Vcpu, gfn: int, write: bool) -> Mapped | None:
    """Map a page of the guest, or make its entry young or dirty.

    :Kernel: kvm_mips_map_page(), since v4.11. The retry check has no range: any
        invalidation of the VM counts.
    :Locking: a reader of kvm->srcu; takes mmu_lock.
    :returns: None for -EFAULT: no memslot, no page, or a write that is not allowed;
        and for -ENOMEM, which nobody tells from it.
    """
    vm = vcpu.vm
    async with vm.mmu_lock.write():
        mapped, marked = await map_page_fast(vcpu, gfn, write)
    if marked >= 0:
        await set_pfn_accessed(vm, marked)
    if mapped is not None:
        return mapped
    inside = vm.arch.releases_locked
    enough = await topup(vcpu)
    if not enough:
        return None
    while True:
        seq = await snapshot_mmu_seq(vm)
        slot = await slot_of(vcpu, gfn)
        if slot is None or slot.invalid:
            return None
        found = await faultin_pfn(vm, slot, gfn, write)
        if found.error:
            return None
        async with vm.mmu_lock.write():
            stale = await mmu_invalidate_retry(vm, seq)
            if not stale:
                mapped = await map_page(vcpu, gfn, found.pfn, found.writable, write)
                if inside:
                    await release_pfn(vm, found.pfn)
        if stale or not inside:
            await release_pfn(vm, found.pfn)
        if not stale:
            break
        # Simplified: a wait where the kernel spins. Each turn that it takes while an
        # invalidation is open is like the first one and changes nothing.
        await _wait_for_invalidation(vm)
    if not inside:
        await set_pfn_accessed(vm, found.pfn)
    return mapped


@op(name="write GVA page table")
def _write_gva(vcpu: Vcpu, gfn: int, mapped: Mapped) -> None:
    """Copy the pair into the GVA page table, clean pages without the right to write.

    After mmu_lock was dropped: a flush that was requested meanwhile is handled
    before the guest runs.

    :Kernel: kvm_mips_handle_kseg0_tlb_fault(), v4.11 to v5.12.
    """
    arch: MipsVcpu = vcpu.arch
    layout = vcpu.vm.arch.layout
    for number, pte in ((gfn, mapped.pte), (gfn ^ 1, mapped.buddy)):
        derived = pte if pte_dirty(layout, pte) else pte_wrprotect(layout, pte)
        arch.gva[number] = derived


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a TLB exception of the guest.

    Everything that cannot be mapped is MMIO, but for instruction fetches; so is a
    page that the host denies.

    :Kernel: kvm_mips_handle_exit(), kvm_mips_handle_vz_root_tlb_fault(),
        kvm_mips_handle_kseg0_tlb_fault(). Exception codes 19 and 20 (read and execute
        inhibit) have no case in the switch: KVM_EXIT_INTERNAL_ERROR.
    """
    if why in {"read-inhibit", "exec-inhibit"}:
        return "error"
    mapped = await kvm_mips_map_page(vcpu, gfn, access == "write")
    if mapped is None:
        return "error" if access == "exec" else "mmio"
    if vcpu.vm.arch.mmu == "te":
        await _write_gva(vcpu, gfn, mapped)
    await host_tlb_inv(vcpu, gfn)
    return "guest"


CHOICES = (mips_releases_locked,)
