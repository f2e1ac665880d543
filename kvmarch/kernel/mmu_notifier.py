"""The notifier chain of one mm: who is told what, and when.

Models mm/mmu_notifier.c and include/linux/mmu_notifier.h; generic facts 2.1.
"""

__all__ = [
    "Subscription",
    "Subscriptions",
    "mmu_notifier_clear_flush_young",
    "mmu_notifier_clear_young",
    "mmu_notifier_invalidate_range_end",
    "mmu_notifier_invalidate_range_start",
    "mmu_notifier_invalidate_range_start_nonblock",
    "mmu_notifier_register",
    "mmu_notifier_release",
    "mmu_notifier_test_young",
    "mmu_notifier_unregister",
]

from typing import Any

from kvmarch.changes import Choice
from kvmarch.kernel.checks import OpenRange, pages_in
from kvmarch.machine.host import Mm
from kvmarch.machine.locks import Lock, LockClass, Srcu
from kvmarch.machine.steps import BLOCKED, op
from kvmarch.machine.world import Part, World

SUBSCRIPTIONS_LOCK = LockClass("subscriptions->lock", rank=68)
RELEASE_LOCK = LockClass("release mutex", rank=55, sleeps=True)


class Subscription:
    """One mmu_notifier: a VM, or a driver of another kind.

    :param vm: the VM whose callbacks these are; None for another driver.
    :param refuses: answer a non-blocking start with -EAGAIN.
    """

    __slots__ = ("name", "refuses", "vm")

    def __init__(self, name: str, vm: Any = None, *, refuses: bool = False) -> None:
        self.name = name
        self.vm = vm
        self.refuses = refuses

    def __repr__(self) -> str:
        return f"Subscription({self.name})"

    def freeze(self) -> str:
        """Return the subscription as a hashable value."""
        return self.name


class Subscriptions(Part):
    """mm->notifier_subscriptions: the list, its lock, and SRCU for its readers.

    :Kernel: struct mmu_notifier_subscriptions. Simplified: one SRCU domain per
        mm, where the kernel has one for all; harmless because no path of the
        model reads one chain inside another.
    """

    variables = ("list", "open_ranges", "srcu", "lock", "release_lock")

    def __init__(self, world: World, mm: Mm) -> None:
        self.mm = mm
        self.list: list[Subscription] = []
        self.open_ranges: list[OpenRange] = []
        """Starts without their end, over all tasks."""
        self.srcu = Srcu(world, f"{mm.name} notifier srcu")
        self.lock = Lock(world, SUBSCRIPTIONS_LOCK)
        self.release_lock = Lock(world, RELEASE_LOCK)
        """A mutex around ->release, which was proposed only."""


@op(name="add to notifier list")
def _add(mm: Mm, subscription: Subscription) -> Any:
    subs = mm.subscriptions
    if subs is None:
        subs = mm.subscriptions = Subscriptions(mm.world, mm)
    if subs.open_ranges:
        # mm_take_all_locks(): no start/end region may be open.
        return BLOCKED
    subs.list.insert(0, subscription)
    return None


async def mmu_notifier_register(mm: Mm, subscription: Subscription) -> None:
    """Put a subscriber on the chain, before all others: the newest is told first.

    :Kernel: mmu_notifier_register(). Holds mmap_lock for write and, by
        mm_take_all_locks(), excludes every open start/end region.
    """
    async with mm.mmap_lock.write():
        await _add(mm, subscription)


@op(name="read notifier list")
def _subscribers(mm: Mm) -> tuple[Subscription, ...]:
    return tuple(mm.subscriptions.list)


@op(name="open range")
def _open(mm: Mm, start: int, end: int) -> OpenRange:
    task = mm.world.current.name
    opened = OpenRange(start, end, pages_in(mm, start, end), task)
    mm.subscriptions.open_ranges.append(opened)
    return opened


@op(name="start has returned")
def _opened(opened: OpenRange) -> None:
    opened.returned = True


@op(name="read notifier list to end")
def _ending(mm: Mm, start: int, end: int) -> tuple[Subscription, ...]:
    # The host has done what it wanted, and may have left the page where it was: from
    # here on a guest may fault it in again, while other ranges are still under way.
    for opened in mm.subscriptions.open_ranges:
        if opened.returned and (opened.start, opened.end) == (start, end):
            opened.returned = False
            break
    return tuple(mm.subscriptions.list)


@op(name="close range")
def _close(mm: Mm, start: int, end: int) -> None:
    for opened in mm.subscriptions.open_ranges:
        if (opened.start, opened.end) == (start, end):
            mm.subscriptions.open_ranges.remove(opened)
            # What it was is of no account any more.
            opened.old, opened.returned = frozenset(), False
            return
    mm.world.violate("balanced", f"{mm.name}: {start:#x}-{end:#x} ends twice")


