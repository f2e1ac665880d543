"""Ageing: whether pages were used since somebody asked last.

:Kernel: kvm_age_gfn(), kvm_test_age_gfn(); kvm_age_hva() before v5.13; fact sheet x86,
    3.5.
"""

__all__ = ["CHOICES", "age_gfn", "test_age_gfn"]

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from kvmarch_x86.rmap_mmu import rmap_age, rmap_test_age
from kvmarch_x86.spte import (
    is_accessed_spte,
    is_dirty_spte,
    mark_spte_for_access_track,
    spte_to_pfn,
)
from kvmarch_x86.tdp_tables import rcu_read_lock, rcu_read_unlock, runs

from kvmarch import Choice, Memslot, Table, Vm, age_without_lock, op

if TYPE_CHECKING:
    from kvmarch_x86.state import Role, X86Vm

aging_walk = Choice("aging_walk", "which locks an aging callback takes")
aging_walk.add(
    age_without_lock, "gfn-notifiers", "lockless-aging", "x86-lockless-aging"
)


def _leaf_runs(
    vm: Vm, as_id: int, start: int, end: int
) -> Iterator[tuple[Table, int, int]]:
    """Yield the runs of a range in every root of an address space.

    From v6.15 invalid roots are left out (fact sheet x86, 3.5).
    """
    arch: X86Vm = vm.arch
    for pa in arch.roots:
        root = vm.tables.at(pa)
        role: Role = root.note
        if role.as_id != as_id or (role.invalid and not arch.rules.ages_invalid):
            continue
        yield from runs(vm, root, start, end)


def _track(vm: Vm, table: Table, first: int, stop: int) -> bool:
    """Age leaves without hardware A: take their permissions away.

    :returns: whether one was accessed.
    """
    arch: X86Vm = vm.arch
    layout, leaf = arch.layout, arch.leaf
    young = False
    for index, spte in tuple(table.used(first, stop)):
        if spte & leaf.mask != leaf.value or not is_accessed_spte(layout, spte):
            continue
        young = True
        new = mark_spte_for_access_track(layout, spte)
        table.set(index, new)
        # The entry forgets that it was writable, which is what says dirty here.
        if arch.rules.marks_when_dropped and is_dirty_spte(layout, spte):
            vm.host.mark(
                spte_to_pfn(layout, spte),
                dirty=True,
                accessed=False,
                who="age_gfn_range",
            )
    return young


@op(name="age leafs")
def _age(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Walk and age as one step: mmu_lock keeps everybody out."""
    if not vm.arch.is_tdp:
        return rmap_age(vm, slot, start, end)
    return _age_runs(vm, _leaf_runs(vm, slot.as_id, start, end))


@op(name="rcu_read_lock, walk to leafs")
def _walk(
    vm: Vm, slot: Memslot, start: int, end: int
) -> tuple[tuple[Table, int, int], ...]:
    rcu_read_lock(vm)
    return tuple(_leaf_runs(vm, slot.as_id, start, end))


@op(name="cmpxchg A from leafs, rcu_read_unlock")
def _age_walked(vm: Vm, walked: tuple[tuple[Table, int, int], ...]) -> bool:
    for table, _first, _stop in walked:
        # Is it still a table?
        vm.tables.at(table.pa)
    young = _age_runs(vm, walked)
    rcu_read_unlock(vm)
    return young


async def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark every leaf in a range old; return whether one was young.

    From v6.15 the TDP MMU does it without mmu_lock, by one cmpxchg per leaf whose
    failure is ignored. Simplified: read and cmpxchg are one step, for all leaves;
    harmless because a leaf that changes in between only stays young.
    """
    arch: X86Vm = vm.arch
    if arch.is_tdp and not arch.rules.ages_invalid:
        walked = await _walk(vm, slot, start, end)
        return await _age_walked(vm, walked)
    return await _age(vm, slot, start, end)


def _age_runs(vm: Vm, runs_of: Iterable[tuple[Table, int, int]]) -> bool:
    arch: X86Vm = vm.arch
    layout = arch.layout
    young = False
    clear = layout.shadow_accessed_mask
    if arch.rules.age_clears_dirty:
        # Up to v5.12 D goes too: the page hears of it, the log does not (D17).
        clear |= layout.shadow_dirty_mask
    for table, first, stop in runs_of:
        if not layout.ad:
            young |= _track(vm, table, first, stop)
            continue
        if arch.rules.age_clears_dirty:
            _mark_young_dirty(vm, table, first, stop)
        young |= table.change(arch.accessed_leaf, first, stop, clear=clear) > 0
    return young


def _mark_young_dirty(vm: Vm, table: Table, first: int, stop: int) -> None:
    arch: X86Vm = vm.arch
    layout, match = arch.layout, arch.accessed_leaf
    for _index, spte in table.used(first, stop):
        if spte & match.mask == match.value and is_dirty_spte(layout, spte):
            pfn = spte_to_pfn(layout, spte)
            vm.host.mark(pfn, dirty=True, accessed=False, who="age_gfn_range")


def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether a leaf in a range is young; change nothing."""
    arch: X86Vm = vm.arch
    if not arch.is_tdp:
        return rmap_test_age(vm, slot, start, end)
    layout, leaf = arch.layout, arch.leaf
    for table, first, stop in _leaf_runs(vm, slot.as_id, start, end):
        if layout.ad:
            if table.count(arch.accessed_leaf, first, stop):
                return True
        elif any(
            spte & leaf.mask == leaf.value and is_accessed_spte(layout, spte)
            for _index, spte in table.used(first, stop)
        ):
            return True
    return False


CHOICES = (aging_walk,)
