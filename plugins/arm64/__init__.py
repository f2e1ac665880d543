"""arm64: KVM with stage-2 translation.

The hooks of the contract; what they do is in the modules beside this one.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvmarch_arm64 import (
    changes,
    fault,
    fault_exclusive,
    fault_old,
    fault_shared,
    lab,
    memslots,
    notifier,
    oldmmu,
    parallel,
    pgtable,
    plan,
    ranges,
    state,
    teardown,
    tlbi,
    vmid,
    walk,
    walk_layout,
)
from kvmarch_arm64.arch_info import ARCH_INFO
from kvmarch_arm64.layout import decode, formats
from kvmarch_arm64.state import Arm64Vcpu, Mmu, find_layout

from kvmarch import (
    ArchInfo,
    Change,
    Choice,
    Deviation,
    EntryKind,
    Kernel,
    Vcpu,
    Vm,
    hookimpl,
)

KVMARCH_API = (1, 2)

MAPS = frozenset({"page", "block"})
"""Kinds of entries that lead to a page."""

_REMAINS = frozenset({"page-remains", "block-remains"})


@hookimpl
def kvmarch_arch() -> ArchInfo:
    """Return what is true of arm64 in every release."""
    return ARCH_INFO


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/arm64."""
    return changes.CHANGES


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return what depends on changes."""
    return (
        *state.CHOICES,
        *vmid.CHOICES,
        *tlbi.CHOICES,
        *pgtable.CHOICES,
        *parallel.CHOICES,
        *ranges.CHOICES,
        *oldmmu.CHOICES,
        *plan.CHOICES,
        *fault.CHOICES,
        *fault_old.CHOICES,
        *fault_exclusive.CHOICES,
        *fault_shared.CHOICES,
        *notifier.CHOICES,
        *memslots.CHOICES,
        *teardown.CHOICES,
    )


@hookimpl
def kvmarch_deviations() -> tuple[Deviation, ...]:
    """Return the exceptions to the contract."""
    return (Deviation("maps-nothing-before-end", "generic facts 2.5", "", (6, 10)),)


@hookimpl
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    """Return every kind of entry that a machine's tables hold, root level first."""
    start: int = k.arm64_geometry.fn(options).start_level
    return [
        EntryKind(level, kind, fmt, kind in MAPS)
        for level, kind, fmt in formats(find_layout(k, options))
        if level >= start
    ]


@hookimpl
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields."""
    decoded = decode(find_layout(k, options), entry, level)
    return decoded.kind, decoded.fields


@hookimpl
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the first frame of a leaf, or of what unmapping has left of one."""
    decoded = decode(find_layout(k, options), entry, level)
    if decoded.kind not in MAPS | _REMAINS:
        return None
    return decoded.fields["pfn"]


@hookimpl
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return a leaf as it would be for another frame."""
    fmt = decode(find_layout(k, options), entry, level).format
    assert fmt is not None
    return fmt.fields["pfn"].set(entry, pfn)


@hookimpl
def kvmarch_vm_create(vm: Vm) -> Mmu:
    """Make stage 2 of a VM: the root exists from the beginning."""
    return Mmu(vm)


@hookimpl
def kvmarch_vcpu_create(vcpu: Vcpu) -> Arm64Vcpu:
    """Make what a vCPU has of its own."""
    return Arm64Vcpu()


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> int:
    """Return the VMID that the vCPU has entered with."""
    number: int = vcpu.arch.vmid
    return number


kvmarch_walk = hookimpl(walk_layout.walk_layout)
kvmarch_lab = hookimpl(lab.machine)
kvmarch_translate = hookimpl(walk.translate)
kvmarch_page_fault = hookimpl(fault.kvm_handle_guest_abort)
kvmarch_unmap_gfn_range = hookimpl(notifier.kvm_unmap_gfn_range)
kvmarch_entry = hookimpl(walk.entry_of)
kvmarch_leaf_table = hookimpl(walk.leaf_table)
kvmarch_prepare_memory_region = hookimpl(memslots.kvm_arch_prepare_memory_region)
kvmarch_commit_memory_region = hookimpl(memslots.kvm_arch_commit_memory_region)
kvmarch_flush_shadow_memslot = hookimpl(memslots.kvm_arch_flush_shadow_memslot)
