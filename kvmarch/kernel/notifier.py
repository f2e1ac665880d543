"""KVM's notifier callbacks.

Models kvm_mmu_notifier_*() of virt/kvm/kvm_main.c; generic facts 2.3, 2.5 to 2.7,
cross-arch facts 1.
"""

__all__ = [
    "CHOICES",
    "active_down",
    "active_up",
    "invalidation_begins",
    "invalidation_ends",
    "kvm_mmu_invalidate_begin",
    "kvm_mmu_invalidate_end",
]

from typing import Any

from kvmarch.changes import Choice
from kvmarch.kernel.flush import kvm_flush_remote_tlbs
from kvmarch.kernel.memslots import Memslot, slots_in_hva_range
from kvmarch.kernel.vm import Vm
from kvmarch.machine.host import PFN_SHIFT
from kvmarch.machine.steps import op

# -- the counters ------------------------------------------------------------------


@op(name="mn_active_invalidate_count++")
def active_up(vm: Vm) -> None:
    """Count an invalidation that begins, of whatever range."""
    vm.mn_active_invalidate_count += 1


@op(name="mn_active_invalidate_count--")
def active_down(vm: Vm) -> None:
    """Count an invalidation that has ended."""
    vm.mn_active_invalidate_count -= 1
    if vm.mn_active_invalidate_count < 0:
        vm.world.violate("balanced", "mn_active_invalidate_count is negative")


def _begin(vm: Vm) -> None:
    vm.mmu_lock.require("write", "kvm_mmu_invalidate_begin")
    vm.mmu_invalidate_in_progress += 1
    if vm.mmu_invalidate_in_progress == 1:
        vm.mmu_invalidate_range_start = vm.mmu_invalidate_range_end = -1


@op(name="mmu_invalidate_in_progress++")
def kvm_mmu_invalidate_begin(vm: Vm) -> None:
    """Raise the count; the first one forgets the range of those before.

    :Kernel: kvm_mmu_invalidate_begin(), _start() by v7.2; kvm_inc_notifier_count().
    :Locking: mmu_lock for write.
    """
    _begin(vm)


@op(name="mmu_invalidate_seq++, mmu_invalidate_in_progress--")
def kvm_mmu_invalidate_end(vm: Vm) -> None:
    """Move the sequence on, then lower the count.

    :Kernel: kvm_mmu_invalidate_end(), kvm_dec_notifier_count().
    :Locking: mmu_lock for write.
    """
    vm.mmu_lock.require("write", "kvm_mmu_invalidate_end")
    vm.mmu_invalidate_seq += 1
    if vm.seq_modulus:
        # Simplified: under an endless stream of invalidations the count starts anew;
        # harmless because it is only compared for equality, so that a difference that
        # is seen is one, and a stream that goes on makes the next one.
        vm.mmu_invalidate_seq %= vm.seq_modulus
    vm.mmu_invalidate_in_progress -= 1
    if vm.mmu_invalidate_in_progress < 0:
        vm.world.violate("balanced", "mmu_invalidate_in_progress is negative")


def range_add(vm: Vm, start: int, end: int) -> None:
    """Widen the tracked range to a hull; it never shrinks while one is open.

    :Kernel: kvm_mmu_invalidate_range_add(), v6.8; inline before.
    """
    if vm.mmu_invalidate_range_start == -1:
        vm.mmu_invalidate_range_start = start
        vm.mmu_invalidate_range_end = end
    else:
        vm.mmu_invalidate_range_start = min(vm.mmu_invalidate_range_start, start)
        vm.mmu_invalidate_range_end = max(vm.mmu_invalidate_range_end, end)


# -- invalidate_range_start and _end -----------------------------------------------

invalidation_begins = Choice(
    "invalidation_begins", "what start() does before it looks at memslots"
)
invalidation_ends = Choice(
    "invalidation_ends", "what end() does after it has looked at memslots"
)


@invalidation_begins.when()
async def _count_then_caches(vm: Vm, start: int, end: int) -> None:
    """Count the invalidation, then drop caches."""
    async with vm.mn_invalidate_lock.write():
        await active_up(vm)
    await vm.k.gpc_invalidate_start(vm, start, end)


@invalidation_ends.when()
async def _count_down(vm: Vm, start: int, end: int) -> None:
    """Lower the count, for which a memslot update may wait."""
    async with vm.mn_invalidate_lock.write():
        await active_down(vm)


