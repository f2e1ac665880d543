"""Walks over ranges of gfns that may drop mmu_lock on the way, and unmapping.

:Kernel: stage2_apply_range(), __unmap_stage2_range(), stage2_unmap_walker(), since
    v5.10; unmap_stage2_range(), stage2_wp_range() before (fact sheet arm64, 3.3, 3.10).
"""

__all__ = [
    "CHOICES",
    "stage2_apply_range",
    "stage2_wp_range",
    "unmap_stage2_range",
    "unmap_step",
]

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from kvmarch_arm64.changes import PGTABLE
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL, Geometry
from kvmarch_arm64.pgtable import kvm_pgtable_stage2_wrprotect
from kvmarch_arm64.pte import kvm_pte_table, kvm_set_invalid_pte
from kvmarch_arm64.state import Mmu
from kvmarch_arm64.tlbi import kvm_tlb_flush_vmid_range
from kvmarch_arm64.walk import VALID, follow

from kvmarch import Choice, Path, Vm, invalidate_tlbs, op
from kvmarch import Table as Entries

_LAST = KVM_PGTABLE_LAST_LEVEL

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

walk_chunk = Choice(
    "arm64_walk_chunk", "the level of the entries between which a walk may resched"
)
walk_chunk.add(lambda geometry: geometry.start_level)


@walk_chunk.when(PGTABLE, "arm64-apply-range-block")
def _largest_block(geometry: Geometry) -> int:
    return geometry.min_block_level


resched = Choice(
    "arm64_resched", "when an unmap of several chunks drops mmu_lock between them"
)
resched.add("never")
resched.add("always", "arm64-teardown-lock")
resched.add("blockable", "arm64-teardown-lock", "arm64-nonblock-no-resched")

rechecks = Choice(
    "arm64_rechecks_pgd", "whether a walk looks for the root again after a resched"
)
rechecks.add(False)
rechecks.add(True, "arm64-pgd-recheck")

aligns = Choice("arm64_walk_aligns", "whether a walk steps to the next aligned address")
aligns.add(True)
aligns.add(False, PGTABLE)
aligns.add(True, PGTABLE, "arm64-walk-aligns")

warns_pgd = Choice("arm64_warns_pgd", "whether a root that is gone fires a WARN_ON")
warns_pgd.add(False)
warns_pgd.add(True, PGTABLE)
warns_pgd.add(False, PGTABLE, "arm64-unmap-quiet")

CHOICES = (walk_chunk, resched, rechecks, aligns, warns_pgd)

# -------------------------------------------------------------------------
# Chunks
# -------------------------------------------------------------------------

Chunk: TypeAlias = Callable[[Vm, int, int, int], Path[int]]
"""What is done to a chunk: VM, root, first gfn, end gfn. The root is an address, or 0
to read it from the VM; the one that was used is returned, 0 if there is none."""


@op(name="cond_resched")
def _must_not_sleep(vm: Vm) -> None:
    vm.warn(True, "cond_resched_lock() in an invalidation that must not block")


