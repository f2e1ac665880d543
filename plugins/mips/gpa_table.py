"""The GPA page table: walk, and the range operations on it.

Models arch/mips/kvm/mmu.c, v4.11 on (fact sheet mips, sections 3, 5 and 6). Every
range function takes the last gfn, not the one after it. Of a gfn beyond the table
only the index bits count, as in the kernel.

A directory is walked by a refill handler without any lock; a table page that a
range covers is nevertheless freed at once.
"""

__all__ = [
    "find_pte",
    "for_each_leaf_table",
    "kvm_mips_flush_gpa_pt",
    "kvm_mips_mkclean_gpa_pt",
    "kvm_mips_mkold_gpa_pt",
    "lowest_entry",
    "pte_for_gpa",
    "table_at",
]

from collections.abc import Iterator

from kvmarch_mips.geometry import table_entry, table_pa
from kvmarch_mips.state import MipsVcpu, MipsVm

from kvmarch import Table, Vm, op


def find_pte(vm: Vm, gfn: int) -> tuple[Table, int] | None:
    """Return the leaf table of a gfn and the index in it; None if there is none.

    :Kernel: kvm_mips_pte_for_gpa() without a cache.
    """
    arch: MipsVm = vm.arch
    if not arch.pgd:
        return None
    geometry = arch.geometry
    table = vm.tables.at(arch.pgd)
    for above in range(geometry.levels - 1, 0, -1):
        entry = table.get(gfn >> arch.gfn_shifts[above] & geometry.masks[above])
        if entry == geometry.empty[above]:
            return None
        table = vm.tables.at(entry & geometry.pa_mask)
    return table, gfn & geometry.masks[0]


def pte_for_gpa(vm: Vm, vcpu: MipsVcpu, gfn: int) -> tuple[Table, int]:
    """Return the leaf table of a gfn and the index in it; make what is missing.

    :Kernel: kvm_mips_pte_for_gpa() with the vCPU's page cache.
    :Locking: mmu_lock.
    """
    arch: MipsVm = vm.arch
    geometry = arch.geometry
    table = vm.tables.at(arch.pgd)
    for above in range(geometry.levels - 1, 0, -1):
        index = gfn >> arch.gfn_shifts[above] & geometry.masks[above]
        entry = table.get(index)
        if entry == geometry.empty[above]:
            vm.warn(not vcpu.mmu_page_cache, "mmu_memory_cache_alloc() of no page")
            vcpu.mmu_page_cache -= 1
            below = vm.tables.alloc(
                1 << geometry.bits[above - 1],
                above,
                gfn >> arch.gfn_shifts[above] << arch.gfn_shifts[above],
                empty=geometry.empty[above - 1],
            )
            entry = table_entry(geometry, below.pa)
            table.set(index, entry)
        table = vm.tables.at(entry & geometry.pa_mask)
    return table, gfn & geometry.masks[0]


def table_at(vm: Vm, gfn: int, level: int) -> tuple[Table, int] | None:
    """Return the table of a level that holds a gfn's entry, and the index in it.

    :returns: None if the walk does not come so far down.
    """
    arch: MipsVm = vm.arch
    geometry = arch.geometry
    if not arch.pgd or not 1 <= level <= geometry.levels:
        return None
    table = vm.tables.at(arch.pgd)
    for above in range(geometry.levels - 1, level - 1, -1):
        entry = table.get(gfn >> arch.gfn_shifts[above] & geometry.masks[above])
        if entry == geometry.empty[above]:
            return None
        table = vm.tables.at(table_pa(geometry, entry))
    return table, gfn >> arch.gfn_shifts[level - 1] & geometry.masks[level - 1]


