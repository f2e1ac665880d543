"""What KVM's notifier callbacks do to stage 2: unmap, age, follow a changed PTE.

:Kernel: kvm_unmap_gfn_range(), kvm_set_spte_gfn(), kvm_age_gfn(),
    kvm_test_age_gfn() of arch/arm64/kvm/mmu.c, since v5.13; the handlers for hvas
    before (fact sheet arm64, 3.3, 3.4, 3.10, 4).

All hold mmu_lock for write, and return quietly if the VM has no root any more.
"""

__all__ = ["CHOICES", "kvm_unmap_gfn_range"]

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvmarch_arm64.changes import PGTABLE
from kvmarch_arm64.formats import Leaf
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.oldmmu import stage2_set_pte
from kvmarch_arm64.pgtable import kvm_pgtable_stage2_map
from kvmarch_arm64.pte import kvm_pte_table, stage2_is_young, stage2_mkold
from kvmarch_arm64.ranges import unmap_stage2_range
from kvmarch_arm64.s2pte import kvm_pfn_pte, page_s2
from kvmarch_arm64.walk import VALID, change_attributes, follow, leaf_of

from kvmarch import Choice, Flush, HostPte, Memslot, Vm
from kvmarch import Table as Entries

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu

_LAST = KVM_PGTABLE_LAST_LEVEL
_AF = Leaf.af.mask

# -------------------------------------------------------------------------
# Unmap
# -------------------------------------------------------------------------


