"""What hardware does with the tables: translate, set A and D, log for PML.

Fact sheet x86, 1.1 to 1.6 and 3.6.
"""

__all__ = ["PML_ENTITY_NUM", "drain_pml", "entry_of", "leaf_table_of", "translate"]

from kvmarch_x86.geometry import LEVEL_BITS, PAGE_SHIFT
from kvmarch_x86.layout import Layout
from kvmarch_x86.spte_fields import EptEntry
from kvmarch_x86.state import ENTRIES, X86Vcpu, X86Vm
from kvmarch_x86.tdp_tables import INDEX, is_table, lowest

from kvmarch import Translation, Vcpu, Vm, gfn_to_memslot

PML_ENTITY_NUM = 512
"""Pages that fit into a vCPU's log; a full one makes the guest exit."""

PRESENT = EptEntry.r.mask
"""R of EPT, P of NPT: the entry can be used at all."""
MISCONFIGURED = EptEntry.w.mask | EptEntry.x.mask
"""Write or execute without read. Direct maps never map execute-only pages."""


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk from the root that the vCPU has loaded, as its processor does.

    :returns: the translation, or ``missing`` (not present), ``permission``, or
        ``reserved`` (EPT misconfiguration, reserved bit in NPT: an MMIO entry).
    """
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    if gfn >> arch.gfn_bits:
        return "missing"
    layout = arch.layout
    table, index, spte = lowest(vm, vcpu.arch.root_pa, gfn)
    mask, value, sets = arch.hardware[access]
    if spte & mask != value:
        return _reason(layout, spte)
    used = spte | sets
    if used != spte:
        if arch.pml and used & ~spte & layout.shadow_dirty_mask:
            _log(vcpu, gfn)
        table.set(index, used)
    dirty = not layout.ad or used & layout.shadow_dirty_mask != 0
    write = spte & layout.writable_mask != 0
    nx = layout.shadow_nx_mask
    execute = not spte & nx if nx else spte & layout.shadow_x_mask != 0
    pfn = (spte & layout.pfn_mask) >> PAGE_SHIFT
    level = table.level
    if level == 1:
        return Translation(gfn, 1, pfn, True, write, execute, dirty)
    pages = 1 << LEVEL_BITS * (level - 1)
    return Translation(gfn & -pages, pages, pfn, True, write, execute, dirty)


def _reason(layout: Layout, spte: int) -> str:
    """Return why hardware does not use an entry."""
    if not spte & PRESENT:
        # Only EPT takes notice of other bits of an entry that cannot be read.
        ept = not layout.shadow_nx_mask
        return "reserved" if ept and spte & MISCONFIGURED else "missing"
    if spte & layout.mmio_mask == layout.mmio_value:
        return "reserved"
    return "permission"


# -- page modification log ---------------------------------------------------------


def _log(vcpu: Vcpu, gfn: int) -> None:
    state: X86Vcpu = vcpu.arch
    state.pml_buffer.append(gfn)
    if len(state.pml_buffer) == PML_ENTITY_NUM:
        # Simplified: the exit that a full log causes drains it in this very step.
        drain_pml(vcpu)


def drain_pml(vcpu: Vcpu) -> None:
    """Move what the processor has logged into the dirty bitmaps.

    :Kernel: vmx_flush_pml_buffer(), at every exit
    """
    state: X86Vcpu = vcpu.arch
    vm = vcpu.vm
    for gfn in state.pml_buffer:
        slot = gfn_to_memslot(vm, gfn, vcpu.as_id)
        if slot is not None:
            vm.mark_page_dirty(slot, gfn)
    state.pml_buffer.clear()


# -- for traces and comparisons ----------------------------------------------------


def entry_of(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry of a gfn and its level, in the root of today.

    Address space 0; without a root there is the empty entry at the root's level.
    """
    arch: X86Vm = vm.arch
    root = arch.root_of.get(0)
    if not root or gfn >> arch.gfn_bits:
        return arch.layout.nonpresent, arch.level
    table, _index, spte = lowest(vm, root, gfn)
    return spte, table.level


def leaf_table_of(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return the table of a level that holds a gfn's entry, and the index in it."""
    arch: X86Vm = vm.arch
    root = arch.root_of.get(0)
    if not root or gfn >> arch.gfn_bits:
        return None
    table = vm.tables.at(root)
    while table.level > level:
        entry = table.get(gfn >> LEVEL_BITS * (table.level - 1) & INDEX)
        if not is_table(entry):
            return None
        table = vm.tables.at(entry & arch.layout.pfn_mask)
    return table.pa, gfn >> LEVEL_BITS * (table.level - 1) & ENTRIES - 1
