"""The walkers of stage 2 that own the tables: mmu_lock is held for write.

:Kernel: arch/arm64/kvm/hyp/pgtable.c, since v5.10 (fact sheet arm64, 2). Faults that
    share the tables since v6.2 are in :mod:`kvmarch_arm64.parallel`.

Each function is one atomic step. What it stores in the middle of a break-before-make
sequence nobody sees, because faults wait for mmu_lock; but translations that it makes
stale are dropped, in order, by the function itself, unless it says otherwise.

The count of a table (``Table.refs``) is page_count(): 1, and 1 for each counted entry.
"""

__all__ = [
    "CHOICES",
    "free_chunk",
    "free_subtree",
    "install_table",
    "kvm_pgtable_stage2_destroy",
    "kvm_pgtable_stage2_map",
    "kvm_pgtable_stage2_mkyoung",
    "kvm_pgtable_stage2_relax_perms",
    "kvm_pgtable_stage2_split",
    "kvm_pgtable_stage2_wrprotect",
    "make_leaf",
    "put_table_page",
]

import errno
from collections.abc import Iterator

from kvmarch_arm64.changes import PGTABLE
from kvmarch_arm64.formats import Leaf
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.pte import (
    kvm_init_table_pte,
    kvm_init_valid_leaf_pte,
    kvm_pte_table,
    kvm_pte_to_phys,
    stage2_mkyoung,
    stage2_pte_needs_update,
    stage2_wrprotect,
)
from kvmarch_arm64.state import Arm64Vcpu, Mmu
from kvmarch_arm64.tlbi import kvm_tlb_flush_vmid_ipa
from kvmarch_arm64.walk import VALID, change_attributes, follow, leaf_of, stage2_walk

from kvmarch import Choice, Vm
from kvmarch import Table as Entries

_LAST = KVM_PGTABLE_LAST_LEVEL
_R = Leaf.r.mask
_W = Leaf.w.mask

# -------------------------------------------------------------------------
# Tables
# -------------------------------------------------------------------------


def install_table(vm: Vm, table: Entries, index: int, gfn: int, level: int) -> Entries:
    """Make a table and point an empty entry of this level at it."""
    mmu: Mmu = vm.arch
    base = gfn & -(1 << mmu.shifts[level])
    child = vm.tables.alloc(mmu.entries, level + 1, base)
    child.refs = 1
    table.refs += 1
    table.set(index, kvm_init_table_pte(mmu.layout, child.pa))
    return child


def put_table_page(vm: Vm, table: Entries) -> None:
    """Give back one reference of a table; the last one frees the page.

    :Kernel: mm_ops->put_page()
    """
    table.refs -= 1
    if not table.refs:
        vm.tables.free(table)


def children(vm: Vm, table: Entries) -> Iterator[Entries]:
    """Yield the tables that a table points at."""
    level = table.level
    if level < _LAST:
        for _index, entry in table.used(0, table.size):
            if kvm_pte_table(entry, level):
                yield follow(vm, entry)


def free_subtree(vm: Vm, table: Entries) -> None:
    """Free a table that hardware cannot reach any more, and all below it.

    :Kernel: kvm_pgtable_stage2_free_unlinked(), stage2_free_walker()
    """
    for child in list(children(vm, table)):
        free_subtree(vm, child)
    vm.tables.free(table)


def make_leaf(mmu: Mmu, pfn: int, attr: int, level: int) -> int:
    """Return the entry of a page or block whose first frame is given."""
    layout = mmu.layout
    return kvm_init_valid_leaf_pte(layout, pfn << layout.page_shift, attr, level)


# -------------------------------------------------------------------------
# Map
# -------------------------------------------------------------------------

same_leaf = Choice(
    "arm64_leaf_stays", "what a map answers that would change a valid leaf too little"
)


@same_leaf.when()
def _identical(vm: Vm, old: int, new: int) -> int | None:
    """Skip an identical leaf; anything else is replaced (v5.10, v5.11)."""
    return 0 if old == new else None


@same_leaf.when(PGTABLE, "arm64-perms-only-eagain")
def _permissions_only(vm: Vm, old: int, new: int) -> int | None:
    """Refuse what differs in permissions at most (694d071f8d85, v5.12 on)."""
    if stage2_pte_needs_update(vm.arch.layout, old, new):
        return None
    return -errno.EAGAIN


counts_update = Choice(
    "arm64_counts_update", "whether a replaced valid leaf gives its reference back"
)
counts_update.add(True)
counts_update.add(False, PGTABLE)
counts_update.add(True, PGTABLE, "arm64-update-refcount")


