"""KVM_SET_USER_MEMORY_REGION: the checks, the kinds of change, the swaps.

Models virt/kvm/kvm_main.c; generic facts 2.8 to 2.10.
"""

__all__ = ["CHOICES", "Region", "pass_updates", "set_memory_region"]

from dataclasses import dataclass, replace
from errno import EEXIST, EINVAL
from typing import Any

from kvmarch.changes import Choice
from kvmarch.kernel.checks import note_logging
from kvmarch.kernel.memslots import (
    INVALID,
    LOG_DIRTY_PAGES,
    READONLY,
    Memslot,
    Memslots,
)
from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import BLOCKED, Op, op

U64 = 1 << 64
MAX_PAGES = (1 << 31) - 1
TASK_SIZE = 1 << 47
"""access_ok() accepts addresses below it. Simplified: one value for all
architectures; harmless because no scenario comes near."""


@dataclass(frozen=True, slots=True)
class Region:
    """struct kvm_userspace_memory_region; sizes and addresses in bytes."""

    slot: int
    flags: int
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int


# -- checks, in order (generic facts 2.9) ------------------------------------------

user_mem_slots = Choice("user_mem_slots", "how many memslots user space has")
user_mem_slots.add(lambda vm: vm.k.user_slots_before)
user_mem_slots.add(lambda vm: 32767 - vm.k.arch_info.private_slots, "memslots-32767")
slot_numbers = Choice("slot_numbers", "how many slot numbers there are in all")
slot_numbers.add(lambda vm: vm.k.user_slots_before + vm.k.arch_info.private_slots)
slot_numbers.add(lambda vm: 32767, "memslots-32767")


@op(name="check slot number")
def _slot_in_range(vm: Vm, region: Region) -> bool:
    return region.slot & 0xFFFF < int(vm.k.user_mem_slots.fn(vm))


def check_region(vm: Vm, region: Region) -> int:
    """Return 0 or the errno of the checks that need no slot (2.9, rows 4 to 10)."""
    page = (1 << vm.page_shift) - 1
    valid = LOG_DIRTY_PAGES
    if vm.k.arch_info.readonly_slots:
        valid |= READONLY
    refused = (
        region.flags & ~valid
        or region.memory_size & page
        or region.memory_size >= U64
        or region.guest_phys_addr & page
        or region.userspace_addr & page
        or region.userspace_addr + region.memory_size > TASK_SIZE
        or region.slot >> 16 >= len(vm.memslots)
        or region.slot & 0xFFFF >= vm.k.slot_numbers.fn(vm)
        or region.guest_phys_addr + region.memory_size >= U64
    )
    return EINVAL if refused else 0


def _overlaps(memslots: Memslots, start: int, end: int, but: Memslot | None) -> bool:
    return any(
        slot.base_gfn < end and start < slot.end_gfn
        for slot in memslots.slots
        if slot is not but
    )


def plan_change(vm: Vm, region: Region) -> tuple[str, int, Memslot | None, Any]:
    """Return the kind of change, errno, old slot and new slot (2.9, rows 11 to 19).

    The kind is ``create``, ``delete``, ``move``, ``flags_only``; empty if nothing is
    to be done, and then the errno is the result.
    """
    as_id, slot_id = region.slot >> 16, region.slot & 0xFFFF
    memslots = vm.memslots[as_id]
    old = memslots.by_id(slot_id)
    npages = region.memory_size >> vm.page_shift
    base_gfn = region.guest_phys_addr >> vm.page_shift
    if not npages:
        return ("delete", 0, old, None) if old else ("", EINVAL, None, None)
    if npages > MAX_PAGES:
        return "", EINVAL, old, None
    new = Memslot(as_id, slot_id, base_gfn, npages, region.userspace_addr, region.flags)
    if old is None:
        change = "create"
    else:
        if (
            region.userspace_addr != old.userspace_addr
            or npages != old.npages
            or (region.flags ^ old.flags) & READONLY
        ):
            return "", EINVAL, old, None
        new = replace(new, bitmap=old.bitmap, arch=old.arch)
        if base_gfn != old.base_gfn:
            change = "move"
        elif region.flags != old.flags:
            change = "flags_only"
        else:
            return "", 0, old, None
    if change in {"create", "move"} and _overlaps(
        memslots, base_gfn, base_gfn + npages, old
    ):
        return "", EEXIST, old, None
    return change, 0, old, new


