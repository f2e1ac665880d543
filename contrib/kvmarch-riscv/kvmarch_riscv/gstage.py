"""The G-stage's own operations: store an entry, map a page, split a huge one.

:Kernel: arch/riscv/kvm/gstage.c, since v6.17; gstage_*() and stage2_*() of
    arch/riscv/kvm/mmu.c before (fact sheet riscv, 3.1, 3.7).

There is no break-before-make: a store, and a flush after it.
"""

__all__ = ["CHOICES", "map_page_now", "set_pte", "split_huge", "top_up"]

import errno
from typing import TYPE_CHECKING, Protocol

from kvmarch import Choice, Table, Vm

from kvmarch_riscv.geometry import ENTRIES, INDEX_BITS, level_pages
from kvmarch_riscv.hfence import hfence_gvma_vmid_gpa
from kvmarch_riscv.pte import (
    child_pte,
    entry_pfn,
    is_leaf,
    leaf_pte,
    pte_with_prot,
    table_pte,
)
from kvmarch_riscv.walk import get_leaf

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm


class Cache(Protocol):
    """Whoever has pages set aside for tables."""

    mmu_page_cache: int


class SplitCache:
    """The VM's pages for eager splitting, as a cache for tables."""

    def __init__(self, vm: Vm) -> None:
        self._arch: RiscvVm = vm.arch

    @property
    def mmu_page_cache(self) -> int:
        """Return how many pages there are."""
        return self._arch.split_page_cache

    @mmu_page_cache.setter
    def mmu_page_cache(self, pages: int) -> None:
        self._arch.split_page_cache = pages


def top_up(vm: Vm, cache: Cache, pages: int) -> bool:
    """Have so many pages at hand for tables; return False if there is no memory.

    :Kernel: kvm_mmu_topup_memory_cache()
    """
    # Simplified: filled to the minimum, where the kernel takes some more.
    if cache.mmu_page_cache < pages:
        if vm.out_of_tables:
            return False
        cache.mmu_page_cache = pages
    return True


def _new_table(vm: Vm, cache: Cache | None, gfn: int, level: int) -> Table | None:
    """Take a page out of a cache for a table of a level; None if it is empty."""
    if cache is None or not cache.mmu_page_cache:
        return None
    cache.mmu_page_cache -= 1
    return vm.tables.alloc(ENTRIES, level, gfn & -level_pages(level + 1))


# -------------------------------------------------------------------------
# Store
# -------------------------------------------------------------------------

flushes_store = Choice("riscv_flushes_store", "whether storing a leaf needs a flush")


@flushes_store.when()
def _always(vm: Vm, old: int, new: int) -> bool:
    """Flush, whatever was there (to v6.16)."""
    return True


@flushes_store.when("riscv-flush-if-changed")
def _if_changed(vm: Vm, old: int, new: int) -> bool:
    """Flush if the entry has changed (v6.17 on)."""
    return old != new


@flushes_store.when("riscv-flush-if-changed", "riscv-svvptc")
def _if_it_was_one(vm: Vm, old: int, new: int) -> bool:
    """Flush nothing for an entry that was empty if the CPU has Svvptc (v7.2 on)."""
    return old != new and not (not old and vm.arch.svvptc)


def set_pte(
    vm: Vm, root: int, gfn: int, level: int, new: int, cache: Cache | None
) -> int:
    """Store a leaf, whatever was there, and make the tables above it.

    A pointer that the leaf takes the place of is lost with its table.

    :Kernel: kvm_riscv_gstage_set_pte(), gstage_set_pte() before v6.17
    :param level: of the leaf.
    :param cache: for tables; None if there is none.
    :returns: 0; -ENOMEM without a page for a table, -EEXIST if a leaf is in the way.
    """
    table, index, at, entry = get_leaf(vm, root, gfn, level)
    while at > level:
        if is_leaf(entry):
            return -errno.EEXIST
        below = _new_table(vm, cache, gfn, at - 1)
        if below is None:
            return -errno.ENOMEM
        table.set(index, table_pte(below.pa))
        at -= 1
        table = below
        index = gfn >> INDEX_BITS * at & ENTRIES - 1
        entry = 0
    if entry != new:
        table.set(index, new)
    if vm.k.riscv_flushes_store.fn(vm, entry, new):
        hfence_gvma_vmid_gpa(vm, gfn, level)
    return 0


# -------------------------------------------------------------------------
# Split
# -------------------------------------------------------------------------


def split_huge(
    vm: Vm, root: int, gfn: int, target: int, cache: Cache, *, flush: bool
) -> bool:
    """Replace the huge leaf of a gfn by leaves of a level, one level after the other.

    Simplified: the children are there when the pointer is. Their order in memory, which
    a barrier keeps since v7.3 (fact sheet 5, bug 12), has no place here.

    :Kernel: kvm_riscv_gstage_split_huge(), since v7.1
    :param flush: flush each entry; otherwise the caller owes it.
    :returns: whether the caller owes a flush.
    """
    owes = False
    while True:
        table, index, level, entry = get_leaf(vm, root, gfn, target)
        if level <= target or not is_leaf(entry):
            return owes
        below = _new_table(vm, cache, gfn, level - 1)
        if below is None:
            return owes
        for child in range(ENTRIES):
            below.set(child, child_pte(entry, child, level))
        table.set(index, table_pte(below.pa))
        if flush:
            hfence_gvma_vmid_gpa(vm, gfn, level)
        else:
            owes = True


# -------------------------------------------------------------------------
# Map
# -------------------------------------------------------------------------

map_page = Choice("riscv_map_page", "what mapping a page does about what is there")


@map_page.when()
def _map_over(
    vm: Vm, gfn: int, level: int, pfn: int, cache: Cache | None, writable: bool
) -> int:
    """Store the leaf (to v7.0).

    :Kernel: kvm_riscv_gstage_map_page(), gstage_map_page() before v6.17
    """
    new = leaf_pte(pfn, writable=writable)
    return set_pte(vm, vm.arch.pgd or 0, gfn, level, new, cache)


@map_page.when("riscv-split-on-fault")
def _map_by_leaf(
    vm: Vm, gfn: int, level: int, pfn: int, cache: Cache | None, writable: bool
) -> int:
    """Split what is larger, and change what maps the page already (v7.1 on).

    A smaller leaf of the same page keeps its size: nothing becomes huge again.
    """
    root = vm.arch.pgd or 0
    table, index, there, entry = get_leaf(vm, root, gfn)
    if is_leaf(entry):
        if there > level:
            if cache is not None:
                split_huge(vm, root, gfn, level, cache, flush=True)
        elif entry_pfn(entry) & -level_pages(level) == pfn:
            new = pte_with_prot(entry, writable=writable)
            if new != entry:
                table.set(index, new)
                hfence_gvma_vmid_gpa(vm, gfn, there)
            return 0
    return _map_over(vm, gfn, level, pfn, cache, writable)


def map_page_now(
    vm: Vm, gfn: int, level: int, pfn: int, cache: Cache | None, writable: bool
) -> int:
    """Map a page, as this kernel does; return 0 or a negative errno.

    :param gfn: any page of the leaf.
    :param pfn: the leaf's first page.
    :param cache: pages for tables; None if there are none.
    """
    ret: int = vm.k.riscv_map_page.fn(vm, gfn, level, pfn, cache, writable)
    return ret


CHOICES = (flushes_store, map_page)
