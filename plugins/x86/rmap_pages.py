"""Table pages of the direct MMU: found, linked, zapped, freed; and its roots.

:Kernel: struct kvm_mmu_page in arch/x86/kvm/mmu.c, later arch/x86/kvm/mmu/mmu.c,
    v3.16 to v7.2; fact sheet x86, section 2.

``Table.refs`` of a root is root_count. All functions need mmu_lock exclusively.
"""

__all__ = [
    "Zapped",
    "free_zapped_pages",
    "is_obsolete_sp",
    "kvm_mmu_get_page",
    "link_shadow_page",
    "prepare_zap_page",
    "rmap_alloc_root",
    "rmap_free_root",
    "unlink_child",
]

from typing import NamedTuple

from kvmarch_x86.rmap_entries import drop_leafs
from kvmarch_x86.spte import make_nonleaf_spte
from kvmarch_x86.state import ENTRIES, Role

from kvmarch import Table, Vm

TABLE_BYTES = ENTRIES * 8


class Zapped(NamedTuple):
    """What became of a table page that was zapped."""

    table_pa: int
    """To be freed after a flush; 0 if vCPUs have it loaded as their root."""
    leafs: int
    """How many leafs it held."""
    reload: bool
    """The vCPUs that have it loaded must be told to load another root."""


def is_obsolete_sp(vm: Vm, table: Table) -> bool:
    """Return whether a table belongs to an earlier generation of the MMU.

    :Kernel: is_obsolete_sp(). An invalid table counts as obsolete from v5.4, where the
        generation is one bit; before it is a number that never comes again.
    """
    role: Role = table.note
    return role.invalid or role.gen != vm.arch.mmu_valid_gen


def kvm_mmu_get_page(vm: Vm, as_id: int, level: int, base: int) -> Table:
    """Return the valid table of a place, a new one if there is none.

    A table that nothing points at any more is found again, with what is in it.

    :param base: first gfn.
    """
    arch = vm.arch
    place = (as_id, level, base)
    here = arch.mmu_page_hash.setdefault(place, [])
    for pa in reversed(here):
        table = vm.tables.at(pa)
        if not is_obsolete_sp(vm, table):
            return table
    layout = arch.layout
    table = vm.tables.alloc(
        ENTRIES, level, base, empty=layout.nonpresent, align=TABLE_BYTES
    )
    table.note = Role(as_id, level, ad_disabled=not layout.ad, gen=arch.mmu_valid_gen)
    here.append(table.pa)
    arch.active_mmu_pages.insert(0, table.pa)
    vm.world.note("kvm_mmu_get_page", gfn=base, level=level, as_id=as_id)
    return table


def link_shadow_page(vm: Vm, table: Table, index: int, child: Table) -> None:
    """Let an entry point at a table."""
    table.set(index, make_nonleaf_spte(vm.arch.layout, child.pa))
    vm.arch.parent_ptes.setdefault(child.pa, []).append((table.pa, index))


def unlink_child(vm: Vm, table: Table, index: int) -> None:
    """Clear an entry that points at a table; the table stays as it is.

    :Kernel: drop_parent_pte()
    """
    arch = vm.arch
    child = table.get(index) & arch.layout.pfn_mask
    parents = arch.parent_ptes[child]
    parents.remove((table.pa, index))
    if not parents:
        del arch.parent_ptes[child]
    table.set(index, arch.layout.nonpresent)


def prepare_zap_page(vm: Vm, table: Table) -> Zapped:
    """Clear a table and unlink it from both sides; a root in use only gets invalid.

    Tables below it are unlinked, not zapped.

    :Kernel: kvm_mmu_prepare_zap_page(), __kvm_mmu_prepare_zap_page()
    """
    arch = vm.arch
    role: Role = table.note
    vm.world.note("kvm_mmu_prepare_zap_page", gfn=table.base, level=table.level)
    leafs = drop_leafs(vm, table, 0, ENTRIES, "kvm_mmu_prepare_zap_page")
    if table.level > 1:
        for index, _spte in list(table.used(0, ENTRIES)):
            unlink_child(vm, table, index)
    else:
        # What is left are MMIO entries, which nothing refers to.
        table.fill(arch.layout.nonpresent, 0, ENTRIES)
    for parent, index in arch.parent_ptes.pop(table.pa, ()):
        vm.tables.at(parent).set(index, arch.layout.nonpresent)
    reload = table.refs > 0 and not is_obsolete_sp(vm, table)
    if not role.invalid:
        _retire(vm, table)
        table.note = role._replace(invalid=True)
    return Zapped(0 if table.refs > 0 else table.pa, leafs, reload)


def _retire(vm: Vm, table: Table) -> None:
    """Take a table out of the lists in which a valid one is found."""
    arch = vm.arch
    role: Role = table.note
    pages = arch.active_mmu_pages
    if pages[-1] == table.pa:
        pages.pop()
    else:
        pages.remove(table.pa)
    place = (role.as_id, role.level, table.base)
    here = arch.mmu_page_hash[place]
    here.remove(table.pa)
    if not here:
        del arch.mmu_page_hash[place]
    if arch.root_of.get(role.as_id) == table.pa:
        arch.root_of[role.as_id] = 0


def free_zapped_pages(vm: Vm, pages: tuple[int, ...]) -> None:
    """Give table pages back, after every vCPU has left them.

    :Kernel: the second half of kvm_mmu_commit_zap_page()
    """
    for pa in pages:
        vm.tables.free(vm.tables.at(pa))


def rmap_alloc_root(vm: Vm, as_id: int) -> int:
    """Return the root of an address space with one reference more.

    :Kernel: mmu_alloc_root(), mmu_alloc_direct_roots(); all vCPUs share it.
    """
    arch = vm.arch
    table = kvm_mmu_get_page(vm, as_id, arch.level, 0)
    table.refs += 1
    arch.root_of[as_id] = table.pa
    return table.pa


def rmap_free_root(vm: Vm, root_pa: int) -> None:
    """Give a reference to a root back; the last one frees it if it is invalid.

    :Kernel: mmu_free_root_page()
    """
    # Simplified: without the flush of kvm_mmu_commit_zap_page(); harmless because
    # the root was cleared and flushed when it became invalid, and no vCPU uses it.
    table = vm.tables.at(root_pa)
    table.refs -= 1
    vm.warn(table.refs < 0, f"root_count of the root at {root_pa:#x} is negative")
    role: Role = table.note
    if table.refs <= 0 and role.invalid:
        zapped = prepare_zap_page(vm, table)
        free_zapped_pages(vm, (zapped.table_pa,))
