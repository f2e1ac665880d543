"""ppc: KVM on Book3S HV (radix and hash), Book3S PR and e500.

Each MMU is a table of operations, as struct kvmppc_ops is; the hooks look it up.
"""

__all__ = ["KVMARCH_API"]

from collections.abc import Iterable, Mapping
from typing import Any

from kvmarch_ppc import (
    changes,
    e500,
    hash_mmu,
    host_page,
    lab,
    pr,
    radix,
    shadow,
    walk_layout,
)
from kvmarch_ppc.arch_info import ARCH_INFO
from kvmarch_ppc.layout import decode, formats
from kvmarch_ppc.ops import Backend, KvmppcOps

from kvmarch import (
    ArchInfo,
    Change,
    Choice,
    Deviation,
    EntryKind,
    FaultResult,
    Flush,
    Kernel,
    Memslot,
    Translation,
    Vcpu,
    Vm,
    WalkLayout,
    flush_by_request,
    hookimpl,
)

KVMARCH_API = (1, 2)

MMUS: Mapping[str, KvmppcOps] = {
    "radix": radix.RADIX,
    "hash": hash_mmu.HASH,
    "pr": pr.PR,
    "e500": e500.E500_OPS,
}
"""kvmppc_hv_ops, kvmppc_pr_ops and the like, by the option ``mmu``."""

# -- who are you -------------------------------------------------------------------


@hookimpl
def kvmarch_arch() -> ArchInfo:
    return ARCH_INFO


@hookimpl
def kvmarch_changes() -> tuple[Change, ...]:
    return changes.CHANGES


@hookimpl
def kvmarch_choices() -> tuple[Choice, ...]:
    return (
        *changes.CHOICES,
        *host_page.CHOICES,
        *radix.CHOICES,
        *hash_mmu.CHOICES,
        *shadow.CHOICES,
        *pr.CHOICES,
        *e500.CHOICES,
    )


@hookimpl
def kvmarch_deviations() -> tuple[Deviation, ...]:
    return (
        Deviation("zaps-deleted-slots", "ppc facts 2 and L1", "pr"),
        Deviation("zaps-deleted-slots", "ppc facts 2 and L1", "e500"),
        Deviation("flushes-only-what-goes", "ppc facts 2", "e500"),
        Deviation("logs-writes", "ppc facts 6", "e500"),
        Deviation("logs-only-writes", "ppc facts 5", "pr"),
    )


@hookimpl
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    return formats(MMUS[options["mmu"]].make_layout(k, options))


@hookimpl
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    found = decode(MMUS[options["mmu"]].make_layout(k, options), entry, level)
    return found.kind, found.fields


@hookimpl
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    ops = MMUS[options["mmu"]]
    return ops.entry_pfn(ops.make_layout(k, options), entry, level)


@hookimpl
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    ops = MMUS[options["mmu"]]
    return ops.entry_repoint(ops.make_layout(k, options), entry, level, pfn)


@hookimpl
def kvmarch_walk(k: Kernel, options: Mapping[str, Any]) -> WalkLayout | None:
    return walk_layout.walk_layout(k, options)


kvmarch_lab = hookimpl(lab.machine)


# -- map, unmap, flush -------------------------------------------------------------


@hookimpl
def kvmarch_vm_create(vm: Vm) -> Backend:
    ops = MMUS[vm.options["mmu"]]
    arch = ops.vm_create(vm, ops.make_layout(vm.k, vm.options))
    arch.ops = ops
    return arch


@hookimpl
def kvmarch_vcpu_create(vcpu: Vcpu) -> Any:
    return vcpu.vm.arch.ops.vcpu_create(vcpu)


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> Any:
    return vcpu.vm.arch.ops.tlb_tag(vcpu)


@hookimpl
def kvmarch_handle_request(vcpu: Vcpu, request: str) -> None:
    vcpu.vm.arch.ops.flush_tlb(vcpu)


@hookimpl
def kvmarch_translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    found: Translation | str = vcpu.vm.arch.ops.translate(vcpu, gfn, access)
    return found


@hookimpl
async def kvmarch_page_fault(
    vcpu: Vcpu, gfn: int, access: str, why: str
) -> FaultResult:
    result: FaultResult = await vcpu.vm.arch.ops.page_fault(vcpu, gfn, access, why)
    return result


@hookimpl
async def kvmarch_unmap_gfn_range(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> Flush | None:
    owed: Flush | None = await vm.arch.ops.unmap_gfn_range(vm, slot, start, end)
    return owed


@hookimpl
def kvmarch_flush_remote_tlbs(vm: Vm, start: int, end: int) -> Any:
    return flush_by_request(vm, start, end)


@hookimpl
def kvmarch_entry(vm: Vm, gfn: int) -> tuple[int, int]:
    found: tuple[int, int] = vm.arch.ops.entry(vm, gfn)
    return found


@hookimpl
def kvmarch_leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    found: tuple[int, int] | None = vm.arch.ops.leaf_table(vm, gfn, level)
    return found


# -- change_pte and ageing ---------------------------------------------------------


@hookimpl
async def kvmarch_set_spte_gfn(
    vm: Vm, slot: Memslot, gfn: int, pte: int
) -> Flush | None:
    owed: Flush | None = await vm.arch.ops.set_spte_gfn(vm, slot, gfn, pte)
    return owed


@hookimpl
async def kvmarch_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    young: bool = await vm.arch.ops.age_gfn(vm, slot, start, end)
    return young


@hookimpl
async def kvmarch_test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    young: bool = await vm.arch.ops.test_age_gfn(vm, slot, start, end)
    return young


# -- dirty logging and memslots ----------------------------------------------------


@hookimpl
def kvmarch_prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    errno: int = vm.arch.ops.prepare_memory_region(vm, old, new, change)
    return errno


@hookimpl
async def kvmarch_commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    await vm.arch.ops.commit_memory_region(vm, old, new, change)


@hookimpl
async def kvmarch_flush_shadow_memslot(vm: Vm, slot: Memslot) -> None:
    await vm.arch.ops.flush_memslot(vm, slot)


@hookimpl
async def kvmarch_dirty_log_masked(
    vm: Vm, slot: Memslot, gfn: int, mask: int
) -> Flush | None:
    owed: Flush | None = await vm.arch.ops.dirty_log_masked(vm, slot, gfn, mask)
    return owed


@hookimpl
async def kvmarch_sync_dirty_log(vm: Vm, slot: Memslot) -> int:
    errno: int = await vm.arch.ops.sync_dirty_log(vm, slot)
    return errno


# -- teardown ----------------------------------------------------------------------


@hookimpl
async def kvmarch_flush_shadow_all(vm: Vm) -> None:
    """Do nothing: an empty inline function for every MMU (fact sheet ppc, 2)."""


@hookimpl
async def kvmarch_destroy_vm(vm: Vm) -> None:
    await vm.arch.ops.destroy_vm(vm)
