"""Book3S PR: shadow HPTEs in the host's own hash table.

:Kernel: arch/powerpc/kvm/book3s_pr.c, book3s_mmu_hpte.c and book3s_64_mmu_host.c, v3.16
    on; fact sheet ppc, section 5.

Simplified: the guest maps all of its memory one to one with full permission, and has
pages of the host's size. The lock of each vCPU's lists is not modelled: every step here
is one hold of it.
"""

__all__ = ["CHOICES", "HPTEG_CACHE_NUM", "PR", "Pr", "PrVcpu"]

from collections.abc import Mapping
from typing import Any

from kvmarch_ppc.hpt import (
    HPTES_PER_GROUP,
    SEGMENT_SHIFTS,
    HashLayout,
    hpt_hash,
    hpte_avpn,
    hpte_rpn,
    make_pr_layout,
    primary_group,
    secondary_group,
    slb_v,
)
from kvmarch_ppc.hpt_table import (
    HptBackend,
    entry_pfn,
    entry_repoint,
    get_hpte,
    set_hpte,
)
from kvmarch_ppc.hpte import (
    HPTE_V_AVPN,
    HPTE_V_LARGE,
    HPTE_V_SECONDARY,
    HPTE_V_VALID,
    HpteR,
    HpteV,
    Protection,
    SegmentSize,
    hpte_is_writable,
    hpte_join,
    hpte_make_readonly,
)
from kvmarch_ppc.layout import Layout
from kvmarch_ppc.memslots import prepare_memory_region
from kvmarch_ppc.ops import KvmppcOps, always_old
from kvmarch_ppc.shadow import commit_memory_region, flush_memslot

from kvmarch import (
    Choice,
    FaultIn,
    FaultResult,
    Kernel,
    Memslot,
    Part,
    Translation,
    Vcpu,
    Vm,
    faultin_pfn,
    mmu_invalidate_retry,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
    take_dirty_log_protect,
)

HPTEG_CACHE_NUM = 1 << 15
"""Shadow HPTEs of one vCPU that are remembered; one more flushes all of them."""
_SEGMENT = SEGMENT_SHIFTS[SegmentSize.S256M]
_VSIDS = 1 << 20
"""VSIDs that each vCPU has for itself."""
_ADDRESS = HpteV.b.mask | HPTE_V_AVPN | HPTE_V_LARGE | HPTE_V_SECONDARY | HPTE_V_VALID
_RFLAGS = HpteR.pack(r=1, c=1, m=1, pp=Protection.RWRW)


class Pr(HptBackend):
    """The part of the host's hash table that a VM fills."""


class PrVcpu(Part):
    """vcpu->arch.hpte_hash_*: by gfn, where in the host's table its HPTE was put."""

    variables = ("hpte_cache",)

    def __init__(self) -> None:
        self.hpte_cache: dict[int, int] = {}


def make_layout(k: Kernel, options: Mapping[str, Any]) -> HashLayout:
    """Return the entries of the host's table."""
    return make_pr_layout(options["page_size"], isa300=options["cpu"] == "power9")


def vm_create(vm: Vm, layout: Layout) -> Pr:
    """Begin with no HPTE."""
    assert isinstance(layout, HashLayout)
    return Pr(vm, layout)


def vcpu_create(vcpu: Vcpu) -> PrVcpu:
    """Begin with an empty cache."""
    return PrVcpu()


# -- HPTEs in the host's table -----------------------------------------------------


def _shadow_address(vcpu: Vcpu, gfn: int) -> tuple[int, int]:
    """Return V and hash of a vCPU's page: each vCPU has VSIDs of its own."""
    arch: Pr = vcpu.vm.arch
    shift = arch.layout.page_shift
    ea = gfn << shift
    vsid = (vcpu.number + 1) * _VSIDS + (ea >> _SEGMENT)
    v = hpte_avpn(slb_v(vsid, SegmentSize.S256M), ea, shift) | arch.large[0]
    return v | HPTE_V_VALID, hpt_hash(vsid, ea, shift, SegmentSize.S256M)


