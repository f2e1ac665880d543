"""Faults: from a TLB exception to the mapped page.

Models kvm_handle_mm_fault() and kvm_map_page() of arch/loongarch/kvm/mmu.c, v6.8 on
(fact sheet loongarch, 3.1). The slow path retries inside the kernel, a reader of
kvm->srcu all the time. A page is marked dirty after mmu_lock was dropped.
"""

__all__ = ["CHOICES", "page_fault"]

from typing import TYPE_CHECKING, Any, NamedTuple

from kvmarch import (
    BLOCKED,
    Choice,
    FaultIn,
    FaultResult,
    Memslot,
    Vcpu,
    Vm,
    faultin_pfn,
    gfn_to_memslot,
    host_mapping,
    mmu_invalidate_retry_gfn,
    mmu_invalidate_retry_gfn_unsafe,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

from kvmarch_loongarch.memslots import supports_huge
from kvmarch_loongarch.pte import HUGE, V, children, map_page_pte, mkdirty, pfn_of
from kvmarch_loongarch.table import Found, at_or_above, new_table, populate

if TYPE_CHECKING:
    from kvmarch_loongarch.state import LoongarchVcpu, LoongarchVm

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

loongarch_page_held = Choice(
    "loongarch_page_held",
    "whether the fast path marks a page, and whether it holds it meanwhile",
)
loongarch_page_held.add("marks")
loongarch_page_held.add("holds", "loongarch-fast-path-ref")
loongarch_page_held.add("leaves alone", "loongarch-faultin-pfn")
loongarch_page_held.add(
    "leaves alone", "loongarch-fast-path-ref", "loongarch-faultin-pfn"
)

loongarch_releases_locked = Choice(
    "loongarch_releases_locked", "whether the page is let go before mmu_lock is dropped"
)
loongarch_releases_locked.add(False)
loongarch_releases_locked.add(True, "loongarch-faultin-pfn")

loongarch_asks_secondary = Choice(
    "loongarch_asks_secondary",
    "whether a table that is there keeps a huge page from being mapped",
)
loongarch_asks_secondary.add(False)
loongarch_asks_secondary.add(True, "loongarch-huge-unless-table")

loongarch_beyond = Choice(
    "loongarch_beyond", "how an access beyond the guest's addresses ends"
)
loongarch_beyond.add("mmio")
loongarch_beyond.add("exception", "loongarch-address-error")


# -------------------------------------------------------------------------
# The fast path
# -------------------------------------------------------------------------


class Fast(NamedTuple):
    """How the fast path went.

    :param done: the entry allows the access by now.
    :param pfn: of the page to mark, -1 for none.
    :param dirty: D was set.
    """

    done: bool
    pfn: int = -1
    dirty: bool = False


@op(name="kvm_map_page_fast")
def _fast(vcpu: Vcpu, gfn: int, write: bool) -> Fast:
    """Make a present entry young, and for a store dirty.

    :Kernel: kvm_map_page_fast(), since v6.8.
    :Locking: mmu_lock.
    """
    vm = vcpu.vm
    arch: LoongarchVm = vm.arch
    found = at_or_above(vm, gfn, 0)
    if found is None or not found.present:
        return Fast(done=False)
    bits, old = arch.bits, found.entry
    new = old | V
    if write and not new & bits.dirty:
        if not new & bits.writeable:
            return Fast(done=False)
        if new & HUGE:
            slot = gfn_to_memslot(vm, gfn)
            if slot is not None and slot.logs_dirty:
                return Fast(done=False)
        new = mkdirty(bits, new)
    if new == old:
        return Fast(done=True)
    found.table.set(found.at, new)
    pfn = pfn_of(new, arch.geometry.page_shift)
    how = vm.k.loongarch_page_held
    if how == "holds":
        vm.host.get(pfn)
    dirty = bool((new ^ old) & bits.dirty)
    return Fast(done=True, pfn=-1 if how == "leaves alone" else pfn, dirty=dirty)


@op(name="mark page accessed and dirty")
def _mark(vm: Vm, pfn: int, dirty: bool) -> None:
    """Mark the page that the fast path found, with mmu_lock dropped.

    :Kernel: kvm_set_pfn_accessed(), kvm_set_pfn_dirty(); up to v6.10 nothing holds
        the page meanwhile (fact sheet, bug 6).
    """
    vm.host.mark(pfn, dirty=dirty, accessed=True, who="kvm_map_page_fast")
    if vm.k.loongarch_page_held == "holds":
        vm.host.put(pfn)


@op(name="mark_page_dirty")
def _mark_page_dirty(vm: Vm, gfn: int) -> None:
    slot = gfn_to_memslot(vm, gfn)
    if slot is not None:
        vm.mark_page_dirty(slot, gfn)


async def _map_fast(vcpu: Vcpu, gfn: int, write: bool) -> bool:
    """Try without asking for a page; return whether that was enough.

    :Kernel: kvm_map_page_fast(), with its lock and its marks.
    """
    vm = vcpu.vm
    async with vm.mmu_lock.write():
        fast = await _fast(vcpu, gfn, write)
    if fast.pfn >= 0:
        await _mark(vm, fast.pfn, fast.dirty)
    if fast.dirty:
        await _mark_page_dirty(vm, gfn)
    done: bool = fast.done
    return done


# -------------------------------------------------------------------------
# The slow path
# -------------------------------------------------------------------------


@op(name="kvm_mmu_topup_memory_cache", sleeps=True)
def _topup(vcpu: Vcpu) -> bool:
    """Have a page at hand for every table that it may take; False is -ENOMEM.

    :Kernel: kvm_mmu_topup_memory_cache(), in kvm_map_page(), before the retry label.
    """
    # Simplified: filled to the minimum, where the kernel takes some more.
    arch: LoongarchVcpu = vcpu.arch
    need = vcpu.vm.arch.geometry.root_level
    if arch.mmu_page_cache < need:
        if vcpu.vm.out_of_tables:
            return False
        arch.mmu_page_cache = need
    return True


def _level(vm: Vm, slot: Memslot, gfn: int, write: bool) -> int:
    """Return the level of the leaf: 1 for a huge page.

    :Kernel: fault_supports_huge_mapping(), host_pfn_mapping_level().
    """
    if not supports_huge(vm, slot, gfn, write):
        return 0
    _entry, pages = host_mapping.fn(vm, slot, gfn)
    if pages < vm.arch.geometry.pages(1):
        return 0
    if vm.k.loongarch_asks_secondary:
        found = at_or_above(vm, gfn, 0)
        if found is not None and not found.entry & HUGE:
            return 0
    return 1


def _split(vm: Vm, cache: "LoongarchVcpu", found: Found, gfn: int) -> Found:
    """Put a table of small leaves in the place of a huge one.

    :Kernel: kvm_split_huge().
    """
    geometry = vm.arch.geometry
    table = new_table(vm, cache, gfn, 0)
    for number, entry in enumerate(children(found.entry, geometry.page_shift)):
        table.set(number, entry)
    found.table.set(found.at, table.pa)
    index = geometry.index(gfn, 0)
    return Found(table, index, table.get(index))


@op(name="set pte")
def _map(vcpu: Vcpu, slot: Memslot, gfn: int, page: FaultIn, write: bool) -> int:
    """Store the leaf; return the gfn to be marked dirty, -1 for none.

    :Kernel: the second half of kvm_map_page().
    :Locking: mmu_lock.
    """
    vm = vcpu.vm
    arch: LoongarchVm = vm.arch
    geometry, cache = arch.geometry, vcpu.arch
    level = _level(vm, slot, gfn, write)
    # Simplified: every page has a struct page, so that all of memory is cached.
    pages = geometry.pages(level)
    first, pfn = gfn & -pages, page.pfn & -pages
    pte = map_page_pte(
        arch.bits,
        pfn << geometry.page_shift,
        writable=page.writable,
        write=write,
        logging=slot.logs_dirty,
    )
    found = populate(vm, cache, gfn, level)
    if level:
        pte |= HUGE
        vcpu.requests.add("tlb_flush")
    elif found.entry & HUGE and found.table.level and write:
        found = _split(vm, cache, found, gfn)
    found.table.set(found.at, pte)
    if page.writable:
        vm.host.mark(page.pfn, dirty=True, accessed=False, who="kvm_map_page")
    return first if pte & arch.bits.dirty else -1


@op(name="retry until no invalidation is in progress")
def _wait(vm: Vm, gfn: int) -> Any:
    """Wait while the check would fail again.

    Simplified: the kernel spins, and lets others run every hundredth time.
    """
    again = mmu_invalidate_retry_gfn_unsafe.fn(vm, vm.mmu_invalidate_seq, gfn)
    return BLOCKED if again else None


async def _map_page(vcpu: Vcpu, slot: Memslot, gfn: int, write: bool) -> bool:
    """Map a page, however often an invalidation comes first.

    :returns: False on -EFAULT, and on -ENOMEM, which nobody tells from it.

    :Kernel: kvm_map_page(), since v6.8.
    """
    vm = vcpu.vm
    inside = vm.k.loongarch_releases_locked
    enough = await _topup(vcpu)
    if not enough:
        return False
    while True:
        seq = await snapshot_mmu_seq(vm)
        page = await faultin_pfn(vm, slot, gfn, write)
        if page.error:
            return False
        async with vm.mmu_lock.write():
            stale = await mmu_invalidate_retry_gfn(vm, seq, gfn)
            if not stale:
                marked = await _map(vcpu, slot, gfn, page, write)
                if inside:
                    await release_pfn(vm, page.pfn)
        if not stale:
            break
        await release_pfn(vm, page.pfn)
        await _wait(vm, gfn)
    if marked >= 0:
        await _mark_in_slot(vm, slot, marked)
    if not inside:
        await release_pfn(vm, page.pfn)
    return True


@op(name="mark_page_dirty_in_slot")
def _mark_in_slot(vm: Vm, slot: Memslot, gfn: int) -> None:
    vm.mark_page_dirty(slot, gfn)


@op(name="kvm_flush_tlb_gpa")
def _forget(vcpu: Vcpu, gfn: int, why: str) -> None:
    """Have what is cached of the address forgotten: the exception was cached too."""
    vcpu.vm.k.loongarch_forget_fault.fn(vcpu, gfn, why)


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a TLB exception of the guest.

    What cannot be mapped is MMIO; an instruction fetched from there, and an address
    beyond the guest's, raise an address error in the guest.

    :Kernel: kvm_handle_rdwr_fault(), kvm_handle_mm_fault().
    """
    if why == "beyond":
        return "exception" if access == "exec" else vcpu.vm.k.loongarch_beyond
    write = access == "write"
    done = await _map_fast(vcpu, gfn, write)
    if not done:
        slot = await slot_of(vcpu, gfn)
        mapped = False
        if slot is not None and not slot.invalid and not (write and slot.readonly):
            mapped = await _map_page(vcpu, slot, gfn, write)
        if not mapped:
            return "exception" if access == "exec" else "mmio"
    await _forget(vcpu, gfn, why)
    return "guest"


CHOICES = (
    loongarch_page_held,
    loongarch_releases_locked,
    loongarch_asks_secondary,
    loongarch_beyond,
)
