"""What an invalidation does to gfn_to_pfn_caches.

Models gfn_to_pfn_cache_invalidate_start() of virt/kvm/pfncache.c, and the hooks that
were proposed in its place; generic facts 2.3, 2.13 and 5.
"""

__all__ = ["CHOICES", "RANGED", "is_pending"]

from kvmarch.changes import Choice
from kvmarch.kernel.gpc import NO_PFN, Gpc
from kvmarch.kernel.notifier import (
    active_down,
    active_up,
    invalidation_begins,
    invalidation_ends,
)
from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import op

# -- which cache is hit ------------------------------------------------------------

gpc_is_hit = Choice("gpc_is_hit", "which caches of a range an invalidation drops")


@gpc_is_hit.when()
def _is_valid(gpc: Gpc) -> bool:
    """Those that are valid and have a page."""
    return bool(gpc.valid and gpc.pfn != NO_PFN)


def _needs_invalidation(gpc: Gpc) -> bool:
    """Those that are valid or being filled, and have or had a page."""
    return bool(gpc.needs_invalidation and gpc.pfn != NO_PFN)


# Not merged: "KVM: pfncache: ...", David Woodhouse, kvm, August 2024: v2 and v3.
FLAGGED = (
    "gpc-needs-invalidation-v2",
    "gpc-needs-invalidation-v3-1",
    "gpc-needs-invalidation-v3-2",
    "gpc-needs-invalidation-v3-2-meant",
    "gpc-needs-invalidation-v3-3",
    "gpc-needs-invalidation-v3-4",
)
for _name in FLAGGED:
    gpc_is_hit.add(_needs_invalidation, _name)


def _is_flagged(gpc: Gpc) -> bool:
    """Those that are valid or being filled, even for the first time."""
    return bool(gpc.needs_invalidation)


for _name in FLAGGED:
    # Never proposed: the flag alone decides.
    gpc_is_hit.add(_is_flagged, _name, "gpc-needs-invalidation-always")


# Simplified: while no cache is listed, gpc_lock is not taken; harmless because a cache
# that is listed after this look has not looked for its page yet.


@op(name="read gpc_list")
def _caches(vm: Vm) -> tuple[Gpc, ...]:
    return tuple(vm.gpc_list)


@op(name="is the GPC in the range?")
def _is_hit(gpc: Gpc, start: int, end: int) -> bool:
    return start <= gpc.uhva < end and bool(gpc.vm.k.gpc_is_hit.fn(gpc))


@op(name="gpc->valid = false")
def _invalidate(gpc: Gpc, start: int, end: int) -> None:
    if _is_hit.fn(gpc, start, end):
        gpc.valid = 0
        gpc.needs_invalidation = 0
        gpc.vm.world.note("gpc_invalidated", gpc=gpc.name)


# -- the hook ----------------------------------------------------------------------

gpc_invalidate = Choice("gpc_invalidate", "how an invalidation drops caches")
gpc_invalidate_start = Choice(
    "gpc_invalidate_start", "what invalidate_range_start does to GPCs"
)


@gpc_invalidate_start.when()
@gpc_invalidate.when()
async def _no_caches(vm: Vm, start: int, end: int) -> None:
    """Do nothing: there are no GPCs before v5.17."""


@gpc_invalidate_start.when("gpc")
async def _invalidate_at_start(vm: Vm, start: int, end: int) -> None:
    """Drop caches before start() looks at memslots."""
    await vm.k.gpc_invalidate(vm, start, end)


for _name in ("gpc-needs-invalidation-v2", "gpc-needs-invalidation-v3-4"):
    gpc_invalidate_start.add(_no_caches, "gpc", _name)


@gpc_invalidate.when("gpc")
async def _write_lock_each(vm: Vm, start: int, end: int) -> None:
    """Take each cache's lock for write (v5.17 to v6.8)."""
    if not vm.gpc_list:
        return
    async with vm.gpc_lock.write():
        caches = await _caches(vm)
        for gpc in caches:
            async with gpc.lock.write():
                await _invalidate(gpc, start, end)


@gpc_invalidate.when("gpc", "gpc-hva")
async def _read_lock_first(vm: Vm, start: int, end: int) -> None:
    """Look with the lock held for read, and test again for write (v6.9 on)."""
    if not vm.gpc_list:
        return
    async with vm.gpc_lock.write():
        caches = await _caches(vm)
        for gpc in caches:
            async with gpc.lock.read():
                hit = await _is_hit(gpc, start, end)
            if hit:
                async with gpc.lock.write():
                    await _invalidate(gpc, start, end)


