"""What KVM does with its own tables, from v7.0 on: faults, aging, the dirty log.

Models arch/s390/kvm/gmap.c and faultin.c (fact sheet s390, 4.2 to 4.5). Faults, aging
and the sync of the dirty log run side by side, with mmu_lock for read.
"""

__all__ = [
    "CHOICES",
    "age_gfn",
    "page_fault",
    "sync_dirty_log",
    "test_age_gfn",
    "unmap_gfn_range",
    "walk_down",
]

import errno
from typing import Any

from kvmarch import (
    BLOCKED,
    Choice,
    FaultIn,
    FaultResult,
    Memslot,
    Vcpu,
    Vm,
    age_without_lock,
    faultin_pfn,
    mmu_invalidate_retry_gfn,
    mmu_invalidate_retry_gfn_unsafe,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

from kvmarch_s390 import dat
from kvmarch_s390.geometry import PAGE, SEGMENT, entries, pages
from kvmarch_s390.own_tables import (
    Spot,
    drop,
    exchange,
    for_each_present,
    is_marked,
    leads_on,
    lookup,
    mark_folio,
    pfn_of,
)
from kvmarch_s390.prefix import is_prefix
from kvmarch_s390.region import table_entry

AGAIN = -errno.EAGAIN
"""Somebody was quicker."""

s390_missed_link = Choice(
    "s390_missed_link", "what a fault makes of a link that an invalidation forbade"
)
s390_missed_link.add(0)
s390_missed_link.add(AGAIN, "s390-faultin-again")

# -------------------------------------------------------------------------
# Faults
# -------------------------------------------------------------------------


@op(name="gmap_try_fixup_minor")
def _fixup_minor(vm: Vm, gfn: int, write: bool) -> bool:
    """Make a present entry young, for a store dirty; return whether that is enough.

    :Kernel: gmap_try_fixup_minor()
    :Locking: mmu_lock for read.
    """
    spot = lookup(vm, gfn)
    if not spot.present:
        return False
    _i, _y, _d, writable = dat.masks(spot.level)
    if write and not spot.entry & writable:
        return False
    new = dat.minor_fault(spot.level, spot.entry, write=write)
    if new != spot.entry:
        exchange(vm, spot, new)
    return True


def _new_table(vm: Vm, spot: Spot, contents: list[int]) -> None:
    """Put a table in the place of an entry.

    :param contents: its entries; a single one stands for all.
    """
    level = spot.level - 1
    one = contents[0] if len(contents) == 1 else dat.token(level, hole=False)
    size = entries(level)
    # A page table has its PGSTEs behind it, in the other half of 4 KiB.
    align = 4096 if level == PAGE else 0
    table = vm.tables.alloc(size, level, spot.first, empty=one, align=align)
    if len(contents) > 1:
        for at, entry in enumerate(contents):
            table.set(at, entry)
    spot.table.set(spot.at, table_entry(spot.level, table.pa))


def walk_down(vm: Vm, gfn: int, level: int) -> Spot:
    """Return the entry of a gfn at a level; make tables, and split what is larger.

    Tables have the token of the entry in whose place they come.

    :Kernel: dat_entry_walk() with DAT_WALK_ALLOC or DAT_WALK_SPLIT.
    """
    spot = lookup(vm, gfn, level)
    while spot.level > level:
        if spot.present:
            contents = dat.children(spot.entry, spot.level)
            if not spot.entry & dat.masks(spot.level)[0]:
                exchange(vm, spot, spot.entry | dat.masks(spot.level)[0])
        else:
            hole = spot.entry == dat.token(spot.level, hole=True)
            contents = [dat.token(spot.level - 1, hole)]
        _new_table(vm, spot, contents)
        spot = lookup(vm, gfn, level)
    return spot


def _level(vm: Vm, slot: Memslot, gfn: int, pfn: int) -> int:
    """Return the level of the leaf: as large as folio, alignment and slot allow.

    Simplified: the host model has no folios of 2 GiB, so that a segment is the largest.
    """
    size = pages(SEGMENT)
    page = vm.host.pages[pfn]
    first = gfn & -size
    fits = (
        vm.arch.large
        and 1 << page.order >= size
        and not (gfn ^ pfn) & size - 1
        and slot.base_gfn <= first
        and first + size <= slot.end_gfn
    )
    return SEGMENT if fits else PAGE


@op(name="gmap_link")
def _link(vm: Vm, slot: Memslot, gfn: int, page: FaultIn, write: bool) -> int:
    """Map a page where nothing is, or the same; refuse to replace another.

    :Kernel: gmap_link()
    :returns: 0 or -EAGAIN.
    """
    level = _level(vm, slot, gfn, page.pfn)
    spot = lookup(vm, gfn, level)
    if leads_on(spot.entry, spot.level):
        # A table that is there decides for small leaves.
        level = PAGE
    spot = walk_down(vm, gfn, level)
    size = pages(level)
    pfn = page.pfn & -size
    if spot.present and pfn_of(spot.entry, level) != pfn:
        return AGAIN
    new = dat.link(
        level,
        pfn,
        spot.entry,
        writable=page.writable,
        dirty=write,
        special=page.pfn == vm.host.zero_pfn,
    )
    exchange(vm, spot, new)
    return 0


@op(name="kvm_s390_mmu_cache_topup", sleeps=True)
def _topup(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Return whether there is memory for the tables that a link may have to make.

    Simplified: looked at only where a table is missing, or a leaf would be split; pages
    that are at hand from an earlier fault are not counted.

    :Kernel: kvm_s390_mmu_cache_topup()
    """
    return lookup(vm, gfn).level == PAGE or not vm.out_of_tables


@op(name="retry until no invalidation is in progress")
def _wait(vm: Vm, gfn: int) -> Any:
    """Wait while the check would fail again. Simplified: the kernel spins."""
    again = mmu_invalidate_retry_gfn_unsafe.fn(vm, vm.mmu_invalidate_seq, gfn)
    return BLOCKED if again else None


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle an interruption of SIE: a minor fault, or a page from the host.

    :Kernel: kvm_s390_faultin_gfn()
    :Locking: a reader of kvm->srcu.
    """
    vm = vcpu.vm
    write = access == "write"
    if why in {"beyond", "hole"}:
        return "exception"
    async with vm.mmu_lock.read():
        done = await _fixup_minor(vm, gfn, write)
    if done:
        return "guest"
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return "exception"
    enough = await _topup(vm, slot, gfn)
    if not enough:
        return "error"
    ret = AGAIN
    while ret == AGAIN:
        seq = await snapshot_mmu_seq(vm)
        page = await faultin_pfn(vm, slot, gfn, write)
        if page.error:
            return "error"
        stale = await mmu_invalidate_retry_gfn_unsafe(vm, seq, gfn)
        if not stale:
            async with vm.mmu_lock.read():
                stale = await mmu_invalidate_retry_gfn(vm, seq, gfn)
                if stale:
                    ret = vm.k.s390_missed_link
                else:
                    ret = await _link(vm, slot, gfn, page, write)
        await release_pfn(vm, page.pfn)
        await _wait(vm, gfn)
    return "guest"


# -------------------------------------------------------------------------
# The notifiers
# -------------------------------------------------------------------------


def unmap_gfn_range(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> None:
    """Leave every entry that a range meets empty, a large one as a whole.

    Nobody looks at d, sd or p: what was written since the last sync of the dirty log is
    forgotten (fact sheet, bug 18). Each entry is flushed by the instruction that takes
    it; nothing is owed.

    :Kernel: kvm_unmap_gfn_range(), gmap_unmap_gfn_range().
    :Locking: mmu_lock for write.
    """
    for spot in for_each_present(vm, start, end):
        drop(vm, spot)


def is_left_alone(vm: Vm, spot: Spot) -> bool:
    """Return whether aging and the dirty log pass over an entry.

    It holds a prefix page of a vCPU that is in SIE.
    """
    return is_marked(vm, spot) and any(
        is_prefix(vm, gfn) for gfn in range(spot.first, spot.first + pages(spot.level))
    )


@op(name="any prefix page?")
def _any_left_alone(vm: Vm, start: int, end: int) -> bool:
    """Return whether a range has a page that is passed over, which counts as young."""
    return vm.arch.prefix and any(
        is_left_alone(vm, spot) for spot in for_each_present(vm, start, end)
    )


@op(name="read entry")
def _next_young(vm: Vm, start: int, end: int) -> Spot | None:
    """Return a copy of the next entry that is young or valid."""
    for spot in for_each_present(vm, start, end):
        invalid, young, _d, _w = dat.masks(spot.level)
        if is_left_alone(vm, spot):
            continue
        if spot.entry & young or not spot.entry & invalid:
            return spot
    return None


@op(name="gmap_clear_young_pte")
def _clear_young(vm: Vm, spot: Spot) -> None:
    """Store what aging makes of the copy, whatever the entry has become since.

    Of a page that was dirty, or could have become so, the folio is told; the dirty log
    is not (fact sheet, bugs 16 and 17).
    """
    now = spot._replace(entry=spot.table.get(spot.at))
    _i, _y, dirty, _w = dat.masks(spot.level)
    if spot.entry & dirty or not spot.entry & dat.OwnPte.p.mask:
        mark_folio(vm, pfn_of(spot.entry, spot.level), "gmap_age_gfn")
    exchange(vm, now, dat.age(spot.level, spot.entry))


async def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Make a range old; return whether an entry was young.

    :Kernel: kvm_age_gfn(), gmap_age_gfn().
    :Locking: none is held; takes mmu_lock for read.
    """
    async with vm.mmu_lock.read():
        young = await _any_left_alone(vm, start, end)
        spot = await _next_young(vm, start, end)
        while spot is not None:
            young = young or bool(spot.entry & dat.masks(spot.level)[1])
            await _clear_young(vm, spot)
            spot = await _next_young(vm, spot.first + pages(spot.level), end)
    return bool(young)


@op(name="any young?")
def _any_young(vm: Vm, start: int, end: int) -> bool:
    return any(
        spot.entry & dat.masks(spot.level)[1]
        for spot in for_each_present(vm, start, end)
    )


async def test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether an entry of a range is young.

    :Kernel: kvm_test_age_gfn()
    :Locking: none is held; takes mmu_lock for read.
    """
    async with vm.mmu_lock.read():
        return await _any_young(vm, start, end)


aging_walk = Choice("aging_walk", "which locks an aging callback takes")
aging_walk.add(age_without_lock, "gfn-notifiers", "lockless-aging", "s390-own-tables")

# -------------------------------------------------------------------------
# The dirty log
# -------------------------------------------------------------------------


@op(name="sync entry")
def _sync_next(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Log the next leaf from a gfn on that was or could be written, and protect it.

    :returns: the gfn after it; -1 if there is none.
    """
    for spot in for_each_present(vm, gfn, slot.end_gfn):
        if not dat.needs_log(spot.entry):
            continue
        if not is_left_alone(vm, spot):
            exchange(vm, spot, dat.sync(spot.entry))
        end = min(spot.first + pages(spot.level), slot.end_gfn)
        for number in range(max(spot.first, gfn), end):
            vm.mark_page_dirty(slot, number)
        return end
    return -1


async def sync_dirty_log(vm: Vm, slot: Memslot) -> None:
    """Log what was written, page by page, a large leaf as all of its pages.

    :Kernel: kvm_arch_sync_dirty_log(), gmap_sync_dirty_log().
    :Locking: slots_lock; takes mmu_lock for read.
    """
    gfn: int = slot.base_gfn
    async with vm.mmu_lock.read():
        while gfn >= 0:
            gfn = await _sync_next(vm, slot, gfn)


CHOICES = (s390_missed_link, aging_walk)
