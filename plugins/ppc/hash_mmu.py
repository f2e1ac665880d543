"""Book3S HV with a hash guest, as one table of operations."""

__all__ = ["CHOICES", "HASH"]

from kvmarch_ppc import (
    hash_dirty,
    hash_fault,
    hash_hcalls,
    hash_table,
    hash_unmap,
    hpt_table,
    memslots,
)
from kvmarch_ppc.ops import KvmppcOps, nothing
from kvmarch_ppc.radix import only_a_kick

from kvmarch import take_dirty_log_protect

HASH = KvmppcOps(
    make_layout=hash_table.make_layout,
    entry_pfn=hpt_table.entry_pfn,
    entry_repoint=hpt_table.entry_repoint,
    vm_create=hash_table.vm_create,
    vcpu_create=hash_table.vcpu_create,
    tlb_tag=hash_table.tlb_tag,
    flush_tlb=only_a_kick,
    translate=hash_table.translate,
    page_fault=hash_fault.page_fault,
    entry=hash_table.entry,
    leaf_table=hash_table.leaf_table,
    unmap_gfn_range=hash_unmap.unmap_gfn_range,
    set_spte_gfn=hash_unmap.set_spte_gfn,
    age_gfn=hash_unmap.age_gfn,
    test_age_gfn=hash_unmap.test_age_gfn,
    prepare_memory_region=memslots.prepare_memory_region_hash,
    commit_memory_region=memslots.commit_memory_region_hv,
    flush_memslot=hash_unmap.flush_memslot,
    dirty_log_masked=nothing,
    sync_dirty_log=hash_dirty.sync_dirty_log,
    take_dirty_log=take_dirty_log_protect,
    destroy_vm=hash_table.destroy_vm,
)

CHOICES = (*hash_hcalls.CHOICES, *hash_fault.CHOICES, *hash_dirty.CHOICES)
