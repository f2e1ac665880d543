"""Walks: where the entry of a gfn is, and what hardware makes of it."""

__all__ = ["entry_of", "get_leaf", "leaf_table", "translate"]

from typing import TYPE_CHECKING

from kvmarch import Table, Translation, Vcpu, Vm

from kvmarch_riscv.formats import Leaf
from kvmarch_riscv.geometry import ENTRIES, INDEX_BITS, level_pages
from kvmarch_riscv.pte import RWX, A, W, entry_pfn, is_table, table_pa

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm

_V = Leaf.v.mask
_U = Leaf.u.mask
_R = Leaf.r.mask
_X = Leaf.x.mask
_NEEDS = {"read": _R, "write": W, "exec": _X}


def get_leaf(
    vm: Vm, root: int, gfn: int, lowest: int = 0
) -> tuple[Table, int, int, int]:
    """Follow tables from a root towards a gfn, until there is no other one.

    An index of the root beyond its size begins anew, as in the kernel.

    :Kernel: kvm_riscv_gstage_get_leaf(), gstage_get_leaf_entry() before v6.17
    :param root: physical address of the root in bytes, which may be freed by now.
    :param lowest: the level at which the walk ends, whatever the entry there is.
    :returns: table, index in it, level and entry; the entry need be no leaf.
    """
    arch: RiscvVm = vm.arch
    tables = vm.tables
    live = tables.live
    level = arch.levels - 1
    table = live.get(root) or tables.at(root)
    index = gfn >> arch.root_shift & table.size - 1
    entry = table.get(index)
    while entry and not entry & RWX and level > lowest:
        pa = table_pa(entry)
        level -= 1
        table = live.get(pa) or tables.at(pa)
        index = gfn >> INDEX_BITS * level & ENTRIES - 1
        entry = table.get(index)
    return table, index, level, entry


def _look(vm: Vm, gfn: int, lowest: int) -> tuple[Table, int, int, int] | None:
    """Walk as an onlooker, who does not follow a root that is gone."""
    root = vm.arch.pgd
    return None if root not in vm.tables.live else get_leaf(vm, root, gfn, lowest)


def entry_of(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn, and its level."""
    found = _look(vm, gfn, 0)
    return (0, vm.arch.levels - 1) if found is None else (found[3], found[2])


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return address of the table, and index, of a gfn's entry at a level."""
    found = _look(vm, gfn, level)
    if found is None or found[2] != level:
        return None
    return found[0].pa, found[1]


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk the G-stage as hardware does, as an access of user mode.

    A is looked at, and set by the CPU if it can (Svadu, ``adue``); otherwise an entry
    without it faults. D is always set, so it is not looked at.

    Simplified: nothing that is not valid is ever cached, although the architecture
    allows it; a fault that this would cause is resolved as any other.

    :returns: a translation, or ``missing``, ``permission`` or ``access``; KVM is not
        told which.
    """
    vm = vcpu.vm
    arch: RiscvVm = vm.arch
    root = arch.pgd
    if root is None or gfn >= arch.gfns:
        return "missing"
    table, index, level, entry = get_leaf(vm, root, gfn)
    if not entry & _V or is_table(entry):
        return "missing"
    pages = level_pages(level)
    if not entry & _U or not entry & _NEEDS[access] or entry_pfn(entry) % pages:
        return "permission"
    if not entry & A:
        if not arch.adue:
            return "access"
        table.set(index, entry | A)
    return Translation(
        gfn & -pages,
        pages,
        entry_pfn(entry),
        entry & _R != 0,
        entry & W != 0,
        entry & _X != 0,
    )
