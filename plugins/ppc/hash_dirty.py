"""The dirty log of a hash guest: harvest C of every HPTE.

:Kernel: kvm_test_clear_dirty_npages(), kvmppc_hv_get_dirty_log_hpt(),
    arch/powerpc/kvm/book3s_64_mmu_hv.c, v3.16 on; fact sheet ppc, 4.10, P5.
"""

__all__ = ["CHOICES", "sync_dirty_log"]

from kvmarch_ppc.hash_table import (
    Hash,
    chain_next,
    hpte_unlocked,
    lock_rmap_of,
    tlbie_hpte,
    try_lock_hpte,
    unlock_hpte,
    unlock_rmap_of,
)
from kvmarch_ppc.hash_unmap import next_gfn
from kvmarch_ppc.hpt_table import get_hpte, set_hpte
from kvmarch_ppc.hpte import HPTE_R_C, HPTE_V_ABSENT, HPTE_V_VALID, hpte_is_writable
from kvmarch_ppc.rmap import KVMPPC_RMAP_PRESENT

from kvmarch import Choice, Memslot, Vm, op

IN_GUEST = "in_guest"
"""vcpu->mode of a vCPU that is in the guest."""

skips_clean = Choice("ppc_hash_skips_clean", "which HPTEs the dirty log passes over")


@skips_clean.when()
def _any_clean(vm: Vm, r: int) -> bool:
    """Pass over C = 0, though hardware may owe a C (before 6c576e74fd91; P5)."""
    return not r & HPTE_R_C


@skips_clean.when("ppc-dirty-log-owed-c")
def _clean_for_sure(vm: Vm, r: int) -> bool:
    """Pass over C = 0 if it is read-only; or while a vCPU runs: it comes later."""
    if r & HPTE_R_C:
        return False
    running = any(vcpu.mode == IN_GUEST for vcpu in vm.vcpus)
    return running or not hpte_is_writable(r)


@op(name="HPTE clean?")
def _is_clean(vm: Vm, index: int) -> bool:
    _v, r = get_hpte(vm, index)
    return bool(vm.k.ppc_hash_skips_clean.fn(vm, r))


@op(name="invalidate HPTE, clear C")
def _test_clear_c(vm: Vm, slot: Memslot, gfn: int, index: int) -> None:
    """Invalidate a locked HPTE, take its C, and make it valid again."""
    arch: Hash = vm.arch
    v, r = get_hpte(vm, index)
    if not v & HPTE_V_VALID:
        return
    set_hpte(vm, index, v & ~HPTE_V_VALID | HPTE_V_ABSENT, r)
    tlbie_hpte(vm, index)
    _v, r = get_hpte(vm, index)
    if r & HPTE_R_C:
        arch.guest_rpte[index] |= HPTE_R_C
        vm.mark_page_dirty(slot, gfn)
    set_hpte(vm, index, v, r & ~HPTE_R_C)


async def kvm_test_clear_dirty_npages(vm: Vm, slot: Memslot, gfn: int) -> None:
    """Harvest C of every HPTE of a page, without mmu_lock."""
    await lock_rmap_of(vm, slot, gfn)
    index = await chain_next(vm, slot, gfn, -1)
    while index >= 0:
        clean = await _is_clean(vm, index)
        if not clean:
            locked = await try_lock_hpte(vm, index)
            if not locked:
                await unlock_rmap_of(vm, slot, gfn)
                await hpte_unlocked(vm, index)
                await lock_rmap_of(vm, slot, gfn)
                index = await chain_next(vm, slot, gfn, -1)
                continue
            await _test_clear_c(vm, slot, gfn, index)
            await unlock_hpte(vm, index)
        index = await chain_next(vm, slot, gfn, index)
    await unlock_rmap_of(vm, slot, gfn)


async def sync_dirty_log(vm: Vm, slot: Memslot) -> int:
    """Move C of every HPTE of a slot into its bitmap; unmapping has done so before.

    :Kernel: kvmppc_hv_get_dirty_log_hpt(). Virtual processor areas are not modelled.
    """
    gfn = await next_gfn(vm, slot, slot.base_gfn, slot.end_gfn, KVMPPC_RMAP_PRESENT)
    while gfn >= 0:
        await kvm_test_clear_dirty_npages(vm, slot, gfn)
        gfn = await next_gfn(vm, slot, gfn + 1, slot.end_gfn, KVMPPC_RMAP_PRESENT)
    return 0


CHOICES = (skips_clean,)
