"""What the notifiers do to the table: unmap, change_pte and aging.

Models the hooks of arch/loongarch/kvm/mmu.c, v6.8 on (fact sheet loongarch, 3.2 to
3.4). Unmap says whether anything was mapped, and leaves the flush to the generic code.
"""

__all__ = ["age_gfn", "set_spte_gfn", "test_age_gfn", "unmap_gfn_range"]

from kvmarch import Flush, HostPte, Memslot, Vm, op

from kvmarch_loongarch.pte import CC, D, P, V, W
from kvmarch_loongarch.table import at_or_above, clear_range, for_each_leaf


def unmap_gfn_range(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> Flush | None:
    """Clear every leaf of a range, and ask for a flush if there was one.

    :Kernel: kvm_unmap_gfn_range(), since v6.8.
    :Locking: mmu_lock, never dropped.
    """
    gone = clear_range(vm, start, end)
    return None if gone is None else vm.ledger.owe(*gone)


def set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Follow the host's entry where the guest's is there and young.

    Inside a bracket it never is: the entry is cleared, and 0 is stored over it.

    :Kernel: kvm_set_spte_gfn(), v6.8 and v6.9.
    :Locking: mmu_lock.
    """
    found = at_or_above(vm, gfn, 0)
    if found is None:
        return None
    old = found.entry
    if not old & P or not old & V:
        found.table.set(found.at, 0)
        return None
    # The host's D goes when the page is write-protected (pte_wrprotect()).
    host = 0
    if pte & HostPte.write.mask:
        host = W | (D if pte & HostPte.dirty.mask else 0)
    # A leaf of level 1 would become one of level 0 in its place (derived there; out of
    # reach inside a bracket).
    address = HostPte.pfn.get(pte) << vm.page_shift
    found.table.set(found.at, address | P | V | CC | old & host)
    return vm.ledger.owe(gfn, gfn + 1)


# -------------------------------------------------------------------------
# Aging
# -------------------------------------------------------------------------

Aged = tuple[tuple[int, int, int], ...]


@op(name="read young entries")
def _read(vm: Vm, start: int, end: int) -> Aged:
    """Return table, index and value of each entry with V."""
    return tuple(
        (found.table.pa, found.at, found.entry)
        for found, _gfn in for_each_leaf(vm, start, end)
        if found.entry & V
    )


@op(name="write mkold")
def _write(vm: Vm, aged: Aged) -> None:
    """Store what was read, without V, whatever a walker has written since."""
    for pa, index, entry in aged:
        vm.tables.at(pa).set(index, entry & ~V)


async def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Make a range old; return whether an entry of it was young.

    The release of the mm may free a table in between (fact sheet, bug 11), and a
    hardware walker set D (bug 12).

    :Kernel: kvm_age_gfn(), kvm_mkold_pte(): a plain read and a plain write. Simplified:
        all entries are read first; the kernel writes each as soon as it is read.
    :Locking: mmu_lock.
    """
    aged = await _read(vm, start, end)
    if not aged:
        return False
    await _write(vm, aged)
    return True


def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether the first entry of a range is young.

    :Kernel: kvm_test_age_gfn(), since v6.8.
    :Locking: mmu_lock.
    """
    found = at_or_above(vm, start, 0)
    return found is not None and found.present and bool(found.entry & V)
