"""A hash table of HPTEs in memory: a hash guest's own, and the host's that PR fills.

:Kernel: arch/powerpc/kvm/book3s_64_mmu_hv.c and book3s_64_mmu_host.c, v3.16 on; fact
    sheet ppc, 4.1. Values of V and R are in the old layout, as in the kernel's
    functions; what lies in memory is in the layout of the processor.
"""

__all__ = ["HptBackend", "entry_pfn", "entry_repoint", "get_hpte", "set_hpte"]

from typing import ClassVar

from kvmarch_ppc.hpt import (
    KVM_DEFAULT_HPT_ORDER,
    HashLayout,
    hpte_rpn,
    kvmppc_hpt_npte,
    lp_encoding,
)
from kvmarch_ppc.hpte import (
    HPTE_V_VALID,
    hpte_new_to_old,
    hpte_old_to_new,
    hpte_split,
)
from kvmarch_ppc.layout import Layout
from kvmarch_ppc.ops import Backend

from kvmarch import Vm


class HptBackend(Backend):
    """The part of a VM that has a hash table; two words per HPTE."""

    variables: ClassVar[tuple[str, ...]] = ("hpt",)
    layout: HashLayout

    def __init__(self, vm: Vm, layout: HashLayout) -> None:
        super().__init__(layout)
        self.order = KVM_DEFAULT_HPT_ORDER
        self.large = lp_encoding(layout.page_shift, layout.page_shift)
        size = 2 * kvmppc_hpt_npte(self.order)
        self.hpt: int | None = vm.tables.alloc(size, 0, 0).pa


def entry_pfn(layout: Layout, value: int, level: int) -> int | None:
    """Return the host page of a valid HPTE; what another one holds is not told."""
    assert isinstance(layout, HashLayout)
    v, r = hpte_split(value)
    if layout.isa300:
        v, r = hpte_new_to_old(v, r)
    if level or not v & HPTE_V_VALID:
        return None
    return hpte_rpn(r, 1 << layout.page_shift, layout.page_shift)


def entry_repoint(layout: Layout, value: int, level: int, pfn: int) -> int:
    """Return the HPTE for another host page."""
    assert isinstance(layout, HashLayout)
    place = layout.rpn_mask & -(1 << layout.page_shift)
    return value & ~place | pfn << layout.page_shift


def get_hpte(vm: Vm, index: int) -> tuple[int, int]:
    """Return V and R."""
    arch: HptBackend = vm.arch
    assert arch.hpt is not None
    table = vm.tables.at(arch.hpt)
    v, r = table.get(2 * index), table.get(2 * index + 1)
    return hpte_new_to_old(v, r) if arch.layout.isa300 else (v, r)


def set_hpte(vm: Vm, index: int, v: int, r: int) -> None:
    """Store V and R."""
    arch: HptBackend = vm.arch
    assert arch.hpt is not None
    table = vm.tables.at(arch.hpt)
    if arch.layout.isa300:
        v, r = hpte_old_to_new(v, r)
    table.set(2 * index + 1, r)
    table.set(2 * index, v)
