"""Unmapping a range from every root of the TDP MMU, and giving way meanwhile.

:Kernel: kvm_tdp_mmu_unmap_gfn_range(), kvm_tdp_mmu_zap_leafs(), zap_gfn_range(),
    tdp_mmu_iter_cond_resched(); fact sheet x86, 3.3 and 4.
"""

__all__ = ["CHOICES", "unmap_now", "walk_exclusively", "walk_shared"]

from typing import TYPE_CHECKING, NamedTuple

from kvmarch_x86.geometry import LEVEL_BITS
from kvmarch_x86.state import ENTRIES
from kvmarch_x86.tdp_tables import INDEX, is_table, put_root
from kvmarch_x86.tdp_zap import drop_leaves, free_root, remove_table

from kvmarch import Choice, Flush, Table, Vm, kvm_flush_remote_tlbs, op

if TYPE_CHECKING:
    from kvmarch_x86.state import Role, X86Vm


class Walk(NamedTuple):
    """How far an unmap has come.

    :param pa: the root it is in; 0 at the end.
    :param at: the gfn to go on from.
    :param here: leaves were dropped in this root, and nobody has flushed since.
    :param owed: leaves were dropped in any root, and nobody has flushed since.
    :param held: it has a reference to the root.
    """

    pa: int
    at: int
    here: bool = False
    owed: bool = False
    held: bool = False


def _next_root(vm: Vm, as_id: int, pa: int) -> int:
    """Return the root after one that an unmap has to walk (0: the first one)."""
    arch: X86Vm = vm.arch
    begun = not pa
    for each in arch.roots:
        role: Role = vm.tables.at(each).note
        walked = role.as_id == as_id and (arch.rules.unmaps_invalid or not role.invalid)
        if begun and walked:
            return each
        begun = begun or each == pa
    return 0


def _zap_next(
    vm: Vm, root: Table, at: int, start: int, end: int, *, shared: bool
) -> tuple[int, bool]:
    """Drop what maps a range in the next table that there is from a gfn on.

    Up to v5.17 tables that lie inside the range go as a whole.

    :param at: where the walk stands; the range is ``start`` to ``end``.
    :returns: the gfn after it, and whether anything was dropped.
    """
    arch: X86Vm = vm.arch
    layout, whole = arch.layout, not arch.rules.only_leaves
    table = root
    while at < end:
        shift = LEVEL_BITS * (table.level - 1)
        if not shift:
            first, stop = at - table.base, min(end - table.base, ENTRIES)
            dropped = drop_leaves(vm, table, first, stop, "tdp_mmu_zap_leafs")
            return table.base + stop, dropped > 0
        index = at >> shift & INDEX
        entry = table.get(index)
        base = table.base + (index << shift)
        after = base + (1 << shift)
        if not is_table(entry):
            if drop_leaves(vm, table, index, index + 1, "tdp_mmu_zap_leafs"):
                return after, True
            at, table = after, root
        elif whole and start <= base and after <= end:
            table.set(index, layout.nonpresent)
            child = vm.tables.at(entry & layout.pfn_mask)
            remove_table(vm, child, shared=shared)
            return after, True
        else:
            table = vm.tables.at(entry & layout.pfn_mask)
    return end, False


def _leave(vm: Vm, pa: int) -> None:
    """Give the reference to a root back that a walk has held."""
    if put_root(vm, pa):
        free_root(vm, pa)


@op(name="zap leafs in next table")
def _zap(vm: Vm, as_id: int, walk: Walk, start: int, end: int, shared: bool) -> Walk:
    """Drop what the next table maps; at the end of a root go on in the next one.

    :returns: where the walk may give way: inside a root, with something behind it.
    """
    arch: X86Vm = vm.arch
    pa, at, here, owed, held = walk
    if not pa:
        pa = _next_root(vm, as_id, 0)
    while pa:
        root = vm.tables.at(pa)
        at, dropped = _zap_next(vm, root, at, start, end, shared=shared)
        # An invalid root owes nothing from v6.12 on: its vCPUs were told to leave it.
        if dropped and (not root.note.invalid or arch.rules.flushes_invalid):
            here = owed = True
            vm.ledger.owe(start, end)
        if at < end:
            if arch.rules.unmap_holds_roots and not held:
                root.refs += 1
                held = True
            return Walk(pa, at, here, owed, held)
        following = _next_root(vm, as_id, pa)
        if held:
            _leave(vm, pa)
        pa, at, here, held = following, start, False, False
    return Walk(0, end, False, owed)


@op(name="zap leafs of a range")
def unmap_now(vm: Vm, as_id: int, start: int, end: int) -> Flush | None:
    """Unmap a range without giving way.

    :Locking: mmu_lock for write.
    """
    walk = Walk(0, start)
    while walk.at < end:
        walk = _zap.fn(vm, as_id, walk, start, end, False)
    return Flush(start, end) if walk.owed else None


async def _pay(vm: Vm, walk: Walk) -> Walk:
    """Flush, before the lock is dropped, what is owed; return the walk without it.

    Up to v5.11 what an earlier root owes is not looked at (D6 of the fact sheet).
    """
    owed = walk.owed if vm.arch.rules.flush_over_roots else walk.here
    if not owed:
        return walk
    await kvm_flush_remote_tlbs(vm)
    return walk._replace(here=False, owed=False)


async def walk_exclusively(vm: Vm, as_id: int, start: int, end: int) -> Flush | None:
    """Unmap a range table by table, and drop mmu_lock between them.

    :Locking: mmu_lock for write; dropped on the way.
    """
    walk = await _zap(vm, as_id, Walk(0, start), start, end, False)
    while walk.pa:
        walk = await _pay(vm, walk)
        await vm.mmu_lock.drop_write()
        await vm.mmu_lock.take_write()
        walk = await _zap(vm, as_id, walk, start, end, False)
    return Flush(start, end) if walk.owed else None


async def walk_shared(vm: Vm, as_id: int, start: int, end: int) -> Flush | None:
    """Unmap a range table by table.

    Simplified: a table is one step, though it is done entry by entry with cmpxchg;
    harmless because a loser tries again.

    :Locking: mmu_lock for read.
    """
    walk = await _zap(vm, as_id, Walk(0, start), start, end, True)
    while walk.pa:
        walk = await _zap(vm, as_id, walk, start, end, True)
    return Flush(start, end) if walk.owed else None


unmap_roots = Choice("x86_unmap_roots", "how mmu_lock is held while roots are walked")


@unmap_roots.when()
async def _exclusively(
    vm: Vm, as_id: int, start: int, end: int, may_block: bool
) -> Flush | None:
    """Hold it for write; give way where that is allowed (not before v5.13).

    The model gives way whenever it can: after each table that has another behind it in
    the same root.
    """
    if may_block and vm.arch.rules.unmap_yields:
        return await walk_exclusively(vm, as_id, start, end)
    return await unmap_now(vm, as_id, start, end)


@unmap_roots.when("x86-unmap-shared")
async def _shared(
    vm: Vm, as_id: int, start: int, end: int, may_block: bool
) -> Flush | None:
    """Hold it for read, once the count was raised with it held for write.

    No kernel did so; it is what acbda82a81c7 (v5.18) decided against.
    """
    await vm.mmu_lock.drop_write()
    async with vm.mmu_lock.read():
        owed = await walk_shared(vm, as_id, start, end)
        if owed is not None:
            await kvm_flush_remote_tlbs(vm)
    await vm.mmu_lock.take_write()
    return None


CHOICES = (unmap_roots,)
