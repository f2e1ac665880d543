"""What KVM does over the host's page tables, up to v6.19: faults, memslots, dirty log.

Models arch/s390/mm/gmap.c and arch/s390/kvm/kvm-s390.c (fact sheet s390, 2.5 to 2.8).
"""

__all__ = [
    "CHOICES",
    "commit_memory_region",
    "destroy_vm",
    "page_fault",
    "prepare_memory_region",
    "sync_dirty_log",
]

from typing import TYPE_CHECKING

from kvmarch import (
    Choice,
    FaultResult,
    HostPte,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    fixup_user_fault,
    invalidate_tlbs,
    op,
    release_pfn,
    slot_of,
)

from kvmarch_s390.common import prepare_slot
from kvmarch_s390.geometry import SEGMENT, entries, pages
from kvmarch_s390.host_pte import gmap_segment, invalid_region
from kvmarch_s390.region import table_entry
from kvmarch_s390.shared_tables import notify, pmd_of, walk

if TYPE_CHECKING:
    from kvmarch_s390.shared_tables import SharedVm

# -------------------------------------------------------------------------
# Faults
# -------------------------------------------------------------------------


@op(name="gmap_translate")
def _user_page(vm: Vm, gfn: int) -> int:
    """Return the user's page of a gfn; -1 if there is none."""
    return int(vm.arch.vpn_of(gfn))


@op(name="__gmap_link")
def _link(vm: Vm, gfn: int, vpn: int) -> bool:
    """Let gmap's segment entry lead to the host's page table, as the host's own does.

    :returns: False if there is no memory for a table (-ENOMEM).

    :Kernel: __gmap_link(), under gmap->guest_table_lock; gmap_alloc_table().
    """
    arch: SharedVm = vm.arch
    if arch.vpn_of(gfn) != vpn:
        return True
    table, at, entry = walk(vm, gfn)
    while table.level > SEGMENT:
        if vm.out_of_tables:
            return False
        below = table.level - 1
        base = gfn & -pages(table.level)
        child = vm.tables.alloc(
            entries(below), below, base, empty=invalid_region(below)
        )
        table.set(at, table_entry(table.level, child.pa))
        table, at, entry = walk(vm, gfn)
    if entry == invalid_region(SEGMENT):
        table.set(at, gmap_segment(pmd_of(vpn)))
    return True


s390_gmap_fault = Choice("s390_gmap_fault", "how the host's entry is made to allow it")


@s390_gmap_fault.when()
async def _gmap_fault(vcpu: Vcpu, gfn: int, vpn: int, write: bool) -> bool:
    """Fault on the user's address, and link (to v6.13).

    :Kernel: gmap_fault()
    """
    vm = vcpu.vm
    allowed: bool = await fixup_user_fault(vm, vpn << vm.page_shift, write)
    if allowed:
        allowed = await _link(vm, gfn, vpn)
    return allowed


@s390_gmap_fault.when("s390-faultin-pfn")
async def _faultin_and_link(vcpu: Vcpu, gfn: int, vpn: int, write: bool) -> bool:
    """Take the page of the memslot first, let it go under mmu_lock (v6.14 on).

    :Kernel: __kvm_faultin_pfn(), kvm_release_faultin_page()
    """
    vm = vcpu.vm
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return False
    found = await faultin_pfn(vm, slot, gfn, write)
    if found.error:
        return False
    allowed: bool = await vm.k.s390_link_shared(vcpu, gfn, vpn, write)
    async with vm.mmu_lock.write():
        await release_pfn(vm, found.pfn)
    return allowed


s390_link_shared = Choice("s390_link_shared", "how a page that is held is linked")
s390_link_shared.add(_gmap_fault)


