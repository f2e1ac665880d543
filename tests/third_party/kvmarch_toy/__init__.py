"""A stranger's architecture: the smallest one that keeps the whole contract.

Two levels of 512 entries; 2 MiB blocks are not made. One tag for all guests.
"""

from types import MappingProxyType

from kvmarch import (
    ArchInfo,
    EntryFormat,
    EntryKind,
    Field,
    HostPte,
    Option,
    Part,
    Translation,
    faultin_pfn,
    flush_by_request,
    hookimpl,
    kvm_flush_remote_tlbs,
    mmu_invalidate_retry,
    op,
    release_pfn,
    slot_of,
    snapshot_mmu_seq,
)

KVMARCH_API = (1, 0)


class Leaf(EntryFormat):
    """One page."""

    live_changes = 0b1110
    pfn = Field(51, 12, doc="page frame number")
    young = Field(3, doc="accessed")
    exec = Field(2)
    write = Field(1)
    present = Field(0, fixed=1)


class Directory(EntryFormat):
    """A pointer to a table of leaves."""

    table = Field(51, 12)
    present = Field(0, fixed=1)


class State(Part):
    """The root."""

    variables = ("root",)

    def __init__(self, root):
        self.root = root


@hookimpl
def kvmarch_arch():
    return ArchInfo(
        name="toy",
        title="Toy",
        first=(3, 16),
        options={"page_size": Option((4096,), "bytes of a page")},
        pmd_order=MappingProxyType({4096: 9}),
        pfncache=True,
    )


@hookimpl
def kvmarch_formats(k, options):
    return [EntryKind(1, "page", Leaf, maps=True), EntryKind(2, "table", Directory)]


@hookimpl
def kvmarch_decode(k, options, entry, level):
    if not entry:
        return "empty", {}
    kind = Leaf if level == 1 else Directory
    if not kind.accepts(entry):
        return "unknown", {}
    return ("page" if level == 1 else "table"), kind.unpack(entry)


@hookimpl
def kvmarch_entry_pfn(k, options, entry, level):
    return Leaf.pfn.get(entry) if level == 1 and entry else None


@hookimpl
def kvmarch_entry_repoint(k, options, entry, level, pfn):
    return Leaf.pfn.set(entry, pfn)


@hookimpl
def kvmarch_vm_create(vm):
    return State(vm.tables.alloc(512, 2, 0, align=4096).pa)


@hookimpl
def kvmarch_tlb_tag(vcpu):
    return 0


@hookimpl
def kvmarch_handle_request(vcpu, request):
    vcpu.tlb.drop_all()


def _leaf_table(vm, gfn, *, make=False):
    if vm.arch.root is None:
        return None
    root = vm.tables.at(vm.arch.root)
    entry = root.get(gfn >> 9 & 511)
    if not entry:
        if not make:
            return None
        table = vm.tables.alloc(512, 1, gfn & -512, align=4096)
        root.set(gfn >> 9 & 511, Directory.pack(table=table.pa >> 12))
        return table
    return vm.tables.at(Directory.table.get(entry) << 12)


@hookimpl
def kvmarch_translate(vcpu, gfn, access):
    table = _leaf_table(vcpu.vm, gfn)
    entry = table.get(gfn & 511) if table else 0
    if not entry:
        return "missing"
    if access == "write" and not Leaf.write.get(entry):
        return "permission"
    table.set(gfn & 511, Leaf.young.set(entry, 1))
    write = bool(Leaf.write.get(entry))
    return Translation(gfn, 1, Leaf.pfn.get(entry), True, write, True)


@op
def _map(vm, slot, gfn, pfn, writable):
    table = _leaf_table(vm, gfn, make=True)
    table.set(gfn & 511, Leaf.pack(pfn=pfn, write=int(writable), exec=1, young=1))
    if writable:
        vm.mark_page_dirty(slot, gfn)


@hookimpl
async def kvmarch_page_fault(vcpu, gfn, access, why):
    vm = vcpu.vm
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return "mmio"
    seq = await snapshot_mmu_seq(vm)
    found = await faultin_pfn(vm, slot, gfn, access == "write")
    if found.error:
        return "mmio" if found.error == "readonly" else "error"
    async with vm.mmu_lock.write():
        stale = await mmu_invalidate_retry(vm, seq)
        if not stale:
            writable = found.writable and (access == "write" or not slot.logs_dirty)
            await _map(vm, slot, gfn, found.pfn, writable)
    await release_pfn(vm, found.pfn)
    return "guest"


