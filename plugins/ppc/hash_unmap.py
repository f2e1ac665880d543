"""Taking HPTEs of a hash guest away through the reverse map, and ageing them.

:Kernel: kvm_unmap_rmapp(), kvm_age_rmapp(), kvm_test_age_rmapp(),
    arch/powerpc/kvm/book3s_64_mmu_hv.c, v3.16 on; fact sheet ppc, 4.6, 4.9 and 4.10.

Who has a page's rmap lock may only try to lock an HPTE, because faults and hypercalls
lock in the other order; if it fails, drop the rmap lock, spin, begin anew.
"""

__all__ = [
    "age_gfn",
    "flush_memslot",
    "kvm_unmap_rmapp",
    "next_gfn",
    "set_spte_gfn",
    "test_age_gfn",
    "unmap_gfn_range",
]

from kvmarch_ppc.hash_table import (
    Hash,
    chain_next,
    get_rmap,
    gfn_of,
    hpte_unlocked,
    lock_rmap_of,
    set_rmap,
    tlbie_hpte,
    try_lock_hpte,
    unlink_hpte,
    unlock_hpte,
    unlock_rmap_of,
)
from kvmarch_ppc.hpt_table import get_hpte, set_hpte
from kvmarch_ppc.hpte import (
    HPTE_R_C,
    HPTE_R_R,
    HPTE_V_ABSENT,
    HPTE_V_VALID,
    hpte_make_absent,
)
from kvmarch_ppc.rmap import (
    KVMPPC_RMAP_LOCK,
    KVMPPC_RMAP_PRESENT,
    KVMPPC_RMAP_REFERENCED,
    rmap_harvest,
)

from kvmarch import Memslot, Vm, op


@op(name="next page with HPTEs")
def next_gfn(vm: Vm, slot: Memslot, start: int, end: int, bits: int) -> int:
    """Return the first gfn whose rmap word has one of some bits; -1 if there is none.

    Simplified: the kernel locks every word of a range. One that is locked counts as
    used, and for others nothing would be found.
    """
    words: dict[int, int] = vm.arch.rmap.get(slot.id, {})
    if words:
        base = slot.base_gfn
        for offset in range(start - base, end - base):
            if words.get(offset, 0) & (bits | KVMPPC_RMAP_LOCK):
                return base + offset
    return -1


@op(name="kvmppc_unmap_hpte")
def _unmap_hpte(vm: Vm, slot: Memslot, gfn: int, index: int) -> None:
    """Take a locked HPTE out of the chain; make it absent, and keep its R and C."""
    arch: Hash = vm.arch
    unlink_hpte(vm, slot, gfn, index)
    v, r = get_hpte(vm, index)
    if not v & HPTE_V_VALID or gfn_of(vm, index) != gfn:
        return
    set_hpte(vm, index, v & ~HPTE_V_VALID | HPTE_V_ABSENT, r)
    tlbie_hpte(vm, index)
    v, r = get_hpte(vm, index)
    set_rmap(vm, slot, gfn, rmap_harvest(get_rmap(vm, slot, gfn), r))
    if r & HPTE_R_C:
        vm.mark_page_dirty(slot, gfn)
    arch.guest_rpte[index] |= r & (HPTE_R_R | HPTE_R_C)
    set_hpte(vm, index, *hpte_make_absent(v, r))


async def kvm_unmap_rmapp(vm: Vm, slot: Memslot, gfn: int) -> None:
    """Unmap every HPTE of a page, with a global tlbie each."""
    while True:
        await lock_rmap_of(vm, slot, gfn)
        index = await chain_next(vm, slot, gfn, -1)
        if index < 0:
            await unlock_rmap_of(vm, slot, gfn)
            return
        locked = await try_lock_hpte(vm, index)
        if locked:
            await _unmap_hpte(vm, slot, gfn, index)
            await unlock_rmap_of(vm, slot, gfn)
            await unlock_hpte(vm, index)
        else:
            await unlock_rmap_of(vm, slot, gfn)
            await hpte_unlocked(vm, index)


async def _unmap_range(vm: Vm, slot: Memslot, start: int, end: int) -> None:
    gfn = await next_gfn(vm, slot, start, end, KVMPPC_RMAP_PRESENT)
    while gfn >= 0:
        await kvm_unmap_rmapp(vm, slot, gfn)
        gfn = await next_gfn(vm, slot, gfn + 1, end, KVMPPC_RMAP_PRESENT)


@op(name="clip range")
def _clip(vm: Vm, start: int, end: int) -> tuple[int, int]:
    clipped: tuple[int, int] = vm.k.ppc_unmapped_range.fn("hash", start, end)
    return clipped


async def unmap_gfn_range(vm: Vm, slot: Memslot, start: int, end: int) -> None:
    """Unmap a range; everything is invalidated in here, so no flush is owed.

    :Kernel: kvm_unmap_gfn_range_hv(), kvm_unmap_hva_range_hv() before v5.13.
    :Locking: mmu_lock.
    """
    first, stop = await _clip(vm, start, end)
    await _unmap_range(vm, slot, first, stop)


