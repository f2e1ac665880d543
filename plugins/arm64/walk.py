"""Walks: where the entry of a gfn is, and what hardware makes of it."""

__all__ = [
    "VALID",
    "change_attributes",
    "entry_of",
    "follow",
    "leaf_of",
    "leaf_table",
    "stage2_walk",
    "translate",
]

from typing import TYPE_CHECKING

from kvmarch_arm64.formats import Descriptor, Leaf, Table
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.pte import kvm_pte_to_phys, may_change

from kvmarch import Table as Entries
from kvmarch import Translation, Vcpu, Vm

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu

VALID = Descriptor.valid.mask
_TABLE = Table.kind_mask
_R = Leaf.r.mask
_W = Leaf.w.mask
_AF = Leaf.af.mask
_LAST = KVM_PGTABLE_LAST_LEVEL


def stage2_walk(
    vm: Vm, gfn: int, target: int = _LAST
) -> tuple[Entries, int, int, int] | None:
    """Follow tables from the root towards a gfn, down to a level at most.

    :Kernel: kvm_pgtable_walk() of one page
    :param target: the level at which the walk ends, whatever the entry there is.
    :returns: table, index in it, level and entry; None if there is no root or the
        gfn is beyond the IPA size.
    """
    mmu: Mmu = vm.arch
    pa = mmu.pgt
    if pa is None or gfn >= mmu.end_gfn:
        return None
    tables = vm.tables
    live = tables.live
    shifts, layout = mmu.shifts, mmu.layout
    level = mmu.start_level
    # The pages of a concatenated root are one table, so its index has no mask.
    mask = -1
    while True:
        table = live.get(pa) or tables.at(pa)
        index = gfn >> shifts[level] & mask
        entry = table.get(index)
        if level >= target or entry & _TABLE != _TABLE:
            return table, index, level, entry
        # kvm_pte_follow(), written out because every access of a guest comes here.
        pa = entry & layout.addr_mask
        if layout.addr_high_mask:
            pa |= entry << layout.addr_high_shift & layout.addr_high_mask
        mask = mmu.index_mask
        level += 1


def leaf_of(vm: Vm, gfn: int) -> tuple[Entries, int, int, int] | None:
    """Return table, index, level and entry of the leaf of a gfn, if it is valid."""
    found = stage2_walk(vm, gfn)
    return found if found is not None and found[3] & VALID else None


def follow(vm: Vm, entry: int) -> Entries:
    """Return the table that a table entry points at.

    :Kernel: kvm_pte_follow()
    """
    return vm.tables.at(kvm_pte_to_phys(vm.arch.layout, entry))


def change_attributes(vm: Vm, table: Entries, index: int, old: int, new: int) -> None:
    """Store an entry over a live one, and check the law of break-before-make."""
    if not may_change(vm.arch.layout, old, new):
        vm.world.violate(
            "break-before-make",
            f"a live entry changes from {old:#018x} to {new:#018x} by one store",
        )
    table.set(index, new)


def _look(vm: Vm, gfn: int, target: int) -> tuple[Entries, int, int, int] | None:
    """Walk as an onlooker, who does not follow a root that is freed already."""
    if vm.arch.pgt not in vm.tables.live:
        return None
    return stage2_walk(vm, gfn, target)


def entry_of(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn, and its level."""
    found = _look(vm, gfn, _LAST)
    return (0, vm.arch.start_level) if found is None else (found[3], found[2])


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return address of the table, and index, of a gfn's entry at a level."""
    found = _look(vm, gfn, level)
    if found is None or found[2] != level:
        return None
    return found[0].pa, found[1]


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk stage 2 as hardware does.

    The access flag is looked at before permissions; hardware sets it by itself if
    VTCR_EL2.HA is set and the CPU can. W is never set by hardware: there is no dirty
    state in stage 2. A cached translation that does not allow the access is a fault of
    its own: hardware does not look whether the entry allows more by now.

    :returns: a translation, or ``missing``, ``access``, ``permission``.
    """
    vm = vcpu.vm
    mmu: Mmu = vm.arch
    cached = vcpu.tlb.lookup(vcpu.arch.vmid, gfn)
    if cached is not None and not cached.allows(access):
        own = vcpu.arch
        own.fault_level = mmu.level_of[cached.pages]
        if own.stale == "left":
            own.stale = "hit"
        return "permission"
    found = _cached_walk(vcpu, gfn) if mmu.caches_walks else stage2_walk(vm, gfn)
    if found is None:
        return "missing"
    table, index, level, entry = found
    if not entry & VALID:
        return "missing"
    if not entry & _AF:
        if not mmu.haf:
            vcpu.arch.fault_level = level
            return "access"
        table.set(index, entry | _AF)
    write = entry & _W != 0
    executable = entry & mmu.exec_mask in mmu.exec_values
    if not (
        write if access == "write" else executable if access == "exec" else entry & _R
    ):
        vcpu.arch.fault_level = level
        return "permission"
    pages = 1 << mmu.shifts[level]
    pfn = kvm_pte_to_phys(mmu.layout, entry) >> mmu.layout.page_shift
    return Translation(gfn & -pages, pages, pfn, entry & _R != 0, write, executable)


def _cached_walk(vcpu: Vcpu, gfn: int) -> tuple[Entries, int, int, int] | None:
    """Walk from the table of the last level that the CPU remembers.

    A table stays remembered until its range or the VMID is flushed, even when it is
    not linked any more: what is read then is whatever the page holds by now.
    """
    vm = vcpu.vm
    mmu: Mmu = vm.arch
    key = gfn >> mmu.shifts[_LAST - 1]
    pa = vcpu.arch.walk_cache.get(key)
    if pa is not None:
        table = vm.tables.at(pa)
        index = gfn & mmu.index_mask
        return table, index, _LAST, table.get(index)
    found = stage2_walk(vm, gfn)
    if found is not None and found[2] == _LAST:
        vcpu.arch.walk_cache[key] = found[0].pa
    return found