def kvm_pgtable_stage2_map(
    vm: Vm, gfn: int, pages: int, pfn: int, attr: int, cache: Arm64Vcpu | None
) -> int:
    """Map one page or block.

    :Kernel: kvm_pgtable_stage2_map(), since v5.10
    :Locking: mmu_lock held for write.
    :param gfn: aligned to ``pages``, which are those of a page or a block.
    :param attr: what stage2_set_prot_attr() returned.
    :param cache: whose set-aside pages become tables; None if there are none.
    :returns: 0; -EAGAIN if the entry stays; -ENOMEM if a table is missing that
        cannot be made; -ERANGE without a root or beyond the IPA size.
    """
    mmu: Mmu = vm.arch
    target = mmu.level_of[pages]
    found = stage2_walk(vm, gfn, target)
    if found is None:
        return -errno.ERANGE
    table, index, level, old = found
    while level < target:
        if cache is None or not cache.mmu_page_cache:
            return -errno.ENOMEM
        cache.mmu_page_cache -= 1
        if old & VALID:
            _break_leaf(vm, table, index, gfn)
        table = install_table(vm, table, index, gfn, level)
        level += 1
        index, old = gfn >> mmu.shifts[level] & mmu.index_mask, 0
    new = make_leaf(mmu, pfn, attr, level)
    if kvm_pte_table(old, level):
        _break_table(vm, table, index, gfn, old)
    elif old & VALID:
        stays = vm.k.arm64_leaf_stays.fn(vm, old, new)
        if stays is not None:
            return int(stays)
        _break_leaf(vm, table, index, gfn)
        if not vm.k.arm64_counts_update:
            table.refs += 1
    table.refs += 1
    table.set(index, new)
    return 0


def _break_leaf(vm: Vm, table: Entries, index: int, gfn: int) -> None:
    """Empty a valid leaf, drop it from TLBs, give its reference back."""
    table.set(index, 0)
    kvm_tlb_flush_vmid_ipa(vm, gfn)
    table.refs -= 1


def _break_table(vm: Vm, table: Entries, index: int, gfn: int, old: int) -> None:
    """Empty a table entry, drop what may be cached of it, and free the table.

    :Kernel: stage2_map_walk_table_pre(); the anchor of v5.10 to v6.1 frees on the
        way up, and the block is installed last
    """
    child = follow(vm, old)
    table.set(index, 0)
    vm.k.arm64_flush_table.fn(vm, gfn, 1 << vm.arch.shifts[table.level])
    table.refs -= 1
    free_subtree(vm, child)


# -------------------------------------------------------------------------
# Attributes of one leaf
# -------------------------------------------------------------------------


def relaxed(vm: Vm, old: int, attr: int) -> int:
    """Return a leaf with the permissions added that attributes ask for.

    :Kernel: kvm_pgtable_stage2_relax_perms(); from v6.19 to v7.1 execute permission
        is set as asked, and so may be lost
    """
    mmu: Mmu = vm.arch
    new = old | attr & (_R | _W)
    asked = attr & mmu.exec_mask
    if vm.k.arm64_sets_exec or asked in mmu.exec_values:
        new = new & ~mmu.exec_mask | asked
    return new


sets_exec = Choice(
    "arm64_sets_exec", "whether relaxing permissions may take execute away"
)
sets_exec.add(False)
sets_exec.add(True, PGTABLE, "arm64-xnx")
sets_exec.add(False, PGTABLE, "arm64-xnx", "arm64-relax-keeps-exec")


def kvm_pgtable_stage2_relax_perms(vm: Vm, gfn: int, attr: int) -> int:
    """Add permissions to a leaf and drop the old translation.

    :Kernel: kvm_pgtable_stage2_relax_perms(), v5.10 to v6.1
    :Locking: mmu_lock, for write; since v5.18 for read if only a page's W changes.
    """
    found = leaf_of(vm, gfn)
    if found is None:
        return 0
    table, index, _level, old = found
    change_attributes(vm, table, index, old, relaxed(vm, old, attr))
    kvm_tlb_flush_vmid_ipa(vm, gfn)
    return 0


def kvm_pgtable_stage2_mkyoung(vm: Vm, gfn: int) -> int:
    """Set the access flag; no invalidation, since such entries are never cached.

    :Kernel: kvm_pgtable_stage2_mkyoung(), v5.10 to v6.2; handle_access_fault() of
        the old MMU
    :returns: the leaf; 0 if there is none.
    """
    found = leaf_of(vm, gfn)
    if found is None:
        return 0
    table, index, _level, old = found
    change_attributes(vm, table, index, old, stage2_mkyoung(old))
    return old


# -------------------------------------------------------------------------
# Ranges
# -------------------------------------------------------------------------