async def mmu_notifier_invalidate_range_start(mm: Mm, start: int, end: int) -> None:
    """Tell every subscriber that a range (hva, bytes) is about to change.

    :Kernel: mmu_notifier_invalidate_range_start(). Never fails.
    """
    if mm.subscriptions is None:
        return
    opened = await _open(mm, start, end)
    async with mm.subscriptions.srcu.read():
        subscribers = await _subscribers(mm)
        for subscription in subscribers:
            if subscription.vm is not None:
                vm = subscription.vm
                await vm.k.invalidate_range_start(vm, start, end, True)
    await _opened(opened)


async def mmu_notifier_invalidate_range_start_nonblock(
    mm: Mm, start: int, end: int
) -> bool:
    """Tell every subscriber, who must not sleep; return whether all agreed.

    All are called even after one has refused. If one did, the caller must neither
    touch PTEs nor call end.

    :Kernel: mmu_notifier_invalidate_range_start_nonblock(); from c2655835fd8c
        (v5.12) those that have an end callback get it then.
    """
    if mm.subscriptions is None:
        return True
    opened = await _open(mm, start, end)
    agreed = True
    async with mm.subscriptions.srcu.read():
        subscribers = await _subscribers(mm)
        for subscription in subscribers:
            if subscription.refuses:
                agreed = False
            elif subscription.vm is not None:
                vm = subscription.vm
                await vm.k.invalidate_range_start(vm, start, end, False)
        if not agreed:
            await mm.k.nonblock_start_failed(subscribers, start, end)
    if agreed:
        await _opened(opened)
    else:
        await _close(mm, start, end)
    return agreed


nonblock_start_failed = Choice(
    "nonblock_start_failed", "what a refused non-blocking start does for the others"
)


@nonblock_start_failed.when()
async def _leave_started(
    subscribers: tuple[Subscription, ...], start: int, end: int
) -> None:
    """Do nothing: subscribers that began are left without an end."""


@nonblock_start_failed.when("notifier-end-after-failed-start")
async def _end_started(
    subscribers: tuple[Subscription, ...], start: int, end: int
) -> None:
    """Call end for every subscriber that has one."""
    for subscription in subscribers:
        if subscription.vm is not None:
            vm = subscription.vm
            await vm.k.invalidate_range_end(vm, start, end)


async def mmu_notifier_invalidate_range_end(mm: Mm, start: int, end: int) -> None:
    """Tell every subscriber that a range has changed.

    :Kernel: mmu_notifier_invalidate_range_end().
    """
    if mm.subscriptions is None:
        return
    async with mm.subscriptions.srcu.read():
        subscribers = await _ending(mm, start, end)
        for subscription in subscribers:
            if subscription.vm is not None:
                vm = subscription.vm
                await vm.k.invalidate_range_end(vm, start, end)
    await _close(mm, start, end)


async def _any(mm: Mm, callback: str, start: int, end: int) -> bool:
    if mm.subscriptions is None:
        return False
    found = False
    async with mm.subscriptions.srcu.read():
        subscribers = await _subscribers(mm)
        for subscription in subscribers:
            if subscription.vm is not None:
                vm = subscription.vm
                young = await getattr(vm.k, callback)(vm, start, end)
                found = found or young
    return found


async def mmu_notifier_clear_flush_young(mm: Mm, start: int, end: int) -> bool:
    """Age a range and flush; return whether anybody used it."""
    return await _any(mm, "clear_flush_young", start, end)


async def mmu_notifier_clear_young(mm: Mm, start: int, end: int) -> bool:
    """Age a range without a flush; return whether anybody used it."""
    return await _any(mm, "clear_young", start, end)


async def mmu_notifier_test_young(mm: Mm, start: int, end: int) -> bool:
    """Return whether anybody used a range; change nothing."""
    return await _any(mm, "test_young", start, end)


# -- change_pte, and the bracket that has been around it since v3.7 ----------------

set_pte_at_notify = Choice(
    "set_pte_at_notify", "how a host PTE is set that points to another page"
)


@op(name="set PTE")
def _set_pte_at(mm: Mm, vpn: int, entry: int) -> None:
    mm.set_pte(vpn, entry)


@set_pte_at_notify.when()
async def _notify_and_set(mm: Mm, vpn: int, entry: int) -> None:
    """Tell subscribers the new PTE, and only then store it.

    :Kernel: set_pte_at_notify(), 2009 to v6.9.
    :Locking: the page-table lock, so nothing here may sleep.
    """
    if mm.subscriptions is not None:
        async with mm.subscriptions.srcu.read():
            subscribers = await _subscribers(mm)
            for subscription in subscribers:
                if subscription.vm is not None:
                    vm = subscription.vm
                    await vm.k.change_pte(vm, vpn << mm.page_shift, entry)
    await _set_pte_at(mm, vpn, entry)


@set_pte_at_notify.when("change-pte-removed")
async def _set_only(mm: Mm, vpn: int, entry: int) -> None:
    """Store the PTE; the bracket around it has unmapped the page.

    :Kernel: set_pte_at(), from f7842747d13d (v6.10).
    """
    await _set_pte_at(mm, vpn, entry)