@op(name="why not?")
def _is_forbidden(vm: Vm, vpn: int, write: bool) -> bool:
    """Return whether the user's memory forbids an access (-EFAULT), not the lack of it.

    Without memory KVM_RUN fails (-ENOMEM).
    """
    vma = vm.mm.find_vma(vpn << vm.page_shift)
    return vma is None or (write and not vma.write)


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle an interruption of SIE: the guest gets one where there is no memory.

    Nothing is emulated: guests of this architecture do I/O by instructions.

    :Kernel: vcpu_post_run_handle_fault(), vcpu_dat_fault_handler() from v6.12.
    """
    vm = vcpu.vm
    vpn = await _user_page(vm, gfn)
    if vpn < 0:
        return "exception"
    write = access == "write"
    mapped = await vm.k.s390_gmap_fault(vcpu, gfn, vpn, write)
    if mapped:
        return "guest"
    forbidden = await _is_forbidden(vm, vpn, write)
    return "exception" if forbidden else "error"


# -------------------------------------------------------------------------
# Memslots and the dirty log
# -------------------------------------------------------------------------


def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse what is beyond the root, or not aligned to 1 MiB.

    :Kernel: kvm_arch_prepare_memory_region(), up to v6.19.
    """
    return prepare_slot(vm, new, change, strict=vm.arch.strict)


@op(name="gmap_unmap_segment")
def _unmap(vm: Vm, slot: Memslot) -> None:
    """Forget a slot, with the segment entries that it meets."""
    arch: SharedVm = vm.arch
    first = slot.userspace_addr >> vm.page_shift
    arch.regions = tuple(
        region
        for region in arch.regions
        if region != (slot.base_gfn, slot.npages, first)
    )
    met = False
    step = pages(SEGMENT)
    for gfn in range(slot.base_gfn & -step, slot.end_gfn, step):
        table, at, entry = walk(vm, gfn)
        if table.level == SEGMENT and entry != invalid_region(SEGMENT):
            table.set(at, invalid_region(SEGMENT))
            met = True
    if met:
        # The ASCE is flushed as a whole (gmap_flush_tlb).
        invalidate_tlbs(vm, 0, arch.gfns, arch.asce)


@op(name="gmap_map_segment")
def _map(vm: Vm, slot: Memslot) -> None:
    arch: SharedVm = vm.arch
    first = slot.userspace_addr >> vm.page_shift
    arch.regions = (*arch.regions, (slot.base_gfn, slot.npages, first))


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Take the old slot out of gmap, and put the new one in.

    Only here, after the new set of slots is visible: until then a guest goes on in what
    was deleted. Flags change nothing.

    :Kernel: kvm_arch_commit_memory_region(), gmap_unmap_segment(), gmap_map_segment().
    """
    if change == "flags_only":
        return
    async with vm.mm.mmap_lock.write():
        if old is not None:
            await _unmap(vm, old)
        if new is not None:
            await _map(vm, new)


@op(name="gmap_sync_dirty_log_pmd")
def _sync_next(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Log the next page with UC from a gfn on, and protect it again.

    A segment that gmap is not linked to is passed over, and keeps its UC. Simplified:
    up to v4.18 the user's own table was looked at.

    :returns: the gfn after it; -1 if there is none.
    """
    arch: SharedVm = vm.arch
    for number in range(gfn, slot.end_gfn):
        vpn = arch.vpn_of(number)
        pgste = arch.pgstes.get(vpn, 0)
        table, _at, entry = walk(vm, number)
        if not pgste & arch.user_dirty or entry == invalid_region(table.level):
            continue
        arch.pgstes[vpn] = pgste & ~arch.user_dirty
        host = vm.mm.pte(vpn)
        if host & HostPte.present.mask:
            notify(vm, vpn)
            if host & HostPte.write.mask:
                arch.protected.add(vpn)
            invalidate_tlbs(vm, number, number + 1, arch.asce)
        vm.mark_page_dirty(slot, number)
        return number + 1
    return -1


async def sync_dirty_log(vm: Vm, slot: Memslot) -> None:
    """Log every page that its PGSTE says was written, and protect it again.

    :Kernel: kvm_arch_sync_dirty_log(), ptep_test_and_clear_uc().
    """
    gfn: int = slot.base_gfn
    while gfn >= 0:
        gfn = await _sync_next(vm, slot, gfn)


# -------------------------------------------------------------------------
# The end
# -------------------------------------------------------------------------


@op(name="gmap_free")
def _free(vm: Vm) -> None:
    arch: SharedVm = vm.arch
    for table in list(vm.tables.live.values()):
        vm.tables.free(table)
    arch.root = 0


async def destroy_vm(vm: Vm) -> None:
    """Free gmap's tables; the host's stay with the host.

    :Kernel: gmap_remove(), gmap_put().
    """
    await _free(vm)


CHOICES = (s390_gmap_fault, s390_link_shared)
