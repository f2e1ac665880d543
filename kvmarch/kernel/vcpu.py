"""A vCPU: guest accesses, the way in and out, faults and MMIO exits.

Models vcpu_enter_guest() and the fault exits of each architecture; generic facts
2.10, 2.11, x86 facts 3.1.
"""

__all__ = ["CHOICES", "guest_access", "run_guest"]

from typing import Any

from kvmarch.changes import Choice
from kvmarch.kernel.checks import check_emulation, check_touch, is_settled
from kvmarch.kernel.memslots import gfn_to_memslot
from kvmarch.kernel.vm import IN_GUEST, OUTSIDE, Vcpu
from kvmarch.machine.steps import BLOCKED, op
from kvmarch.machine.tlb import Translation

PATIENCE = 1
"""Faults on one access after which a vCPU lets others go first."""
FAULT_BOUND = 1000
"""Faults on one access after which a run gives up: a livelock."""


@op(name="enter guest")
def enter_guest(vcpu: Vcpu) -> bool:
    """Handle requests, load the translation, and be in the guest.

    :Kernel: vcpu_enter_guest(): the mode is set before requests are looked at
        again, so one that is made later finds the vCPU in the guest and kicks it.
    :returns: whether the vCPU is in the guest.
    """
    k = vcpu.k
    if vcpu.requests:
        for request in sorted(vcpu.requests):
            k.handle_request.fn(vcpu, request)
        vcpu.requests.clear()
    if k.vcpu_load.fn(vcpu):
        return False
    vcpu.mode = IN_GUEST
    ledger = vcpu.vm.ledger
    if ledger.owed:
        ledger.settle(f"guest entry of {vcpu.name}")
    return True


@op(name="guest access")
def touch(vcpu: Vcpu, gfn: int, access: str) -> str | tuple[str, bool]:
    """Let the guest load, store or fetch: from the TLB, or by a walk.

    :returns: ``done`` or ``kicked``; or why the guest was left with a fault, and
        whether the gfn's memslot was there to stay by then.
    """
    if vcpu.mode is not IN_GUEST:
        return "kicked"
    k = vcpu.k
    tag = k.tlb_tag.fn(vcpu)
    found = vcpu.tlb.lookup(tag, gfn)
    if found is None or not found.allows(access):
        # Hardware walks again when the cached entry does not allow the access, so
        # a permission that was only added needs no flush (x86 facts 3.8).
        walked = k.translate.fn(vcpu, gfn, access)
        if type(walked) is not Translation:
            why = str(walked)
            vcpu.mode = OUTSIDE
            vcpu.exits[why] += 1
            world = vcpu.vm.world
            if world.traced:
                world.note(
                    "guest_fault", vcpu=vcpu.name, gfn=gfn, access=access, why=why
                )
            return why, is_settled(vcpu, gfn, access)
        found = walked
        vcpu.tlb.insert(tag, found)
    vm = vcpu.vm
    pfn = found.pfn + gfn - found.gfn
    page = vm.host.pages.get(pfn)
    if page is not None:
        if page.freed:
            vm.host.touch(pfn, f"{vcpu.name} {access} of gfn {gfn:#x}")
        if access == "write":
            page.content = (vcpu.name, gfn, vm.world.steps)
        if vm.world.traced:
            check_touch(vcpu, gfn, pfn, access)
    return "done"


@op(name="leave guest")
def leave_guest(vcpu: Vcpu, reason: str, gfn: int) -> None:
    """Leave the guest for user space.

    :param gfn: the page whose access is to be emulated; -1 if none is.
    """
    vcpu.mode = OUTSIDE
    vcpu.exits[reason] += 1
    vcpu.vm.world.note("kvm_userspace_exit", vcpu=vcpu.name, reason=reason, gfn=gfn)


@op(name="emulate")
def emulate(vcpu: Vcpu, gfn: int, access: str, settled: bool) -> None:
    """Answer an access as one to what is no memory: MMIO, or an exception.

    :param settled: whether the gfn's memslot was there before the access.
    """
    check_emulation(vcpu, gfn, access, settled)


@op(name="refault while others are at it")
def give_way(vcpu: Vcpu) -> Any:
    """Wait while an invalidation or a memslot update holds faults up.

    Simplified: the guest faults again and again meanwhile; harmless because each of
    those faults ends as the one before did.
    """
    vm = vcpu.vm
    return BLOCKED if vm.mmu_invalidate_in_progress or vm.updating else None


