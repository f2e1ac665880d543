"""Notifier unmap and change_pte.

:Kernel: kvm_unmap_gfn_range(), kvm_set_spte_gfn(); kvm_unmap_hva_range() and
    kvm_set_spte_hva() before v5.13; fact sheet x86, 3.3 and 3.4.
"""

__all__ = ["CHOICES"]

from typing import TYPE_CHECKING

from kvmarch_x86.rmap_mmu import rmap_set_spte_gfn, rmap_unmap_gfn_range
from kvmarch_x86.spte import (
    is_shadow_present_pte,
    kvm_mmu_changed_pte_notifier_make_spte,
    spte_has_volatile_bits,
    spte_to_pfn,
)
from kvmarch_x86.tdp_tables import lowest
from kvmarch_x86.tdp_zap import mark_page

from kvmarch import (
    Choice,
    Flush,
    HostPte,
    Memslot,
    Table,
    Vm,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_range,
    op,
)

if TYPE_CHECKING:
    from kvmarch_x86.state import Role, X86Vm

unmap_gfn_range = Choice("unmap_gfn_range", "how a notifier unmaps a range")


@op(name="unmap from the direct MMU")
def _unmap_rmap(vm: Vm, slot: Memslot, start: int, end: int) -> Flush | None:
    return rmap_unmap_gfn_range(vm, slot, start, end)


@unmap_gfn_range.when()
async def _unmap(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> Flush | None:
    """Drop leaves, in the TDP MMU up to v5.17 also tables that lie inside the range.

    Simplified: a removed table is flushed with the rest, not by itself before;
    harmless because nobody may drop mmu_lock in between without a flush.
    """
    if not vm.arch.is_tdp:
        return await _unmap_rmap(vm, slot, start, end)
    owed: Flush | None = await vm.k.x86_unmap_roots(
        vm, slot.as_id, start, end, may_block
    )
    return owed


def _roots(vm: Vm, as_id: int, *, invalid: bool) -> list[Table]:
    """Return the roots of an address space, newest first."""
    found = []
    for pa in vm.arch.roots:
        root = vm.tables.at(pa)
        role: Role = root.note
        if role.as_id == as_id and (invalid or not role.invalid):
            found.append(root)
    return found


# -- change_pte --------------------------------------------------------------------

set_spte_gfn = Choice("set_spte_gfn", "how change_pte changes an entry")

keeps_mmu_writable = Choice(
    "x86_change_pte_keeps", "whether change_pte leaves MMU-writable as it is"
)
keeps_mmu_writable.add(True)
keeps_mmu_writable.add(False, "x86-change-pte-clears-mmu-writable")


@op(name="set SPTE of the direct MMU")
def _set_rmap(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    return rmap_set_spte_gfn(vm, slot, gfn, pte)


@op(name="find SPTEs of a gfn")
def _find(vm: Vm, as_id: int, gfn: int) -> tuple[tuple[Table, int, int], ...]:
    """Return table, index and value of the 4 KiB leaves of a gfn in valid roots."""
    arch: X86Vm = vm.arch
    found = []
    for root in _roots(vm, as_id, invalid=False):
        table, index, spte = lowest(vm, root.pa, gfn)
        if table.level == 1 and is_shadow_present_pte(arch.layout, spte):
            found.append((table, index, spte))
    return tuple(found)


@op(name="clear SPTE for change_pte")
def _clear(vm: Vm, gfn: int, table: Table, index: int) -> None:
    arch: X86Vm = vm.arch
    old = table.get(index)
    table.set(index, arch.layout.nonpresent)
    if arch.rules.marks_when_dropped:
        mark_page(vm, old, "kvm_set_spte_gfn")
    vm.ledger.owe(gfn, gfn + 1)


@op(name="set SPTE for change_pte")
def _set(vm: Vm, gfn: int, table: Table, index: int, old: int, pte: int) -> None:
    """Store the new leaf; the old value is what the walk read at the start.

    That the entry was cleared meanwhile shows only where an exchange returns what it
    found, which it does for volatile entries from v5.18 on. Otherwise the change looks
    like one from a page to another page, which is a BUG (fact sheet x86, 3.4).
    """
    arch: X86Vm = vm.arch
    layout = arch.layout
    new = kvm_mmu_changed_pte_notifier_make_spte(
        layout,
        old,
        HostPte.pfn.get(pte),
        keep_mmu_writable=vm.k.x86_change_pte_keeps,
    )
    exchanged = arch.rules.atomic_writes and spte_has_volatile_bits(layout, old)
    vm.warn(
        not exchanged and spte_to_pfn(layout, old) != spte_to_pfn(layout, new),
        f"BUG: a leaf of gfn {gfn:#x} is replaced by a leaf of another page",
    )
    table.set(index, new)
    vm.ledger.owe(gfn, gfn + 1)


async def _set_tdp(vm: Vm, slot: Memslot, gfn: int, pte: int, flushes: bool) -> bool:
    """Point the 4 KiB leaves of a gfn at another page, through an empty entry.

    :Kernel: set_tdp_spte(), set_spte_gfn()
    :param flushes: flush each store, as before the caller did (v5.18).
    :returns: whether there was a leaf.
    """
    found = await _find(vm, slot.as_id, gfn)
    for table, index, old in found:
        await _clear(vm, gfn, table, index)
        if flushes:
            await kvm_flush_remote_tlbs_range(vm, gfn, gfn + 1)
        if not HostPte.write.get(pte):
            await _set(vm, gfn, table, index, old, pte)
    if found and flushes:
        await kvm_flush_remote_tlbs_range(vm, gfn, gfn + 1)
    return bool(found)


@set_spte_gfn.when()
async def _set_spte_hva(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Flush inside, once for the whole VM (to v4.20)."""
    owed = await _set_rmap(vm, slot, gfn, pte)
    if owed is not None:
        await kvm_flush_remote_tlbs(vm)
    return None


@set_spte_gfn.when("set-spte-returns-flush")
async def _set_spte_flushing(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Leave the flush of the direct MMU to the caller, not the TDP MMU's (to v5.17)."""
    owed = None
    if vm.arch.is_tdp:
        await _set_tdp(vm, slot, gfn, pte, True)
    else:
        owed = await _set_rmap(vm, slot, gfn, pte)
    return owed


@set_spte_gfn.when("set-spte-returns-flush", "x86-change-pte-batches-flush")
async def _set_spte_batching(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Leave every flush to the caller (v5.18 to v6.9)."""
    if not vm.arch.is_tdp:
        return await _set_rmap(vm, slot, gfn, pte)
    found = await _set_tdp(vm, slot, gfn, pte, False)
    return Flush(gfn, gfn + 1) if found else None


CHOICES = (unmap_gfn_range, set_spte_gfn, keeps_mmu_writable)