range_of_start = Choice(
    "range_of_start", "which range start() tracks for the retry check"
)
range_of_slot = Choice(
    "range_of_slot", "which range each slot of a start() adds for the retry check"
)


def no_range(vm: Vm, start: int, end: int) -> None:
    """Track nothing: any invalidation makes every fault retry (to v5.11)."""


range_of_start.add(no_range)
range_of_start.add(range_add, "notifier-range-hva")
range_of_start.add(no_range, "notifier-range-hva", "notifier-range-gfn")
range_of_slot.add(no_range)
range_of_slot.add(range_add, "notifier-range-gfn")


@op(name="trace unmap")
def _trace_unmap(vm: Vm, start: int, end: int) -> None:
    vm.world.note("kvm_unmap_hva_range", vm=vm.name, start=start, end=end)


async def _unmap_slots(
    vm: Vm, slots: tuple[tuple[Memslot, int, int], ...], may_block: bool
) -> Any:
    owed = None
    for slot, first, stop in slots:
        await vm.k.range_of_slot(vm, first, stop)
        flush = await vm.k.unmap_gfn_range(vm, slot, first, stop, may_block)
        if flush is not None:
            owed = flush | owed
    return owed


invalidate_range_start = Choice(
    "invalidate_range_start", "the invalidate_range_start callback"
)
invalidate_range_end = Choice(
    "invalidate_range_end", "the invalidate_range_end callback"
)


notified_slots = Choice("notified_slots", "which slots start() and end() walk")
notified_slots.add(slots_in_hva_range)


@invalidate_range_start.when()
async def _start_always_locks(vm: Vm, start: int, end: int, may_block: bool) -> None:
    """Take mmu_lock whether or not a slot overlaps.

    :Kernel: kvm_mmu_notifier_invalidate_range_start(), to v5.14.
    """
    async with vm.srcu.read():
        await _trace_unmap(vm, start, end)
        async with vm.mmu_lock.write():
            await kvm_mmu_invalidate_begin(vm)
            await vm.k.range_of_start(vm, start, end)
            slots = await vm.k.notified_slots(vm, start, end)
            owed = await _unmap_slots(vm, slots, may_block)
            if owed is not None:
                await kvm_flush_remote_tlbs(vm)
    await _started(vm, start, end)


@invalidate_range_end.when()
async def _end_always_locks(vm: Vm, start: int, end: int) -> None:
    """Take mmu_lock, move the sequence on, lower the count (to v5.14)."""
    async with vm.mmu_lock.write():
        await kvm_mmu_invalidate_end(vm)


@invalidate_range_start.when("mn-active-count")
async def _start_elides(vm: Vm, start: int, end: int, may_block: bool) -> None:
    """Count the invalidation, drop caches, and lock only if a slot overlaps.

    :Kernel: kvm_mmu_notifier_invalidate_range_start(), v5.15 on.
    """
    await vm.k.invalidation_begins(vm, start, end)
    async with vm.srcu.read():
        await _trace_unmap(vm, start, end)
        slots = await vm.k.notified_slots(vm, start, end)
        if slots:
            async with vm.mmu_lock.write():
                await kvm_mmu_invalidate_begin(vm)
                await vm.k.range_of_start(vm, start, end)
                owed = await _unmap_slots(vm, slots, may_block)
                if owed is not None:
                    await kvm_flush_remote_tlbs(vm)
    await _started(vm, start, end)


@invalidate_range_end.when("mn-active-count")
async def end_elides(vm: Vm, start: int, end: int) -> None:
    """Undo start in the same condition, then let a memslot update go on.

    :Kernel: kvm_mmu_notifier_invalidate_range_end(), v5.15 on.
    """
    slots = await vm.k.notified_slots(vm, start, end)
    if slots:
        async with vm.mmu_lock.write():
            await kvm_mmu_invalidate_end(vm)
    await vm.k.invalidation_ends(vm, start, end)


@op(name="start returns")
def _started(vm: Vm, start: int, end: int) -> None:
    vm.world.note("range_start_done", vm=vm.name, start=start, end=end)


# -- change_pte: six historical forms (generic facts 2.5) --------------------------

change_pte = Choice("change_pte", "the change_pte callback")


@op(name="mmu_invalidate_seq++")
def _seq_up(vm: Vm) -> None:
    vm.mmu_invalidate_seq += 1


@op(name="trace set_pte")
def _trace_set_pte(vm: Vm, hva: int, pte: int) -> None:
    vm.world.note("kvm_set_spte_hva", vm=vm.name, hva=hva, pfn=pte >> PFN_SHIFT)


