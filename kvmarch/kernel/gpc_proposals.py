"""Refreshes of gfn_to_pfn_caches that were proposed in 2024 and never merged.

Models posts to the kvm mailing list, as generic facts 5 tell them; the hooks on the
notifier's side are in gpc_invalidate.py.
"""

__all__ = ["CHANGES"]

from errno import EFAULT
from typing import Any

from kvmarch.changes import Change
from kvmarch.kernel.gpc import NO_PFN, Gpc, put_page, set_valid
from kvmarch.kernel.gpc_invalidate import is_pending
from kvmarch.kernel.gpc_refresh import (
    BASE,
    count_turn,
    finish,
    gpc_to_pfn,
    look_for_page,
)
from kvmarch.kernel.retry import snapshot_mmu_seq
from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import BLOCKED, op


@op(name="is an invalidation pending?")
def _is_pending(vm: Vm, uhva: int) -> bool:
    return is_pending(vm, uhva)


@op(name="wait for invalidations", sleeps=True)
def _wait(vm: Vm, uhva: int) -> Any:
    """Sleep until no active invalidation may affect the uhva.

    Simplified: whoever waits is let go in the very step that ends the last one;
    harmless because the loops test again for what begins after that.
    """
    return BLOCKED if is_pending(vm, uhva) else None


@op(name="gpc->needs_invalidation = true")
def _set_flag(gpc: Gpc) -> None:
    count_turn.fn(gpc)
    gpc.needs_invalidation = 1


@op(name="gpc->needs_invalidation?")
def _is_flagged(gpc: Gpc) -> bool:
    return bool(gpc.needs_invalidation)


# -- Christopherson, August 2024: parts 1 and 2 of three ---------------------------


@gpc_to_pfn.when(BASE, "gpc-range-retry", "gpc-wait")
async def _wait_then_look(gpc: Gpc, uhva: int) -> int:
    """Sleep while an active invalidation may affect the uhva, instead of spinning."""
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    retry = True
    while retry:
        await gpc.lock.drop_write()
        await _wait(vm, uhva)
        await count_turn(gpc)
        seq = await snapshot_mmu_seq(vm)
        pfn = await look_for_page(gpc, uhva, pfn)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        retry = await vm.k.gpc_retry(vm, seq, uhva)
    await finish(gpc, uhva, pfn)
    return 0


# -- Woodhouse, August 2024: part 3, the flag --------------------------------------


@gpc_to_pfn.when(BASE, "gpc-needs-invalidation-v3-1")
async def _flag_and_seq(gpc: Gpc, uhva: int) -> int:
    """Look again if the flag was cleared, or if count or sequence say so (v3, 1/5)."""
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    retry = True
    while retry:
        await _set_flag(gpc)
        seq = await snapshot_mmu_seq(vm)
        await gpc.lock.drop_write()
        pfn = await look_for_page(gpc, uhva, pfn)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        flagged = await _is_flagged(gpc)
        retry = await vm.k.gpc_retry(vm, seq, uhva)
        retry = retry or not flagged
    await finish(gpc, uhva, pfn)
    return 0


@gpc_to_pfn.when(BASE, "gpc-needs-invalidation-v3-2")
async def _spin_wrongly(gpc: Gpc, uhva: int) -> int:
    """Take gpc->lock inside the inner loop that spins, and never drop it (v3, 2/5).

    The defect is the post's: its continue belongs to the inner loop.
    """
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    flagged = False
    while not flagged:
        await _set_flag(gpc)
        await gpc.lock.drop_write()
        pending = await _is_pending(vm, uhva)
        while pending:
            await gpc.lock.take_write()
            pending = await _is_pending(vm, uhva)
        pfn = await look_for_page(gpc, uhva, pfn)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        flagged = await _is_flagged(gpc)
    await finish(gpc, uhva, pfn)
    return 0


@gpc_to_pfn.when(BASE, "gpc-needs-invalidation-v3-2-meant")
async def _spin_then_look(gpc: Gpc, uhva: int) -> int:
    """Spin before the look while an active invalidation may affect the uhva."""
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    flagged = False
    while not flagged:
        await _set_flag(gpc)
        await gpc.lock.drop_write()
        pending = await _is_pending(vm, uhva)
        while pending:
            pending = await _is_pending(vm, uhva)
        pfn = await look_for_page(gpc, uhva, pfn)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        flagged = await _is_flagged(gpc)
    await finish(gpc, uhva, pfn)
    return 0


@gpc_to_pfn.when(BASE, "gpc-needs-invalidation-v3-3")
async def _wait_and_leave(gpc: Gpc, uhva: int) -> int:
    """Test the flag after a wait as if the page had been looked for (v3, 3/5).

    The defect is the post's: its continue goes to the condition of a do-while.
    """
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    flagged = False
    while not flagged:
        await _set_flag(gpc)
        await gpc.lock.drop_write()
        if pfn != NO_PFN:
            await put_page(vm, pfn)
            pfn = NO_PFN
        pending = await _is_pending(vm, uhva)
        if pending:
            await _wait(vm, uhva)
            await gpc.lock.take_write()
        else:
            pfn = await look_for_page(gpc, uhva, NO_PFN)
            await gpc.lock.take_write()
            if pfn < 0:
                return EFAULT
        flagged = await _is_flagged(gpc)
    await finish(gpc, uhva, pfn)
    return 0


