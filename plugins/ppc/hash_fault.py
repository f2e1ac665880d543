"""The hypervisor's fault for a hash guest, and its MMIO cache.

:Kernel: kvmppc_hpte_hv_fault(), kvmppc_book3s_hv_page_fault(), arch/powerpc/kvm
    book3s_hv_rm_mmu.c and book3s_64_mmu_hv.c, v3.16 on; fact sheet ppc, 4.8.
"""

__all__ = ["CHOICES", "MMIO_CACHE_SIZE", "page_fault"]

from typing import NamedTuple

from kvmarch_ppc.hash_hcalls import add_revmap_chain, kvmppc_do_h_enter, store_hpte
from kvmarch_ppc.hash_table import (
    Hash,
    find_hpte,
    get_rmap,
    lock_hpte,
    lock_rmap_of,
    tlbie_hpte,
    unlock_hpte,
    unlock_rmap_of,
)
from kvmarch_ppc.host_page import find_kvm_host_pte
from kvmarch_ppc.hpt_table import get_hpte, set_hpte
from kvmarch_ppc.hpte import (
    HPTE_R_C,
    HPTE_R_R,
    HPTE_V_ABSENT,
    HPTE_V_HVLOCK,
    HPTE_V_VALID,
    hpte_is_mmio,
    hpte_is_writable,
    hpte_make_readonly,
    hpte_set_pa,
)
from kvmarch_ppc.rmap import hpte_mask_rc