async def guest_access(vcpu: Vcpu, gfn: int, access: str) -> str:
    """Make one guest access happen, with all faults that it takes.

    :param access: ``read``, ``write`` or ``exec``.
    :returns: ``done``; ``mmio`` if user space must emulate it; ``exception`` if the
        guest takes one instead, without a look at user space; ``error`` if KVM_RUN
        fails; ``livelock`` if the fault never resolved.
    """
    vm = vcpu.vm
    faults = _spins = 0
    while _spins < FAULT_BOUND:
        _spins += 1
        if faults > PATIENCE:
            await give_way(vcpu)
        else:
            faults += 1
        if vcpu.mode is not IN_GUEST:
            entered = await enter_guest(vcpu)
            if not entered:
                await vm.k.vcpu_reload(vcpu)
                continue
        how = await touch(vcpu, gfn, access)
        if isinstance(how, str):
            if how == "done":
                return how
            continue
        why, settled = how
        async with vm.srcu.read():
            result = await vm.k.page_fault(vcpu, gfn, access, why)
            if result in {"mmio", "exception"}:
                await emulate(vcpu, gfn, access, settled)
        if result == "exception":
            return str(result)
        if result != "guest":
            await leave_guest(vcpu, result, gfn)
            return str(result)
    await leave_guest(vcpu, "livelock", gfn)
    return "livelock"


async def run_guest(
    vcpu: Vcpu, accesses: tuple[tuple[str, int], ...], leave: str
) -> str:
    """KVM_RUN: the guest makes accesses one after the other and then leaves.

    :param accesses: pairs of access and gfn.
    :param leave: the reason of the last exit, ``hlt`` for one, or empty to stay in
        the guest.
    :returns: the reason of the exit.
    """
    async with vcpu.mutex.write():
        for access, gfn in accesses:
            how = await guest_access(vcpu, gfn, access)
            if how != "done":
                return how
        if leave:
            await leave_guest(vcpu, leave, -1)
    return leave or "in guest"


# -- the vCPU's own MMIO cache -----------------------------------------------------

mmio_cache_fill = Choice("mmio_cache_fill", "what a vCPU remembers of an MMIO exit")
mmio_cache_hit = Choice("mmio_cache_hit", "whether a gfn is known to be MMIO")


@mmio_cache_fill.when()
def _fill(vcpu: Vcpu, gfn: int) -> None:
    """Remember the gfn alone (before 56f17dd3fbc4, v3.17)."""
    vcpu.mmio_gfn = gfn


@mmio_cache_hit.when()
def _hit(vcpu: Vcpu, gfn: int) -> bool:
    """Compare the gfn alone (before 56f17dd3fbc4, v3.17)."""
    return vcpu.mmio_gfn == gfn


@mmio_cache_fill.when("mmio-cache-generation")
def _fill_with_generation(vcpu: Vcpu, gfn: int) -> None:
    """Remember the generation as it reads now, in flux or not (v3.17 on)."""
    vcpu.mmio_gfn = gfn
    vcpu.mmio_generation = vcpu.k.generation_now.fn(vcpu.vm, vcpu.as_id)


@mmio_cache_hit.when("mmio-cache-generation")
def _hit_of_generation(vcpu: Vcpu, gfn: int) -> bool:
    """Compare gfn and generation (v3.17 on)."""
    now = vcpu.k.generation_now.fn(vcpu.vm, vcpu.as_id)
    return vcpu.mmio_gfn == gfn and vcpu.mmio_generation == now


@mmio_cache_fill.when("mmio-cache-generation", "generation-bit-63")
def _fill_unless_in_flux(vcpu: Vcpu, gfn: int) -> None:
    """Remember nothing while an update is in progress (ddfd1730fd82, v5.1 on)."""
    if not vcpu.vm.memslots[vcpu.as_id].in_progress:
        _fill_with_generation(vcpu, gfn)


@op(name="look up memslot")
def slot_of(vcpu: Vcpu, gfn: int) -> Any:
    """Return the memslot of a gfn in the vCPU's address space, or None.

    :Kernel: kvm_vcpu_gfn_to_memslot(). INVALID slots are returned too.
    :Locking: kvm->srcu read.
    """
    return gfn_to_memslot(vcpu.vm, gfn, vcpu.as_id)


CHOICES = (mmio_cache_fill, mmio_cache_hit)