@gpc_invalidate.when("gpc", "gpc-hva", "gpc-october")
async def _look_without_lock(vm: Vm, start: int, end: int) -> None:
    """Look with no lock held; the refresh is ordered against it by barriers.

    Not merged: the counter-series of Sean Christopherson, kvm, October 2024.
    """
    if not vm.gpc_list:
        return
    async with vm.gpc_lock.write():
        caches = await _caches(vm)
        for gpc in caches:
            hit = await _is_hit(gpc, start, end)
            if hit:
                async with gpc.lock.write():
                    await _invalidate(gpc, start, end)


gpc_release = Choice("gpc_release", "whether ->release drops caches")
gpc_release.add(_no_caches)


@gpc_release.when("gpc-release-invalidates")
async def _invalidate_all(vm: Vm, start: int, end: int) -> None:
    """Drop every cache, because no invalidation is told any more (never proposed)."""
    await vm.k.gpc_invalidate(vm, start, end)


# -- the hull of active ranges -----------------------------------------------------


@op(name="widen mmu_gpc_invalidate_range")
def _widen(vm: Vm, start: int, end: int) -> None:
    """Widen the hull; the first one since all were over begins a new one."""
    if vm.mn_active_invalidate_count == 1:
        vm.mmu_gpc_invalidate_range_start = start
        vm.mmu_gpc_invalidate_range_end = end
        return
    vm.mmu_gpc_invalidate_range_start = min(vm.mmu_gpc_invalidate_range_start, start)
    vm.mmu_gpc_invalidate_range_end = max(vm.mmu_gpc_invalidate_range_end, end)


@op(name="forget mmu_gpc_invalidate_range")
def _forget(vm: Vm) -> None:
    if not vm.mn_active_invalidate_count:
        vm.mmu_gpc_invalidate_range_start = vm.mmu_gpc_invalidate_range_end = -1


def is_pending(vm: Vm, uhva: int) -> bool:
    """Return whether an invalidation is active whose hull covers an hva."""
    if not vm.mn_active_invalidate_count:
        return False
    first, end = vm.mmu_gpc_invalidate_range_start, vm.mmu_gpc_invalidate_range_end
    return first <= uhva < end


# Not merged: "KVM: pfncache: ...", the same threads: ranges under mn_invalidate_lock.
RANGED = (
    "gpc-range-retry",
    "gpc-needs-invalidation-v2",
    "gpc-needs-invalidation-v3-2",
    "gpc-needs-invalidation-v3-2-meant",
    "gpc-needs-invalidation-v3-3",
    "gpc-needs-invalidation-v3-4",
)


async def _track_then_caches(vm: Vm, start: int, end: int) -> None:
    """Count the invalidation and widen the hull in one; then drop caches."""
    async with vm.mn_invalidate_lock.write():
        await active_up(vm)
        await _widen(vm, start, end)
    await vm.k.gpc_invalidate_start(vm, start, end)


async def _untrack(vm: Vm, start: int, end: int) -> None:
    """Lower the count; the last one forgets the hull, and waiters go on."""
    async with vm.mn_invalidate_lock.write():
        await active_down(vm)
        await _forget(vm)


async def _caches_then_untrack(vm: Vm, start: int, end: int) -> None:
    """Drop caches only now, before the count is lowered."""
    await vm.k.gpc_invalidate(vm, start, end)
    await _untrack(vm, start, end)


for _name in RANGED:
    invalidation_begins.add(_track_then_caches, _name)
    at_end = _name in {"gpc-needs-invalidation-v2", "gpc-needs-invalidation-v3-4"}
    invalidation_ends.add(_caches_then_untrack if at_end else _untrack, _name)


@invalidation_begins.when("gpc-october")
async def _all_in_one(vm: Vm, start: int, end: int) -> None:
    """Count, widen and drop caches with mn_invalidate_lock held throughout."""
    async with vm.mn_invalidate_lock.write():
        await active_up(vm)
        await _widen(vm, start, end)
        await vm.k.gpc_invalidate_start(vm, start, end)


invalidation_ends.add(_untrack, "gpc-october")

CHOICES = (gpc_is_hit, gpc_invalidate, gpc_invalidate_start, gpc_release)