from kvmarch import (
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
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

MMIO_CACHE_SIZE = 4
PRESENT = HostPte.present.mask


class Faulting(NamedTuple):
    """What the real-mode handler found: the HPTE, and if the MMIO cache knew it.

    ``pte_index`` is -1 if there is no HPTE. ``v`` is without HVLOCK.
    """

    pte_index: int
    v: int
    r: int
    guest_r: int
    cached: bool = False


def _as_is(vm: Vm, index: int) -> Faulting:
    v, r = get_hpte(vm, index)
    return Faulting(index, v & ~HPTE_V_HVLOCK, r, vm.arch.guest_rpte[index])


@op(name="kvmppc_hpte_hv_fault")
def _hpte_hv_fault(vcpu: Vcpu, gfn: int) -> Faulting:
    """Find the HPTE, or the page in the MMIO cache, and remember it there.

    Simplified: the guest's own permissions always allow the access.
    """
    arch: Hash = vcpu.vm.arch
    cache: list[tuple[int, int]] = vcpu.arch.mmio_cache
    index = find_hpte(vcpu.vm, gfn)
    if index < 0:
        return Faulting(-1, 0, 0, 0)
    found = _as_is(vcpu.vm, index)
    if (gfn, arch.mmio_update) in cache:
        return found._replace(cached=True)
    if hpte_is_mmio(found.v, found.r):
        # The oldest of the four gives way.
        cache.append((gfn, arch.mmio_update))
        del cache[:-MMIO_CACHE_SIZE]
    return found


@op(name="mmio_update unchanged?")
def _cache_is_current(vcpu: Vcpu, gfn: int) -> bool:
    return (gfn, vcpu.vm.arch.mmio_update) in vcpu.arch.mmio_cache


@op(name="HPTE unchanged?")
def _unchanged(vm: Vm, seen: Faulting) -> bool:
    """Return whether a locked HPTE is as it was."""
    if seen.pte_index not in vm.arch.guest_rpte:
        return False
    return _as_is(vm, seen.pte_index) == seen._replace(cached=False)


# -- the host's PTE, by release ----------------------------------------------------

check_host_pte = Choice(
    "ppc_hash_check_host_pte", "what a hash fault makes of the host's PTE"
)


@check_host_pte.when()
async def _not_read(vm: Vm, slot: Memslot, gfn: int, seq: int) -> str:
    """Do not read it: the page was found by get_user_pages (to v5.5)."""
    return ""


@check_host_pte.when("ppc-hash-host-pte")
async def _taken_as_data(vm: Vm, slot: Memslot, gfn: int, seq: int) -> str:
    """Take attributes of an entry that may not be present; they do not fit (P10)."""
    pte, _pages = await host_mapping(vm, slot, gfn)
    return "" if pte & PRESENT else "error"


@check_host_pte.when("ppc-hash-host-pte", "ppc-host-pte-present")
async def _must_be_present(vm: Vm, slot: Memslot, gfn: int, seq: int) -> str:
    """Retry if it is not present (v5.7)."""
    pte, _pages = await host_mapping(vm, slot, gfn)
    return "" if pte & PRESENT else "guest"


@check_host_pte.when("ppc-hash-host-pte", "ppc-host-pte-present", "ppc-host-pte-locked")
async def _under_lock(vm: Vm, slot: Memslot, gfn: int, seq: int) -> str:
    """Read it under mmu_lock, unless an invalidation is under way (v5.8 on)."""
    found = await find_kvm_host_pte(vm, slot, gfn, seq)
    return "" if found.usable else "guest"


# -- the fault ---------------------------------------------------------------------


@op(name="build R")
def _build_r(vm: Vm, seen: Faulting, found: FaultIn) -> int:
    arch: Hash = vm.arch
    pa = found.pfn << arch.layout.page_shift
    r = hpte_set_pa(seen.guest_r, pa, arch.psize)
    if hpte_is_writable(r) and not found.writable:
        r = hpte_make_readonly(r)
    return r


@op(name="invalidate HPTE")
def _invalidate(vm: Vm, slot: Memslot, gfn: int, index: int, r: int) -> int:
    """Invalidate the HPTE that is to be replaced; return the new R with its R and C."""
    v, old = get_hpte(vm, index)
    set_hpte(vm, index, v & ~HPTE_V_VALID | HPTE_V_ABSENT, old)
    tlbie_hpte(vm, index)
    known = get_hpte(vm, index)[1] & (HPTE_R_R | HPTE_R_C)
    return hpte_mask_rc(r, get_rmap(vm, slot, gfn)) | known


@op(name="set_page_dirty_lock")
def _set_page_dirty(vm: Vm, pfn: int) -> None:
    vm.host.mark(pfn, dirty=True, accessed=True, who="hash fault")


async def _publish(
    vm: Vm, slot: Memslot, gfn: int, seq: int, seen: Faulting, r: int
) -> bool:
    """Store the HPTE under its lock; the retry check is under the rmap lock.

    :returns: False if something has changed meanwhile.
    """
    index = seen.pte_index
    await lock_hpte(vm, index)
    same = await _unchanged(vm, seen)
    if not same:
        await unlock_hpte(vm, index)
        return False
    await lock_rmap_of(vm, slot, gfn)
    stale = await mmu_invalidate_retry(vm, seq)
    if stale:
        await unlock_rmap_of(vm, slot, gfn)
        await unlock_hpte(vm, index)
        return False
    if seen.v & HPTE_V_VALID:
        # It is in the chain already, and only gets another page or permission.
        await unlock_rmap_of(vm, slot, gfn)
        r = await _invalidate(vm, slot, gfn, index, r)
    else:
        r = await add_revmap_chain(vm, slot, gfn, index, r)
        await unlock_rmap_of(vm, slot, gfn)
    v = seen.v & ~HPTE_V_ABSENT | HPTE_V_VALID
    await store_hpte(vm, index, v, r)
    return True


async def kvmppc_book3s_hv_page_fault(
    vcpu: Vcpu, gfn: int, write: bool, seen: Faulting
) -> FaultResult:
    """Map the page of an HPTE that is absent, or whose permission does not suffice."""
    vm = vcpu.vm
    if seen.cached:
        current = await _cache_is_current(vcpu, gfn)
        if current:
            return "mmio"
    await lock_hpte(vm, seen.pte_index)
    same = await _unchanged(vm, seen)
    await unlock_hpte(vm, seen.pte_index)
    if not same:
        return "guest"
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return "mmio"
    seq = await snapshot_mmu_seq(vm)
    found = await faultin_pfn(vm, slot, gfn, write)
    if found.error:
        return "error"
    result: FaultResult | str = await vm.k.ppc_hash_check_host_pte(vm, slot, gfn, seq)
    if result:
        await release_pfn(vm, found.pfn)
        return "error" if result == "error" else "guest"
    r = await _build_r(vm, seen, found)
    done = await _publish(vm, slot, gfn, seq, seen, r)
    if done and hpte_is_writable(r):
        await _set_page_dirty(vm, found.pfn)
    await release_pfn(vm, found.pfn)
    return "guest"


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a guest access that the HPT does not translate.

    Without an HPTE it is the guest's own fault, and the guest inserts one.
    """
    if why == "missing":
        await kvmppc_do_h_enter(vcpu, gfn)
        return "guest"
    seen = await _hpte_hv_fault(vcpu, gfn)
    if seen.pte_index < 0:
        return "guest"
    return await kvmppc_book3s_hv_page_fault(vcpu, gfn, access == "write", seen)


CHOICES = (check_host_pte,)
