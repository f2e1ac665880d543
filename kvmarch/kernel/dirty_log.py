"""KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG.

Models kvm_get_dirty_log_protect() and kvm_clear_dirty_log_protect() of
virt/kvm/kvm_main.c; generic facts 2.12.
"""

__all__ = ["CHOICES", "clear_dirty_log", "get_dirty_log", "take_dirty_log_protect"]

from errno import EINVAL, ENOENT, ENOTTY
from typing import Any

from kvmarch.changes import Choice
from kvmarch.kernel.checks import note_logged
from kvmarch.kernel.flush import kvm_flush_remote_tlbs_memslot
from kvmarch.kernel.memslots import Memslot
from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import op

WORD = 64
"""Pages that one word of a bitmap stands for."""


@op(name="find slot")
def _slot(vm: Vm, slot_number: int) -> Memslot | int:
    """Return the slot if it logs; else the errno: no such number, or no log."""
    as_id, slot_id = slot_number >> 16, slot_number & 0xFFFF
    if as_id >= len(vm.memslots) or slot_id >= int(vm.k.user_mem_slots.fn(vm)):
        return EINVAL
    slot = vm.memslots[as_id].by_id(slot_id)
    return slot if slot is not None and slot.bitmap else ENOENT


@op(name="xchg bitmap word")
def _take_word(vm: Vm, slot: Memslot, at: int) -> tuple[int, int]:
    """Take and clear the next word that has a bit set.

    :param at: byte offset to begin from.
    :returns: byte offset after the word, and the word; 0 when none is left.
    """
    bitmap = vm.dirty_bitmaps[slot.bitmap]
    rest = bitmap[at:]
    skipped = len(rest) - len(rest.lstrip(b"\0"))
    at += skipped & ~7
    word = int.from_bytes(bitmap[at : at + 8], "little")
    if word:
        bitmap[at : at + 8] = bytes(8)
    return at + 8, word


@op(name="copy bitmap")
def _copy(vm: Vm, slot: Memslot) -> int:
    return int.from_bytes(vm.dirty_bitmaps[slot.bitmap], "little")


@op(name="fetch_andnot bitmap")
def _andnot(vm: Vm, slot: Memslot, first: int, bits: int) -> int:
    """Clear bits of a word and return those of them that were set."""
    bitmap = vm.dirty_bitmaps[slot.bitmap]
    at = first >> 3
    word = int.from_bytes(bitmap[at : at + 8], "little")
    bitmap[at : at + 8] = (word & ~bits).to_bytes(8, "little")
    return word & bits


@op(name="log returns")
def _reported(vm: Vm, slot: Memslot, bits: int) -> None:
    note_logged(vm, slot, bits)


take_dirty_log = Choice(
    "take_dirty_log", "how KVM_GET_DIRTY_LOG takes the bitmap and begins anew"
)


@take_dirty_log.when()
async def take_dirty_log_protect(vm: Vm, slot: Memslot) -> int:
    """Take each word and protect its pages, all under mmu_lock; flush; return the bits.

    :Kernel: kvm_get_dirty_log_protect().
    :Locking: slots_lock; takes mmu_lock.
    """
    bits, owed = 0, None
    async with vm.mmu_lock.write():
        at, word = await _take_word(vm, slot, 0)
        while word:
            first = (at - 8) * 8
            bits |= word << first
            flush = await vm.k.dirty_log_masked(vm, slot, slot.base_gfn + first, word)
            if flush is not None:
                owed = flush | owed
            at, word = await _take_word(vm, slot, at)
    # The flush is not for what changed but for what was dirty (x86 facts 3.6).
    if bits:
        await _flush_if_generic(vm, slot, owed)
    return bits


@op(name="look for a word")
def _look_for_word(vm: Vm, slot: Memslot, at: int) -> tuple[int, int]:
    """Find the next word that has a bit set, and leave it so."""
    bitmap = vm.dirty_bitmaps[slot.bitmap]
    before = bytes(bitmap)
    found = _take_word.fn(vm, slot, at)
    bitmap[:] = before
    return found


