"""MIPS: KVM with VZ (GuestID or root ASID) and, up to v5.12, trap and emulate.

The software fills the TLB, and a GPA page table in the layout of the host's own page
tables is what it fills it from. Modelled from v4.11 on: before, KVM/MIPS had neither
that table nor MMU notifiers, only a flat array of pinned pages (fact sheet mips,
sections 1 and 8).
"""

__all__ = ["KVMARCH_API"]

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from kvmarch_mips import (
    fault,
    gpa_table,
    memslots,
    notifier,
    pte,
    state,
    teardown,
    tlb,
    walk_layout,
)
from kvmarch_mips.changes import CHANGES, CHOICES

from kvmarch import (
    ArchInfo,
    Change,
    Choice,
    Deviation,
    EntryError,
    EntryKind,
    FaultResult,
    Flush,
    Kernel,
    Memslot,
    Option,
    Translation,
    Vcpu,
    Vm,
    WalkLayout,
    hookimpl,
)

KVMARCH_API = (1, 2)

VZ = (4, 12)
"""The first release with hardware virtualisation (c992a4f6a9b0)."""
NO_TE = (5, 13)
"""The first release without trap and emulate (45c7e8af4a5e)."""


@hookimpl
def kvmarch_arch() -> ArchInfo:
    """Return what is true of MIPS in every release."""
    return ArchInfo(
        name="mips",
        title="MIPS",
        first=(4, 11),
        options={
            "page_size": Option((4096, 16384, 65536), "bytes of a page"),
            "mmu": Option(
                ("guestid", "rad", "te"),
                "VZ with GuestID, VZ with root ASID, or trap and emulate",
                since={"guestid": VZ, "rad": VZ},
                until={"te": NO_TE},
            ),
            "layout": Option(
                ("A", "B", "F", "D"),
                "PTE bits: A without SPECIAL, B the usual one, F B without huge "
                "TLB pages, D without RIXI (trap and emulate only)",
                until={"D": NO_TE},
            ),
            "cca": Option((5, 3), "cache coherency attribute (Config.K0)"),
        },
        # About v5.3: between v4.19 and v5.4, so that both may be chosen at will.
        defaults={"layout": (((5, 3), "B"),)},
        pmd_order=MappingProxyType({4096: 9, 16384: 11, 65536: 13}),
        leaves_by="mmio",
        recorded_as=("mips64", "mips"),
    )


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/MIPS."""
    return CHANGES


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return the operations and values that depend on changes."""
    return CHOICES


# -- entries -----------------------------------------------------------------------


@hookimpl
def kvmarch_deviations() -> tuple[Deviation, ...]:
    """Return the exceptions to the contract."""
    return (
        Deviation("flushes-only-what-goes", "mips facts 2"),
        Deviation("maps-nothing-before-end", "generic facts 2.5", "", (6, 10)),
    )


@hookimpl
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    """Return the kinds of entry of the options' layout."""
    return pte.formats(state.layout_of(options))


@hookimpl
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what a value means in the options' layout."""
    found = pte.decode(state.layout_of(options), entry, level)
    return found.kind, found.fields


@hookimpl
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the page of a leaf."""
    layout = state.layout_of(options)
    if level == 1 and layout.format.accepts(entry):
        return pte.pte_pfn(layout, entry)
    return None


@hookimpl
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return a leaf with another page."""
    layout = state.layout_of(options)
    if level != 1 or not layout.format.accepts(entry):
        raise EntryError(f"{entry:#x} of level {level} leads to no page")
    return layout.format.fields["pfn"].set(entry, pfn)


@hookimpl
def kvmarch_walk(k: Kernel, options: Mapping[str, Any]) -> WalkLayout:
    """Return how the GPA page table is walked."""
    return walk_layout.walk_layout(k, options)


@hookimpl
def kvmarch_entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry of a gfn and its level."""
    return gpa_table.lowest_entry(vm, gfn)


@hookimpl
def kvmarch_leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return the table that holds a gfn's entry of a level, and the index."""
    found = gpa_table.table_at(vm, gfn, level)
    return None if found is None else (found[0].pa, found[1])


# -- operations --------------------------------------------------------------------


@hookimpl
def kvmarch_vm_create(vm: Vm) -> state.MipsVm:
    """Make an empty GPA page table."""
    return state.vm_create(vm)


@hookimpl
def kvmarch_vcpu_create(vcpu: Vcpu) -> state.MipsVcpu:
    """Make the state of one vCPU."""
    return state.vcpu_create(vcpu)


@hookimpl
def kvmarch_vcpu_load(vcpu: Vcpu) -> None:
    """Take a new number if the one at hand is stale."""
    tlb.vcpu_load(vcpu)


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> int:
    """Return the GuestID or ASID that the guest was entered with."""
    arch: state.MipsVcpu = vcpu.arch
    return arch.tag


@hookimpl
def kvmarch_handle_request(vcpu: Vcpu, request: str) -> None:
    """Give up what a flush request makes stale."""
    tlb.handle_request(vcpu, request)


@hookimpl
def kvmarch_translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Look up, refill, or raise an exception."""
    return tlb.translate(vcpu, gfn, access)


@hookimpl
async def kvmarch_page_fault(
    vcpu: Vcpu, gfn: int, access: str, why: str
) -> FaultResult:
    """Handle a TLB exception."""
    return await fault.page_fault(vcpu, gfn, access, why)


@hookimpl
async def kvmarch_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Make a range old."""
    return await notifier.age_gfn(vm, slot, start, end)


@hookimpl
def kvmarch_prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Agree to everything: kvm_arch_prepare_memory_region() returns 0."""
    return 0


@hookimpl
async def kvmarch_commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Make a slot clean when its dirty log is switched on."""
    await memslots.commit_memory_region(vm, old, new, change)


@hookimpl
async def kvmarch_flush_shadow_memslot(vm: Vm, slot: Memslot) -> None:
    """Zap a slot that is going."""
    await memslots.flush_shadow_memslot(vm, slot)


@hookimpl
def kvmarch_dirty_log_masked(
    vm: Vm, slot: Memslot, gfn: int, mask: int
) -> Flush | None:
    """Make the pages of a mask clean."""
    return memslots.dirty_log_masked(vm, slot, gfn, mask)


@hookimpl
async def kvmarch_destroy_vm(vm: Vm) -> None:
    """Free the GPA page table."""
    await teardown.destroy_vm(vm)