async def stage2_apply_range(
    vm: Vm, chunk: Chunk, start: int, end: int, may_drop: bool, may_block: bool
) -> None:
    """Do something to a range chunk by chunk; mmu_lock may be dropped in between.

    :Kernel: stage2_apply_range(), cond_resched_rwlock_write(), cond_resched_lock()
    :Locking: mmu_lock held for write, before and after.
    :param may_drop: whether this kernel drops the lock here.
    :param may_block: whether it should.
    """
    # Simplified: the lock is dropped at every opportunity, where the kernel does so
    # only if somebody waits; whoever waits may then run, or not. The old MMU had an
    # opportunity before the first chunk too.
    mmu: Mmu = vm.arch
    at, pgd = start, 0
    while at < end:
        stop = min(end, (at // mmu.chunk + 1) * mmu.chunk) if may_drop else end
        if at > start and stop < end:
            stop = await _chunk_end(vm, pgd, at, end)
        pgd = await chunk(vm, pgd, at, stop)
        if not pgd:
            return
        at = stop
        if at < end:
            if not may_block:
                await _must_not_sleep(vm)
            await vm.mmu_lock.drop_write()
            await vm.mmu_lock.take_write()
            if mmu.rechecks_pgd:
                pgd = await _recheck(vm)
                if not pgd:
                    return


@op(name="find the chunk's end")
def _chunk_end(vm: Vm, pgd: int, start: int, end: int) -> int:
    """Return where a chunk ends that is not the first.

    Simplified: what lies below empty entries of the root is walked together with the
    chunk after it, for a root has a thousand entries and few are used. The lock is
    dropped before, and one drop between empty chunks is as good as many.
    """
    mmu: Mmu = vm.arch
    pgd = pgd or mmu.pgt or 0
    at = start
    if pgd:
        root = vm.tables.at(pgd)
        shift = mmu.shifts[root.level]
        used = root.used(start >> shift, (end - 1 >> shift) + 1)
        index = next(used, (-1, 0))[0]
        if index < 0:
            return end
        at = max(start, index << shift)
    chunk: int = mmu.chunk
    return min(end, (at // chunk + 1) * chunk)


@op(name="is there still a root?")
def _recheck(vm: Vm) -> int:
    """Look for the root again, after another task had the lock.

    :Kernel: __unmap_stage2_range() warns about -EINVAL since v5.10; the old MMU
        stops quietly
    """
    pgd: int | None = vm.arch.pgt
    vm.warn(
        pgd is None and vm.k.arm64_warns_pgd,
        "__unmap_stage2_range(): stage2_apply_range() found no root",
    )
    return pgd or 0


# -------------------------------------------------------------------------
# Write-protect
# -------------------------------------------------------------------------


@op(name="write-protect chunk")
def _wrprotect_now(vm: Vm, pgd: int, start: int, end: int) -> int:
    pgd = pgd or vm.arch.pgt or 0
    if pgd and kvm_pgtable_stage2_wrprotect(vm, pgd, start, end):
        vm.ledger.owe(start, end, due="return")
    return pgd


async def _wrprotect(vm: Vm, pgd: int, start: int, end: int) -> int:
    return await _wrprotect_now(vm, pgd, start, end)


async def stage2_wp_range(vm: Vm, start: int, end: int) -> None:
    """Clear W in a range; the caller owes the flush.

    :Kernel: kvm_stage2_wp_range(), stage2_wp_range()
    :Locking: mmu_lock held for write; dropped between chunks.
    """
    await stage2_apply_range(vm, _wrprotect, start, end, True, True)


# -------------------------------------------------------------------------
# Unmap
# -------------------------------------------------------------------------


@dataclass(slots=True)
class _Unmap:
    """One walk that unmaps.

    :param first: the lowest gfn whose translation is stale; with ``last`` (end
        exclusive) the hull of those that one chunk removes.
    """

    vm: Vm
    mmu: Mmu
    aligned: bool
    first: int = 1 << 52
    last: int = 0

    def stale(self, start: int, end: int) -> None:
        self.first = min(self.first, start)
        self.last = max(self.last, end)

    def walk(self, table: Entries, at: int, end: int) -> int:
        """Unmap a range below a table; return the gfn at which the walk stands."""
        mmu, vm = self.mmu, self.vm
        level = table.level
        if level == _LAST:
            return self.pages(table, at, end)
        shift = mmu.shifts[level]
        index = at - table.base >> shift
        while at < end and index < table.size:
            entry = table.get(index)
            if kvm_pte_table(entry, level):
                child = follow(vm, entry)
                at = self.walk(child, at, end)
                if child.refs == 1:
                    self.clear(table, index, entry)
                    vm.tables.free(child)
            else:
                if entry & VALID:
                    base = table.base + (index << shift)
                    self.stale(base, base + (1 << shift))
                    self.clear(table, index, entry)
                # Without alignment an unaligned walk steps over the beginning of
                # the entries after this one (fact sheet 6 row 8).
                at = (at >> shift) + 1 << shift if self.aligned else at + (1 << shift)
            index += 1
        return at

    def clear(self, table: Entries, index: int, entry: int) -> None:
        """Take one valid entry away."""
        table.set(index, kvm_set_invalid_pte(entry) if self.mmu.leaves_remains else 0)
        table.refs -= 1

    def pages(self, table: Entries, at: int, end: int) -> int:
        """Unmap the pages of a range that lie in one table of the last level."""
        first = at - table.base
        stop = min(end - table.base, table.size)
        if stop - first == 1:
            entry = table.get(first)
            if entry & VALID:
                self.clear(table, first, entry)
                self.stale(at, at + 1)
            return at + 1
        # Simplified: a guest's own tables hold no notes in invalid entries besides
        # the remains of v5.10 to v5.12, so only valid ones are looked for.
        mmu = self.mmu
        if mmu.leaves_remains:
            gone = table.change(mmu.valid, first, stop, clear=VALID)
        else:
            gone = table.count(mmu.valid, first, stop)
            if gone:
                table.fill(0, first, stop)
        if gone:
            table.refs -= gone
            self.stale(at, table.base + stop)
        return table.base + stop


def _unmap(vm: Vm, pgd: int, start: int, end: int) -> _Unmap:
    mmu: Mmu = vm.arch
    work = _Unmap(vm, mmu, vm.k.arm64_walk_aligns)
    work.walk(vm.tables.at(pgd), start, min(end, mmu.end_gfn))
    return work


def unmap_step(vm: Vm, pgd: int, start: int, end: int) -> int:
    """Unmap a range in one step; each entry is flushed before the next one.

    Tables that became empty are freed, each after its entry was flushed.

    :param pgd: address of the root; 0 to take the VM's.
    :returns: the root that was walked, 0 if there is none.
    """
    pgd = pgd or vm.arch.pgt or 0
    if pgd:
        work = _unmap(vm, pgd, start, end)
        if work.last:
            invalidate_tlbs(vm, work.first, work.last, vm.arch.vmid)
    return pgd


_unmap_now = op(name="unmap chunk")(unmap_step)


async def _unmap_chunk(vm: Vm, pgd: int, start: int, end: int) -> int:
    return await _unmap_now(vm, pgd, start, end)


@op(name="unmap chunk, defer the flush")
def _unmap_only(vm: Vm, pgd: int, start: int, end: int) -> tuple[int, int, int]:
    """Clear the entries of a chunk; return the root, and the range to be flushed."""
    pgd = pgd or vm.arch.pgt or 0
    if not pgd:
        return 0, 0, 0
    work = _unmap(vm, pgd, start, end)
    if not work.last:
        return pgd, 0, 0
    vm.ledger.owe(work.first, work.last)
    return pgd, work.first, work.last


@op(name="flush the unmapped range")
def _flush_deferred(vm: Vm, start: int, end: int) -> None:
    kvm_tlb_flush_vmid_range(vm, start, end)
    vm.ledger.pay(start, end, "kvm_tlb_flush_vmid_range")


async def _unmap_deferred(vm: Vm, pgd: int, start: int, end: int) -> int:
    """Clear the entries of a chunk, then flush its range once (v6.6 on)."""
    pgd, first, last = await _unmap_only(vm, pgd, start, end)
    if last:
        await _flush_deferred(vm, first, last)
    return pgd


async def unmap_stage2_range(vm: Vm, start: int, end: int, may_block: bool) -> None:
    """Unmap a range and drop its translations, in chunks.

    A block that the range meets goes as a whole.

    :Kernel: __unmap_stage2_range(), unmap_stage2_range()
    :Locking: mmu_lock held for write; dropped between chunks if that is allowed.
    """
    mmu: Mmu = vm.arch
    may_drop = mmu.resched == "always" or (mmu.resched == "blockable" and may_block)
    chunk = _unmap_deferred if mmu.defers else _unmap_chunk
    await stage2_apply_range(vm, chunk, start, end, may_drop, may_block)
