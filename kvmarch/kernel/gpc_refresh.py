"""How a gfn_to_pfn_cache is filled again.

Models __kvm_gpc_refresh() and hva_to_pfn_retry() of virt/kvm/pfncache.c; generic
facts 2.13, D7 to D12.
"""

__all__ = [
    "BASE",
    "CHOICES",
    "FIXED",
    "count_turn",
    "finish",
    "gpc_to_pfn",
    "look_for_page",
]

from errno import EFAULT, EINVAL

from kvmarch.changes import Choice
from kvmarch.kernel.gpc import (
    NO_PFN,
    Gpc,
    put_page,
    set_valid,
    state_of,
    store_mapping,
)
from kvmarch.kernel.gpc_invalidate import is_pending
from kvmarch.kernel.gup import get_user_page
from kvmarch.kernel.memslots import gfn_to_memslot
from kvmarch.kernel.retry import snapshot_mmu_seq
from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import op

MANY = 3
"""Turns of a retry loop that are told apart; more count as so many."""

# -- the frame: locks, address, outcome --------------------------------------------

gpc_refresh = Choice("gpc_refresh", "whether refreshes of a cache exclude each other")
gpc_fixes_offset = Choice(
    "gpc_fixes_offset", "whether a move within the page moves the mapping too"
)
gpc_fixes_offset.add(False)
gpc_fixes_offset.add(True, "gpc-khva-offset")