@gpc_to_pfn.when(BASE, "gpc-needs-invalidation-v2")
@gpc_to_pfn.when(BASE, "gpc-needs-invalidation-v3-4")
async def _look_then_wait(gpc: Gpc, uhva: int) -> int:
    """Wait after the look; what ends meanwhile clears the flag (v2; v3, 4/5)."""
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    flagged = False
    while not flagged:
        await _set_flag(gpc)
        await gpc.lock.drop_write()
        pfn = await look_for_page(gpc, uhva, pfn)
        await _wait(vm, uhva)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        flagged = await _is_flagged(gpc)
    await finish(gpc, uhva, pfn)
    return 0


# -- Christopherson, October 2024: the counter-series ------------------------------


@op(name="gpc->valid = true")
def _try(gpc: Gpc, uhva: int, pfn: int) -> None:
    """Make the cache valid before the test, so that nobody is missed who comes now."""
    shift = gpc.vm.page_shift
    gpc.valid, gpc.pfn = 1, pfn
    gpc.khva = (pfn << shift) + uhva % (1 << shift)


@op(name="retry?")
def _has_raced(vm: Vm, seq: int, uhva: int) -> bool:
    return is_pending(vm, uhva) or vm.mmu_invalidate_seq != seq


@gpc_to_pfn.when(BASE, "gpc-october")
async def _valid_then_test(gpc: Gpc, uhva: int) -> int:
    """Wait, take the snapshot just before the look, be valid, and only then test."""
    vm = gpc.vm
    await set_valid(gpc, 0)
    pfn = NO_PFN
    retry = True
    while retry:
        await gpc.lock.drop_write()
        await _wait(vm, uhva)
        await count_turn(gpc)
        seq = await snapshot_mmu_seq(vm)
        pfn = await look_for_page(gpc, uhva, pfn)
        await gpc.lock.take_write()
        if pfn < 0:
            return EFAULT
        await _try(gpc, uhva, pfn)
        retry = await _has_raced(vm, seq, uhva)
        if retry:
            await set_valid(gpc, 0)
    await finish(gpc, uhva, pfn)
    return 0


# -- the changes -------------------------------------------------------------------

# Not merged, all of them: kvm mailing list, August and October 2024.
CHANGES: tuple[Change, ...] = (
    Change(
        "gpc-retry-in-progress",
        "Not a post: test in_progress where a GPC must test the active count",
        None,
        source="generic 2.13",
    ),
    Change(
        "gpc-retry-active-count",
        "Not a post: a GPC as introduced tests the active count, and changes no more",
        None,
        source="generic 2.13, D7",
    ),
    Change(
        "gpc-range-retry",
        "A GPC looks again only for invalidations whose hull covers it",
        None,
        source="generic 5: Christopherson, 2024-08-05 and 2024-08-20, part 1",
    ),
    Change(
        "gpc-wait",
        "A GPC sleeps until no invalidation may affect it; needs gpc-range-retry",
        None,
        source="generic 5: Christopherson, 2024-08-20, part 2",
    ),
    Change(
        "gpc-needs-invalidation-v2",
        "Move gfn_to_pfn_cache invalidation to invalidate_range_end hook",
        None,
        source="generic 5: Woodhouse, 2024-08-20, v2",
    ),
    Change(
        "gpc-needs-invalidation-v3-1",
        "pfncache: Add needs_invalidation flag to gfn_to_pfn_cache",
        None,
        source="generic 5: Woodhouse, 2024-08-21, v3 1/5",
    ),
    Change(
        "gpc-needs-invalidation-v3-2",
        "pfncache: Implement range-based invalidation check for hva_to_pfn_retry()",
        None,
        source="generic 5: Woodhouse, 2024-08-21, v3 up to 2/5",
    ),
    Change(
        "gpc-needs-invalidation-v3-2-meant",
        "v3 up to 2/5 without the lock that its inner loop takes twice",
        None,
        source="generic 5: what 2/5 says that it does",
    ),
    Change(
        "gpc-needs-invalidation-v3-3",
        "pfncache: Wait for pending invalidations instead of spinning",
        None,
        source="generic 5: Woodhouse, 2024-08-21, v3 up to 3/5; subject from memory",
    ),
    Change(
        "gpc-needs-invalidation-v3-4",
        "pfncache: Move invalidation to invalidate_range_end hook",
        None,
        source="generic 5: Woodhouse, 2024-08-21, v3 up to 4/5",
    ),
    Change(
        "gpc-needs-invalidation-always",
        "Not a post: clear needs_invalidation of a GPC without a page too",
        None,
        source="generic 5, P2; 8.5",
    ),
    Change(
        "gpc-october",
        "Make a GPC valid before it tests count and sequence; wait before the look",
        None,
        source="generic 5: Christopherson, 2024-10-15, counter-series",
    ),
    Change(
        "gpc-release-invalidates",
        "Not a post: ->release drops every GPC",
        None,
        source="what would close bugs/gpc-after-release",
    ),
)
