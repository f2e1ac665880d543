"""change_pte and aging.

:Kernel: kvm_set_spte_gfn(), v5.16 to v6.9; kvm_age_gfn(), kvm_test_age_gfn(), of
    arch/riscv/kvm/mmu.c (fact sheet riscv, 3.4, 3.5).

All hold mmu_lock for write, and return quietly if the VM has no root any more.
"""

__all__ = ["CHOICES", "age_gfn", "set_spte_gfn", "test_age_gfn"]

from typing import TypeAlias

from kvmarch import Choice, Flush, HostPte, Memslot, Table, Vm

from kvmarch_riscv.geometry import LEAF_LEVELS, level_pages
from kvmarch_riscv.gstage import map_page_now
from kvmarch_riscv.pte import A, is_leaf, mkold
from kvmarch_riscv.ranges import leaves_of
from kvmarch_riscv.walk import get_leaf

_SIZES = frozenset(level_pages(level) for level in LEAF_LEVELS)
"""Pages of the ranges that aging expects."""
_ALL_GFNS = 1 << 52

Leaf: TypeAlias = tuple[Table, int]
"""Where a leaf is: its table, and the index."""


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


# -------------------------------------------------------------------------
# Aging
# -------------------------------------------------------------------------

looks_at = Choice("riscv_aging_looks_at", "which leaves of a range aging looks at")


@looks_at.when()
def _first_leaf(vm: Vm, root: int, start: int, end: int) -> list[Leaf]:
    """Look at the one where the range begins; a range of another size is warned about.

    :Kernel: kvm_age_gfn(), kvm_test_age_gfn()
    """
    vm.warn(end - start not in _SIZES, "kvm_age_gfn(): the range is no page or block")
    table, index, _level, entry = get_leaf(vm, root, start)
    return [(table, index)] if is_leaf(entry) else []


@looks_at.when("riscv-ages-every-leaf")
def _every_leaf(vm: Vm, root: int, start: int, end: int) -> list[Leaf]:
    """Look at all of them (never posted)."""
    return [
        (met.table, met.place) for met in leaves_of(vm, root, start, end, whole=True)
    ]


def _young(vm: Vm, start: int, end: int) -> list[Leaf]:
    root = vm.arch.pgd
    if root is None:
        return []
    looked = vm.k.riscv_aging_looks_at.fn(vm, root, start, end)
    return [(table, index) for table, index in looked if table.get(index) & A]


def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark leaves of a range old; return whether one was young.

    :Kernel: kvm_age_gfn()
    """
    young = _young(vm, start, end)
    for table, index in young:
        table.set(index, mkold(table.get(index)))
    return bool(young)


def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether a leaf of a range is young.

    :Kernel: kvm_test_age_gfn()
    """
    return bool(_young(vm, start, end))


CHOICES = (looks_at,)