def _groups(arch: Pr, hash_: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (
        (primary_group(hash_, arch.order) * HPTES_PER_GROUP, 0),
        (secondary_group(hash_, arch.order) * HPTES_PER_GROUP, HPTE_V_SECONDARY),
    )


def _insert(vcpu: Vcpu, gfn: int, r: int) -> int:
    """Put an HPTE into one of its groups; if both are full, another one goes.

    :Kernel: hpte_insert(), hpte_remove(). The one that goes is still in the cache of
        its vCPU, and a translation of it is dropped when that entry is.
    """
    vm = vcpu.vm
    v, hash_ = _shadow_address(vcpu, gfn)
    groups = _groups(vm.arch, hash_)
    for first, secondary in groups:
        for index in range(first, first + HPTES_PER_GROUP):
            if not get_hpte(vm, index)[0] & HPTE_V_VALID:
                set_hpte(vm, index, v | secondary, r)
                return index
    victim = groups[0][0]
    set_hpte(vm, victim, v, r)
    return victim


def _invalidate_pte(vcpu: Vcpu, gfn: int) -> None:
    """Invalidate one remembered HPTE in the host's table, with its tlbie.

    :Kernel: kvmppc_mmu_invalidate_pte()
    """
    index = vcpu.arch.hpte_cache.pop(gfn)
    wanted = _shadow_address(vcpu, gfn)[0]
    v, _r = get_hpte(vcpu.vm, index)
    if (v ^ wanted) & _ADDRESS & ~HPTE_V_SECONDARY == 0:
        set_hpte(vcpu.vm, index, 0, 0)
    vcpu.tlb.drop(tlb_tag(vcpu), gfn, gfn + 1)


def _pte_pflush(vcpu: Vcpu, start: int, end: int) -> None:
    cache: dict[int, int] = vcpu.arch.hpte_cache
    if end - start < len(cache):
        found = [gfn for gfn in range(start, end) if gfn in cache]
    else:
        found = [gfn for gfn in cache if start <= gfn < end]
    for gfn in found:
        _invalidate_pte(vcpu, gfn)
    if found:
        vcpu.vm.world.note("tlb_invalidate", vcpu=vcpu.name, start=start, end=end)


@op(name="kvmppc_mmu_pte_pflush")
def kvmppc_mmu_pte_pflush(vcpu: Vcpu, start: int, end: int) -> None:
    """Invalidate what a vCPU has mapped of a range of gfns."""
    _pte_pflush(vcpu, start, end)


def flush_tlb(vcpu: Vcpu) -> None:
    """Drop the vCPU's whole cache (KVM_REQ_TLB_FLUSH)."""
    for gfn in tuple(vcpu.arch.hpte_cache):
        _invalidate_pte(vcpu, gfn)
    vcpu.tlb.drop_all(tlb_tag(vcpu))


# -- hardware, and looking from outside --------------------------------------------


def tlb_tag(vcpu: Vcpu) -> int:
    """Return the vCPU's number, which stands for its VSIDs."""
    return vcpu.number


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Look a page up in the host's table; R and C are set from the beginning."""
    vm = vcpu.vm
    arch: Pr = vm.arch
    if arch.hpt is None:
        return "missing"
    wanted, hash_ = _shadow_address(vcpu, gfn)
    for first, secondary in _groups(arch, hash_):
        for index in range(first, first + HPTES_PER_GROUP):
            v, r = get_hpte(vm, index)
            if v & _ADDRESS != wanted | secondary:
                continue
            writable = hpte_is_writable(r)
            if access == "write" and not writable:
                return "permission"
            shift = arch.layout.page_shift
            pfn = hpte_rpn(r, 1 << shift, shift)
            return Translation(gfn, 1, pfn, True, writable, True)
    return "missing"


def entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the HPTE, as it lies in memory, of the first vCPU that has one."""
    arch: Pr = vm.arch
    for vcpu in vm.vcpus:
        index = vcpu.arch.hpte_cache.get(gfn)
        if index is not None and arch.hpt is not None:
            table = vm.tables.at(arch.hpt)
            return hpte_join(table.get(2 * index), table.get(2 * index + 1)), 0
    return 0, 0


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return the host's table, and where V of the first such HPTE is."""
    arch: Pr = vm.arch
    for vcpu in vm.vcpus:
        index = vcpu.arch.hpte_cache.get(gfn)
        if index is not None and arch.hpt is not None and not level:
            return arch.hpt, 2 * index
    return None


# -- the fault ---------------------------------------------------------------------

release_under_lock = Choice(
    "ppc_releases_under_lock", "whether the page is released before mmu_lock is"
)
release_under_lock.add(False)
release_under_lock.add(True, "ppc-refcounted-pages")


@op(name="kvmppc_mmu_hpte_cache_next")
def _cache_next(vcpu: Vcpu) -> bool:
    """Make room in the cache: if it is full, flush everything.

    :returns: whether there is memory to remember one more HPTE.
    """
    if len(vcpu.arch.hpte_cache) >= HPTEG_CACHE_NUM:
        flush_tlb(vcpu)
    return not vcpu.vm.out_of_tables


@op(name="insert HPTE")
def _map(vcpu: Vcpu, slot: Memslot, gfn: int, found: FaultIn) -> None:
    """Put the HPTE into the host's table and remember it; log a writable one."""
    vm = vcpu.vm
    shift = vm.arch.layout.page_shift
    r = found.pfn << shift | vm.arch.large[1] | _RFLAGS
    if found.writable:
        vm.mark_page_dirty(slot, gfn)
        vm.host.mark(found.pfn, dirty=True, accessed=True, who="PR fault")
    else:
        r = hpte_make_readonly(r)
    vcpu.arch.hpte_cache[gfn] = _insert(vcpu, gfn, r)


@op(name="kvmppc_mmu_unmap_page")
def _unmap_page(vcpu: Vcpu, gfn: int) -> None:
    _pte_pflush(vcpu, gfn, gfn + 1)


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Map a page of the guest by a shadow HPTE.

    If the host has no page, or there is no memory to remember the HPTE, nothing is
    mapped, and the guest faults again: for ever, unless a signal ends KVM_RUN.

    :Kernel: kvmppc_handle_pagefault(), kvmppc_mmu_map_page().
    """
    vm = vcpu.vm
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return "mmio"
    if why == "permission":
        # The HPTE that forbids the access goes first.
        await _unmap_page(vcpu, gfn)
    seq = await snapshot_mmu_seq(vm)
    found = await faultin_pfn(vm, slot, gfn, access == "write")
    if found.error:
        result: FaultResult = vm.k.ppc_shadow_denied
        return result
    room = await _cache_next(vcpu)
    early = vm.k.ppc_releases_under_lock
    async with vm.mmu_lock.write():
        stale = await mmu_invalidate_retry(vm, seq)
        if room and not stale:
            await _map(vcpu, slot, gfn, found)
        if early:
            await release_pfn(vm, found.pfn)
    if not early:
        await release_pfn(vm, found.pfn)
    return "guest"


# -- notifier and dirty log --------------------------------------------------------


async def unmap_gfn_range(vm: Vm, slot: Memslot, start: int, end: int) -> None:
    """Unmap a range for every vCPU, from the notifier's thread; no flush is owed.

    :Kernel: do_kvm_unmap_gfn(), do_kvm_unmap_hva() before v5.13.
    :Locking: mmu_lock.
    """
    for vcpu in tuple(vm.vcpus):
        await kvmppc_mmu_pte_pflush(vcpu, start, end)


async def set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> None:
    """Unmap the page: it is remapped at its next fault (to v6.9)."""
    await unmap_gfn_range(vm, slot, gfn, gfn + 1)


async def dirty_log_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> None:
    """Unmap the whole slot for every vCPU, so that writes are seen again."""
    await unmap_gfn_range(vm, slot, slot.base_gfn, slot.end_gfn)


take_dirty_log = Choice("ppc_pr_take_dirty_log", "how PR takes the dirty bitmap")
take_dirty_log.add(take_dirty_log_protect, "ppc-pr-dirty-log-xchg")


@op(name="copy bitmap")
def _copy_bitmap(vm: Vm, slot: Memslot) -> int:
    return int.from_bytes(vm.dirty_bitmaps[slot.bitmap], "little")


@op(name="memset bitmap")
def _clear_bitmap(vm: Vm, slot: Memslot) -> None:
    bitmap = vm.dirty_bitmaps[slot.bitmap]
    bitmap[:] = bytes(len(bitmap))


@take_dirty_log.when()
async def _copy_unmap_clear(vm: Vm, slot: Memslot) -> int:
    """Copy the bitmap, unmap the slot, clear the bitmap: what was set between is lost.

    :Kernel: kvm_vm_ioctl_get_dirty_log_pr(), kvm_vm_ioctl_get_dirty_log() before
        v3.13; v3.16 to v7.2.
    :Locking: slots_lock; mmu_lock is not taken.
    """
    bits = await _copy_bitmap(vm, slot)
    if bits:
        await unmap_gfn_range(vm, slot, slot.base_gfn, slot.end_gfn)
        await _clear_bitmap(vm, slot)
    return bits


async def _take_dirty_log(vm: Vm, slot: Memslot) -> int:
    bits: int = await vm.k.ppc_pr_take_dirty_log(vm, slot)
    return bits


async def sync_dirty_log(vm: Vm, slot: Memslot) -> int:
    """Do nothing: faults have set the bits."""
    return 0


@op(name="kvmppc_mmu_destroy_pr")
def _destroy(vm: Vm) -> None:
    arch: Pr = vm.arch
    for vcpu in vm.vcpus:
        flush_tlb(vcpu)
    if arch.hpt is not None:
        vm.tables.free(vm.tables.at(arch.hpt))
        arch.hpt = None


async def destroy_vm(vm: Vm) -> None:
    """Flush every vCPU's cache.

    :Kernel: kvmppc_mmu_destroy_pr(), kvmppc_core_destroy_vm_pr().
    """
    await _destroy(vm)


PR = KvmppcOps(
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
    dirty_log_masked=dirty_log_masked,
    sync_dirty_log=sync_dirty_log,
    take_dirty_log=_take_dirty_log,
    destroy_vm=destroy_vm,
)

CHOICES = (release_under_lock, take_dirty_log)
