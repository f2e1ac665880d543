"""The hypercalls by which a hash guest edits its HPT.

:Kernel: kvmppc_do_h_enter(), kvmppc_do_h_remove(), kvmppc_h_protect(),
    arch/powerpc/kvm/book3s_hv_rm_mmu.c, v3.16 on; fact sheet ppc, 4.7, 4.11, P3, P4.

Simplified: bulk removal, H_READ, H_CLEAR_REF and H_CLEAR_MOD are not modelled.
"""

__all__ = ["CHOICES", "kvmppc_do_h_enter", "kvmppc_do_h_remove", "kvmppc_h_protect"]

from typing import NamedTuple

from kvmarch_ppc.hash_table import (
    Hash,
    find_hpte,
    get_rmap,
    gfn_of,
    groups_of,
    guest_hpte,
    link_hpte,
    lock_hpte,
    lock_rmap_of,
    set_rmap,
    tlbie_hpte,
    try_lock_hpte,
    unlink_hpte,
    unlock_hpte,
    unlock_rmap_of,
)
from kvmarch_ppc.host_page import find_kvm_host_pte
from kvmarch_ppc.hpt import HPTES_PER_GROUP
from kvmarch_ppc.hpt_table import get_hpte, set_hpte
from kvmarch_ppc.hpte import (
    HPTE_R_C,
    HPTE_V_ABSENT,
    HPTE_V_HVLOCK,
    HPTE_V_VALID,
    HpteR,
    hpte_is_writable,
    hpte_make_absent,
    hpte_make_mmio,
    hpte_make_readonly,
    hpte_set_pa,
)
from kvmarch_ppc.rmap import hpte_mask_rc, rmap_harvest

from kvmarch import (
    Choice,
    HostPte,
    Memslot,
    Vcpu,
    Vm,
    gfn_to_memslot,
    host_mapping,
    mmu_invalidate_retry,
    op,
    slot_of,
    snapshot_mmu_seq,
)

# -- H_ENTER -----------------------------------------------------------------------

enter_host_pte = Choice("ppc_enter_host_pte", "how H_ENTER reads the host's PTE")


@enter_host_pte.when()
async def _unlocked(vm: Vm, slot: Memslot, gfn: int, seq: int) -> int:
    """Walk with interrupts off (to v5.7).

    Simplified: that the kernel also sets R and C of the host's PTE is not modelled.
    """
    pte, _pages = await host_mapping(vm, slot, gfn)
    return pte


@enter_host_pte.when("ppc-host-pte-locked")
async def _locked(vm: Vm, slot: Memslot, gfn: int, seq: int) -> int:
    """Walk under mmu_lock, unless an invalidation is under way (v5.8 on)."""
    found = await find_kvm_host_pte(vm, slot, gfn, seq)
    return found.pte if found.usable else 0


class NewHpte(NamedTuple):
    """Both doublewords, still without the hash bit of V."""

    v: int
    r: int


@op(name="build HPTE")
def _build(vm: Vm, slot: Memslot | None, gfn: int, pte: int) -> NewHpte:
    """Build the HPTE: for MMIO, absent, or valid with the host's address."""
    arch: Hash = vm.arch
    v, r, _hash = guest_hpte(arch, gfn)
    if slot is None or slot.invalid:
        return NewHpte(*hpte_make_mmio(v, r))
    if not HostPte.present.get(pte):
        return NewHpte(*hpte_make_absent(v, r))
    real = hpte_set_pa(r, HostPte.pfn.get(pte) << arch.layout.page_shift, arch.psize)
    if hpte_is_writable(real) and not HostPte.write.get(pte):
        real = hpte_make_readonly(real)
    return NewHpte(v | HPTE_V_VALID, real)


