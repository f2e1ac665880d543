"""A guest's page fault, from the exit to the mapped page.

:Kernel: kvm_mmu_page_fault(), kvm_tdp_page_fault(), direct_page_fault(); fact sheet
    x86, 3.1.
"""

__all__ = ["CHOICES", "page_fault"]

from kvmarch_x86.fast_fault import fast_page_fault
from kvmarch_x86.mmio_fault import handle_mmio_page_fault
from kvmarch_x86.rmap_mmu import rmap_map
from kvmarch_x86.stale import is_page_fault_stale
from kvmarch_x86.state import X86Vm
from kvmarch_x86.tdp_map import (
    FIXED,
    LEAF,
    PENDING,
    RETRY,
    Fault,
    begin,
    commit,
    finish_shared,
    goal_level,
    map_exclusively,
)

from kvmarch import (
    INVALID,
    Choice,
    FaultResult,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    gfn_to_memslot,
    kvm_flush_remote_tlbs,
    mmu_invalidate_retry_gfn_unsafe,
    op,
    release_pfn,
    snapshot_mmu_seq,
)

# -- the direct MMU with reverse maps ----------------------------------------------


@op(name="stale? map with mmu_lock")
def _map_direct(vcpu: Vcpu, fault: Fault) -> tuple[str, bool]:
    """Check whether the fault is stale, and map it.

    :returns: how the fault ends, and whether a flush is owed.
    """
    vm = vcpu.vm
    slot, gfn = fault.slot, fault.gfn
    if is_page_fault_stale(vcpu, slot, gfn, fault.seq):
        return RETRY, False
    how = rmap_map(
        vm,
        slot,
        gfn,
        fault.pfn,
        goal_level(vm, slot, gfn, fault.access),
        root_pa=vcpu.arch.root_pa,
        host_writable=fault.writable,
        gen=vm.memslots[vcpu.as_id].generation,
    )
    owed = vm.world.current.name in vm.ledger.owed
    return (FIXED if how == "guest" else how), owed


async def _direct_map(vcpu: Vcpu, fault: Fault) -> str:
    """Map in the direct MMU, and flush what that made stale.

    :Kernel: direct_map(), __direct_map() before
    :Locking: mmu_lock exclusively.
    """
    how, owed = await _map_direct(vcpu, fault)
    if owed:
        await kvm_flush_remote_tlbs(vcpu.vm)
    return how


# -- giving the page back ----------------------------------------------------------

release = Choice("x86_release", "how a fault gives its page back")


@release.when()
def _release_clean(vm: Vm, fault: Fault, how: str) -> None:
    """Give the page back as it is; page flags are set when the entry is dropped.

    :Kernel: kvm_release_pfn_clean(), to v6.12
    """
    release_pfn.fn(vm, fault.pfn)


@release.when("x86-pfn-flags-at-fault")
def _release_faultin(vm: Vm, fault: Fault, how: str) -> None:
    """Mark the page accessed and, if it was mapped writable, dirty; give it back.

    :Kernel: kvm_mmu_finish_page_fault(), kvm_release_faultin_page(), v6.13 on
    """
    if how != RETRY:
        vm.host.mark(fault.pfn, dirty=fault.writable, accessed=True, who="page fault")
    release_pfn.fn(vm, fault.pfn)


# -- mmu_lock ----------------------------------------------------------------------

locked_map = Choice("x86_locked_map", "how a fault holds mmu_lock while it maps")


@locked_map.when()
async def _map_with_spinlock(vcpu: Vcpu, fault: Fault) -> str:
    """Hold mmu_lock, and give the page back after the unlock (to v5.11)."""
    vm = vcpu.vm
    async with vm.mmu_lock.write():
        if vm.arch.is_tdp:
            how = await map_exclusively(vcpu, fault)
        else:
            how = await _direct_map(vcpu, fault)
    if fault.slot is not None:
        await vm.k.x86_release(vm, fault, how)
    return how


@locked_map.when("x86-rwlock")
async def _map_with_rwlock(vcpu: Vcpu, fault: Fault) -> str:
    """Hold mmu_lock for read in the TDP MMU, else for write (v5.12 on)."""
    vm = vcpu.vm
    lock = vm.mmu_lock
    if vm.arch.is_tdp:
        async with lock.read():
            target = await begin(vcpu, fault)
            if target.what == LEAF:
                target = await commit(vcpu, fault, target)
            how = target.what
            if how in PENDING:
                how = await finish_shared(vcpu, fault, target)
    else:
        async with lock.write():
            how = await _direct_map(vcpu, fault)
    if fault.slot is not None:
        await vm.k.x86_release(vm, fault, how)
    return how


@locked_map.when("x86-rwlock", "x86-pfn-flags-at-fault")
async def _map_and_release(vcpu: Vcpu, fault: Fault) -> str:
    """Give the page back before mmu_lock is dropped (v6.13 on)."""
    vm = vcpu.vm
    lock = vm.mmu_lock
    if vm.arch.is_tdp:
        async with lock.read():
            target = await begin(vcpu, fault)
            if target.what == LEAF:
                target = await commit(vcpu, fault, target)
            how = target.what
            if how in PENDING:
                how = await finish_shared(vcpu, fault, target)
            if fault.slot is not None:
                await vm.k.x86_release(vm, fault, how)
    else:
        async with lock.write():
            how = await _direct_map(vcpu, fault)
            if fault.slot is not None:
                await vm.k.x86_release(vm, fault, how)
    return how


# -- memory for tables -------------------------------------------------------------

