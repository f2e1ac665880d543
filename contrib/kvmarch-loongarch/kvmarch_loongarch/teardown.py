"""The end: of a memslot, of the mm, and of the VM.

Models kvm_flush_range() of arch/loongarch/kvm/mmu.c and its callers, v6.8 on (fact
sheet loongarch, 3.7, 5 bugs 10 and 11). Tables that a range covers are unlinked at once
and freed after the flush; for the mm's release all that happens without mmu_lock.
"""

__all__ = ["CHOICES", "destroy_vm", "flush_shadow_memslot"]

from typing import TYPE_CHECKING, NamedTuple

from kvmarch import Choice, Memslot, Table, Vm, kvm_flush_remote_tlbs, op

from kvmarch_loongarch.pte import HUGE
from kvmarch_loongarch.table import children, clear_range

if TYPE_CHECKING:
    from kvmarch_loongarch.state import LoongarchVm


class Below(NamedTuple):
    """A table that a walk is about to enter.

    :param at: index of its entry in the directory above.
    :param pa: its address; 0 if the walk has seen all.
    :param leaf: the entry is a leaf of level 1 and leads to no table.
    """

    at: int
    pa: int
    leaf: bool = False


# -------------------------------------------------------------------------
# With mmu_lock held: all in one step
# -------------------------------------------------------------------------


def _unlink_covered(vm: Vm, table: Table, start: int, end: int) -> list[int]:
    """Unlink every table that a range covers; return them, the lowest ones first."""
    unlinked: list[int] = []
    geometry = vm.arch.geometry
    for index, entry, first, stop in children(vm, table, start, end):
        if not table.level or entry & HUGE:
            continue
        unlinked += _unlink_covered(vm, vm.tables.at(entry), first, stop)
        if stop - first == geometry.pages(table.level):
            table.set(index, geometry.empty[table.level])
            unlinked.append(entry)
    return unlinked


@op(name="kvm_flush_range")
def _flush_range(vm: Vm, start: int, end: int) -> tuple[bool, tuple[int, ...]]:
    """Clear a range; return whether a leaf went, and the tables to be freed."""
    gone = clear_range(vm, start, end)
    unlinked = _unlink_covered(vm, vm.tables.at(vm.arch.pgd), start, end)
    if gone is not None:
        vm.ledger.owe(*gone, due="return")
    return gone is not None, tuple(unlinked)


@op(name="free listed tables")
def _free(vm: Vm, unlinked: tuple[int, ...]) -> None:
    for pa in unlinked:
        vm.tables.free(vm.tables.live.get(pa) or vm.tables.freed[pa])


async def _flush_and_free(vm: Vm, cleared: bool, unlinked: tuple[int, ...]) -> None:
    if cleared:
        await kvm_flush_remote_tlbs(vm)
    await _free(vm, unlinked)


async def flush_shadow_memslot(vm: Vm, slot: Memslot) -> None:
    """Clear a slot that is INVALID by now, flush, and free its tables.

    :Kernel: kvm_arch_flush_shadow_memslot(), since v6.8.
    :Locking: slots_lock; takes mmu_lock.
    """
    async with vm.mmu_lock.write():
        cleared, unlinked = await _flush_range(vm, slot.base_gfn, slot.end_gfn)
    await _flush_and_free(vm, cleared, unlinked)


# -------------------------------------------------------------------------
# Without: table by table
# -------------------------------------------------------------------------

flush_shadow_all = Choice("flush_shadow_all", "how the release of the mm drops all")


@op(name="find next table")
def _next(vm: Vm, pa: int, index: int) -> Below:
    """Return the next entry of a directory that is not empty, from an index on."""
    directory = vm.tables.at(pa)
    for at, entry in directory.used(index, directory.size):
        return Below(at, entry, bool(entry & HUGE))
    return Below(0, 0)


@op(name="clear leaves")
def _clear(vm: Vm, pa: int) -> bool:
    """Clear the leaves of a table of level 0; return whether there was one."""
    table = vm.tables.at(pa)
    if not table.count(vm.arch.young, 0, table.size) and not any(
        table.used(0, table.size)
    ):
        return False
    table.fill(0, 0, table.size)
    vm.ledger.owe(table.base, table.base + table.size, due="return")
    return True


@op(name="empty directory entry")
def _empty(vm: Vm, pa: int, index: int, leaf: bool) -> None:
    directory = vm.tables.at(pa)
    geometry = vm.arch.geometry
    directory.set(index, geometry.empty[directory.level])
    if leaf:
        pages = geometry.pages(directory.level)
        first = directory.base + index * pages
        vm.ledger.owe(first, first + pages, due="return")


async def _flush_below(vm: Vm, pa: int, level: int) -> tuple[bool, tuple[int, ...]]:
    """Clear and unlink all below a directory, each step alone.

    Two walks can find the same table, and put it on both their lists.
    """
    cleared = False
    unlinked: tuple[int, ...] = ()
    found = await _next(vm, pa, 0)
    while found.pa:
        if found.leaf:
            cleared = True
        elif level == 1:
            one = await _clear(vm, found.pa)
            cleared = cleared or one
        else:
            one, below = await _flush_below(vm, found.pa, level - 1)
            cleared = cleared or one
            unlinked = (*unlinked, *below)
        await _empty(vm, pa, found.at, found.leaf)
        if not found.leaf:
            unlinked = (*unlinked, found.pa)
        found = await _next(vm, pa, found.at + 1)
    return cleared, unlinked


@flush_shadow_all.when()
async def _flush_without_lock(vm: Vm) -> None:
    """Walk, unlink and free without mmu_lock; may run twice at once (bug 10).

    :Kernel: kvm_arch_flush_shadow_all(), since v6.8.
    :Locking: a reader of kvm->srcu, nothing else.
    """
    arch: LoongarchVm = vm.arch
    cleared, unlinked = await _flush_below(vm, arch.pgd, arch.geometry.root_level)
    await _flush_and_free(vm, cleared, unlinked)


@flush_shadow_all.when("loongarch-release-takes-mmu-lock")
async def _flush_locked(vm: Vm) -> None:
    """Hold mmu_lock for the walk, as the removal of a memslot does."""
    # Not merged: "Fix race conditions in kvm_arch_flush_shadow_all()", James Houghton,
    # kvm list, May 2026.
    async with vm.mmu_lock.write():
        cleared, unlinked = await _flush_range(vm, 0, vm.arch.gfns)
    await _flush_and_free(vm, cleared, unlinked)


@op(name="free root")
def _free_root(vm: Vm) -> None:
    arch: LoongarchVm = vm.arch
    vm.tables.free(vm.tables.at(arch.pgd))
    arch.pgd = 0


async def destroy_vm(vm: Vm) -> None:
    """Free the root, after the notifier is gone.

    :Kernel: kvm_arch_destroy_vm().
    """
    await _free_root(vm)


CHOICES = (flush_shadow_all,)