@op(name="find free HPTE, lock")
def _find_free(vm: Vm, gfn: int) -> tuple[int, int]:
    """Lock a free HPTE in one of the two groups, and note the guest's doubleword.

    Simplified: the kernel looks at each a second time, spinning for its lock; the
    guest asks for the secondary group by itself.

    :returns: its index, or -1; and HPTE_V_SECONDARY or 0.
    """
    arch: Hash = vm.arch
    _v, r, hash_ = guest_hpte(arch, gfn)
    for first, secondary in groups_of(arch, hash_):
        for index in range(first, first + HPTES_PER_GROUP):
            v, _r = get_hpte(vm, index)
            if not v & (HPTE_V_HVLOCK | HPTE_V_VALID | HPTE_V_ABSENT):
                try_lock_hpte.fn(vm, index)
                arch.guest_rpte[index] = r
                return index, secondary
    return -1, 0


@op(name="victim")
def _victim(vm: Vm, gfn: int) -> int:
    arch: Hash = vm.arch
    return groups_of(arch, guest_hpte(arch, gfn)[2])[0][0]


@op(name="already entered?")
def _is_there(vm: Vm, gfn: int) -> bool:
    return find_hpte(vm, gfn) >= 0


@op(name="kvmppc_add_revmap_chain")
def add_revmap_chain(vm: Vm, slot: Memslot, gfn: int, index: int, r: int) -> int:
    """Put a new HPTE into the chain; return its R without the R and C not known yet."""
    link_hpte(vm, slot, gfn, index)
    return hpte_mask_rc(r, get_rmap(vm, slot, gfn))


@op(name="store HPTE")
def store_hpte(vm: Vm, index: int, v: int, r: int) -> None:
    """Store R, and then V without HVLOCK, which unlocks."""
    set_hpte(vm, index, v & ~HPTE_V_HVLOCK, r)


async def kvmppc_do_h_enter(vcpu: Vcpu, gfn: int) -> None:
    """Let the guest insert its HPTE for a page: H_ENTER.

    mmu_lock is not held when the HPTE is published: the retry check is made under the
    page's rmap lock, which every unmapping takes as well.
    """
    vm = vcpu.vm
    seq = await snapshot_mmu_seq(vm)
    slot = await slot_of(vcpu, gfn)
    pte = 0
    if slot is not None and not slot.invalid:
        pte = await vm.k.ppc_enter_host_pte(vm, slot, gfn, seq)
    new = await _build(vm, slot, gfn, pte)
    there = await _is_there(vm, gfn)
    if there:
        # Another CPU of the guest was faster; the guest has a lock of its own for it.
        return
    index, secondary = await _find_free(vm, gfn)
    while index < 0:
        victim = await _victim(vm, gfn)
        await kvmppc_do_h_remove(vm, victim)
        index, secondary = await _find_free(vm, gfn)
    v, r = new
    v |= secondary
    if v & HPTE_V_VALID:
        await lock_rmap_of(vm, slot, gfn)
        stale = await mmu_invalidate_retry(vm, seq)
        if stale:
            v, r = hpte_make_absent(v, r)
        else:
            r = await add_revmap_chain(vm, slot, gfn, index, r)
        await unlock_rmap_of(vm, slot, gfn)
    await store_hpte(vm, index, v, r)


# -- H_REMOVE ----------------------------------------------------------------------

h_remove_invalidate = Choice(
    "ppc_h_remove_invalidate", "when H_REMOVE reads R and C of the HPTE"
)


@op(name="invalidate HPTE")
def _invalidate(vm: Vm, index: int) -> int:
    """Clear VALID, with a tlbie; return R as it is afterwards."""
    v, r = get_hpte(vm, index)
    set_hpte(vm, index, v & ~HPTE_V_VALID, r)
    tlbie_hpte(vm, index)
    return get_hpte(vm, index)[1]


@op(name="read HPTE")
def _read(vm: Vm, index: int) -> tuple[int, int]:
    return get_hpte(vm, index)


@h_remove_invalidate.when()
async def _read_early(vm: Vm, index: int) -> int:
    """Read R, and then invalidate: what hardware adds meanwhile is lost (P4)."""
    _v, r = await _read(vm, index)
    await _invalidate(vm, index)
    return r


