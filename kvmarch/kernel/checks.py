"""What is checked at every guest access and at every dirty log, on top of the model.

These are the properties that a guest or its owner would notice. They only look; a
machine that keeps no events keeps no checks either.
"""

__all__ = [
    "OpenRange",
    "check_cache",
    "check_emulation",
    "check_logged",
    "check_touch",
    "is_settled",
    "note_logged",
    "note_logging",
]

from typing import TYPE_CHECKING, Any

from kvmarch.machine.host import PFN_SHIFT, PRESENT, WRITE, Mm

if TYPE_CHECKING:
    from kvmarch.kernel.memslots import Memslot
    from kvmarch.kernel.vm import Vcpu, Vm

REMEMBERED = 4096
"""Pages of an invalidated range that are remembered; larger ranges are not checked."""


class OpenRange:
    """An invalidation between its start and its end.

    :param start: hva in bytes; ``end`` is exclusive.
    :param old: pfns that the range mapped when it began.
    :param task: who opened it.

    ``returned`` says whether every subscriber has returned from start(), and none has
    been called for the end.
    """

    __slots__ = ("end", "old", "returned", "start", "task")
    variables = ("returned", "old")

    def __init__(self, start: int, end: int, old: frozenset[int], task: str) -> None:
        self.start, self.end = start, end
        self.old = old
        self.returned = False
        self.task = task

    def key(self) -> tuple[str, int, int, str]:
        """Return the range's name: a task has one of its kind open at a time."""
        return "range", self.start, self.end, self.task

    def freeze(self) -> tuple[Any, ...]:
        """Return the range as a hashable value."""
        return self.start, self.end, self.returned


def pages_in(mm: Mm, start: int, end: int) -> frozenset[int]:
    """Return the pfns that a range of hvas maps, if it is not too large."""
    if end - start >> mm.page_shift > REMEMBERED:
        return frozenset()
    return frozenset(
        pfn
        for _vpn, entry, pages in mm.mapped(start, end)
        for pfn in range(entry >> PFN_SHIFT, (entry >> PFN_SHIFT) + pages)
    )


def check_touch(vcpu: "Vcpu", gfn: int, pfn: int, access: str) -> None:
    """Check one access of the guest to a host page."""
    vm = vcpu.vm
    violate = vm.world.violate
    slot = vm.memslots[vcpu.as_id].find(gfn)
    who = f"{vcpu.name} {access} of gfn {gfn:#x}"
    if slot is None:
        violate("no-slot", f"{who} reaches page {pfn:#x}, but no memslot has the gfn")
        return
    if access == "write" and slot.logs_dirty and slot.bitmap in vm.logging:
        vm.logging[slot.bitmap].add(gfn - slot.base_gfn)
    _check_mapped(vm, slot.hva(gfn, vm.page_shift), pfn, access == "write", who)


def check_cache(vm: "Vm", name: str, hva: int, pfn: int) -> None:
    """Check a write of the kernel's own through a cached mapping of a host page."""
    if vm.world.traced:
        _check_mapped(vm, hva, pfn, True, f"{name}'s write")


def _check_mapped(vm: "Vm", hva: int, pfn: int, write: bool, who: str) -> None:
    """Check that the host maps a page at an hva now, or changes that just now."""
    violate = vm.world.violate
    mm = vm.mm
    subscriptions = mm.subscriptions
    bracketed = False
    if subscriptions is not None:
        for opened in subscriptions.open_ranges:
            if opened.start <= hva < opened.end:
                bracketed = True
                if opened.returned and pfn in opened.old:
                    violate(
                        "touched-after-start",
                        f"{who} reaches page {pfn:#x} after start() returned",
                    )
    if bracketed:
        return
    entry = mm.pte(hva >> vm.page_shift)
    if not entry & PRESENT or entry >> PFN_SHIFT != pfn:
        violate("stale-permission", f"{who} reaches page {pfn:#x}, no longer mapped")
    elif write and not entry & WRITE:
        violate(
            "stale-permission", f"{who} writes page {pfn:#x}, read-only in the host"
        )


def _host_allows(vm: "Vm", slot: "Memslot", gfn: int, access: str) -> bool:
    vma = vm.mm.find_vma(slot.hva(gfn, vm.page_shift))
    return vma is not None and (vma.write or access != "write")


def is_settled(vcpu: "Vcpu", gfn: int, access: str) -> bool:
    """Return whether a memslot holds a gfn, and the ioctl that put it there is over.

    Where the host itself denies the access, MIPS emulates it; that is not stale.
    """
    vm = vcpu.vm
    slot = vm.memslots[vcpu.as_id].find(gfn)
    return (
        slot is not None
        and not slot.invalid
        and slot not in vm.unreturned
        and not (slot.readonly and access == "write")
        and _host_allows(vm, slot, gfn, access)
    )


def check_emulation(vcpu: "Vcpu", gfn: int, access: str, settled: bool) -> None:
    """Check an access that is about to be answered as one to what is no memory.

    A fault that began before the update was over may be answered from before: a grace
    period does not wait for readers that begin inside it.

    :param settled: what :func:`is_settled` said when the access was made.
    """
    if settled and is_settled(vcpu, gfn, access):
        slot = vcpu.vm.memslots[vcpu.as_id].find(gfn)
        vcpu.vm.world.violate(
            "stale-mmio",
            f"{vcpu.name} {access} of gfn {gfn:#x} finds no memory, but {slot} has it",
        )


def note_logging(vm: "Vm", new: "Memslot | None") -> None:
    """Remember that a slot's writes must be logged from now on."""
    if new is not None and new.bitmap:
        vm.logging.setdefault(new.bitmap, set())


def note_logged(vm: "Vm", slot: "Memslot", bits: int) -> None:
    """Strike out the writes that a dirty log has reported."""
    written = vm.logging.get(slot.bitmap)
    if written:
        written -= {page for page in written if bits >> page & 1}


def check_logged(vm: "Vm", slot: "Memslot") -> None:
    """Record a loss if a write was neither reported nor will be."""
    for page in sorted(vm.logging.get(slot.bitmap, ())):
        vm.world.violate(
            "lost-dirty", f"the write to gfn {slot.base_gfn + page:#x} was never logged"
        )
