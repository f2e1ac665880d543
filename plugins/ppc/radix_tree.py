"""The partition-scoped radix tree of a Book3S HV guest: its tables and walks.

:Kernel: arch/powerpc/kvm/book3s_64_mmu_radix.c, v4.11 on; fact sheet ppc, 3.1 to 3.3
    and 3.10.
"""

__all__ = [
    "CHOICES",
    "LEAF",
    "LPID",
    "Place",
    "Radix",
    "destroy_vm",
    "entry",
    "entry_pfn",
    "entry_repoint",
    "find_leaf",
    "leaf_runs",
    "leaf_table",
    "make_layout",
    "tlb_tag",
    "tlbie",
    "translate",
    "vm_create",
]

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kvmarch_ppc.layout import Layout
from kvmarch_ppc.ops import Backend
from kvmarch_ppc.partition import radix_dword0
from kvmarch_ppc.radix_pte import (
    PAGE_ACCESSED,
    PAGE_DIRTY,
    PAGE_EXEC,
    PAGE_PRESENT,
    PAGE_PTE,
    PAGE_READ,
    PAGE_WRITE,
    RadixLayout,
    RadixWord,
    make_radix_layout,
)

from kvmarch import Choice, Kernel, Table, Translation, Vcpu, Vm, op

LPID = 1
"""The tag of a VM's translations. Simplified: each vCPU has a CPU, and so a TLB, of its
own; so VMs need no different LPIDs, and need_tlb_flush, which is for vCPUs that move
between CPUs, has nothing to do."""
LEAF = PAGE_PRESENT | PAGE_PTE
_NEEDS = {"read": PAGE_READ, "write": PAGE_WRITE, "exec": PAGE_EXEC}
_RC = {
    "read": PAGE_ACCESSED,
    "write": PAGE_ACCESSED | PAGE_DIRTY,
    "exec": PAGE_ACCESSED,
}

remains = Choice("ppc_radix_remains", "whether unmapped leaves keep all but PRESENT")
remains.add(True)
remains.add(False, "ppc-radix-clear-all")

CHOICES = (remains,)


class Place(NamedTuple):
    """Where a leaf is: its table, its index there, and its level."""

    table: Table
    at: int
    level: int


class Radix(Backend):
    """kvm->arch of a radix guest.

    ``pgtable`` is the physical address of the PGD, None once it is freed;
    ``partition`` the first doubleword of the partition-table entry.
    """

    variables = ("pgtable", "partition", "mmio_update")
    layout: RadixLayout

    def __init__(self, vm: Vm, layout: RadixLayout) -> None:
        super().__init__(layout)
        self.levels = len(layout.index_bits)
        self.pages = layout.level_pages
        self.sizes = tuple(1 << bits for bits in layout.index_bits)
        self.shifts = tuple(s - layout.page_shift for s in layout.level_shift)
        """Base pages that one entry covers, as powers of two."""
        self.walk = tuple(
            (level, self.shifts[level], layout.index_mask[level])
            for level in reversed(range(self.levels))
        )
        self.table_mask = layout.table_masks
        self.rc_by_interrupt = vm.options["rc"] == "interrupt"
        root = self.alloc(vm, RadixWord.PGD, 0).pa
        self.pgtable: int | None = root
        self.partition = radix_dword0(root)
        self.mmio_update = 0
        """Counts memslot updates; only hash guests compare it (4.8)."""

    def alloc(self, vm: Vm, level: int, gfn: int) -> Table:
        """Return a new table whose entries are of a level, for the gfn's range."""
        size = self.sizes[level]
        base = gfn & -(size << self.shifts[level])
        return vm.tables.alloc(size, level, base)


def make_layout(k: Kernel, options: Mapping[str, Any]) -> RadixLayout:
    """Return the entries of a radix guest on this kernel."""
    return make_radix_layout(options["page_size"], remains=k.ppc_radix_remains)


def vm_create(vm: Vm, layout: Layout) -> Radix:
    """Make an empty tree and enter it into the partition table.

    :Kernel: kvmppc_core_init_vm_hv(), kvmppc_init_vm_radix(),
        kvmppc_setup_partition_table().
    """
    assert isinstance(layout, RadixLayout)
    return Radix(vm, layout)


def entry_pfn(layout: Layout, value: int, level: int) -> int | None:
    """Return the host page of a leaf, also of what remains of one."""
    assert isinstance(layout, RadixLayout)
    if level >= RadixWord.PGD or not value & PAGE_PTE:
        return None
    return (value & layout.rpn_mask) >> layout.page_shift


def entry_repoint(layout: Layout, value: int, level: int, pfn: int) -> int:
    """Return the leaf for another host page."""
    assert isinstance(layout, RadixLayout)
    return value & ~layout.rpn_mask | pfn << layout.page_shift


# -- walks -------------------------------------------------------------------------


def find_leaf(vm: Vm, gfn: int) -> Place | None:
    """Return where the present leaf of a gfn is.

    :Kernel: find_kvm_secondary_pte() with pte_present(); __find_linux_pte() before.
    """
    arch: Radix = vm.arch
    pa = arch.pgtable
    while pa is not None:
        table = vm.tables.at(pa)
        level = table.level
        index = gfn >> arch.shifts[level] & arch.sizes[level] - 1
        value = table.get(index)
        if value & LEAF == LEAF:
            return Place(table, index, level)
        if not level or not value & PAGE_PRESENT:
            return None
        pa = value & arch.table_mask[level]
    return None


