"""Walks over ranges of gfns: unmap, and write-protect.

:Kernel: kvm_riscv_gstage_unmap_range(), kvm_riscv_gstage_wp_range(), since v6.17;
    gstage_unmap_range(), gstage_wp_range(), stage2_*() before (fact sheet riscv, 3.3,
    3.6).

Tables are never freed by any of them.
"""

__all__ = ["CHOICES", "kvm_unmap_gfn_range", "leaves_of", "unmap_now", "wp_now"]

from collections.abc import Iterator
from typing import NamedTuple

from kvmarch import Choice, Flush, Memslot, Table, Vm, kvm_flush_remote_tlbs_range, op

from kvmarch_riscv.geometry import ENTRIES, level_pages
from kvmarch_riscv.hfence import hfence_gvma_vmid_gpa
from kvmarch_riscv.pte import is_leaf, wrprotect
from kvmarch_riscv.walk import get_leaf

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

walk_aligns = Choice("riscv_walk_aligns", "whether a walk steps over a hole to its end")
walk_aligns.add(False)
walk_aligns.add(True, "riscv-walk-aligns")

flushes_once = Choice("riscv_flushes_once", "whether a walk leaves flushes to the end")
flushes_once.add(False)
flushes_once.add(True, "riscv-flush-once")

warns_of_part = Choice(
    "riscv_warns_of_part", "whether a leaf that is met in part fires a warning"
)
warns_of_part.add(False)
warns_of_part.add(True, "riscv-walk-aligns")
warns_of_part.add(False, "riscv-walk-aligns", "riscv-unmap-whole-leaf")

unmaps_part = Choice(
    "riscv_unmaps_part", "whether a leaf that is met in part is unmapped"
)
unmaps_part.add(False)
unmaps_part.add(True, "riscv-unmap-whole-leaf")

protects_part = Choice(
    "riscv_protects_part", "whether a leaf that is met in part is write-protected"
)
protects_part.add(False)
protects_part.add(True, "riscv-wp-whole-leaf")

root_again = Choice(
    "riscv_root_again", "what an unmap goes on from after it dropped mmu_lock"
)
root_again.add("read")
root_again.add("known", "riscv-gstage-snapshot")
root_again.add("checked", "riscv-pgd-recheck")
root_again.add("checked", "riscv-gstage-snapshot", "riscv-pgd-recheck")


# -------------------------------------------------------------------------
# The walk
# -------------------------------------------------------------------------


class Met(NamedTuple):
    """A leaf that a walk meets: where the walk stands, table and index."""

    gfn: int
    table: Table
    place: int
    level: int


