"""Zapping a range because something else than the host has changed: APICv.

:Kernel: kvm_zap_gfn_range(), __kvm_set_or_clear_apicv_inhibit(); fact sheet x86, 3.9, 4
    and 6 D11.
"""

__all__ = ["CHOICES", "VERBS"]

from collections.abc import Mapping
from typing import Any

from kvmarch_x86.rmap_mmu import rmap_unmap_gfn_range
from kvmarch_x86.tdp_unmap import walk_exclusively, walk_shared

from kvmarch import (
    ArchVerb,
    Choice,
    Flush,
    Path,
    Vm,
    kvm_flush_remote_tlbs,
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    op,
)

# -- which faults wait -------------------------------------------------------------

begin = Choice("x86_zap_range_begin", "what a range zap says to faults at its begin")
end = Choice("x86_zap_range_end", "what a range zap says to faults at its end")
tracked = Choice("x86_zap_range_tracks", "which range a range zap tells faults of")
EVERYTHING = 1 << 64


@begin.when()
@end.when()
async def _say_nothing(vm: Vm, first: int, stop: int) -> None:
    """Say nothing: a fault that is under way does not hear of it (to v5.14)."""


@op(name="track range of zap")
def _track(vm: Vm, first: int, stop: int) -> None:
    first, stop = vm.k.x86_zap_range_tracks.fn(first, stop)
    old = vm.mmu_invalidate_range_start
    if old != -1:
        first, stop = min(old, first), max(vm.mmu_invalidate_range_end, stop)
    vm.mmu_invalidate_range_start, vm.mmu_invalidate_range_end = first, stop


@begin.when("x86-zap-range-counts")
async def _begin(vm: Vm, first: int, stop: int) -> None:
    """Raise the count like a notifier."""
    await kvm_mmu_invalidate_begin(vm)
    await _track(vm, first, stop)


@end.when("x86-zap-range-counts")
async def _end(vm: Vm, first: int, stop: int) -> None:
    """Move the sequence on and lower the count."""
    await kvm_mmu_invalidate_end(vm)


@tracked.when()
def _gfns(first: int, stop: int) -> tuple[int, int]:
    """Tell the gfns: up to v6.0 to faults that look for host addresses (D11)."""
    return first, stop


@tracked.when("x86-zap-range-blocks-all")
def _everything(first: int, stop: int) -> tuple[int, int]:
    """Make every fault wait (v6.1 to v6.7)."""
    return 0, EVERYTHING


tracked.add(_gfns, "x86-zap-range-blocks-all", "notifier-range-gfn")

# -- the zap -----------------------------------------------------------------------


@op(name="unmap range from the direct MMU")
def _unmap_rmap(vm: Vm, first: int, stop: int) -> Flush | None:
    owed = None
    for slot in vm.memslots[0].slots:
        start, last = max(first, slot.base_gfn), min(stop, slot.end_gfn)
        if start < last:
            flush = rmap_unmap_gfn_range(vm, slot, start, last)
            owed = flush if owed is None else owed | flush
    return owed


zap_gfn_range = Choice("x86_zap_gfn_range", "how a range zap holds mmu_lock")


@zap_gfn_range.when()
async def _zap_exclusively(vm: Vm, first: int, stop: int) -> None:
    """Hold it for write; give way between tables.

    Simplified: address space 0 only; harmless because vCPUs use no other.
    """
    async with vm.mmu_lock.write():
        await vm.k.x86_zap_range_begin(vm, first, stop)
        if vm.arch.is_tdp:
            owed = await walk_exclusively(vm, 0, first, stop)
        else:
            owed = await _unmap_rmap(vm, first, stop)
        if owed is not None:
            await kvm_flush_remote_tlbs(vm)
        await vm.k.x86_zap_range_end(vm, first, stop)


@zap_gfn_range.when("x86-zap-range-shared")
async def _zap_shared(vm: Vm, first: int, stop: int) -> None:
    """Hold it for read in the TDP MMU (v5.13 and v5.14)."""
    if not vm.arch.is_tdp:
        await _zap_exclusively(vm, first, stop)
        return
    async with vm.mmu_lock.write():
        await vm.k.x86_zap_range_begin(vm, first, stop)
    async with vm.mmu_lock.read():
        owed = await walk_shared(vm, 0, first, stop)
        if owed is not None:
            await kvm_flush_remote_tlbs(vm)
    async with vm.mmu_lock.write():
        await vm.k.x86_zap_range_end(vm, first, stop)


# -- APICv -------------------------------------------------------------------------


@op(name="set apicv_inhibit_reasons")
def _set_inhibited(vm: Vm, first: int, stop: int) -> None:
    vm.arch.inhibited = (first, stop)


inhibit_apicv = Choice("inhibit_apicv", "how the page of the APIC is taken away")


@inhibit_apicv.when()
async def _inhibit(vm: Vm, first: int, stop: int) -> None:
    """Let faults emulate from now on, and drop what maps the page.

    Simplified: an ordinary page stands for the one that KVM has behind the APIC, and
    there may be several; harmless because a fault treats it like any other.

    :Kernel: __kvm_request_apicv_update(), v5.15; other callers of kvm_zap_gfn_range()
        before: MTRRs, CR0.CD
    """
    await _set_inhibited(vm, first, stop)
    await vm.k.x86_zap_gfn_range(vm, first, stop)


def _inhibit_from(vm: Vm, args: Mapping[str, Any]) -> Path[None]:
    first: int = args["gfn"]
    path: Path[None] = vm.k.inhibit_apicv(vm, first, first + args.get("pages", 1))
    return path


VERBS = (
    ArchVerb(
        "apicv_inhibit",
        "APICv is inhibited; pages are emulated from now on.",
        _inhibit_from,
        {"gfn": "int", "pages": "?int"},
    ),
)
CHOICES = (begin, end, tracked, zap_gfn_range, inhibit_apicv)