@hookimpl
def kvmarch_unmap_gfn_range(vm, slot, start, end, may_block):
    owed = None
    for gfn in range(start, end):
        table = _leaf_table(vm, gfn)
        if table and table.get(gfn & 511):
            table.set(gfn & 511, 0)
            owed = vm.ledger.owe(gfn, gfn + 1) | owed
    return owed


@hookimpl
def kvmarch_flush_remote_tlbs(vm, start, end):
    return flush_by_request(vm, start, end)


@hookimpl
def kvmarch_entry(vm, gfn):
    table = _leaf_table(vm, gfn)
    return (table.get(gfn & 511), 1) if table else (0, 2)


@hookimpl
def kvmarch_leaf_table(vm, gfn, level):
    table = _leaf_table(vm, gfn)
    return (table.pa, gfn & 511) if table and level == 1 else None


@hookimpl
def kvmarch_set_spte_gfn(vm, slot, gfn, pte):
    table = _leaf_table(vm, gfn)
    if table is None or not table.get(gfn & 511):
        return None
    table.set(gfn & 511, Leaf.pack(pfn=HostPte.pfn.get(pte), exec=1))
    return vm.ledger.owe(gfn, gfn + 1)


@hookimpl
def kvmarch_age_gfn(vm, slot, start, end):
    young = False
    for gfn in range(start, end):
        table = _leaf_table(vm, gfn)
        entry = table.get(gfn & 511) if table else 0
        if entry and Leaf.young.get(entry):
            table.set(gfn & 511, Leaf.young.set(entry, 0))
            young = True
    return young


@hookimpl
def kvmarch_test_age_gfn(vm, slot, start, end):
    for gfn in range(start, end):
        table = _leaf_table(vm, gfn)
        entry = table.get(gfn & 511) if table else 0
        if entry and Leaf.young.get(entry):
            return True
    return False


@hookimpl
def kvmarch_prepare_memory_region(vm, old, new, change):
    return 0


@op
def _protect(vm, start, end):
    for gfn in range(start, end):
        table = _leaf_table(vm, gfn)
        entry = table.get(gfn & 511) if table else 0
        if entry:
            table.set(gfn & 511, Leaf.write.set(entry, 0))
    vm.ledger.owe(start, end, due="return")


@op
def _zap(vm, start, end):
    return kvmarch_unmap_gfn_range(vm, None, start, end, False)


@hookimpl
async def kvmarch_commit_memory_region(vm, old, new, change):
    if change == "flags_only" and new.logs_dirty:
        async with vm.mmu_lock.write():
            await _protect(vm, new.base_gfn, new.end_gfn)
        await kvm_flush_remote_tlbs(vm)


@hookimpl
async def kvmarch_flush_shadow_memslot(vm, slot):
    async with vm.mmu_lock.write():
        owed = await _zap(vm, slot.base_gfn, slot.end_gfn)
        if owed is not None:
            await kvm_flush_remote_tlbs(vm)


@hookimpl
def kvmarch_dirty_log_masked(vm, slot, gfn, mask):
    for bit in range(mask.bit_length()):
        if mask >> bit & 1:
            table = _leaf_table(vm, gfn + bit)
            entry = table.get(gfn + bit & 511) if table else 0
            if entry:
                table.set(gfn + bit & 511, Leaf.write.set(entry, 0))
    return vm.ledger.owe(slot.base_gfn, slot.end_gfn, due="return")


@hookimpl
async def kvmarch_flush_shadow_all(vm):
    async with vm.mmu_lock.write():
        owed = await _zap(vm, 0, 1 << 18)
        if owed is not None:
            await kvm_flush_remote_tlbs(vm)


@op
def _free_tables(vm):
    for table in list(vm.tables.live.values()):
        vm.tables.free(table)
    vm.arch.root = None


@hookimpl
async def kvmarch_destroy_vm(vm):
    await _free_tables(vm)