def kvm_pgtable_stage2_wrprotect(vm: Vm, pgd: int, start: int, end: int) -> int:
    """Clear W of every leaf that a range meets, blocks as a whole.

    :Kernel: kvm_pgtable_stage2_wrprotect(), since v5.10; stage2_wp_range() before
    :param pgd: physical address of the root in bytes.
    :returns: how many entries lost W. Nothing is flushed: the caller owes that.
    """
    mmu: Mmu = vm.arch
    return _wrprotect(vm, mmu, vm.tables.at(pgd), start, min(end, mmu.end_gfn))


def _wrprotect(vm: Vm, mmu: Mmu, table: Entries, start: int, end: int) -> int:
    level = table.level
    shift = mmu.shifts[level]
    first, stop = start - table.base >> shift, (end - 1 - table.base >> shift) + 1
    if level == _LAST:
        return table.change(mmu.writable, first, stop, clear=_W)
    changed = 0
    span = 1 << shift
    for index, entry in list(table.used(first, stop)):
        base = table.base + (index << shift)
        if kvm_pte_table(entry, level):
            child = follow(vm, entry)
            changed += _wrprotect(
                vm, mmu, child, max(start, base), min(end, base + span)
            )
        elif entry & VALID and entry & _W:
            change_attributes(vm, table, index, entry, stage2_wrprotect(entry))
            changed += 1
    return changed


def kvm_pgtable_stage2_split(vm: Vm, start: int, end: int) -> int:
    """Replace each block of a range by a table of pages with the same permissions.

    :Kernel: kvm_pgtable_stage2_split(), since v6.5
    :Locking: mmu_lock held for write.
    :returns: 0; -ENOMEM if the pages set aside do not suffice, with the rest of the
        range left as it is.
    """
    mmu: Mmu = vm.arch
    at = start
    while at < end:
        found = stage2_walk(vm, at)
        if found is None:
            return 0
        table, index, level, old = found
        is_block = old & VALID and level < _LAST
        if is_block and not _split_block(vm, table, index, old):
            return -errno.ENOMEM
        at = (at >> mmu.shifts[level]) + 1 << mmu.shifts[level]
    return 0


def _split_block(vm: Vm, table: Entries, index: int, old: int) -> bool:
    """Put a subtree of smaller leaves in the place of a block."""
    mmu: Mmu = vm.arch
    level = table.level
    # Pages for the full depth or, if there are fewer, for one level.
    depth = sum(mmu.entries**n for n in range(_LAST - level))
    if mmu.split_page_cache < depth:
        depth = 1
    if mmu.split_page_cache < depth:
        return False
    to_level = _LAST if depth > 1 or level == _LAST - 1 else level + 1
    mmu.split_page_cache -= depth
    layout = mmu.layout
    pfn = kvm_pte_to_phys(layout, old) >> layout.page_shift
    attr = old & layout.leaf_attr_mask
    base = table.base + (index << mmu.shifts[level])
    _break_leaf(vm, table, index, base)
    child = install_table(vm, table, index, base, level)
    _fill(vm, child, pfn, attr, to_level)
    return True


def _fill(vm: Vm, table: Entries, pfn: int, attr: int, to_level: int) -> None:
    """Fill a table with leaves of one level, in order."""
    mmu: Mmu = vm.arch
    level = table.level
    pages = 1 << mmu.shifts[level]
    for index in range(table.size):
        if level == to_level:
            table.set(index, make_leaf(mmu, pfn + index * pages, attr, level))
            table.refs += 1
        else:
            base = table.base + index * pages
            child = install_table(vm, table, index, base, level)
            _fill(vm, child, pfn + index * pages, attr, to_level)


# -------------------------------------------------------------------------
# Destroy
# -------------------------------------------------------------------------


def kvm_pgtable_stage2_destroy(vm: Vm, pgt: int) -> None:
    """Free all tables of a root that nobody can load any more.

    No TLB is invalidated: the VMID is not used again before a rollover.

    :Kernel: kvm_pgtable_stage2_destroy(), since v5.10; kvm_free_stage2_pgd() before,
        after it has unmapped everything
    :param pgt: physical address of the root in bytes.
    """
    free_subtree(vm, vm.tables.at(pgt))


def free_chunk(vm: Vm, pgt: int) -> bool:
    """Free what hangs below one entry of a root, or the root if nothing does.

    :Kernel: stage2_destroy_range(), kvm_pgtable_stage2_destroy_pgd(), since v6.19
    :returns: whether there is more to free.
    """
    root = vm.tables.at(pgt)
    for index, entry in root.used(0, root.size):
        if kvm_pte_table(entry, root.level):
            free_subtree(vm, follow(vm, entry))
            root.set(index, 0)
            root.refs -= 1
            return True
    vm.tables.free(root)
    return False


CHOICES = (same_leaf, counts_update, sets_exec)