@op(name="change_pte returns")
def _changed(vm: Vm, hva: int, flush: Any, called: bool) -> None:
    vm.world.note(
        "change_pte_done",
        vm=vm.name,
        hva=hva,
        called=called,
        flush="none" if flush is None else "owed",
    )


@op(name="WARN_ON(!count)")
def _warn_if_idle(vm: Vm, count: str) -> None:
    vm.warn(not getattr(vm, count), f"change_pte while {count} is 0")


async def _set_slots(
    vm: Vm, slots: tuple[tuple[Memslot, int, int], ...], pte: int, skip_invalid: bool
) -> Any:
    owed = None
    for slot, gfn, _stop in slots:
        if skip_invalid and slot.invalid:
            continue
        flush = await vm.k.set_spte_gfn(vm, slot, gfn, pte)
        if flush is not None:
            owed = flush | owed
    return owed


async def _change_locked(vm: Vm, hva: int, pte: int, flush_on_ret: bool) -> None:
    """Take mmu_lock, move the sequence on, set the entry."""
    async with vm.srcu.read():
        await _trace_set_pte(vm, hva, pte)
        async with vm.mmu_lock.write():
            await _seq_up(vm)
            slots = await slots_in_hva_range(vm, hva, hva + 1)
            owed = await _set_slots(vm, slots, pte, False)
            if flush_on_ret and owed is not None:
                await kvm_flush_remote_tlbs(vm)
        await _changed(vm, hva, owed, True)


@change_pte.when()
async def _change_void(vm: Vm, hva: int, pte: int) -> None:
    """Form 1: kvm_set_spte_hva() returns nothing and flushes by itself (to v4.20)."""
    await _change_locked(vm, hva, pte, False)


@change_pte.when("set-spte-returns-flush")
async def _change_returns(vm: Vm, hva: int, pte: int) -> None:
    """Form 2: the generic code flushes if it was asked to (v5.0 to v5.12)."""
    await _change_locked(vm, hva, pte, True)


async def _change_if_slot(vm: Vm, hva: int, pte: int, skip_invalid: bool) -> None:
    """Set the entry through the common walk: no sequence, no lock without a slot."""
    async with vm.srcu.read():
        slots = await slots_in_hva_range(vm, hva, hva + 1)
        owed = None
        if slots:
            async with vm.mmu_lock.write():
                owed = await _set_slots(vm, slots, pte, skip_invalid)
                if owed is not None:
                    await kvm_flush_remote_tlbs(vm)
        await _changed(vm, hva, owed, True)


@change_pte.when("set-spte-returns-flush", "gfn-notifiers")
async def _change_asserts(vm: Vm, hva: int, pte: int) -> None:
    """Form 3: warn unless an invalidation is in progress (v5.13, v5.14)."""
    await _trace_set_pte(vm, hva, pte)
    await _warn_if_idle(vm, "mmu_invalidate_in_progress")
    await _change_if_slot(vm, hva, pte, False)


@op(name="in_progress == 0?")
def _is_idle(vm: Vm) -> bool:
    return vm.mmu_invalidate_in_progress == 0


async def _change_unless_idle(vm: Vm, hva: int, pte: int, skip_invalid: bool) -> None:
    await _trace_set_pte(vm, hva, pte)
    await _warn_if_idle(vm, "mn_active_invalidate_count")
    idle = await _is_idle(vm)
    if idle:
        await _changed(vm, hva, None, False)
        return
    await _change_if_slot(vm, hva, pte, skip_invalid)


@change_pte.when("set-spte-returns-flush", "gfn-notifiers", "mn-active-count")
async def _change_returns_early(vm: Vm, hva: int, pte: int) -> None:
    """Form 4: return at once if start() met no slot (v5.15 to v6.3)."""
    await _change_unless_idle(vm, hva, pte, False)


@change_pte.when(
    "set-spte-returns-flush",
    "gfn-notifiers",
    "mn-active-count",
    "change-pte-skips-invalid",
)
async def _change_skips_invalid(vm: Vm, hva: int, pte: int) -> None:
    """Form 5: leave slots alone that are being deleted or moved (v6.4 to v6.9)."""
    await _change_unless_idle(vm, hva, pte, True)


# Form 6 is its absence: from v6.10 set_pte_at_notify() is set_pte_at().


# -- aging -------------------------------------------------------------------------