def lowest_entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn, and its level."""
    arch: MipsVm = vm.arch
    for level in range(1, arch.geometry.levels + 1):
        found = table_at(vm, gfn, level)
        if found is not None:
            table, index = found
            return table.get(index), level
    return arch.geometry.empty[-1], arch.geometry.levels


# -------------------------------------------------------------------------
# Ranges
# -------------------------------------------------------------------------


def _span(arch: MipsVm, level: int, start: int, last: int) -> tuple[int, int]:
    """Return the first and the last index of a range in a table of this level.

    A range that runs past the root's end wraps round, and then the last index is
    below the first and nothing is done, as in the kernel.
    """
    shift, mask = arch.gfn_shifts[level - 1], arch.geometry.masks[level - 1]
    return start >> shift & mask, last >> shift & mask


def _children(
    vm: Vm, table: Table, start: int, last: int
) -> Iterator[tuple[int, Table, int, int]]:
    """Yield index, table below, first and last gfn for each entry that leads on.

    Inside a range a table is covered from end to end: 0 stands for its first gfn and
    all ones for its last one.
    """
    arch: MipsVm = vm.arch
    low, high = _span(arch, table.level, start, last)
    for index, entry in list(table.used(low, high + 1)):
        yield (
            index,
            vm.tables.at(entry & arch.geometry.pa_mask),
            start if index == low else 0,
            last if index == high else -1,
        )


def for_each_leaf_table(
    vm: Vm, start: int, last: int, table: Table | None = None
) -> Iterator[tuple[Table, int, int]]:
    """Yield each leaf table in a range, with the first index and the one after it.

    :param last: last gfn, inclusive.
    :param table: where to begin; the root if it is left out.
    """
    arch: MipsVm = vm.arch
    if table is None:
        if not arch.pgd:
            return
        table = vm.tables.at(arch.pgd)
    if table.level == 1:
        low, high = _span(arch, 1, start, last)
        yield table, low, high + 1
        return
    for _index, below, first, end in _children(vm, table, start, last):
        yield from for_each_leaf_table(vm, first, end, below)


def kvm_mips_flush_gpa_pt(
    vm: Vm, start: int, last: int, table: Table | None = None
) -> bool:
    """Clear every entry of a range, and free each table that the range covers.

    A table goes as soon as it is unlinked: before any TLB flush, and without RCU.

    :Kernel: kvm_mips_flush_gpa_pt(), since v4.11.
    :Locking: mmu_lock, but on the release path (see ``flush_shadow_all``).
    :param last: last gfn, inclusive.
    :param table: where to begin; the root, which stays, if it is left out.
    :returns: whether the range covers the table, and nothing in it is left.
    """
    arch: MipsVm = vm.arch
    if table is None:
        table = vm.tables.at(arch.pgd)
    low, high = _span(arch, table.level, start, last)
    removable = low == 0 and high == table.size - 1
    if table.level == 1:
        if low <= high:
            table.fill(0, low, high + 1)
        return removable
    for index, below, first, end in _children(vm, table, start, last):
        if kvm_mips_flush_gpa_pt(vm, first, end, below):
            table.set(index, arch.geometry.empty[table.level - 1])
            vm.tables.free(below)
        else:
            removable = False
    return removable


@op(name="find leaf tables")
def _leaf_tables(vm: Vm, start: int, last: int) -> tuple[tuple[int, int, int], ...]:
    """Return address, first index and the one after the last, table by table."""
    return tuple(
        (table.pa, low, stop)
        for table, low, stop in for_each_leaf_table(vm, start, last)
        if low < stop
    )


@op(name="mkold")
def _mkold(vm: Vm, tables: tuple[tuple[int, int, int], ...]) -> bool:
    arch: MipsVm = vm.arch
    old = arch.layout.readable
    changed = 0
    for pa, low, stop in tables:
        changed += vm.tables.at(pa).change(arch.young, low, stop, clear=old)
    return changed > 0


async def kvm_mips_mkold_gpa_pt(vm: Vm, start: int, last: int) -> bool:
    """Make every entry of a range old; return whether one changed.

    The release of the mm may free a table between finding it and using it.

    :Kernel: kvm_mips_mkold_gpa_pt(), since v4.11. Simplified: all tables are found
        first; the kernel uses each as soon as it is found.
    :Locking: mmu_lock.
    :param last: last gfn, inclusive.
    """
    tables = await _leaf_tables(vm, start, last)
    if not tables:
        return False
    return await _mkold(vm, tables)


def kvm_mips_mkclean_gpa_pt(vm: Vm, start: int, last: int) -> bool:
    """Make every entry of a range clean; return whether one changed.

    :Kernel: kvm_mips_mkclean_gpa_pt(), since v4.11.
    :Locking: mmu_lock.
    :param last: last gfn, inclusive.
    """
    arch: MipsVm = vm.arch
    clean = arch.layout.modified | arch.layout.dirty
    return (
        sum(
            table.change(arch.unclean, low, stop, clear=clean)
            for table, low, stop in for_each_leaf_table(vm, start, last)
            if low < stop
        )
        > 0
    )