@op(name="check region")
def _plan(vm: Vm, region: Region) -> tuple[str, int, Memslot | None, Any]:
    errno = check_region(vm, region)
    if errno:
        return "", errno, None, None
    return plan_change(vm, region)


# -- generations (generic facts 2.10) ----------------------------------------------

first_generation = Choice(
    "first_generation", "the generation of an address space of a new VM"
)
update_generation = Choice(
    "update_generation", "the generation while a set is being published"
)
final_generation = Choice(
    "final_generation", "the generation once the grace period is over"
)
generation_now = Choice("generation_now", "what a reader takes as the generation")

# Before v3.17 one increment, in place before the new set is published.
first_generation.add(lambda as_id: 0)
update_generation.add(lambda vm, g: (g + 1, False))
final_generation.add(lambda vm, g: g + 1)
# v3.17: an odd value while the update is on; -150 lets the wrap come early.
first_generation.add(lambda as_id: -150 % U64, "generation-twice")
update_generation.add(lambda vm, g: ((g + 1) % U64, False), "generation-twice")
final_generation.add(lambda vm, g: (g + 2) % U64, "generation-twice")
# One residue class per address space, from a tree between v4.4 and v4.15 on.
first_generation.add(
    lambda as_id: (2 * as_id - 150) % U64, "generation-twice", "generation-per-as"
)
final_generation.add(
    lambda vm, g: (g + 2 * len(vm.memslots)) % U64,
    "generation-twice",
    "generation-per-as",
)
# v5.1: the mark of an update is bit 63, apart from the number.
first_generation.add(
    lambda as_id: as_id, "generation-twice", "generation-per-as", "generation-bit-63"
)
update_generation.add(lambda vm, g: (g, True), "generation-twice", "generation-bit-63")
final_generation.add(
    lambda vm, g: g + len(vm.memslots),
    "generation-twice",
    "generation-per-as",
    "generation-bit-63",
)


@generation_now.when()
def _now(vm: Vm, as_id: int) -> int:
    """Read kvm_memslots()->generation."""
    memslots = vm.memslots[as_id]
    return memslots.generation | memslots.in_progress << 63


# -- publishing a set --------------------------------------------------------------

wait_for_notifiers = Choice(
    "wait_for_notifiers", "what publishing a set waits for besides its locks"
)


@op(name="publish memslots")
def _publish(vm: Vm, as_id: int, slots: tuple[Memslot, ...]) -> Any:
    generation, in_progress = vm.k.update_generation.fn(
        vm, vm.memslots[as_id].generation
    )
    if vm.world.traced:
        vm.unreturned.update(set(slots) - set(vm.memslots[as_id].slots))
    vm.memslots[as_id] = Memslots(slots, generation, in_progress=in_progress)
    vm.updating.add(as_id)


@wait_for_notifiers.when()
async def publish_at_once(vm: Vm, as_id: int, slots: tuple[Memslot, ...]) -> None:
    """Publish without a look at notifiers (to v5.14)."""
    await _publish(vm, as_id, slots)


@op(name="mn_active_invalidate_count == 0?", sleeps=True)
def _notifiers_done(vm: Vm) -> Any:
    return BLOCKED if vm.mn_active_invalidate_count else None


@op(name="publish memslots unless an invalidation began")
def _publish_if_idle(vm: Vm, as_id: int, slots: tuple[Memslot, ...]) -> bool:
    if vm.mn_active_invalidate_count:
        return False
    _publish.fn(vm, as_id, slots)
    return True


