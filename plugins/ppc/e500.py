"""e500mc: shadow entries in the host's TLB, and per-vCPU notes about them.

:Kernel: arch/powerpc/kvm/e500_mmu_host.c and e500.h, v3.16 on; fact sheet ppc, 6.

Simplified: the guest maps all of its memory one to one with full permission, by entries
of its TLB0. Real kernels have 4K pages; with larger ones, an entry has their size.
Guest TLB1 entries, and so bitmaps and large pages, are not modelled.
"""

__all__ = ["CHOICES", "E500", "E500_OPS", "TLB0_ENTRIES", "E500Vcpu", "TlbeRef"]

from collections.abc import Mapping
from dataclasses import replace
from errno import EOPNOTSUPP
from functools import cache
from typing import Any, NamedTuple

from kvmarch_ppc.e500_tlbe import (
    BOOK3E_PAGESZ_4K,
    E500_TLB_WRITABLE,
    PERMISSIONS,
    E500Layout,
    E500Word,
    Mas2,
    Mas73,
    ShadowEntry,
    kvmppc_e500_ref_setup,
    kvmppc_e500_setup_stlbe,
    make_e500_layout,
    tlbe_is_writable,
)
from kvmarch_ppc.layout import Layout, find_page_shift
from kvmarch_ppc.memslots import prepare_memory_region
from kvmarch_ppc.ops import Backend, KvmppcOps, always_old, nothing
from kvmarch_ppc.shadow import commit_memory_region, flush_memslot

from kvmarch import (
    Choice,
    FaultIn,
    FaultResult,
    Flush,
    Kernel,
    Memslot,
    Part,
    Translation,
    Vcpu,
    Vm,
    faultin_pfn,
    kvm_flush_remote_tlbs,
    mmu_invalidate_retry,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
    take_dirty_log_protect,
)

TLB0_ENTRIES = 512
"""Entries of the host's TLB0 on e500mc."""
_PAGE_SHIFT = Mas73.rpn.low
_M = Mas2.m.mask


class TlbeRef(NamedTuple):
    """What KVM notes of an entry of the guest's TLB that it has mapped."""

    pfn: int
    flags: int


class E500(Backend):
    """kvm->arch: nothing, for there is no table."""


class E500Vcpu(Part):
    """Notes by gfn, and what of them is in the host's TLB0."""

    variables = ("refs", "tlb0")

    def __init__(self) -> None:
        self.refs: dict[int, TlbeRef] = {}
        self.tlb0: dict[int, ShadowEntry] = {}


writable_known = Choice(
    "ppc_e500_writable", "whether notes say that the host may write the page"
)
writable_known.add(False)
writable_known.add(True, "ppc-e500-writable")


@cache
def _layout(page_size: int, *, writable: bool) -> E500Layout:
    layout = make_e500_layout(writable=writable)
    return replace(layout, page_shift=find_page_shift(page_size))


def make_layout(k: Kernel, options: Mapping[str, Any]) -> E500Layout:
    """Return the entries of an e500 guest on this kernel."""
    return _layout(options["page_size"], writable=k.ppc_e500_writable)


def vm_create(vm: Vm, layout: Layout) -> E500:
    """Keep nothing per VM."""
    return E500(layout)


def vcpu_create(vcpu: Vcpu) -> E500Vcpu:
    """Begin with nothing mapped."""
    return E500Vcpu()


def entry_pfn(layout: Layout, value: int, level: int) -> int | None:
    """Return the host page of MAS7 and MAS3."""
    if level != E500Word.MAS7_3 or not value:
        return None
    return Mas73.rpn.get(value) >> layout.page_shift - _PAGE_SHIFT


def entry_repoint(layout: Layout, value: int, level: int, pfn: int) -> int:
    """Return MAS7 and MAS3 for another host page."""
    return Mas73.rpn.set(value, pfn << layout.page_shift - _PAGE_SHIFT)


def tlb_tag(vcpu: Vcpu) -> int:
    """Return the vCPU's number: its LPID, in the TLB of its own CPU."""
    return vcpu.number


def flush_tlb(vcpu: Vcpu) -> None:
    """Invalidate the TLB by LPID and forget every note (KVM_REQ_TLB_FLUSH).

    :Kernel: kvmppc_core_flush_tlb(); always the whole vCPU.
    """
    vcpu.arch.refs.clear()
    vcpu.arch.tlb0.clear()
    vcpu.tlb.drop_all(tlb_tag(vcpu))


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Look into the host's TLB, which software fills."""
    found = vcpu.arch.tlb0.get(gfn)
    if found is None:
        return "missing"
    writable = tlbe_is_writable(found.mas7_3)
    if access == "write" and not writable:
        return "permission"
    pfn = entry_pfn(vcpu.vm.arch.layout, found.mas7_3, E500Word.MAS7_3)
    assert pfn is not None
    return Translation(gfn, 1, pfn, True, writable, True)


def entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return MAS7 and MAS3 in the TLB of the first vCPU that has an entry.

    If none has, an unbacked note.
    """
    for vcpu in vm.vcpus:
        found = vcpu.arch.tlb0.get(gfn)
        if found is not None:
            return found.mas7_3, E500Word.MAS7_3
    return 0, E500Word.TLBE_REF


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return None: there is no table in memory."""
    return None


# -- the fault ---------------------------------------------------------------------


def _stlbe(vm: Vm, gfn: int, ref: TlbeRef) -> ShadowEntry:
    layout: E500Layout = vm.arch.layout
    order = layout.page_shift - _PAGE_SHIFT
    return kvmppc_e500_setup_stlbe(
        layout,
        ref.flags,
        gfn << layout.page_shift,
        ref.pfn << order,
        PERMISSIONS & ~Mas73.user.mask,
        tsize=BOOK3E_PAGESZ_4K + order,
    )