@take_dirty_log.when("log-protects-first")
async def _protect_then_take(vm: Vm, slot: Memslot) -> int:
    """Protect the pages of each word, and take the word after that.

    Not merged: what is written in between is reported, but not protected again.
    """
    bits = 0
    at, word = await _look_for_word(vm, slot, 0)
    async with vm.mmu_lock.write():
        while word:
            await vm.k.dirty_log_masked(vm, slot, slot.base_gfn + at * 8 - WORD, word)
            _at, word = await _take_word(vm, slot, at - 8)
            bits |= word << at * 8 - WORD
            at, word = await _look_for_word(vm, slot, at)
    if bits:
        await kvm_flush_remote_tlbs_memslot(vm, slot)
    return bits


async def get_dirty_log(vm: Vm, slot_number: int) -> tuple[int, int]:
    """Return what was written since the last call, and begin anew.

    Snapshot, then protection, then flush, then return: that order loses nothing.
    With manual protection (``vm.manual_protect``) it only copies.

    :param slot_number: slot id, address space in the upper 16 bits.
    :returns: 0 or an errno, and the bitmap as a number.
    """
    async with vm.slots_lock.write():
        slot = await _slot(vm, slot_number)
        if isinstance(slot, int):
            return slot, 0
        errno = await vm.k.sync_dirty_log(vm, slot)
        if errno:
            return int(errno), 0
        if vm.manual_protect:
            bits = await _copy(vm, slot)
            await _reported(vm, slot, bits)
            return 0, bits
        bits = await vm.k.take_dirty_log(vm, slot)
        await _reported(vm, slot, bits)
    return 0, bits


async def _flush_if_generic(vm: Vm, slot: Memslot, owed: Any) -> None:
    """Flush the slot where the generic log protects entries.

    An architecture that harvests by itself has flushed each entry it cleaned.
    """
    if vm.k.generic_dirty_log or owed is not None:
        await kvm_flush_remote_tlbs_memslot(vm, slot)


tail_may_end = Choice(
    "tail_may_end", "whether a range to clear may end where its slot does"
)
tail_may_end.add(False)
tail_may_end.add(True, "dirty-clear-tail")


async def clear_dirty_log(
    vm: Vm, slot_number: int, first_page: int, num_pages: int, bits: int
) -> int:
    """Forget chosen pages and protect them again.

    :param first_page: a multiple of 64, in pages of the slot.
    :param num_pages: a multiple of 64, unless the range reaches the slot's end; until
        v5.2 a multiple of 64 even then.
    :param bits: which of them, as a number; bit 0 is ``first_page``.
    :returns: 0 or an errno; ENOTTY where an architecture harvests by itself, for there
        is no such call then (CONFIG_KVM_GENERIC_DIRTYLOG_READ_PROTECT).
    """
    if not vm.k.generic_dirty_log:
        return ENOTTY
    if first_page % WORD:
        return EINVAL
    async with vm.slots_lock.write():
        slot = await _slot(vm, slot_number)
        if isinstance(slot, int):
            return slot
        if (
            first_page > slot.npages
            or num_pages > slot.npages - first_page
            or (
                num_pages % WORD
                and not (vm.k.tail_may_end and first_page + num_pages == slot.npages)
            )
        ):
            return EINVAL
        errno = await vm.k.sync_dirty_log(vm, slot)
        if errno:
            return int(errno)
        owed = None
        cleared = False
        async with vm.mmu_lock.write():
            for page in range(first_page, first_page + num_pages, WORD):
                wanted = bits >> page - first_page & (1 << WORD) - 1
                if wanted:
                    mask = await _andnot(vm, slot, page, wanted)
                    if mask:
                        cleared = True
                        flush = await vm.k.dirty_log_masked(
                            vm, slot, slot.base_gfn + page, mask
                        )
                        if flush is not None:
                            owed = flush | owed
        if cleared:
            await _flush_if_generic(vm, slot, owed)
    return 0


CHOICES = (take_dirty_log, tail_may_end)