@gpc_refresh.when()
async def _refresh_absent(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Refuse: the kernel has no GPC (before v5.17)."""
    return EINVAL


@gpc_refresh.when("gpc")
async def _refresh_at_once(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Let several tasks refresh a cache at the same time (v5.17 to v5.19)."""
    return await refresh_locked(gpc, gpa, uhva)


@gpc_refresh.when("gpc", "gpc-refresh-lock")
async def _refresh_in_turn(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Refresh one cache at a time (v6.0 on).

    :Kernel: __kvm_gpc_refresh().
    """
    async with gpc.refresh_lock.write():
        return await refresh_locked(gpc, gpa, uhva)


@op(name="look up the cache's address")
def _look_up(gpc: Gpc, gpa: int, uhva: int) -> tuple[int, int]:
    """Find memslot and uhva of a gpa if they may have changed.

    :returns: 0 or an errno, and the uhva.
    """
    vm = gpc.vm
    if gpa < 0:
        gpc.gpa, gpc.uhva, gpc.memslot = -1, uhva, None
        return 0, uhva
    generation = vm.k.generation_now.fn(vm, 0)
    if gpc.gpa == gpa and gpc.generation == generation and gpc.uhva >= 0:
        return 0, gpc.uhva
    gfn = gpa >> vm.page_shift
    slot = gfn_to_memslot(vm, gfn)
    gpc.gpa, gpc.generation = gpa, generation
    gpc.memslot = slot
    if slot is None or slot.invalid:
        gpc.uhva = -1
        return EFAULT, -1
    gpc.uhva = slot.hva(gfn, vm.page_shift) + gpa % (1 << vm.page_shift)
    return 0, gpc.uhva


async def refresh_locked(gpc: Gpc, gpa: int, uhva: int) -> int:
    """Refresh a cache, for this gpa or, without one, for this uhva.

    :Locking: refresh_lock from v6.0, kvm->srcu read.
    :returns: 0 or an errno.
    """
    vm = gpc.vm
    await gpc.lock.take_write()
    active, valid, old_uhva, old_pfn = await state_of(gpc)
    if vm.k.gpc_requires_active and not active:
        await gpc.lock.drop_write()
        return EINVAL
    errno, uhva = await _look_up(gpc, gpa, uhva)
    moved = old_uhva >> vm.page_shift != uhva >> vm.page_shift
    replaced = bool(errno) or not valid or moved
    if not errno:
        if replaced:
            errno = await vm.k.gpc_to_pfn(gpc, uhva)
        elif vm.k.gpc_fixes_offset:
            await store_mapping(gpc, 1, old_pfn, _khva(vm, old_pfn, uhva))
    if errno:
        await store_mapping(gpc, 0, NO_PFN, -1)
    await gpc.lock.drop_write()
    if replaced and vm.k.gpc_pins_page and old_pfn != NO_PFN:
        await put_page(vm, old_pfn)
    return errno


def _khva(vm: Vm, pfn: int, address: int) -> int:
    return (pfn << vm.page_shift) + address % (1 << vm.page_shift)


# -- the page ----------------------------------------------------------------------

gpc_to_pfn = Choice("gpc_to_pfn", "how a refresh finds the page")


@op(name="begin a turn")
def count_turn(gpc: Gpc) -> None:
    """Count one look for the page, for those who watch."""
    gpc.turns = min(gpc.turns + 1, MANY)


@op(name="snapshot mmu_invalidate_seq")
def _snapshot(gpc: Gpc) -> int:
    count_turn.fn(gpc)
    return gpc.vm.mmu_invalidate_seq


async def look_for_page(gpc: Gpc, uhva: int, before: int) -> int:
    """Give the page of the turn before back, and look for the page behind a uhva.

    :returns: the pfn with one reference, or -1.
    """
    if before != NO_PFN:
        await put_page(gpc.vm, before)
    return await get_user_page(gpc.vm.mm, uhva >> gpc.vm.page_shift, True)


async def finish(gpc: Gpc, uhva: int, pfn: int) -> None:
    """Make the cache valid for a page that a refresh holds.

    :Locking: gpc->lock for write.
    """
    vm = gpc.vm
    await store_mapping(gpc, 1, pfn, _khva(vm, pfn, uhva) if pfn != NO_PFN else -1)
    if not vm.k.gpc_pins_page and pfn != NO_PFN:
        # The cache holds no reference: the notifier keeps it honest.
        await put_page(vm, pfn)


gpc_retry = Choice("gpc_retry", "when a refresh under gpc->lock has to look again")


@gpc_retry.when()
def _hva_or_seq(vm: Vm, seq: int, uhva: int) -> bool:
    """Test what page faults of the time test (to v5.19).

    :Kernel: mmu_notifier_retry_hva(). in_progress is too late for a cache: it rises
        only after caches were invalidated.
    """
    if (
        vm.mmu_invalidate_in_progress
        and vm.mmu_invalidate_range_start <= uhva < vm.mmu_invalidate_range_end
    ):
        return True
    return vm.mmu_invalidate_seq != seq


BASE = "gpc-invalid-while-refreshing"


@gpc_retry.when(BASE)
@gpc_retry.when("gpc-retry-active-count")
@gpc_retry.when(BASE, "gpc-retry-active-count")
def _count_or_seq(vm: Vm, seq: int, uhva: int) -> bool:
    """Test the count of active invalidations, and then the sequence.

    :Kernel: mmu_notifier_retry_cache(), v6.0 on.
    """
    return vm.mn_active_invalidate_count > 0 or vm.mmu_invalidate_seq != seq


@gpc_retry.when(BASE, "gpc-retry-in-progress")
def _progress_or_seq(vm: Vm, seq: int, uhva: int) -> bool:
    """Test what page faults test, in the loop that tests the count."""
    return vm.mmu_invalidate_in_progress > 0 or vm.mmu_invalidate_seq != seq


@gpc_retry.when(BASE, "gpc-range-retry")
def _range_or_seq(vm: Vm, seq: int, uhva: int) -> bool:
    """Test the hull of active invalidations, and then the sequence.

    Not merged: part 1 of three, Sean Christopherson, kvm, August 2024.
    """
    return is_pending(vm, uhva) or vm.mmu_invalidate_seq != seq


@gpc_to_pfn.when(BASE)
async def _to_pfn_retry(gpc: Gpc, uhva: int) -> int:
    """Resolve the page with gpc->lock dropped, until no invalidation raced.

    :Kernel: hva_to_pfn_retry(), v6.0 on.
    :Locking: gpc->lock for write; it is dropped inside.
    """
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    retry = True
    while retry:
        seq = await _snapshot(gpc)
        await gpc.lock.drop_write()
        pfn = await look_for_page(gpc, uhva, pfn)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        retry = await vm.k.gpc_retry(vm, seq, uhva)
    await finish(gpc, uhva, pfn)
    return 0


# -- as introduced -----------------------------------------------------------------


@op(name="fill placeholder")
def _fill_placeholder(gpc: Gpc, pfn: int, khva: int) -> None:
    gpc.pfn, gpc.khva = pfn, khva
    gpc.vm.world.note("gpc_valid", gpc=gpc.name, pfn=pfn, khva=khva)


@gpc_to_pfn.when()
async def _with_placeholder(gpc: Gpc, uhva: int) -> int:
    """Leave a placeholder that looks valid while the page is resolved (to v5.19).

    :Kernel: kvm_gfn_to_pfn_cache_refresh() at 982ed0de4753. The retry check runs
        under mmu_lock, before the page is stored.
    """
    vm = gpc.vm
    await store_mapping(gpc, 1, NO_PFN, -1)
    await gpc.lock.drop_write()
    pfn = await _resolve_as_introduced(vm, uhva)
    await gpc.lock.take_write()
    if pfn < 0:
        return EFAULT
    await _fill_placeholder(gpc, pfn, _khva(vm, pfn, uhva))
    if not vm.k.gpc_pins_page:
        await put_page(vm, pfn)
    return 0


async def _resolve_as_introduced(vm: Vm, uhva: int) -> int:
    retry = True
    pfn = NO_PFN
    while retry:
        seq = await snapshot_mmu_seq(vm)
        if pfn != NO_PFN:
            await put_page(vm, pfn)
        pfn = await get_user_page(vm.mm, uhva >> vm.page_shift, True)
        if pfn < 0:
            return NO_PFN
        shared = vm.mmu_lock.kind.shared
        async with vm.mmu_lock.read() if shared else vm.mmu_lock.write():
            retry = await vm.k.gpc_retry(vm, seq, uhva)
    return pfn


FIXED = {"gpc_refresh_locked": refresh_locked}

CHOICES = (
    gpc_refresh,
    gpc_fixes_offset,
    gpc_to_pfn,
    gpc_retry,
)