@op(name="kvmppc_e500_ref_setup")
def _ref_setup(vcpu: Vcpu, gfn: int, found: FaultIn) -> None:
    """Note the page; nothing else keeps it from being mapped again without a look."""
    vm = vcpu.vm
    flags = kvmppc_e500_ref_setup(vm.arch.layout, _M, writable=found.writable)
    vcpu.arch.refs[gfn] = TlbeRef(found.pfn, flags)
    writable = bool(flags & E500_TLB_WRITABLE) or not vm.k.ppc_e500_writable
    vm.host.mark(found.pfn, dirty=writable, accessed=True, who="e500 fault")


@op(name="tlbwe")
def _write_stlbe(vcpu: Vcpu, gfn: int) -> None:
    """Write the entry of a note into this CPU's TLB; the oldest one gives way.

    mmu_lock is not held: if a flush was asked for since, it comes before the guest.
    """
    tlb0: dict[int, ShadowEntry] = vcpu.arch.tlb0
    tlb0[gfn] = _stlbe(vcpu.vm, gfn, vcpu.arch.refs[gfn])
    if len(tlb0) > TLB0_ENTRIES:
        oldest = next(iter(tlb0))
        del tlb0[oldest]
        vcpu.tlb.drop(tlb_tag(vcpu), oldest, oldest + 1)


@op(name="E500_TLB_VALID?")
def _is_noted(vcpu: Vcpu, gfn: int) -> bool:
    return gfn in vcpu.arch.refs


async def kvmppc_e500_shadow_map(vcpu: Vcpu, slot: Memslot, gfn: int) -> str:
    """Find the page and note it.

    The page is always looked up for writing.

    :returns: ``done``, ``stale`` if an invalidation was faster, ``denied``.
    """
    vm = vcpu.vm
    seq = await snapshot_mmu_seq(vm)
    found = await faultin_pfn(vm, slot, gfn, True)
    if found.error:
        return "denied"
    early = vm.k.ppc_releases_under_lock
    async with vm.mmu_lock.write():
        stale = await mmu_invalidate_retry(vm, seq)
        if not stale:
            await _ref_setup(vcpu, gfn, found)
        if early:
            await release_pfn(vm, found.pfn)
    if not early:
        await release_pfn(vm, found.pfn)
    return "stale" if stale else "done"


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a TLB miss: write the entry of a note, or map the page.

    If the host has no page, nothing is mapped, and the guest faults again: for ever,
    unless a signal ends KVM_RUN.

    :Kernel: kvmppc_handle_exit(), kvmppc_mmu_map(), kvmppc_e500_tlb0_map().
    """
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return "mmio"
    noted = await _is_noted(vcpu, gfn)
    how = "done"
    if not noted or why == "permission":
        how = await kvmppc_e500_shadow_map(vcpu, slot, gfn)
    if how == "done":
        await _write_stlbe(vcpu, gfn)
    result: FaultResult = "guest"
    if how == "denied":
        result = vcpu.vm.k.ppc_shadow_denied
    return result


# -- notifier and dirty log --------------------------------------------------------

unmap = Choice("ppc_e500_unmap", "who flushes when a range is unmapped")


@unmap.when()
async def _flush_here(vm: Vm, slot: Memslot, start: int, end: int) -> None:
    """Flush everything from within the hook (to v5.12)."""
    await kvm_flush_remote_tlbs(vm)


@op(name="ask for a flush")
def _owe(vm: Vm, start: int, end: int) -> Flush:
    return vm.ledger.owe(start, end)


@unmap.when("gfn-notifiers")
async def _ask_for_flush(vm: Vm, slot: Memslot, start: int, end: int) -> Flush:
    """Do nothing and return true, without a look (v5.13 on)."""
    return await _owe(vm, start, end)


async def unmap_gfn_range(vm: Vm, slot: Memslot, start: int, end: int) -> Flush | None:
    """Unmap a range, which means: everything.

    :Kernel: kvm_unmap_gfn_range(), kvm_unmap_hva_range() before v5.13.
    """
    owed: Flush | None = await vm.k.ppc_e500_unmap(vm, slot, start, end)
    return owed


async def set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Unmap the page: once more a flush, although nothing is mapped (to v6.9)."""
    owed: Flush | None = await vm.k.ppc_e500_unmap(vm, slot, gfn, gfn + 1)
    return owed


async def sync_dirty_log(vm: Vm, slot: Memslot) -> int:
    """Refuse: there is no dirty log.

    :Kernel: kvm_vm_ioctl_get_dirty_log() of booke.c.
    """
    return EOPNOTSUPP


async def destroy_vm(vm: Vm) -> None:
    """Free nothing."""


E500_OPS = KvmppcOps(
    make_layout=make_layout,
    entry_pfn=entry_pfn,
    entry_repoint=entry_repoint,
    vm_create=vm_create,
    vcpu_create=vcpu_create,
    tlb_tag=tlb_tag,
    flush_tlb=flush_tlb,
    translate=translate,
    page_fault=page_fault,
    entry=entry,
    leaf_table=leaf_table,
    unmap_gfn_range=unmap_gfn_range,
    set_spte_gfn=set_spte_gfn,
    age_gfn=always_old,
    test_age_gfn=always_old,
    prepare_memory_region=prepare_memory_region,
    commit_memory_region=commit_memory_region,
    flush_memslot=flush_memslot,
    dirty_log_masked=nothing,
    sync_dirty_log=sync_dirty_log,
    take_dirty_log=take_dirty_log_protect,
    destroy_vm=destroy_vm,
)

CHOICES = (writable_known, unmap)