def leaves_of(vm: Vm, root: int, start: int, end: int, *, whole: bool) -> Iterator[Met]:
    """Yield the leaves of a range, as a walk from its start meets them.

    Where there is none it steps by what the entry covers at which the walk ended; not
    aligned, it steps over the beginning of what comes next (fact sheet 5, bug 6).

    :param whole: step from a huge leaf to its end, wherever in it the walk stands.
    """
    aligns = vm.k.riscv_walk_aligns
    at = start
    while at < end:
        table, index, level, entry = get_leaf(vm, root, at)
        if level == 0:
            # One table at a time: a step is one page, so that holes cannot be missed.
            stop = min(ENTRIES, index + end - at)
            for found, leaf in list(table.used(index, stop)):
                if is_leaf(leaf):
                    yield Met(at + found - index, table, found, 0)
            at += stop - index
            continue
        if is_leaf(entry):
            yield Met(at, table, index, level)
        pages = level_pages(level)
        if whole if is_leaf(entry) else aligns:
            at = (at // pages + 1) * pages
        else:
            at += pages


def _is_whole(met: Met, end: int) -> bool:
    pages = level_pages(met.level)
    return not met.gfn % pages and end - met.gfn >= pages


# -------------------------------------------------------------------------
# Unmap
# -------------------------------------------------------------------------


def _clear(vm: Vm, met: Met, end: int) -> bool:
    """Take a leaf away unless the range covers only a part of it; flush if it is time.

    :Kernel: kvm_riscv_gstage_op_pte() with GSTAGE_OP_CLEAR
    :returns: whether a flush is owed.
    """
    k = vm.k
    if not _is_whole(met, end) and not k.riscv_unmaps_part:
        vm.warn(k.riscv_warns_of_part, "Skip unmap range: a leaf is met in part")
        return False
    met.table.set(met.place, 0)
    if k.riscv_flushes_once:
        pages = level_pages(met.level)
        vm.ledger.owe(met.gfn, min((met.gfn // pages + 1) * pages, end), due="return")
        return True
    hfence_gvma_vmid_gpa(vm, met.gfn, met.level)
    return False


def unmap_now(vm: Vm, root: int, start: int, end: int) -> bool:
    """Unmap a range without a break; return whether a flush is owed."""
    owes = False
    for met in leaves_of(vm, root, start, end, whole=vm.k.riscv_unmaps_part):
        owes |= _clear(vm, met, end)
    return owes


@op(name="unmap range")
def _unmap_all(vm: Vm, start: int, end: int) -> bool:
    pgd = vm.arch.pgd
    return pgd is not None and unmap_now(vm, pgd, start, end)


@op(name="unmap to the next chance to resched")
def _unmap_some(vm: Vm, root: int, at: int, end: int) -> tuple[int, bool]:
    """Unmap the leaf where the walk stands, if there is one, and step over the hole.

    Simplified: there is a chance after every entry; those inside a hole are left out,
    because one is as good as many.

    :returns: where the walk stands then, and whether a flush is owed.
    """
    owes, done = False, False
    for met in leaves_of(vm, root, at, end, whole=vm.k.riscv_unmaps_part):
        if done or met.gfn > at:
            return met.gfn, owes
        owes = _clear(vm, met, end)
        done = True
    return end, owes


@op(name="walk on from the root")
def _root_after_drop(vm: Vm, known: int, at: int) -> int:
    """Return the root from which a walk goes on that has dropped mmu_lock; 0 to stop.

    Up to v6.16 the VM's own is read, which may be NULL by then. The entry of the first
    index is then NULL too, and the walk finds nothing; any other one is an oops.

    :param known: the root from before.
    :param at: gfn at which the walk stands.
    """
    arch = vm.arch
    how = vm.k.riscv_root_again
    if how == "known":
        return known
    if arch.pgd is None and how == "read" and at >> arch.root_shift:
        vm.world.violate("table-memory", "an unmap walks from a root that is NULL")
    return arch.pgd or 0


@op(name="read kvm->arch.pgd")
def _read_pgd(vm: Vm) -> int:
    return vm.arch.pgd or 0


async def _unmap_in_pieces(vm: Vm, start: int, end: int) -> bool:
    """Unmap a range, with mmu_lock dropped in between; return whether a flush is owed.

    Simplified: it is dropped at every chance, where the kernel does so only if
    somebody waits; whoever waits may then run, or not.
    """
    owes = False
    at = start
    root = await _read_pgd(vm)
    while root:
        at, more = await _unmap_some(vm, root, at, end)
        owes = owes or more
        if at >= end:
            break
        await vm.mmu_lock.drop_write()
        await vm.mmu_lock.take_write()
        root = await _root_after_drop(vm, root, at)
    return owes


async def unmap_range(vm: Vm, start: int, end: int, may_block: bool) -> bool:
    """Unmap a range; return whether the caller owes its flush.

    :Kernel: kvm_riscv_gstage_unmap_range()
    :Locking: mmu_lock held for write; dropped on the way if ``may_block``.
    """
    owes: bool
    if may_block:
        owes = await _unmap_in_pieces(vm, start, end)
    else:
        owes = await _unmap_all(vm, start, end)
    return owes


async def kvm_unmap_gfn_range(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> Flush | None:
    """Unmap a range and flush it, with mmu_lock held; the caller is left nothing.

    :Kernel: kvm_unmap_gfn_range()
    """
    owes = await unmap_range(vm, start, end, may_block)
    if owes:
        await kvm_flush_remote_tlbs_range(vm, start, end)
    return None


# -------------------------------------------------------------------------
# Write-protect
# -------------------------------------------------------------------------


def _protect(vm: Vm, met: Met) -> bool:
    """Clear W of a leaf; return whether a flush is owed.

    :Kernel: kvm_riscv_gstage_op_pte() with GSTAGE_OP_WP
    """
    old = met.table.get(met.place)
    new = wrprotect(old)
    met.table.set(met.place, new)
    if vm.k.riscv_flushes_once:
        return old != new
    if vm.k.riscv_flushes_store.fn(vm, old, new):
        hfence_gvma_vmid_gpa(vm, met.gfn, met.level)
    return False


def wp_now(vm: Vm, root: int, start: int, end: int) -> bool:
    """Write-protect a range; return whether a flush is owed.

    :Kernel: kvm_riscv_gstage_wp_range()
    :Locking: mmu_lock held for write, never dropped.
    """
    owes = False
    protects_part = vm.k.riscv_protects_part
    for met in leaves_of(vm, root, start, end, whole=protects_part):
        if protects_part or _is_whole(met, end):
            owes |= _protect(vm, met)
    return owes


CHOICES = (
    walk_aligns,
    flushes_once,
    warns_of_part,
    unmaps_part,
    protects_part,
    root_again,
)