fast_before_topup = Choice(
    "x86_fast_before_topup",
    "whether a fault that needs no table asks for none first",
)
fast_before_topup.add(False)
fast_before_topup.add(True, "x86-fast-before-topup")


# -- the fault ---------------------------------------------------------------------


def _tries_again(vcpu: Vcpu, gfn: int, access: str) -> bool:
    """Return whether a guest tries an access again that would have to be emulated.

    What the MMIO cache does not name may have been a page table that was protected, so
    a read of it is tried once more; the cache takes gfn 0 for none (recordings of 5.10
    and 6.1).

    :Kernel: mmio_info_in_cache(), retry_instruction()
    """
    rules = vcpu.vm.arch.rules
    return not gfn and access == "read" and bool(rules.retries_uncached)


@op(name="fill MMIO cache")
def _kvm_handle_noslot_fault(vcpu: Vcpu, gfn: int, access: str) -> FaultResult | None:
    """Remember that a gfn has no memslot; emulate at once if it cannot be marked.

    An access is tried again once. Simplified: what else is emulated meanwhile, such as
    a write to a read-only memslot, does not make the vCPU forget that it did.

    :Kernel: handle_abnormal_pfn(), kvm_handle_noslot_fault()
    :returns: how the fault ends, None if the gfn is to be marked.
    """
    vcpu.k.mmio_cache_fill.fn(vcpu, gfn)
    arch: X86Vm = vcpu.vm.arch
    beyond = gfn >> min(arch.layout.mmio_gfn_bits, arch.gfn_bits)
    if arch.layout.shadow_mmio_value and not beyond:
        return None
    again = _tries_again(vcpu, gfn, access) and not vcpu.arch.retried
    vcpu.arch.retried = again
    return "guest" if again else "mmio"


async def _no_slot(vcpu: Vcpu, gfn: int, access: str, seq: int) -> FaultResult:
    """Answer a fault where there is no memslot: mark it as MMIO and emulate.

    What is marked is found so if it is tried again, and is emulated then.
    """
    known = await _kvm_handle_noslot_fault(vcpu, gfn, access)
    if known is not None:
        return known
    fault = Fault(gfn, access, None, -1, False, seq)
    how = await vcpu.vm.k.x86_locked_map(vcpu, fault)
    return "guest" if how == RETRY or _tries_again(vcpu, gfn, access) else "mmio"


@op(name="look up memslot, snapshot mmu_invalidate_seq")
def _look_up(vcpu: Vcpu, gfn: int) -> tuple[Memslot | None, int, bool, bool, bool]:
    """Find the memslot and read the sequence count, as one step.

    One step is enough: an invalidation changes no memslot, and a memslot update no
    count. The caches of tables are topped up in it as well: what is allocated nobody
    else sees. Simplified: what they still hold from earlier faults is not counted, so
    that a fault which finds no memory may fail where it had some left.

    :Kernel: mmu_topup_memory_caches(), before the count is read
    :returns: memslot, count, whether an invalidation is in the way already, whether
        APICv is inhibited and this is its page, and whether memory for tables is out.
    """
    vm = vcpu.vm
    slot = gfn_to_memslot(vm, gfn, vcpu.as_id)
    seq = snapshot_mmu_seq.fn(vm)
    busy = (
        vm.mmu_invalidate_in_progress > 0
        and vm.arch.rules.early_retry
        and slot is not None
        and mmu_invalidate_retry_gfn_unsafe.fn(vm, seq, gfn)
    )
    first, stop = vm.arch.inhibited
    return slot, seq, busy, first <= gfn < stop, vm.out_of_tables


def _may_be_fast(arch: X86Vm, access: str, why: str) -> bool:
    """Return whether a fault may be one that needs no lock (3.2).

    Either W is missing, or a present entry was aged by taking its permissions away.

    :Kernel: page_fault_can_be_fast()
    """
    if arch.is_tdp and not arch.rules.fast_fault:
        return False
    if why == "permission":
        return access == "write"
    layout = arch.layout
    return why == "missing" and not layout.ad and layout.saved_mask != 0


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a fault that :func:`~kvmarch_x86.translate.translate` has given a reason.

    Simplified: the sequence count is read before a fast fault is tried, though only
    what follows needs it; the second look for invalidations without the lock (v6.9 on)
    is left out. Harmless, as the look under the lock decides. What an inhibited APICv
    leaves to KVM ends KVM_RUN here; nothing more is asked of the vCPU then.

    :Kernel: kvm_mmu_page_fault()
    :Locking: kvm->srcu read; takes mmu_lock.
    """
    vm = vcpu.vm
    if why == "reserved":
        known = await handle_mmio_page_fault(vcpu, gfn)
        if known is not None:
            return known
    slot, seq, busy, inhibited, short = await _look_up(vcpu, gfn)
    if short and not vm.k.x86_fast_before_topup:
        return "error"
    if slot is not None and _may_be_fast(vm.arch, access, why):
        fixed = await fast_page_fault(vcpu, slot, gfn, access)
        if fixed:
            return "guest"
    if short:
        return "error"
    if slot is None or slot.flags & INVALID:
        if slot is not None and vm.arch.rules.retries_invalid_slot:
            return "guest"
        return await _no_slot(vcpu, gfn, access, seq)
    if busy:
        return "guest"
    if inhibited:
        return "error"
    found = await faultin_pfn(vm, slot, gfn, access == "write")
    if found.error:
        return "mmio" if found.error == "readonly" else "error"
    fault = Fault(gfn, access, slot, found.pfn, found.writable, seq)
    await vm.k.x86_locked_map(vcpu, fault)
    return "guest"


CHOICES = (release, locked_map, fast_before_topup)
