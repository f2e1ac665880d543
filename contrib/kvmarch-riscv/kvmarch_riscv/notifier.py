"""change_pte and aging.

:Kernel: kvm_set_spte_gfn(), v5.16 to v6.9; kvm_age_gfn(), kvm_test_age_gfn(), of
    arch/riscv/kvm/mmu.c (fact sheet riscv, 3.4, 3.5).

All hold mmu_lock for write, and return quietly if the VM has no root any more.
"""

__all__ = ["age_gfn", "set_spte_gfn", "test_age_gfn"]

from kvmarch import Flush, HostPte, Memslot, Table, Vm
from kvmarch_riscv.geometry import LEAF_LEVELS, level_pages
from kvmarch_riscv.gstage import map_page_now
from kvmarch_riscv.pte import A, is_leaf, mkold
from kvmarch_riscv.walk import get_leaf

_SIZES = frozenset(level_pages(level) for level in LEAF_LEVELS)
"""Pages of the ranges that aging expects."""
_ALL_GFNS = 1 << 52


def set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Map the new page read-only, whether or not anything was mapped before.

    An unmap leaves the tables, so the store succeeds although an invalidation is in
    progress. Only without a table for the gfn, or with a huge leaf there, it fails;
    that is answered by a flush of all, for nothing.

    :Kernel: kvm_set_spte_gfn(), v5.16 to v6.9
    """
    if vm.arch.pgd is None:
        return None
    if map_page_now(vm, gfn, 0, HostPte.pfn.get(pte), None, False):
        return vm.ledger.owe(0, _ALL_GFNS)
    return None


def _first_leaf(vm: Vm, start: int, end: int) -> tuple[Table, int, int] | None:
    """Return table, index and entry of the leaf where a range begins."""
    root = vm.arch.pgd
    if root is None:
        return None
    vm.warn(end - start not in _SIZES, "kvm_age_gfn(): the range is no page or block")
    table, index, _level, entry = get_leaf(vm, root, start)
    return (table, index, entry) if is_leaf(entry) else None


def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark the first leaf of a range old; return whether it was young."""
    found = _first_leaf(vm, start, end)
    if found is None:
        return False
    table, index, entry = found
    if entry & A:
        table.set(index, mkold(entry))
    return entry & A != 0


def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether the first leaf of a range is young."""
    found = _first_leaf(vm, start, end)
    return found is not None and found[2] & A != 0