def leaf_runs(vm: Vm, start: int, end: int) -> Iterator[tuple[Table, int, int]]:
    """Yield tables, first and stop index, that cover the leaves of a range.

    A last-level table comes as one run, in which entries may be empty; a larger leaf
    as a run of its own, also if the range meets it in part only.
    """
    arch: Radix = vm.arch
    if arch.pgtable is not None:
        yield from _runs_below(vm, vm.tables.at(arch.pgtable), start, end)


def _runs_below(
    vm: Vm, table: Table, start: int, end: int
) -> Iterator[tuple[Table, int, int]]:
    arch: Radix = vm.arch
    level, base = table.level, table.base
    shift = arch.shifts[level]
    first = max(0, start - base >> shift)
    stop = min(arch.sizes[level], -(base - end >> shift))
    if not level:
        yield table, first, stop
        return
    for index, value in table.used(first, stop):
        if value & PAGE_PTE:
            yield table, index, index + 1
        elif value & PAGE_PRESENT:
            below = vm.tables.at(value & arch.table_mask[level])
            yield from _runs_below(vm, below, start, end)


def entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry of a gfn, and its level."""
    arch: Radix = vm.arch
    value, level, pa = 0, int(RadixWord.PGD), arch.pgtable
    while pa is not None:
        table = vm.tables.at(pa)
        level = table.level
        value = table.get(gfn >> arch.shifts[level] & arch.sizes[level] - 1)
        if not level or value & PAGE_PTE or not value & PAGE_PRESENT:
            break
        pa = value & arch.table_mask[level]
    return value, level


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return table and index of the entry of a gfn at a level."""
    arch: Radix = vm.arch
    pa = arch.pgtable
    while pa is not None:
        table = vm.tables.at(pa)
        index = gfn >> arch.shifts[table.level] & arch.sizes[table.level] - 1
        if table.level == level:
            return pa, index
        value = table.get(index)
        if value & PAGE_PTE or not value & PAGE_PRESENT:
            return None
        pa = value & arch.table_mask[table.level]
    return None


# -- hardware ----------------------------------------------------------------------


def tlb_tag(vcpu: Vcpu) -> int:
    """Return the LPID."""
    return LPID


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk the tree; set R and C, or ask KVM to do it.

    :returns: the translation, or ``missing``, ``permission``, ``set_rc``.
    """
    vm = vcpu.vm
    arch: Radix = vm.arch
    if arch.pgtable is None:
        return "missing"
    table = vm.tables.at(arch.pgtable)
    for level, shift, mask in arch.walk:
        index = gfn >> shift & mask
        value = table.get(index)
        if value & LEAF == LEAF:
            break
        if not level or not value & PAGE_PRESENT:
            return "missing"
        table = vm.tables.at(value & arch.table_mask[level])
    if not value & _NEEDS[access]:
        return "permission"
    wanted = _RC[access]
    if value & wanted != wanted:
        if arch.rc_by_interrupt:
            return "set_rc"
        value |= wanted
        table.set(index, value)
    pages = arch.pages[level]
    return Translation(
        gfn & -pages,
        pages,
        (value & arch.layout.rpn_mask) >> arch.layout.page_shift,
        value & PAGE_READ != 0,
        value & PAGE_WRITE != 0,
        value & PAGE_EXEC != 0,
        value & PAGE_DIRTY != 0,
    )


def tlbie(vm: Vm, start: int, end: int, pages: int) -> None:
    """Make every CPU forget a range at once, as far as it is cached in pages of a size.

    :Kernel: kvmppc_radix_tlbie_page(), radix__flush_tlb_lpid_page(): the size is an
        operand, and translations of another one stay (fact sheet ppc, 3.11, L3).
    :param pages: base pages of the leaf that goes.
    """
    vm.world.note("tlb_invalidate", start=start, end=end)
    for vcpu in vm.vcpus:
        entries = vcpu.tlb.entries
        if end - start == pages:
            entries.pop((LPID, start, pages), None)
        elif entries:
            for key in [
                (tag, gfn, span)
                for tag, gfn, span in entries
                if tag == LPID and span == pages and start <= gfn < end
            ]:
                del entries[key]


# -- teardown ----------------------------------------------------------------------


def _free_below(vm: Vm, table: Table) -> None:
    arch: Radix = vm.arch
    if table.level:
        for _index, value in table.used(0, table.size):
            if value & LEAF == PAGE_PRESENT:
                pa = value & arch.table_mask[table.level]
                _free_below(vm, vm.tables.at(pa))
    vm.tables.free(table)


@op(name="kvmppc_free_radix")
def kvmppc_free_radix(vm: Vm) -> None:
    """Free the tree without a tlbie per page."""
    arch: Radix = vm.arch
    if arch.pgtable is not None:
        _free_below(vm, vm.tables.at(arch.pgtable))
        arch.pgtable = None


@op(name="kvmhv_set_ptbl_entry")
def _clear_partition_entry(vm: Vm) -> None:
    """Clear the partition-table entry, which flushes by LPID."""
    vm.arch.partition = 0
    for vcpu in vm.vcpus:
        vcpu.tlb.drop_all(LPID)


async def destroy_vm(vm: Vm) -> None:
    """Free the tree, and only then flush the LPID: nobody runs any more.

    :Kernel: kvmppc_core_destroy_vm_hv(); fact sheet ppc, 3.10.
    """
    await kvmppc_free_radix(vm)
    await _clear_partition_entry(vm)
