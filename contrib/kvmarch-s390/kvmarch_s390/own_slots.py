"""Memslots as holes and their end, and the end of the VM, from v7.0 on.

Models dat_create_slot(), dat_delete_slot() and gmap_put() (fact sheet s390, 4.6). Where
there is no memslot the tables say so: a guest gets its program interruption without a
look at memslots. Holes are made before the new set of slots is visible.
"""

__all__ = ["CHOICES", "destroy_vm", "prepare_memory_region"]

from typing import TYPE_CHECKING

from kvmarch import Choice, Memslot, Table, Vm, op

from kvmarch_s390 import dat
from kvmarch_s390.common import prepare_slot
from kvmarch_s390.geometry import PAGE, entries, pages
from kvmarch_s390.own import walk_down
from kvmarch_s390.own_tables import Spot, below, exchange, leads_on

if TYPE_CHECKING:
    from kvmarch_s390.own_tables import OwnVm

s390_aligned_slots = Choice(
    "s390_aligned_slots", "whether a memslot must be aligned to 1 MiB"
)
s390_aligned_slots.add(True)
s390_aligned_slots.add(False, "s390-own-tables", "s390-small-slots")


def _free_below(vm: Vm, table: Table) -> None:
    """Free a table and all below it."""
    for _at, entry in list(table.used(0, table.size)):
        if leads_on(entry, table.level):
            _free_below(vm, below(vm, entry, table.level))
    if table.level == PAGE:
        first = table.pa + entries(PAGE) * 8
        for where in [p for p in vm.arch.pgstes if first <= p < first + 2048]:
            del vm.arch.pgstes[where]
    vm.tables.free(table)


def _set(vm: Vm, table: Table, start: int, end: int, hole: bool) -> None:
    """Make a range of a table holes or empty; split entries at its ends."""
    level = table.level
    step = pages(level)
    low = max(start - table.base, 0) // step
    high = min(-(-(end - table.base) // step), entries(level))
    for at in range(low, high):
        first = table.base + at * step
        entry = table.get(at)
        if start <= first and first + step <= end:
            if dat.is_present(entry, level):
                exchange(vm, Spot(table, at, entry), dat.token(level, hole))
                continue
            if leads_on(entry, level):
                child = below(vm, entry, level)
                # What is mapped in it goes entry by entry, so that hardware forgets it.
                _set(vm, child, first, first + step, hole)
                if hole:
                    table.set(at, dat.token(level, hole))
                    _free_below(vm, child)
                continue
            table.set(at, dat.token(level, hole))
            continue
        if not leads_on(entry, level):
            walk_down(vm, max(start, first), level - 1)
        child = below(vm, table.get(at), level)
        _set(vm, child, start, end, hole)


@op(name="dat_delete_slot")
def _delete(vm: Vm, slot: Memslot) -> None:
    _set(vm, vm.tables.at(vm.arch.root), slot.base_gfn, slot.end_gfn, hole=True)


@op(name="dat_create_slot")
def _create(vm: Vm, slot: Memslot) -> None:
    _set(vm, vm.tables.at(vm.arch.root), slot.base_gfn, slot.end_gfn, hole=False)


async def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Make holes of the old place, and no holes of the new one.

    :Kernel: kvm_arch_prepare_memory_region(), since v7.0.
    :Locking: slots_lock; takes mmu_lock for write.
    """
    refused = prepare_slot(vm, new, change, strict=vm.arch.strict)
    if refused or change == "flags_only":
        return refused
    async with vm.mmu_lock.write():
        if old is not None:
            await _delete(vm, old)
        if new is not None:
            await _create(vm, new)
    return 0


@op(name="gmap_put")
def _put(vm: Vm) -> None:
    arch: OwnVm = vm.arch
    _free_below(vm, vm.tables.at(arch.root))
    arch.root = 0


async def destroy_vm(vm: Vm) -> None:
    """Flush the ASCE and free every table; until now they outlived the mm.

    :Kernel: kvm_arch_destroy_vm(), gmap_put().
    """
    await _put(vm)


CHOICES = (s390_aligned_slots,)