@wait_for_notifiers.when("mn-active-count")
async def _publish_when_idle(vm: Vm, as_id: int, slots: tuple[Memslot, ...]) -> None:
    """Sleep until no invalidation is active, so that start and end agree (v5.15 on)."""
    published = False
    while not published:
        await _notifiers_done(vm)
        async with vm.mn_invalidate_lock.write():
            published = await _publish_if_idle(vm, as_id, slots)


@op(name="generation becomes final")
def _finish_generation(vm: Vm, as_id: int, generation: int) -> None:
    vm.memslots[as_id] = Memslots(vm.memslots[as_id].slots, generation)
    vm.updating.discard(as_id)
    vm.world.note("memslots_generation", as_id=as_id, generation=generation)


updated_before_store = Choice(
    "updated_before_store",
    "whether the architecture hears of a generation before it is current",
)


@op(name="next generation")
def _next_generation(vm: Vm, generation: int) -> int:
    return int(vm.k.final_generation.fn(vm, generation))


@updated_before_store.when()
async def _store_then_tell(vm: Vm, as_id: int, generation: int) -> None:
    """Store first (before 152482580a1b): an old entry may match meanwhile."""
    await _finish_generation(vm, as_id, generation)
    await vm.k.memslots_updated(vm, generation)


@updated_before_store.when("memslots-updated-first")
async def _tell_then_store(vm: Vm, as_id: int, generation: int) -> None:
    """Tell the architecture, store after (v5.1 on)."""
    await vm.k.memslots_updated(vm, generation)
    await _finish_generation(vm, as_id, generation)


@op(name="read generation")
def _generation(vm: Vm, as_id: int) -> int:
    return vm.memslots[as_id].generation


async def swap_memslots(
    vm: Vm, as_id: int, slots: tuple[Memslot, ...], arch_lock: bool
) -> None:
    """Publish a set, wait for its readers, make the generation final.

    :Kernel: kvm_swap_active_memslots() from v5.17, install_new_memslots() before.
    :Locking: slots_lock; slots_arch_lock is dropped before the grace period.
    """
    before = await _generation(vm, as_id)
    await vm.k.wait_for_notifiers(vm, as_id, slots)
    if arch_lock:
        await vm.slots_arch_lock.drop_write()
    await vm.srcu.synchronize()
    generation = await _next_generation(vm, before)
    await vm.k.updated_before_store(vm, as_id, generation)


async def pass_updates(vm: Vm, as_id: int, updates: int) -> None:
    """Let a number of memslot updates be over that leave the slots as they were.

    Simplified: neither locks nor grace periods, and only the last generation is
    stored; harmless where nothing else runs, and nothing else may.
    """
    generation = await _generation(vm, as_id)
    final = vm.k.final_generation.fn
    for _ in range(updates):
        generation = final(vm, generation)
        await vm.k.memslots_updated(vm, generation)
    await _finish_generation(vm, as_id, generation)


# -- the four kinds of change (generic facts 2.8) ----------------------------------

has_slots_arch_lock = Choice("has_slots_arch_lock", "whether slots_arch_lock exists")
has_slots_arch_lock.add(False)
has_slots_arch_lock.add(True, "slots-arch-lock")

reinstalls_slots = Choice(
    "reinstalls_slots", "whether a failed deletion or move puts the old slots back"
)
reinstalls_slots.add(False)
reinstalls_slots.add(True, "memslots-reinstalled")


