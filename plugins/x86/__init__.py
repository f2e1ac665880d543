"""x86: KVM with EPT or NPT, direct maps only.

The hooks of the contract; what they do is in the modules beside this one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvmarch_x86 import (
    aging,
    changes,
    dirty_log,
    fault,
    flush,
    host_tables,
    lab,
    rmap_changes,
    rules,
    slots,
    stale,
    tdp_huge,
    tdp_unmap,
    teardown,
    translate,
    unmap,
    walk_layout,
    zap_range,
)
from kvmarch_x86.arch_info import ARCH_INFO, machine_layout
from kvmarch_x86.layout import decode, formats
from kvmarch_x86.rules import Rules
from kvmarch_x86.spte import spte_to_pfn
from kvmarch_x86.state import X86Vcpu, X86Vm

from kvmarch import (
    ArchInfo,
    ArchVerb,
    Change,
    Choice,
    Deviation,
    EntryKind,
    Kernel,
    Vcpu,
    Vm,
    flush_by_request,
    hookimpl,
)

KVMARCH_API = (1, 2)

MAPS = frozenset({"leaf", "tracked"})
"""Kinds of entries that lead to a page."""


@hookimpl
def kvmarch_arch() -> ArchInfo:
    """Return what is true of x86 in every release."""
    return ARCH_INFO


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/x86."""
    return (*changes.CHANGES, *rmap_changes.RMAP_CHANGES)


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return what depends on changes."""
    return (
        *rules.CHOICES,
        *rmap_changes.RMAP_CHOICES,
        *aging.CHOICES,
        *fault.CHOICES,
        *host_tables.CHOICES,
        *slots.CHOICES,
        *stale.CHOICES,
        *tdp_huge.CHOICES,
        *tdp_unmap.CHOICES,
        *unmap.CHOICES,
        *zap_range.CHOICES,
    )


@hookimpl
def kvmarch_deviations() -> tuple[Deviation, ...]:
    """Return the exceptions to the contract."""
    return (Deviation("forgets-mmio", "generic facts 3, v3.17", "", (3, 17)),)


@hookimpl
def kvmarch_verbs() -> Sequence[ArchVerb]:
    """Return what only x86 can do."""
    return zap_range.VERBS


@hookimpl
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    """Return every kind of entry that a machine's tables hold."""
    return [
        EntryKind(level, kind, fmt, kind in MAPS)
        for level, kind, fmt in formats(machine_layout(k, options))
    ]


@hookimpl
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields."""
    decoded = decode(machine_layout(k, options), entry, level)
    return decoded.kind, decoded.fields


@hookimpl
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the first frame that a leaf maps, an aged one too."""
    layout = machine_layout(k, options)
    if decode(layout, entry, level).kind not in MAPS:
        return None
    return spte_to_pfn(layout, entry)


@hookimpl
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return a leaf as it would be for another frame."""
    fmt = decode(machine_layout(k, options), entry, level).format
    assert fmt is not None
    return fmt.fields["pfn"].set(entry, pfn)


@hookimpl
def kvmarch_vm_create(vm: Vm) -> X86Vm:
    """Make the MMU of a VM."""
    k, options = vm.k, vm.options
    layout = machine_layout(k, options)
    return X86Vm(
        layout,
        options["levels"],
        is_tdp=options["mmu"] == "tdp",
        nx_huge_pages=bool(options["nx_huge_pages"]),
        pml=bool(options["pml"]) and layout.ad and options["paging"] == "ept",
        eager_split=bool(options["eager_page_split"]),
        slot_zap_all=bool(options["slot_zap_all"]),
        rules=Rules(*(getattr(k, f"x86_{name}") for name in Rules._fields)),
        place_generation=k.x86_place_generation.fn,
        read_generation=k.x86_read_generation.fn,
    )


@hookimpl
def kvmarch_vcpu_create(vcpu: Vcpu) -> X86Vcpu:
    """Make what a vCPU has loaded: nothing yet."""
    return X86Vcpu()


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> int:
    """Return the root: EPT caches by it, and another root gets another ASID."""
    pa: int = vcpu.arch.root_pa
    return pa


@hookimpl
def kvmarch_flush_remote_tlbs(vm: Vm, start: int, end: int) -> Any:
    """Flush by request; a range flush exists on Hyper-V only."""
    return flush_by_request(vm, start, end)


kvmarch_walk = hookimpl(walk_layout.walk_layout)
kvmarch_lab = hookimpl(lab.machine)
kvmarch_vcpu_load = hookimpl(flush.vcpu_load)
kvmarch_handle_request = hookimpl(flush.handle_request)
kvmarch_translate = hookimpl(translate.translate)
kvmarch_page_fault = hookimpl(fault.page_fault)
kvmarch_entry = hookimpl(translate.entry_of)
kvmarch_leaf_table = hookimpl(translate.leaf_table_of)
kvmarch_age_gfn = hookimpl(aging.age_gfn)
kvmarch_test_age_gfn = hookimpl(aging.test_age_gfn)
kvmarch_prepare_memory_region = hookimpl(slots.prepare_memory_region)
kvmarch_commit_memory_region = hookimpl(slots.commit_memory_region)
kvmarch_memslots_updated = hookimpl(slots.memslots_updated)
kvmarch_dirty_log_masked = hookimpl(dirty_log.dirty_log_masked)
kvmarch_sync_dirty_log = hookimpl(dirty_log.sync_dirty_log)
kvmarch_flush_shadow_all = hookimpl(teardown.flush_shadow_all)
kvmarch_destroy_vm = hookimpl(teardown.destroy_vm)
