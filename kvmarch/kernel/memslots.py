"""Memslots: the records, the sets of them, and look-ups.

Models include/linux/kvm_host.h and virt/kvm/kvm_main.c, v3.16 to v7.2; generic facts
1.3.
"""

__all__ = [
    "INVALID",
    "LOG_DIRTY_PAGES",
    "READONLY",
    "Memslot",
    "Memslots",
    "gfn_to_memslot",
    "slots_in_hva_range",
]

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmarch.machine.steps import op

if TYPE_CHECKING:
    from kvmarch.kernel.vm import Vm

LOG_DIRTY_PAGES = 1 << 0
READONLY = 1 << 1
INVALID = 1 << 16
"""KVM_MEMSLOT_INVALID: being deleted or moved. Bit 16 in every tree read."""


@dataclass(frozen=True, slots=True)
class Memslot:
    """One kvm_memory_slot.

    :param as_id: address space.
    :param id: number within it.
    :param base_gfn: first gfn.
    :param npages: pages of the machine's page size.
    :param userspace_addr: hva of the first page, in bytes.
    :param flags: LOG_DIRTY_PAGES, READONLY, INVALID.
    :param bitmap: key of the dirty bitmap in ``vm.dirty_bitmaps``; 0 for none.
    :param arch: key under which an architecture keeps data for the slot. It is
        handed on when only flags change.
    """

    as_id: int
    id: int
    base_gfn: int
    npages: int
    userspace_addr: int
    flags: int = 0
    bitmap: int = 0
    arch: int = 0

    @property
    def end_gfn(self) -> int:
        """Return the first gfn after the slot."""
        return self.base_gfn + self.npages

    @property
    def logs_dirty(self) -> bool:
        """Return whether writes to the slot are logged."""
        return bool(self.flags & LOG_DIRTY_PAGES)

    @property
    def readonly(self) -> bool:
        """Return whether guest writes are emulated as MMIO."""
        return bool(self.flags & READONLY)

    @property
    def invalid(self) -> bool:
        """Return whether the slot is being deleted or moved."""
        return bool(self.flags & INVALID)

    def hva(self, gfn: int, page_shift: int) -> int:
        """Return the host address in bytes that backs a gfn."""
        return self.userspace_addr + (gfn - self.base_gfn << page_shift)

    def __str__(self) -> str:
        return (
            f"memslot {self.id} (gfn {self.base_gfn:#x}-{self.end_gfn - 1:#x}, "
            f"hva {self.userspace_addr:#x})"
        )


class Memslots:
    """One set of slots of an address space, as readers see it.

    A set never changes: an update publishes another one.
    """

    __slots__ = ("generation", "in_progress", "slots", "starts")

    def __init__(
        self,
        slots: tuple[Memslot, ...] = (),
        generation: int = 0,
        *,
        in_progress: bool = False,
    ) -> None:
        self.slots = tuple(sorted(slots, key=lambda s: s.base_gfn))
        self.starts = [s.base_gfn for s in self.slots]
        self.generation = generation
        self.in_progress = in_progress

    def freeze(self) -> tuple[object, ...]:
        """Return the set as a hashable value."""
        return self.slots, self.generation, self.in_progress

    def find(self, gfn: int) -> Memslot | None:
        """Return the slot that holds a gfn, INVALID ones included."""
        at = bisect_right(self.starts, gfn) - 1
        if at >= 0:
            slot = self.slots[at]
            if gfn < slot.base_gfn + slot.npages:
                return slot
        return None

    def by_id(self, slot_id: int) -> Memslot | None:
        """Return the slot with a number."""
        for slot in self.slots:
            if slot.id == slot_id:
                return slot
        return None

    def replace(self, old: Memslot | None, new: Memslot | None) -> tuple[Memslot, ...]:
        """Return the slots with one taken out, put in, or exchanged."""
        slots = [s for s in self.slots if s is not old]
        if new is not None:
            slots.append(new)
        return tuple(slots)


def gfn_to_memslot(vm: "Vm", gfn: int, as_id: int = 0) -> Memslot | None:
    """Return the slot of a gfn in the active set; INVALID ones too.

    :Kernel: gfn_to_memslot(), search_memslots().
    """
    return vm.memslots[as_id].find(gfn)


def in_hva_range(
    vm: "Vm", start: int, end: int
) -> tuple[tuple[Memslot, int, int], ...]:
    """Return slot, first gfn and end gfn of each slot that a range of hvas meets.

    INVALID slots are included. The last gfn is rounded up to a whole page, so that
    a page is meant as soon as one byte of it is.

    :Kernel: kvm_for_each_memslot_in_hva_range() and the clipping around it; the
        same walk by hand in each handler before v5.17.
    """
    shift = vm.page_shift
    round_up = (1 << shift) - 1
    found = []
    for memslots in vm.memslots:
        for slot in memslots.slots:
            first, stop = slot.userspace_addr, slot.hva(slot.end_gfn, shift)
            low, high = max(start, first), min(end, stop)
            if low < high:
                gfn = slot.base_gfn + (low - first >> shift)
                gfn_end = slot.base_gfn + (high - first + round_up >> shift)
                found.append((slot, gfn, gfn_end))
    return tuple(found)


@op(name="look up memslots in range")
def slots_in_hva_range(
    vm: "Vm", start: int, end: int
) -> tuple[tuple[Memslot, int, int], ...]:
    """Find the slots that a range of hvas meets, as one step."""
    return in_hva_range(vm, start, end)
