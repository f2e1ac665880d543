"""The fault of a radix guest: from the host's page to a leaf.

:Kernel: kvmppc_book3s_radix_page_fault(), kvmppc_book3s_instantiate_page() and
    kvmppc_create_pte(), arch/powerpc/kvm/book3s_64_mmu_radix.c, v4.11 on; fact sheet
    ppc, 3.5.
"""

__all__ = ["CHOICES", "kvmppc_create_pte", "page_fault"]

import errno

from kvmarch_ppc.host_page import HostMapping
from kvmarch_ppc.radix_pte import (
    PAGE_ACCESSED,
    PAGE_DIRTY,
    PAGE_PRESENT,
    PAGE_SOFT_DIRTY,
    PAGE_WRITE,
    RadixWord,
    flags_built_pte,
    host_copied_pte,
    host_pte,
    pmd_populate,
    pte_bits_match,
)
from kvmarch_ppc.radix_tree import LEAF, LPID, Radix, find_leaf, tlbie
from kvmarch_ppc.radix_unmap import kvmppc_unmap_pte

from kvmarch import (
    Choice,
    FaultIn,
    FaultResult,
    HostPte,
    Memslot,
    Table,
    Vcpu,
    Vm,
    faultin_pfn,
    gfn_to_memslot,
    mmu_invalidate_retry,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

# -- which leaf --------------------------------------------------------------------

small_when_logging = Choice(
    "ppc_radix_small_when_logging", "whether a slot that logs has base pages only"
)
small_when_logging.add(False)
small_when_logging.add(True, "ppc-radix-small-when-logging")
leaf_in_slot = Choice(
    "ppc_radix_leaf_in_slot", "whether a large leaf must lie inside its slot"
)
leaf_in_slot.add(False)
leaf_in_slot.add(True, "ppc-radix-leaf-in-slot")


def leaf_level(vm: Vm, slot: Memslot, gfn: int, pages: int) -> int:
    """Return the level for a page that the host maps with so many pages.

    Simplified: hosts of the model have no mappings of 1 GiB.
    """
    arch: Radix = vm.arch
    level = int(RadixWord.PMD)
    large = arch.pages[level]
    if pages != large or (slot.logs_dirty and vm.k.ppc_radix_small_when_logging):
        return RadixWord.PTE
    hva_page = slot.hva(gfn, vm.page_shift) >> vm.page_shift
    if (hva_page ^ gfn) & large - 1:
        return RadixWord.PTE
    first = gfn & -large
    if vm.k.ppc_radix_leaf_in_slot and not (
        slot.base_gfn <= first and first + large <= slot.end_gfn
    ):
        return RadixWord.PTE
    return level


def host_value(vm: Vm, found: HostMapping, level: int) -> int:
    """Return the host's PTE as the host's radix tree has it.

    :param level: of the leaf that is wanted; a large one begins at the large page.
    """
    arch: Radix = vm.arch
    pte = found.pte
    if not pte:
        return 0
    value = host_pte(
        arch.layout,
        HostPte.pfn.get(pte) & -arch.pages[level],
        level,
        write=bool(HostPte.write.get(pte)),
        dirty=bool(HostPte.dirty.get(pte)),
        soft_dirty=bool(HostPte.soft_dirty.get(pte)),
        special=bool(HostPte.special.get(pte)),
    )
    # Simplified: what a swap or migration entry holds besides is not modelled.
    return value if HostPte.present.get(pte) else value & ~PAGE_PRESENT


# -- kvmppc_create_pte() -----------------------------------------------------------

need_not_match = Choice(
    "ppc_radix_need_not_match",
    "which software bits of the host two faults on a page need not agree on",
)
need_not_match.add(0)
need_not_match.add(PAGE_SOFT_DIRTY, "ppc-radix-soft-dirty")
same_level = Choice(
    "ppc_radix_same_level", "what happens if a leaf of the wanted size is there"
)


@same_level.when()
def _clear_and_set(vm: Vm, table: Table, index: int, new: int) -> None:
    """Clear the old leaf with a tlbie, and store the new one (before v4.19)."""
    kvmppc_unmap_pte(vm, _slot_at(vm, table, index), table, index)
    table.set(index, new)


@same_level.when("ppc-radix-or-bits")
def _add_bits(vm: Vm, table: Table, index: int, new: int) -> None:
    """Add the bits of the new leaf, without a tlbie (v4.19 on)."""
    old = table.get(index)
    vm.warn(
        not pte_bits_match(old, new, vm.k.ppc_radix_need_not_match),
        f"kvmppc_create_pte: {old:#x} is there, {new:#x} is wanted",
    )
    table.set(index, old | new)


warns_of_leaves = Choice(
    "ppc_radix_warns_of_leaves", "whether leaves under a new larger one are unexpected"
)
warns_of_leaves.add(True)
warns_of_leaves.add(False, "ppc-host-pte-locked")
unmap_at_gpa = Choice(
    "ppc_radix_unmap_at_gpa", "whether such leaves are unmapped at their guest address"
)
unmap_at_gpa.add(False)
unmap_at_gpa.add(True, "ppc-radix-unmap-gpa")


def _slot_at(vm: Vm, table: Table, index: int) -> Memslot | None:
    arch: Radix = vm.arch
    return gfn_to_memslot(vm, table.base + index * arch.pages[table.level])


@op(name="allocate page tables")
def _alloc_missing(vm: Vm, gfn: int, level: int) -> tuple[int, ...]:
    """Allocate the tables on the way to a leaf that are not there now.

    Whether an allocation has failed is not asked until the table is wanted.

    :returns: physical addresses by level of their entries; 0 for none.
    """
    arch: Radix = vm.arch
    new = [0] * arch.levels
    value = arch.pgtable
    for at in range(RadixWord.PGD, level, -1):
        below = at - 1
        if value is not None:
            table = vm.tables.at(value)
            entry = table.get(gfn >> arch.shifts[at] & arch.sizes[at] - 1)
            if entry & LEAF == PAGE_PRESENT:
                value = entry & arch.table_mask[at]
                continue
        value = None
        if not vm.out_of_tables:
            new[below] = arch.alloc(vm, below, gfn).pa
    return tuple(new)


@op(name="free unused page tables")
def _free_unused(vm: Vm, tables: tuple[int, ...]) -> None:
    for pa in tables:
        if pa:
            vm.tables.free(vm.tables.at(pa))


def _unmap_free_table(vm: Vm, table: Table, index: int) -> None:
    """Clear a table entry, flush the page-walk cache, unmap what hangs there, free.

    :Kernel: kvmppc_unmap_free_pmd_entry_table(). The flush must come first, so that no
        walk reaches a table that is freed (fact sheet ppc, 10.9).
    """
    arch: Radix = vm.arch
    below = vm.tables.at(table.get(index) & arch.table_mask[table.level])
    table.set(index, 0)
    vm.world.note("kvmppc_radix_flush_pwc", lpid=LPID)
    for at, value in tuple(below.used(0, below.size)):
        vm.warn(
            vm.k.ppc_radix_warns_of_leaves,
            f"kvmppc_unmap_free_pte: {value:#x} is under a new larger leaf",
        )
        if not value & PAGE_PRESENT:
            continue
        if vm.k.ppc_radix_unmap_at_gpa:
            kvmppc_unmap_pte(vm, _slot_at(vm, below, at), below, at)
        else:
            # The host's address is passed where a guest's is meant (fact sheet, L3):
            # the right translation stays, and the dirty bit is lost.
            below.set(at, 0)
            wrong = (value & arch.layout.rpn_mask) >> arch.layout.page_shift
            tlbie(vm, wrong, wrong + 1, 1)
    vm.tables.free(below)


@op(name="insert PTE")
def _insert(
    vm: Vm, pte: int, gfn: int, level: int, new: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """Walk again and store the leaf.

    :returns: 0 or an errno, and the new tables that were not needed.
    """
    arch: Radix = vm.arch
    spare = list(new)
    assert arch.pgtable is not None
    table = vm.tables.at(arch.pgtable)
    for at in range(RadixWord.PGD, level, -1):
        index = gfn >> arch.shifts[at] & arch.sizes[at] - 1
        value = table.get(index)
        if value & LEAF != PAGE_PRESENT:
            # Nothing, or a larger leaf, which somebody else may just have made.
            if not spare[at - 1]:
                ret = -errno.EAGAIN if value else -errno.ENOMEM
                return ret, tuple(spare)
            slot = _slot_at(vm, table, index)
            kvmppc_unmap_pte(vm, slot, table, index)
            value = pmd_populate(arch.layout, at, spare[at - 1])
            spare[at - 1] = 0
            table.set(index, value)
        table = vm.tables.at(value & arch.table_mask[at])
    index = gfn >> arch.shifts[level] & arch.sizes[level] - 1
    value = table.get(index)
    if value & LEAF == LEAF:
        if value != pte:
            vm.k.ppc_radix_same_level.fn(vm, table, index, pte)
        return 0, tuple(spare)
    if level and value & LEAF == PAGE_PRESENT:
        _unmap_free_table(vm, table, index)
    table.set(index, pte)
    return 0, tuple(spare)


async def kvmppc_create_pte(vm: Vm, pte: int, gfn: int, level: int, seq: int) -> int:
    """Store a leaf, unless an invalidation or another fault was faster.

    Tables are allocated before mmu_lock is taken; those that turn out not to be needed
    are freed after it.

    :returns: 0; -EAGAIN, with which the guest goes on and faults again; -ENOMEM if a
        table is wanted that could not be allocated.
    """
    unused = await _alloc_missing(vm, gfn, level)
    ret = -errno.EAGAIN
    async with vm.mmu_lock.write():
        stale = await mmu_invalidate_retry(vm, seq)
        if not stale:
            ret, unused = await _insert(vm, pte, gfn, level, unused)
    if any(unused):
        await _free_unused(vm, unused)
    return ret


# -- the fault ---------------------------------------------------------------------

instantiate_page = Choice("ppc_radix_instantiate", "how a fault makes its leaf")


@op(name="set_page_dirty_lock")
def _set_page_dirty(vm: Vm, pfn: int) -> None:
    vm.host.mark(pfn, dirty=True, accessed=True, who="radix fault")


async def _publish(
    vm: Vm, found: FaultIn, pte: int, gfn: int, level: int, seq: int
) -> FaultResult:
    """Store the leaf and let go of the page, which is dirty if it is writable."""
    ret = await kvmppc_create_pte(vm, pte, gfn, level, seq)
    if not ret and pte & PAGE_WRITE:
        await _set_page_dirty(vm, found.pfn)
    await release_pfn(vm, found.pfn)
    return "error" if ret == -errno.ENOMEM else "guest"


@op(name="build PTE")
def _build_leaf(vm: Vm, slot: Memslot, gfn: int, found: FaultIn) -> tuple[int, int]:
    level = leaf_level(vm, slot, gfn, 1 << vm.host.pages[found.pfn].order)
    arch: Radix = vm.arch
    pfn = found.pfn & -arch.pages[level]
    return flags_built_pte(arch.layout, pfn, level, write=found.writable), level


@instantiate_page.when()
async def _from_flags(vcpu: Vcpu, slot: Memslot, gfn: int, write: bool) -> FaultResult:
    """Build the leaf from flags; its size is that of the compound page (to v4.18).

    The host may map the page by a smaller entry, and its neighbours not at all (P8).
    """
    vm = vcpu.vm
    seq = await snapshot_mmu_seq(vm)
    found = await faultin_pfn(vm, slot, gfn, write)
    if found.error:
        return "error"
    pte, level = await _build_leaf(vm, slot, gfn, found)
    return await _publish(vm, found, pte, gfn, level, seq)


@op(name="copy host PTE")
def _copy_leaf(
    vm: Vm, slot: Memslot, gfn: int, host: HostMapping, writing: bool
) -> tuple[int, int]:
    level = leaf_level(vm, slot, gfn, host.pages)
    return host_copied_pte(host_value(vm, host, level), writing=writing), level


@instantiate_page.when("ppc-radix-host-pte")
async def kvmppc_book3s_instantiate_page(
    vcpu: Vcpu, slot: Memslot, gfn: int, write: bool
) -> FaultResult:
    """Copy the host's PTE; its size is that of the leaf (v4.19 on)."""
    vm = vcpu.vm
    seq = await snapshot_mmu_seq(vm)
    found = await faultin_pfn(vm, slot, gfn, write)
    if found.error:
        return "error"
    host = await vm.k.ppc_find_host_pte(vm, slot, gfn, seq)
    if not host.usable:
        await release_pfn(vm, found.pfn)
        return "guest"
    pte, level = await _copy_leaf(vm, slot, gfn, host, found.writable)
    return await _publish(vm, found, pte, gfn, level, seq)


@op(name="kvmppc_hv_handle_set_rc")
def _handle_set_rc(vm: Vm, gfn: int, write: bool) -> bool:
    """Set R, and C for a store, as hardware would; return whether it was possible.

    No sequence check: it only does what hardware may do at any time.
    """
    place = find_leaf(vm, gfn)
    if place is None:
        return False
    value = place.table.get(place.at)
    if write and not value & PAGE_WRITE:
        return False
    place.table.set(place.at, value | PAGE_ACCESSED | (PAGE_DIRTY if write else 0))
    return True


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle a fault of the partition-scoped tree.

    :Kernel: kvmppc_book3s_radix_page_fault(). Read-only slots and secure guests are not
        modelled; nested guests have a fault of their own.
    """
    vm = vcpu.vm
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return "mmio"
    write = access == "write"
    if why == "set_rc":
        async with vm.mmu_lock.write():
            done = await _handle_set_rc(vm, gfn, write)
        if done:
            return "guest"
    result: FaultResult = await vm.k.ppc_radix_instantiate(vcpu, slot, gfn, write)
    return result


CHOICES = (
    small_when_logging,
    leaf_in_slot,
    need_not_match,
    same_level,
    warns_of_leaves,
    unmap_at_gpa,
    instantiate_page,
)
