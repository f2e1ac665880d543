"""Tables of the TDP MMU: roots, the walk, and the runs of entries of a range.

:Kernel: arch/x86/kvm/mmu/tdp_iter.c and the root functions of tdp_mmu.c, v5.10 on;
    fact sheet x86, section 2.
"""

__all__ = [
    "alloc_child",
    "free_table",
    "is_table",
    "load_root",
    "lowest",
    "next_run",
    "put_root",
    "rcu_read_lock",
    "rcu_read_unlock",
    "runs",
    "valid_root",
]

from collections.abc import Iterator

from kvmarch_x86.geometry import LEVEL_BITS, MAX_LEVEL
from kvmarch_x86.spte_fields import EptEntry, Large, NptEntry
from kvmarch_x86.state import ENTRIES, Role, X86Vm

from kvmarch import Table, Vcpu, Vm

TABLE_BYTES = ENTRIES * 8
INDEX = ENTRIES - 1
POINTER_MASK = EptEntry.r.mask | Large.ps.mask
POINTER = EptEntry.r.mask
"""A pointer at a table, among the entries above level 1: readable and no leaf. Empty,
frozen and tracked entries are not readable."""
assert EptEntry.r.mask == NptEntry.p.mask
_SHIFTS = {
    level: tuple(LEVEL_BITS * above for above in range(level - 1, 0, -1))
    for level in range(1, MAX_LEVEL + 1)
}
"""By level of a root: how far a gfn is shifted at each level above the lowest."""


def is_table(entry: int) -> bool:
    """Return whether an entry above level 1 points at a table."""
    return entry & POINTER_MASK == POINTER


def lowest(vm: Vm, root_pa: int, gfn: int) -> tuple[Table, int, int]:
    """Walk down to the lowest entry of a gfn.

    Works for the tables of both MMUs.

    :returns: the table that holds the entry, the index in it, the entry.
    """
    tables = vm.tables
    live = tables.live
    pfn_mask = vm.arch.layout.pfn_mask
    table = live.get(root_pa) or tables.at(root_pa)
    for shift in _SHIFTS[table.level]:
        index = gfn >> shift & INDEX
        entry = table.get(index)
        if entry & POINTER_MASK != POINTER:
            return table, index, entry
        pa = entry & pfn_mask
        table = live.get(pa) or tables.at(pa)
    index = gfn & INDEX
    return table, index, table.get(index)


def runs(
    vm: Vm, table: Table, start: int, end: int
) -> Iterator[tuple[Table, int, int]]:
    """Yield where entries for ``start`` to ``end`` (gfn, end exclusive) can map memory.

    A table of level 1 is one run; above it each entry is one that is neither empty nor
    a pointer. A huge page counts as soon as it overlaps the range.

    :returns: table, first index, and the index after the last one.
    """
    shift = LEVEL_BITS * (table.level - 1)
    first = max(start - table.base, 0) >> shift
    stop = min((end - table.base - 1 >> shift) + 1, ENTRIES)
    if not shift:
        yield table, first, stop
        return
    at, pfn_mask = vm.tables.at, vm.arch.layout.pfn_mask
    for index, entry in table.used(first, stop):
        if entry & POINTER_MASK == POINTER:
            yield from runs(vm, at(entry & pfn_mask), start, end)
        else:
            yield table, index, index + 1


def next_run(
    vm: Vm, as_id: int, start: int, end: int
) -> tuple[Table, int, int, int] | None:
    """Return the first run of a range in the valid root of an address space.

    :returns: table, first index, index after the last one, and the gfn after it; None
        if nothing is left. A path keeps the gfn alone from step to step, as a walk of
        the kernel does that has yielded.
    """
    root = vm.arch.root_of.get(as_id)
    if not root:
        return None
    table, first, _entry = lowest(vm, root, start)
    if table.level == 1:
        # The usual case, without a look for what is used above.
        stop = min(first + end - start, ENTRIES)
        return table, first, stop, table.base + stop
    for table, first, stop in runs(vm, vm.tables.at(root), start, end):
        after = table.base + (stop << LEVEL_BITS * (table.level - 1))
        return table, first, stop, after
    return None


def alloc_child(vm: Vm, parent: Table, index: int) -> Table:
    """Return a new table for the place below an entry, not linked yet.

    :Kernel: tdp_mmu_alloc_sp(), tdp_mmu_init_child_sp()
    """
    role: Role = parent.note
    level = parent.level - 1
    base = parent.base + (index << LEVEL_BITS * level)
    child = vm.tables.alloc(
        ENTRIES, level, base, empty=vm.arch.layout.nonpresent, align=TABLE_BYTES
    )
    child.note = Role(role.as_id, level, ad_disabled=role.ad_disabled)
    return child


def free_table(vm: Vm, table: Table) -> None:
    """Give back a table that is not linked any more, once its readers have left."""
    if vm.arch.rules.frees_by_rcu:
        vm.tables.retire(table)
        vm.rcu.call(lambda: vm.tables.free(table))
    else:
        vm.tables.free(table)


def rcu_read_lock(vm: Vm) -> None:
    """Become a reader in the step that reads the first table.

    Nobody can tell it from a step of its own: it only makes those wait who free.
    """
    vm.rcu.read().enter.op.fn()


def rcu_read_unlock(vm: Vm) -> None:
    """Stop being a reader in the step that uses the last table."""
    vm.rcu.read().leave.op.fn()


# -- roots -------------------------------------------------------------------------


def valid_root(arch: X86Vm, as_id: int) -> int:
    """Return the root that a new load would use; 0 if there is none."""
    return arch.root_of.get(as_id, 0)


def load_root(vcpu: Vcpu) -> int:
    """Return a root for a vCPU with one reference more, a new one if there is none.

    Simplified: there is always memory for one, where KVM_RUN may fail with -ENOMEM.

    :Kernel: kvm_tdp_mmu_alloc_root(), kvm_tdp_mmu_get_vcpu_root_hpa()
    """
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    pa = arch.root_of.get(vcpu.as_id, 0)
    if pa:
        vm.tables.at(pa).refs += 1
        return pa
    layout = arch.layout
    root = vm.tables.alloc(
        ENTRIES, arch.level, 0, empty=layout.nonpresent, align=TABLE_BYTES
    )
    root.note = Role(vcpu.as_id, arch.level, ad_disabled=not layout.ad)
    # One for the vCPU, and from v6.4 one for the MMU itself.
    root.refs = 2 if arch.rules.keeps_roots else 1
    arch.roots.insert(0, root.pa)
    arch.root_of[vcpu.as_id] = root.pa
    return root.pa


def put_root(vm: Vm, pa: int) -> bool:
    """Give a reference to a root back; return whether it was the last one.

    The caller then zaps what the root still maps, and frees it.

    :Kernel: kvm_tdp_mmu_put_root()
    """
    root = vm.tables.at(pa)
    root.refs -= 1
    vm.warn(root.refs < 0, f"the root at {pa:#x} is put once too often")
    return root.refs == 0
