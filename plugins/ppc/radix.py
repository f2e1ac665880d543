"""Book3S HV with a radix guest, as one table of operations."""

__all__ = ["CHOICES", "RADIX", "only_a_kick"]

from kvmarch_ppc import (
    memslots,
    radix_dirty,
    radix_fault,
    radix_tree,
    radix_unmap,
    ranges,
)
from kvmarch_ppc.ops import KvmppcOps, nothing

from kvmarch import Vcpu, take_dirty_log_protect


def _no_vcpu_state(vcpu: Vcpu) -> None:
    """Keep nothing per vCPU."""


def only_a_kick(vcpu: Vcpu) -> None:
    """Invalidate nothing: for HV the generic flush is a kick (fact sheet ppc, 1)."""


RADIX = KvmppcOps(
    make_layout=radix_tree.make_layout,
    entry_pfn=radix_tree.entry_pfn,
    entry_repoint=radix_tree.entry_repoint,
    vm_create=radix_tree.vm_create,
    vcpu_create=_no_vcpu_state,
    tlb_tag=radix_tree.tlb_tag,
    flush_tlb=only_a_kick,
    translate=radix_tree.translate,
    page_fault=radix_fault.page_fault,
    entry=radix_tree.entry,
    leaf_table=radix_tree.leaf_table,
    unmap_gfn_range=radix_unmap.unmap_gfn_range,
    set_spte_gfn=radix_unmap.set_spte_gfn,
    age_gfn=radix_unmap.age_gfn,
    test_age_gfn=radix_unmap.test_age_gfn,
    prepare_memory_region=memslots.prepare_memory_region,
    commit_memory_region=memslots.commit_memory_region_hv,
    flush_memslot=radix_unmap.flush_memslot,
    dirty_log_masked=nothing,
    sync_dirty_log=radix_dirty.sync_dirty_log,
    take_dirty_log=take_dirty_log_protect,
    destroy_vm=radix_tree.destroy_vm,
)

CHOICES = (
    *radix_tree.CHOICES,
    *radix_unmap.CHOICES,
    *radix_fault.CHOICES,
    *radix_dirty.CHOICES,
    *ranges.CHOICES,
    *memslots.CHOICES,
)
