"""Which hooks of the contract a plugin needs, and which must be paths."""

__all__ = ["OPTIONAL", "PATHS", "TIERS"]

OPTIONAL = frozenset(
    {
        "kvmarch_changes",
        "kvmarch_choices",
        "kvmarch_deviations",
        "kvmarch_handle_request",
        "kvmarch_lab",
        "kvmarch_memslots_updated",
        "kvmarch_recordings",
        "kvmarch_scenarios",
        "kvmarch_sync_dirty_log",
        "kvmarch_vcpu_create",
        "kvmarch_destroy_vm",
        "kvmarch_vcpu_load",
        "kvmarch_vcpu_reload",
        "kvmarch_verbs",
        "kvmarch_walk",
    }
)
"""Hooks that a plugin may leave out; the core then does nothing, or the usual."""

PATHS = frozenset(
    {
        "commit_memory_region",
        "destroy_vm",
        "flush_shadow_all",
        "flush_shadow_memslot",
        "memslots_updated",
        "page_fault",
        "sync_dirty_log",
        "vcpu_reload",
    }
)
"""Operations that are always paths: a plain function is refused for them."""

TIERS: dict[int, tuple[str, ...]] = {
    1: ("arch", "formats", "decode", "entry_pfn", "entry_repoint"),
    2: (
        "vm_create",
        "tlb_tag",
        "translate",
        "page_fault",
        "unmap_gfn_range",
        "flush_remote_tlbs",
        "entry",
        "leaf_table",
    ),
    3: ("set_spte_gfn", "age_gfn", "test_age_gfn"),
    4: (
        "prepare_memory_region",
        "commit_memory_region",
        "flush_shadow_memslot",
        "dirty_log_masked",
    ),
    5: ("flush_shadow_all",),
}
"""What each tier adds to those before it, without the prefix ``kvmarch_``."""