@op(name="take dirty bitmap")
def _with_bitmap(vm: Vm, new: Memslot) -> Memslot:
    """Give a slot the bitmap that its flags ask for."""
    if not new.logs_dirty:
        return replace(new, bitmap=0)
    if new.bitmap:
        return new
    key = vm.new_key()
    size = -(-new.npages // 64) * 8
    bits = (1 << new.npages) - 1 if vm.initially_set else 0
    vm.dirty_bitmaps[key] = bytearray(bits.to_bytes(size, "little"))
    return replace(new, bitmap=key)


@op(name="active slots with a change")
def _slots_with(
    vm: Vm, as_id: int, old: Memslot | None, new: Memslot | None
) -> tuple[Memslot, ...]:
    return vm.memslots[as_id].replace(old, new)


@op(name="prepare memory region")
def _prepare(vm: Vm, old: Memslot | None, new: Memslot | None, change: str) -> int:
    return int(vm.k.prepare_memory_region.fn(vm, old, new, change))


async def _prepared(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Let the architecture prepare a change: in one step, or by a path of its own."""
    if isinstance(vm.k.prepare_memory_region, Op):
        return await _prepare(vm, old, new, change)
    errno: int = await vm.k.prepare_memory_region(vm, old, new, change)
    return errno


@op(name="free dirty bitmap")
def _free_bitmap(vm: Vm, slot: Memslot | None, kept: Memslot | None) -> None:
    """Free the bitmap of a slot that is no more, unless the other one has it too."""
    if slot is not None and slot.bitmap and (not kept or kept.bitmap != slot.bitmap):
        vm.dirty_bitmaps.pop(slot.bitmap, None)
        vm.logging.pop(slot.bitmap, None)


@op(name="ioctl returns")
def _returned(vm: Vm, new: Memslot | None) -> None:
    vm.unreturned.clear()
    note_logging(vm, new)


async def _create_or_flags(
    vm: Vm, old: Memslot | None, new: Memslot, change: str
) -> int:
    arch_lock = vm.k.has_slots_arch_lock
    if arch_lock:
        await vm.slots_arch_lock.take_write()
    new = await _with_bitmap(vm, new)
    errno = await _prepared(vm, old, new, change)
    if errno:
        await _free_bitmap(vm, new, old)
        if arch_lock:
            await vm.slots_arch_lock.drop_write()
        return errno
    slots = await _slots_with(vm, new.as_id, old, new)
    await swap_memslots(vm, new.as_id, slots, arch_lock)
    await vm.k.commit_memory_region(vm, old, new, change)
    await _free_bitmap(vm, old, new)
    await _returned(vm, new)
    return 0


async def _delete_or_move(
    vm: Vm, old: Memslot, new: Memslot | None, change: str
) -> int:
    arch_lock = vm.k.has_slots_arch_lock
    as_id = old.as_id
    if arch_lock:
        await vm.slots_arch_lock.take_write()
    invalid = replace(old, flags=old.flags | INVALID)
    slots = await _slots_with(vm, as_id, old, invalid)
    await swap_memslots(vm, as_id, slots, arch_lock)
    await vm.k.flush_shadow_memslot(vm, old)
    if arch_lock:
        await vm.slots_arch_lock.take_write()
    if new is not None:
        new = await _with_bitmap(vm, new)
    errno = await _prepared(vm, old, new, change)
    if errno:
        if vm.k.reinstalls_slots:
            slots = await _slots_with(vm, as_id, invalid, old)
            await swap_memslots(vm, as_id, slots, arch_lock)
        elif arch_lock:
            await vm.slots_arch_lock.drop_write()
        await _returned(vm, None)
        return errno
    slots = await _slots_with(vm, as_id, invalid, new)
    await swap_memslots(vm, as_id, slots, arch_lock)
    await vm.k.commit_memory_region(vm, old, new, change)
    await _free_bitmap(vm, old, new)
    await _returned(vm, new)
    return 0


async def set_memory_region(vm: Vm, region: Region) -> int:
    """Create, delete, move or reflag a memslot.

    :Kernel: kvm_vm_ioctl_set_memory_region(), kvm_set_memory_region().
    :Locking: takes slots_lock.
    :returns: 0 or an errno.
    """
    in_range = await _slot_in_range(vm, region)
    if not in_range:
        return EINVAL
    async with vm.slots_lock.write():
        change, errno, old, new = await _plan(vm, region)
        if change in {"create", "flags_only"}:
            errno = await _create_or_flags(vm, old, new, change)
        elif change and old is not None:
            errno = await _delete_or_move(vm, old, new, change)
    return errno


CHOICES = (
    user_mem_slots,
    slot_numbers,
    first_generation,
    update_generation,
    final_generation,
    generation_now,
    wait_for_notifiers,
    updated_before_store,
    has_slots_arch_lock,
    reinstalls_slots,
)