@h_remove_invalidate.when("ppc-h-remove-late-rc")
async def _read_late(vm: Vm, index: int) -> int:
    """Read R when the tlbie is over."""
    return await _invalidate(vm, index)


@op(name="remove_revmap_chain")
def _unchain(vm: Vm, slot: Memslot, gfn: int, index: int, r: int) -> None:
    """Take an HPTE out of the chain and keep its R and C."""
    unlink_hpte(vm, slot, gfn, index)
    set_rmap(vm, slot, gfn, rmap_harvest(get_rmap(vm, slot, gfn), r))
    if r & HPTE_R_C:
        vm.mark_page_dirty(slot, gfn)


@op(name="look up memslot of HPTE")
def _slot_of_hpte(vm: Vm, index: int) -> tuple[Memslot | None, int]:
    gfn = gfn_of(vm, index)
    return gfn_to_memslot(vm, gfn), gfn


@op(name="free HPTE")
def _free(vm: Vm, index: int) -> None:
    vm.arch.guest_rpte.pop(index, None)
    set_hpte(vm, index, 0, 0)


async def kvmppc_do_h_remove(vm: Vm, index: int) -> None:
    """Remove an HPTE: H_REMOVE.

    The HPTE lock comes before the rmap lock here.
    """
    await lock_hpte(vm, index)
    v, _r = await _read(vm, index)
    if v & HPTE_V_VALID:
        r = await vm.k.ppc_h_remove_invalidate(vm, index)
        slot, gfn = await _slot_of_hpte(vm, index)
        if slot is not None:
            await lock_rmap_of(vm, slot, gfn)
            await _unchain(vm, slot, gfn, index, r)
            await unlock_rmap_of(vm, slot, gfn)
    await _free(vm, index)


# -- H_PROTECT ---------------------------------------------------------------------

h_protect_keeps_readonly = Choice(
    "ppc_h_protect", "when H_PROTECT lets a real HPTE become writable"
)


@op(name="change protection")
def _protect(vm: Vm, index: int, pp: int, may_write: bool) -> None:
    """Change PP of a locked HPTE, and of the guest's doubleword.

    :param may_write: a real HPTE that is read-only may become writable.
    """
    arch: Hash = vm.arch
    arch.guest_rpte[index] = HpteR.pp.set(arch.guest_rpte[index], pp)
    v, r = get_hpte(vm, index)
    if not v & HPTE_V_VALID:
        return
    new = HpteR.pp.set(r, pp)
    if hpte_is_writable(new) and not hpte_is_writable(r) and not may_write:
        new = hpte_make_readonly(new)
    if new != r:
        set_hpte(vm, index, v & ~HPTE_V_VALID | HPTE_V_ABSENT, r)
        tlbie_hpte(vm, index)
        rc = get_hpte(vm, index)[1] & HPTE_R_C
        set_hpte(vm, index, v, new | rc)


@h_protect_keeps_readonly.when()
async def _ask_host(vm: Vm, index: int, pp: int) -> None:
    """Keep it read-only only if the host's PTE is present and read-only (P3)."""
    slot, gfn = await _slot_of_hpte(vm, index)
    pte = 0
    if slot is not None:
        pte, _pages = await host_mapping(vm, slot, gfn)
    shared = HostPte.present.get(pte) and not HostPte.write.get(pte)
    await _protect(vm, index, pp, not shared)


@h_protect_keeps_readonly.when("ppc-h-protect-readonly")
async def _never(vm: Vm, index: int, pp: int) -> None:
    """Leave it to the fault of a store (v3.19 on)."""
    await _protect(vm, index, pp, False)


async def kvmppc_h_protect(vm: Vm, index: int, pp: int) -> None:
    """Change the protection of an HPTE: H_PROTECT.

    :param pp: a :class:`~kvmarch_ppc.hpte.Protection`.
    """
    await lock_hpte(vm, index)
    await vm.k.ppc_h_protect(vm, index, pp)
    await unlock_hpte(vm, index)


CHOICES = (enter_host_pte, h_remove_invalidate, h_protect_keeps_readonly)
