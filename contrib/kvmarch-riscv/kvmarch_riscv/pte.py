"""What KVM makes of entries: values, tests and changes, on ints.

:Kernel: arch/riscv/kvm/gstage.c, arch/riscv/kvm/mmu.c before v6.17, and the macros of
    asm/pgtable.h that they use (fact sheet riscv, 1.1, 1.4).
"""

__all__ = [
    "PPN",
    "RWX",
    "A",
    "W",
    "child_pte",
    "device_pte",
    "entry_pfn",
    "is_leaf",
    "is_table",
    "leaf_pte",
    "mkold",
    "pte_with_pfn",
    "pte_with_prot",
    "table_pa",
    "table_pte",
    "wrprotect",
]

from kvmarch_riscv.formats import Leaf, Pbmt, Table
from kvmarch_riscv.geometry import INDEX_BITS, PAGE_SHIFT

A = Leaf.a.mask
W = Leaf.w.mask
RWX = Leaf.r.mask | Leaf.w.mask | Leaf.x.mask
PPN = Leaf.ppn.mask
_PPN_SHIFT = Leaf.ppn.low
_PA_SHIFT = PAGE_SHIFT - _PPN_SHIFT
"""A page number stands this much lower in an entry than in an address."""
_G, _U, _X = (1 << bit for bit in (5, 4, 3))
_PROT = Leaf.pack(a=1) & ~_X
"""PAGE_READ after pte_mkdirty(): V, R, U, A and D."""
_IO = Pbmt.IO << 61


def leaf_pte(pfn: int, *, writable: bool, executable: bool = True) -> int:
    """Return the leaf with which a page is mapped, of whatever size.

    :Kernel: kvm_riscv_gstage_map_page(), gstage_map_page(): PAGE_READ, PAGE_WRITE,
        PAGE_READ_EXEC or PAGE_WRITE_EXEC, and pte_mkdirty().
    """
    prot = _PROT | (W if writable else 0) | (_X if executable else 0)
    return pfn << _PPN_SHIFT | prot


def device_pte(pfn: int, *, writable: bool, user: bool, pbmt: bool) -> int:
    """Return the leaf with which a device's page is mapped.

    :Kernel: kvm_riscv_mmu_ioremap(), kvm_riscv_gstage_ioremap() before v6.17,
        stage2_ioremap() before v5.19.
    :param user: a guest may use it: since v6.17, 9bca8be646e0.
    :param pbmt: uncached by Svpbmt: since v6.1, on CPUs that have it.
    """
    pte = leaf_pte(pfn, writable=writable, executable=False)
    if not user:
        pte = pte & ~_U | _G
    return pte | (_IO if pbmt else 0)


def table_pte(pa: int) -> int:
    """Return the pointer to a table at a physical address (bytes)."""
    return pa >> PAGE_SHIFT << _PPN_SHIFT | Table.kind_value


def table_pa(entry: int) -> int:
    """Return the physical address (bytes) of the table that a pointer leads to.

    :Kernel: gstage_pte_page_vaddr()
    """
    return (entry & PPN) << _PA_SHIFT


def is_leaf(entry: int) -> bool:
    """Return whether an entry has any of R, W and X.

    :Kernel: gstage_pte_leaf()
    """
    return entry & RWX != 0


def is_table(entry: int) -> bool:
    """Return whether an entry is followed: it is not 0, and no leaf. V is not asked."""
    return entry != 0 and not entry & RWX


def entry_pfn(entry: int) -> int:
    """Return the page number in an entry."""
    return (entry & PPN) >> _PPN_SHIFT


def pte_with_pfn(entry: int, pfn: int) -> int:
    """Return an entry with another page number."""
    return entry & ~PPN | pfn << _PPN_SHIFT


def pte_with_prot(entry: int, *, writable: bool) -> int:
    """Return a leaf with the protection of a new one, young and dirty again.

    :Kernel: kvm_riscv_gstage_update_pte_prot(), since v7.1
    """
    return leaf_pte(entry_pfn(entry), writable=writable)


def wrprotect(entry: int) -> int:
    """Return an entry without W; D stays, because it says nothing here.

    :Kernel: GSTAGE_OP_WP
    """
    return entry & ~W


def mkold(entry: int) -> int:
    """Return a leaf old.

    :Kernel: ptep_test_and_clear_young()
    """
    return entry & ~A


def child_pte(huge: int, index: int, level: int) -> int:
    """Return one of the leaves into which a huge one is split.

    :Kernel: make_child_pte(), since v7.1
    :param level: of the huge leaf.
    """
    return huge | index << INDEX_BITS * (level - 1) + _PPN_SHIFT