aging_walk = Choice("aging_walk", "which locks an aging callback takes")
flush_if_young = Choice(
    "flush_if_young", "whether clear_flush_young() flushes what was young"
)
flush_if_young.add(True)


@aging_walk.when()
async def _age_always_locks(vm: Vm, how: str, start: int, end: int, flush: bool) -> Any:
    """Take mmu_lock whether or not a slot overlaps (to v5.12)."""
    young = False
    async with vm.srcu.read(), vm.mmu_lock.write():
        slots = await slots_in_hva_range(vm, start, end)
        young = await _age_slots(vm, how, slots)
        if young and flush:
            await kvm_flush_remote_tlbs(vm)
    return young


@aging_walk.when("gfn-notifiers")
async def _age_if_slot(vm: Vm, how: str, start: int, end: int, flush: bool) -> Any:
    """Take mmu_lock only if a slot overlaps (v5.13 on)."""
    young = False
    async with vm.srcu.read():
        slots = await slots_in_hva_range(vm, start, end)
        if slots:
            async with vm.mmu_lock.write():
                young = await _age_slots(vm, how, slots)
                if young and flush:
                    await kvm_flush_remote_tlbs(vm)
    return young


async def age_without_lock(vm: Vm, how: str, start: int, end: int, flush: bool) -> Any:
    """Age with kvm->srcu only: the aging walk of CONFIG_KVM_MMU_LOCKLESS_AGING.

    An architecture that selects it adds this as a variant of ``aging_walk``.

    :Kernel: kvm_handle_hva_range_no_flush() with lockless set, v6.15 on.
    """
    young = False
    async with vm.srcu.read():
        slots = await slots_in_hva_range(vm, start, end)
        if slots:
            young = await _age_slots(vm, how, slots)
            if young and flush:
                await kvm_flush_remote_tlbs(vm)
    return young


async def _age_slots(
    vm: Vm, how: str, slots: tuple[tuple[Memslot, int, int], ...]
) -> bool:
    young = False
    for slot, first, stop in slots:
        one = await getattr(vm.k, how)(vm, slot, first, stop)
        young = young or bool(one)
    return young


@op(name="trace aging")
def _trace_age(vm: Vm, name: str, start: int, end: int) -> None:
    vm.world.note(name, vm=vm.name, start=start, end=end)


async def clear_flush_young(vm: Vm, start: int, end: int) -> bool:
    """Age a range of hvas and flush what was young.

    :Kernel: kvm_mmu_notifier_clear_flush_young().
    """
    await _trace_age(vm, "kvm_age_hva", start, end)
    young = await vm.k.aging_walk(vm, "age_gfn", start, end, vm.k.flush_if_young)
    return bool(young)


clear_young = Choice("clear_young", "the clear_young callback")


@clear_young.when()
async def _no_clear_young(vm: Vm, start: int, end: int) -> bool:
    """Know nothing of idle page tracking (to v4.2)."""
    return False


@clear_young.when("notifier-clear-young")
async def _clear_young(vm: Vm, start: int, end: int) -> bool:
    """Age a range of hvas; a flush is not worth it.

    :Kernel: kvm_mmu_notifier_clear_young().
    """
    await _trace_age(vm, "kvm_age_hva", start, end)
    young = await vm.k.aging_walk(vm, "age_gfn", start, end, False)
    return bool(young)


async def test_young(vm: Vm, start: int, end: int) -> bool:
    """Return whether a range of hvas was used.

    :Kernel: kvm_mmu_notifier_test_young().
    """
    await _trace_age(vm, "kvm_test_age_hva", start, end)
    young = await vm.k.aging_walk(vm, "test_age_gfn", start, end, False)
    return bool(young)


# -- release -----------------------------------------------------------------------


async def notifier_release(vm: Vm) -> None:
    """Drop every entry of the VM.

    :Kernel: kvm_mmu_notifier_release(). Sets no flag: later faults are only
        prevented by the mm having no user left.
    :Locking: kvm->srcu read only.
    """
    async with vm.srcu.read():
        await vm.k.flush_shadow_all(vm)
    await vm.k.gpc_release(vm, 0, 1 << 64)


FIXED = {
    "clear_flush_young": clear_flush_young,
    "test_young": test_young,
    "notifier_release": notifier_release,
}

CHOICES = (
    invalidation_begins,
    invalidation_ends,
    range_of_start,
    range_of_slot,
    notified_slots,
    invalidate_range_start,
    invalidate_range_end,
    change_pte,
    aging_walk,
    clear_young,
    flush_if_young,
)