change_pte_start = Choice("change_pte_start", "what precedes a set_pte_at_notify()")
change_pte_end = Choice("change_pte_end", "what follows a set_pte_at_notify()")
change_pte_start.add(mmu_notifier_invalidate_range_start, "bracketed-set-pte")
change_pte_end.add(mmu_notifier_invalidate_range_end, "bracketed-set-pte")


@change_pte_start.when()
@change_pte_end.when()
async def _no_bracket(mm: Mm, start: int, end: int) -> None:
    """Say nothing: before 6bdb913f0a70 (v3.7) change_pte was the only notification."""


# -- the end of a subscription -----------------------------------------------------

release_subscribers = Choice(
    "release_subscribers", "how the end of an mm releases and unlinks"
)
unregister_subscriber = Choice(
    "unregister_subscriber", "how unregistering releases and unlinks"
)


@op(name="hlist_del_init_rcu")
def _unlink(mm: Mm, subscription: Subscription) -> bool:
    """Take an entry off the list; return whether it was there."""
    there = subscription in mm.subscriptions.list
    if there:
        mm.subscriptions.list.remove(subscription)
    return there


@op(name="hlist_del_rcu")
def _unlink_once(mm: Mm, subscription: Subscription) -> None:
    """Take an entry off the list that must be there: its neighbours are followed."""
    there = _unlink.fn(mm, subscription)
    if not there:
        mm.world.violate("warn", f"{subscription.name} is unlinked twice: NULL pointer")


@op(name="is it hashed?")
def is_hashed(mm: Mm, subscription: Subscription) -> bool:
    """Return whether a subscriber is on the list."""
    return subscription in mm.subscriptions.list


async def call_release(subscription: Subscription) -> None:
    """Call ->release of one subscriber, if it has one."""
    if subscription.vm is not None:
        vm = subscription.vm
        await vm.k.notifier_release(vm)


async def unlink(mm: Mm, subscription: Subscription) -> None:
    """Take one subscriber off the list, whether it is on it or not."""
    async with mm.subscriptions.lock.write():
        await _unlink(mm, subscription)


async def mmu_notifier_release(mm: Mm) -> None:
    """Call ->release of everybody, unlink them and wait for readers.

    :Kernel: __mmu_notifier_release(), first thing in exit_mmap().
    """
    if mm.subscriptions is None:
        return
    await mm.k.release_subscribers(mm)
    await mm.subscriptions.srcu.synchronize()


@release_subscribers.when()
@release_subscribers.when("notifier-del-init")
async def release_then_unlink(mm: Mm) -> None:
    """Call ->release while still on the list, so that nothing is missed meanwhile."""
    async with mm.subscriptions.srcu.read():
        subscribers = await _subscribers(mm)
        for subscription in subscribers:
            await call_release(subscription)
        for subscription in subscribers:
            await unlink(mm, subscription)


@release_subscribers.when("notifier-unlink-first")
@release_subscribers.when("notifier-unlink-first", "notifier-del-init")
async def _unlink_then_release(mm: Mm) -> None:
    """Unlink each, and call its ->release after that (751efd8610d3, v3.9 only)."""
    async with mm.subscriptions.srcu.read():
        subscribers = await _subscribers(mm)
        for subscription in subscribers:
            async with mm.subscriptions.lock.write():
                there = await _unlink(mm, subscription)
            if there:
                await call_release(subscription)


async def mmu_notifier_unregister(mm: Mm, subscription: Subscription) -> None:
    """Take one subscriber off; afterwards none of its callbacks runs.

    :Kernel: mmu_notifier_unregister(). Calls ->release if the mm has not; always
        waits for readers.
    """
    await mm.k.unregister_subscriber(mm, subscription)
    await mm.subscriptions.srcu.synchronize()


@unregister_subscriber.when()
async def _release_and_del(mm: Mm, subscription: Subscription) -> None:
    """Unlink for good what was on the list before (3ad3d901bbcf, to v3.8)."""
    hashed = await is_hashed(mm, subscription)
    if hashed:
        async with mm.subscriptions.srcu.read():
            await call_release(subscription)
        async with mm.subscriptions.lock.write():
            await _unlink_once(mm, subscription)


@unregister_subscriber.when("notifier-unlink-first")
@unregister_subscriber.when("notifier-unlink-first", "notifier-del-init")
async def _del_and_release(mm: Mm, subscription: Subscription) -> None:
    """Unlink, and only who did calls ->release (751efd8610d3, v3.9 only)."""
    async with mm.subscriptions.srcu.read():
        async with mm.subscriptions.lock.write():
            there = await _unlink(mm, subscription)
        if there:
            await call_release(subscription)


@unregister_subscriber.when("notifier-del-init")
async def release_and_del_init(mm: Mm, subscription: Subscription) -> None:
    """Call ->release if on the list; unlink if still on it (v3.10 on)."""
    hashed = await is_hashed(mm, subscription)
    if hashed:
        async with mm.subscriptions.srcu.read():
            await call_release(subscription)
            await unlink(mm, subscription)


CHOICES = (
    nonblock_start_failed,
    set_pte_at_notify,
    change_pte_start,
    change_pte_end,
    release_subscribers,
    unregister_subscriber,
)