async def kvm_unmap_gfn_range(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> None:
    """Unmap a range; all invalidations are done when this returns, none is owed."""
    await unmap_stage2_range(vm, start, end, may_block)


# -------------------------------------------------------------------------
# change_pte
# -------------------------------------------------------------------------

set_spte_gfn = Choice("set_spte_gfn", "what change_pte does to an entry")


@set_spte_gfn.when()
def _set_pte(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Map the new page read-only if the table for it is still there.

    Neither an entry for the gfn is asked for, nor whether an invalidation is on.

    :Kernel: kvm_set_spte_hva(), kvm_set_spte_handler(), up to v5.9
    """
    if vm.arch.pgt is None:
        return None
    layout = vm.arch.layout
    prot = page_s2(layout, xn=not layout.dic)
    new = kvm_pfn_pte(layout, HostPte.pfn.get(pte), prot)
    stage2_set_pte(vm, None, gfn, new, logging=False)
    return None


@set_spte_gfn.when(PGTABLE)
def _map(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Map the new page read-only, without pages for tables; the result is ignored.

    :Kernel: kvm_set_spte_hva(), v5.10 to v5.12, kvm_set_spte_gfn(), v5.13 to v6.9
    """
    mmu: Mmu = vm.arch
    if mmu.pgt is not None:
        # R and nothing else; X is not asked for even with DIC.
        kvm_pgtable_stage2_map(vm, gfn, 1, HostPte.pfn.get(pte), mmu.read_only, None)
    return None


# -------------------------------------------------------------------------
# Aging
# -------------------------------------------------------------------------

age_gfn = Choice("age_gfn", "how a range is marked old")
test_age_gfn = Choice("test_age_gfn", "how a range is asked whether it was used")

_PER_PAGE = ("arm64-aging",)
_FIRST_LEAF = (*_PER_PAGE, "arm64-range-handlers")
_ALL_LEAVES = (*_FIRST_LEAF, PGTABLE, "arm64-ranged-aging")
_TEST = "arm64-test-age-range"


def _no_aging(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Say that nothing was used: there is no aging yet (before v4.1)."""
    return False


def _leaf_young(vm: Vm, gfn: int, *, clear: bool) -> bool:
    """Return the access flag of a leaf, and clear it if asked to.

    :Kernel: kvm_age_hva_handler(); kvm_pgtable_stage2_mkold(),
        kvm_pgtable_stage2_is_young()
    """
    found = leaf_of(vm, gfn)
    if found is None:
        return False
    table, index, _level, old = found
    young = stage2_is_young(old)
    if young and clear:
        change_attributes(vm, table, index, old, stage2_mkold(old))
    return young


def _per_page(vm: Vm, start: int, end: int, *, clear: bool) -> bool:
    if _lacks_root(vm):
        return False
    young = [_leaf_young(vm, gfn, clear=clear) for gfn in range(start, end)]
    return any(young)


def _lacks_root(vm: Vm) -> bool:
    """Return whether there is nothing to look at; walking it is the bug of 2017."""
    if vm.arch.pgt is not None:
        return False
    if not vm.k.arm64_ages_without_root:
        vm.world.violate("table-memory", "aging walks stage 2 after its root was freed")
    return True


ages_without_root = Choice(
    "arm64_ages_without_root", "whether aging looks first if there is a root"
)
ages_without_root.add(False)
ages_without_root.add(True, "arm64-aging-null-pgd")


def _first_leaf(vm: Vm, start: int, end: int, *, clear: bool) -> bool:
    """Look at the first leaf; a range that is no page or block is warned about."""
    if _lacks_root(vm):
        return False
    mmu: Mmu = vm.arch
    sizes = {1 << shift for shift in mmu.shifts[1:]}
    vm.warn(end - start not in sizes, "kvm_age_gfn(): the range is no page or block")
    return _leaf_young(vm, start, clear=clear)


def _every_leaf(vm: Vm, start: int, end: int, *, clear: bool) -> bool:
    """Look at all leaves (df6556adf27b, v6.5 on).

    :Kernel: kvm_pgtable_stage2_test_clear_young()
    """
    mmu: Mmu = vm.arch
    if mmu.pgt is None:
        return False
    young = False
    for table, first, stop in _leaf_runs(vm, vm.tables.at(mmu.pgt), start, end):
        if table.level == _LAST:
            if clear:
                young |= table.change(mmu.young, first, stop, clear=_AF) > 0
            else:
                young |= table.count(mmu.young, first, stop) > 0
        else:
            entry = table.get(first)
            young |= stage2_is_young(entry)
            if clear:
                change_attributes(vm, table, first, entry, stage2_mkold(entry))
    return young


def _leaf_runs(
    vm: Vm, table: Entries, start: int, end: int
) -> Iterator[tuple[Entries, int, int]]:
    """Yield table, first index and end index of the leaves that a range meets.

    In tables of the last level a run is what the range covers; elsewhere one block.
    """
    level = table.level
    shift = vm.arch.shifts[level]
    first = max(start - table.base, 0) >> shift
    stop = min(table.size, (end - 1 - table.base >> shift) + 1)
    if level == _LAST:
        yield table, first, stop
        return
    for index, entry in list(table.used(first, stop)):
        if kvm_pte_table(entry, level):
            yield from _leaf_runs(vm, follow(vm, entry), start, end)
        elif entry & VALID:
            yield table, index, index + 1


for _choice in (age_gfn, test_age_gfn):
    _choice.add(_no_aging)


@age_gfn.when(*_PER_PAGE)
def _age_pages(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark each page of the range old (v4.1 to v4.11)."""
    return _per_page(vm, start, end, clear=True)


@age_gfn.when(*_FIRST_LEAF)
def _age_first(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark the first leaf of the range old (v4.12 to v6.4)."""
    return _first_leaf(vm, start, end, clear=True)


@age_gfn.when(*_ALL_LEAVES)
def _age_all(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark every leaf of the range old (v6.5 on)."""
    return _every_leaf(vm, start, end, clear=True)


@test_age_gfn.when(*_PER_PAGE)
@test_age_gfn.when(*_FIRST_LEAF)
def _test_nothing(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Look at an empty range, so that nothing is ever young (before v5.6).

    :Kernel: kvm_test_age_hva() passed hva as start and as end (cf2d23e0bac9)
    """
    return False


@test_age_gfn.when(*_PER_PAGE, _TEST)
def _test_pages(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Ask each page, if handlers still get single pages."""
    return _per_page(vm, start, end, clear=False)


@test_age_gfn.when(*_FIRST_LEAF, _TEST)
def _test_first(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Ask the first leaf of the range (v5.6 to v6.4)."""
    return _first_leaf(vm, start, end, clear=False)


@test_age_gfn.when(*_ALL_LEAVES, _TEST)
def _test_all(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Ask every leaf of the range (v6.5 on)."""
    return _every_leaf(vm, start, end, clear=False)


CHOICES = (set_spte_gfn, age_gfn, test_age_gfn, ages_without_root)
