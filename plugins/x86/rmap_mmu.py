"""The direct MMU with reverse maps (mmu=rmap): what the hooks call.

The functions of its modules in one place; all need mmu_lock exclusively. Walks are
those of :func:`kvmarch_x86.tdp_tables.lowest`.
"""

__all__ = [
    "rmap_age",
    "rmap_alloc_root",
    "rmap_clear_dirty_slot",
    "rmap_dirty_masked",
    "rmap_free_root",
    "rmap_map",
    "rmap_set_spte_gfn",
    "rmap_test_age",
    "rmap_unmap_gfn_range",
    "rmap_write_protect_gfn",
    "rmap_write_protect_slot",
    "rmap_zap_all",
    "rmap_zap_collapsible",
    "rmap_zap_obsolete_pages",
]

from kvmarch_x86.rmap_map import rmap_map
from kvmarch_x86.rmap_pages import rmap_alloc_root, rmap_free_root
from kvmarch_x86.rmap_range import (
    rmap_age,
    rmap_clear_dirty_slot,
    rmap_dirty_masked,
    rmap_set_spte_gfn,
    rmap_test_age,
    rmap_unmap_gfn_range,
    rmap_write_protect_gfn,
    rmap_write_protect_slot,
    rmap_zap_collapsible,
)
from kvmarch_x86.rmap_zap import rmap_zap_all, rmap_zap_obsolete_pages