async def set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> None:
    """Unmap the page, which nobody has mapped since invalidate_range_start().

    :Kernel: kvm_set_spte_gfn_hv() and kvm_set_spte_hva_hv(), to v6.9.
    """
    await _unmap_range(vm, slot, gfn, gfn + 1)


async def flush_memslot(vm: Vm, slot: Memslot) -> None:
    """Unmap every page of a slot without mmu_lock, and without a sequence count.

    The slot is INVALID, and every fault that saw it otherwise is over.

    :Kernel: kvmppc_core_flush_memslot_hv(); words are looked at unlocked.
    """
    await _unmap_range(vm, slot, slot.base_gfn, slot.end_gfn)


# -- ageing ------------------------------------------------------------------------


@op(name="REFERENCED?")
def _was_referenced(vm: Vm, slot: Memslot, gfn: int) -> bool:
    return get_rmap(vm, slot, gfn) & KVMPPC_RMAP_REFERENCED != 0


@op(name="clear REFERENCED")
def _take_referenced(vm: Vm, slot: Memslot, gfn: int) -> bool:
    word = get_rmap(vm, slot, gfn)
    set_rmap(vm, slot, gfn, word & ~KVMPPC_RMAP_REFERENCED)
    return word & KVMPPC_RMAP_REFERENCED != 0


@op(name="HPTE has R?")
def _has_r(vm: Vm, index: int) -> bool:
    return get_hpte(vm, index)[1] & HPTE_R_R != 0


@op(name="kvmppc_clear_ref_hpte")
def _clear_r(vm: Vm, index: int) -> bool:
    """Clear R of a locked HPTE by a store to its byte, with a global tlbie."""
    v, r = get_hpte(vm, index)
    if not v & HPTE_V_VALID or not r & HPTE_R_R:
        return False
    set_hpte(vm, index, v, r & ~HPTE_R_R)
    tlbie_hpte(vm, index)
    vm.arch.guest_rpte[index] |= HPTE_R_R
    return True


async def _age_chain(vm: Vm, slot: Memslot, gfn: int) -> tuple[bool, bool]:
    """Age a page through its chain, with its rmap lock held.

    :returns: whether it was used; and whether an HPTE was locked, so that the rmap
        lock had to be dropped and all begins anew.
    """
    young = await _take_referenced(vm, slot, gfn)
    if young:
        return True, False
    index = await chain_next(vm, slot, gfn, -1)
    while index >= 0:
        used = await _has_r(vm, index)
        if used:
            locked = await try_lock_hpte(vm, index)
            if not locked:
                await unlock_rmap_of(vm, slot, gfn)
                await hpte_unlocked(vm, index)
                return young, True
            cleared = await _clear_r(vm, index)
            young = young or cleared
            await unlock_hpte(vm, index)
        index = await chain_next(vm, slot, gfn, index)
    return young, False


async def kvm_age_rmapp(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Clear R of every HPTE of a page; return whether it was used."""
    young, again = False, True
    while again:
        await lock_rmap_of(vm, slot, gfn)
        used, again = await _age_chain(vm, slot, gfn)
        young = young or used
    await unlock_rmap_of(vm, slot, gfn)
    return young


async def kvm_test_age_rmapp(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Return whether a page was used; look at the rmap word unlocked first."""
    young = await _was_referenced(vm, slot, gfn)
    if young:
        return True
    await lock_rmap_of(vm, slot, gfn)
    young = await _was_referenced(vm, slot, gfn)
    if not young:
        index = await chain_next(vm, slot, gfn, -1)
        while index >= 0 and not young:
            young = await _has_r(vm, index)
            index = await chain_next(vm, slot, gfn, index)
    await unlock_rmap_of(vm, slot, gfn)
    return young


_USED = KVMPPC_RMAP_PRESENT | KVMPPC_RMAP_REFERENCED


@op(name="clip aged range")
def _clip_aged(vm: Vm, start: int, end: int) -> tuple[int, int]:
    clipped: tuple[int, int] = vm.k.ppc_aged_range.fn(start, end)
    return clipped


async def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Age a range. The tlbie is in here; the generic flush that follows is a kick.

    :Kernel: kvm_age_gfn_hv(), kvm_age_hva_hv() before v5.13.
    """
    young = False
    first, stop = await _clip_aged(vm, start, end)
    gfn = await next_gfn(vm, slot, first, stop, _USED)
    while gfn >= 0:
        one = await kvm_age_rmapp(vm, slot, gfn)
        young = young or one
        gfn = await next_gfn(vm, slot, gfn + 1, stop, _USED)
    return young


async def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether a page of a range was used.

    :Kernel: kvm_test_age_gfn_hv(), kvm_test_age_hva_hv() before v5.13.
    """
    gfn = await next_gfn(vm, slot, start, end, _USED)
    while gfn >= 0:
        young = await kvm_test_age_rmapp(vm, slot, gfn)
        if young:
            return True
        gfn = await next_gfn(vm, slot, gfn + 1, end, _USED)
    return False
