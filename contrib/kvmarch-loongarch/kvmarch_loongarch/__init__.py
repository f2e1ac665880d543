"""LoongArch: KVM with guest mode and guest IDs, from v6.8 on.

The hooks of kvmarch's contract; what they do is in the modules beside this one. What
is modelled, and what is not, is in the README.
"""

__all__ = ["KVMARCH_API"]

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kvmarch import (
    ArchInfo,
    Change,
    Choice,
    EntryError,
    EntryKind,
    FaultResult,
    Kernel,
    Option,
    Vcpu,
    Vm,
    flush_by_request,
    hookimpl,
)

from kvmarch_loongarch import (
    fault,
    kinds,
    memslots,
    notifier,
    refill,
    state,
    table,
    teardown,
    vpid,
    walk_layout,
)
from kvmarch_loongarch.changes import CHANGES
from kvmarch_loongarch.geometry import find_geometry

KVMARCH_API = (1, 3)


@hookimpl
def kvmarch_arch() -> ArchInfo:
    """Return what is true of LoongArch in every release."""
    return ArchInfo(
        name="loongarch",
        title="LoongArch",
        first=(6, 8),
        options={
            "page_size": Option((16384, 4096, 65536), "bytes of a page"),
            "levels": Option((3, 4), "levels of the table; 4 with pages of 4 KiB only"),
            "ptw": Option(
                (False, True), "whether the CPU has the hardware page-table walker"
            ),
            "vabits": Option((48, 40), "bits of a virtual address that the CPU has"),
        },
        pmd_order=MappingProxyType({4096: 9, 16384: 11, 65536: 13}),
        leaves_by="mmio",
        recorded_as=("loongarch64",),
    )


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/LoongArch."""
    return CHANGES


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return what depends on changes."""
    return (
        *kinds.CHOICES,
        *vpid.CHOICES,
        *fault.CHOICES,
        *memslots.CHOICES,
        *teardown.CHOICES,
    )


@hookimpl
def kvmarch_scenarios() -> Sequence[str]:
    """Return the folder of the bugs that the fact sheet has a schedule for."""
    return [str(Path(__file__).parent / "scenarios")]


# -- entries -----------------------------------------------------------------------


@hookimpl
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    """Return every kind of entry that this kernel writes, root level first."""
    return tuple(kinds.formats(k, options))


@hookimpl
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields."""
    return kinds.decode(k, options, entry, level)


@hookimpl
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the first page of a leaf."""
    return kinds.entry_pfn(k, options, entry, level)


@hookimpl
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return a leaf as it would be for another page."""
    old = kinds.entry_pfn(k, options, entry, level)
    if old is None:
        raise EntryError(f"{entry:#x} of level {level} leads to no page")
    spare = (1 << find_geometry(options).shifts[level]) - 1
    if pfn & spare:
        raise EntryError(f"pfn {pfn:#x} is no multiple of {spare + 1:#x}")
    return entry + (pfn - old << find_geometry(options).page_shift)


kvmarch_walk = hookimpl(walk_layout.walk_layout)
kvmarch_entry = hookimpl(table.lowest_entry)


@hookimpl
def kvmarch_leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return the table that holds a gfn's entry of a level, and the index."""
    found = table.table_at(vm, gfn, level)
    return None if found is None else (found[0].pa, found[1])


# -- operations --------------------------------------------------------------------


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> int:
    """Return the guest ID that the vCPU was entered with."""
    gid: int = vcpu.arch.gid
    return gid


@hookimpl
async def kvmarch_page_fault(
    vcpu: Vcpu, gfn: int, access: str, why: str
) -> FaultResult:
    """Handle a TLB exception."""
    return await fault.page_fault(vcpu, gfn, access, why)


@hookimpl
def kvmarch_flush_remote_tlbs(vm: Vm, start: int, end: int) -> Any:
    """Ask every vCPU to take a new vpid; there is no flush of a range."""
    return flush_by_request(vm, start, end)


kvmarch_vm_create = hookimpl(state.vm_create)
kvmarch_vcpu_create = hookimpl(state.vcpu_create)
kvmarch_vcpu_load = hookimpl(vpid.vcpu_load)
kvmarch_handle_request = hookimpl(vpid.handle_request)
kvmarch_translate = hookimpl(refill.translate)
kvmarch_unmap_gfn_range = hookimpl(notifier.unmap_gfn_range)
kvmarch_set_spte_gfn = hookimpl(notifier.set_spte_gfn)
kvmarch_age_gfn = hookimpl(notifier.age_gfn)
kvmarch_test_age_gfn = hookimpl(notifier.test_age_gfn)
kvmarch_prepare_memory_region = hookimpl(memslots.prepare_memory_region)
kvmarch_commit_memory_region = hookimpl(memslots.commit_memory_region)
kvmarch_flush_shadow_memslot = hookimpl(teardown.flush_shadow_memslot)
kvmarch_dirty_log_masked = hookimpl(memslots.dirty_log_masked)
kvmarch_destroy_vm = hookimpl(teardown.destroy_vm)
