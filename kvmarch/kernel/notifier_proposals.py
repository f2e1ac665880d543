"""Notifiers and memslots as somebody proposed them, or as they must not be.

None of these changes was ever merged. Each takes away what a rule of the real code
gives, so that one can see what the rule is for.
"""

__all__ = ["CHANGES"]

from kvmarch.changes import Change
from kvmarch.kernel.memory_region import publish_at_once, wait_for_notifiers
from kvmarch.kernel.memslots import Memslot, in_hva_range
from kvmarch.kernel.mmu_notifier import (
    Subscription,
    call_release,
    is_hashed,
    release_subscribers,
    release_then_unlink,
    unlink,
    unregister_subscriber,
)
from kvmarch.kernel.notifier import (
    end_elides,
    invalidate_range_end,
    no_range,
    notified_slots,
    range_of_slot,
    range_of_start,
)
from kvmarch.kernel.vm import Vm
from kvmarch.machine.host import Mm

CHANGES: tuple[Change, ...] = (
    Change(
        "memslots-do-not-wait",
        "Elide mmu_lock in notifiers, but do not block memslot updates meanwhile",
        None,
        source="generic D6: 071064f14d87 without its prerequisite",
    ),
    Change(
        "end-takes-slots-lock",
        "Let invalidate_range_end take slots_lock",
        None,
        source="generic D6 d: Shan, June 2023",
    ),
    Change(
        "notifiers-skip-invalid",
        "Let all notifiers leave memslots alone that are INVALID",
        None,
        source="generic D15: rejected in favour of 2230f9e1171a",
    ),
    Change(
        "range-without-hull",
        "Track the range of the latest invalidation only",
        None,
        source="generic 2.4: why the range is a hull",
    ),
    Change(
        "log-protects-first",
        "Protect pages for the dirty log before the bitmap is taken",
        None,
        source="generic D30: a mutation worth testing",
    ),
    Change(
        "destroy-forgives-nothing",
        "Assert at a VM's end that no invalidation is in progress, open or not",
        None,
        source="generic 2.7: d497a0fab8b8 without its exception",
    ),
    Change(
        "release-mutex",
        "Serialize ->release of an mm's end and of unregistering by a mutex",
        None,
        source="generic 2.1, D18; the post of 2017 (its wording is unverified)",
    ),
)


# Linux kernel commit 52ac8b358b0c (in v5.15): the part without which lock elision
# loses the balance of start and end.
wait_for_notifiers.add(publish_at_once, "mn-active-count", "memslots-do-not-wait")


@invalidate_range_end.when("mn-active-count", "end-takes-slots-lock")
async def _end_with_slots_lock(vm: Vm, start: int, end: int) -> None:
    """Keep memslots as they are while the end looks at them."""
    async with vm.slots_lock.write():
        await end_elides(vm, start, end)


@notified_slots.when("notifiers-skip-invalid")
def _valid_slots(vm: Vm, start: int, end: int) -> tuple[tuple[Memslot, int, int], ...]:
    """Find the slots that a range of hvas meets and that are not being deleted."""
    return tuple(
        (slot, first, stop)
        for slot, first, stop in in_hva_range(vm, start, end)
        if not slot.invalid
    )


def _set_range(vm: Vm, start: int, end: int) -> None:
    """Forget the ranges of other invalidations."""
    vm.mmu_invalidate_range_start = start
    vm.mmu_invalidate_range_end = end


range_of_start.add(_set_range, "notifier-range-hva", "range-without-hull")
range_of_start.add(
    no_range, "notifier-range-hva", "notifier-range-gfn", "range-without-hull"
)
range_of_slot.add(_set_range, "notifier-range-gfn", "range-without-hull")


@release_subscribers.when("notifier-del-init", "release-mutex")
async def _release_alone(mm: Mm) -> None:
    """Release and unlink with the mutex held."""
    async with mm.subscriptions.release_lock.write():
        await release_then_unlink(mm)


@unregister_subscriber.when("notifier-del-init", "release-mutex")
async def _unregister_alone(mm: Mm, subscription: Subscription) -> None:
    """Release and unlink with the mutex held, if nobody else has."""
    async with mm.subscriptions.release_lock.write():
        hashed = await is_hashed(mm, subscription)
        if hashed:
            async with mm.subscriptions.srcu.read():
                await call_release(subscription)
                await unlink(mm, subscription)
