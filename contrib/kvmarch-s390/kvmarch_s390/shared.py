"""gmap over the host's own page tables, up to v6.19.

Models arch/s390/mm/gmap.c and pgtable.c (fact sheet s390, 2). gmap owns region and
segment tables; a segment entry leads to the page table of the host process itself. So
there is nothing to unmap and nobody to notify: what the host does to its entry the
guest meets at once, and the IPTE with which it does so drops the guest's translation.

PGSTEs lie beside the host's entries. Of them the model keeps UC, which survives an
unmap, and IN, which guards prefix pages. Simplified: nested guests, for which VSIE is,
have no place here.
"""

__all__ = ["CHOICES", "SharedVm", "vm_create"]

from typing import TYPE_CHECKING, Any

from kvmarch import (
    Choice,
    FaultResult,
    HostPte,
    Memslot,
    Part,
    Table,
    Translation,
    Vcpu,
    Vm,
    faultin_pfn,
    fixup_user_fault,
    invalidate_tlbs,
    op,
    release_pfn,
    slot_of,
)

from kvmarch_s390.geometry import PAGE, SEGMENT, entries, index, pages
from kvmarch_s390.host_pte import gmap_segment, host_page, invalid_region
from kvmarch_s390.limits import prepare_slot
from kvmarch_s390.prefix import release
from kvmarch_s390.region import PgsteEarly, PgsteMoved, asce_of, table_entry

if TYPE_CHECKING:
    from collections.abc import Iterator

_P = HostPte.present.mask
_YOUNG = HostPte.young.mask
_MAY_WRITE = HostPte.write.mask | HostPte.dirty.mask
_USABLE = _P | _YOUNG

HOST_TABLES = 0x40_0000_0000
"""Where the host's page tables are, 4 KiB each, PGSTEs behind the entries.

Simplified: their addresses follow from the user's. gmap is not told that munmap() has
freed one; an entry of it reads as empty.
"""

Regions = tuple[tuple[int, int, int], ...]


def pmd_of(vpn: int) -> int:
    """Return the host's entry that leads to the page table of a page."""
    return HOST_TABLES + (vpn >> 8 & (1 << 20) - 1) * 4096


class SharedVm(Part):
    """gmap of one VM: tables down to segments, and what it knows of the host's.

    ``regions`` says which pages of the user are which of the guest: first gfn, pages,
    first page of the user (gmap->guest_to_host and host_to_guest, by page where the
    kernel has 1 MiB). ``pgstes`` and ``protected`` are by page of the user: PGSTEs, and
    entries in which the dirty log has set P.

    :param root: physical address of the root; 0 once it is freed.
    """

    variables = ("root", "regions", "pgstes", "protected")

    def __init__(self, vm: Vm, level: int, gfns: int) -> None:
        self.level = level
        self.gfns = gfns
        self.strict: bool = vm.options["align"]
        self.user_dirty: int = vm.k.s390_user_dirty
        self.notify: int = vm.k.s390_notify
        self.prefix: bool = vm.options["prefix"]
        table = vm.tables.alloc(entries(level), level, 0, empty=invalid_region(level))
        self.root = table.pa
        self.asce = asce_of(level, table.pa)
        self.regions: Regions = ()
        self.pgstes: dict[int, int] = {}
        self.protected: set[int] = set()

    def vpn_of(self, gfn: int) -> int:
        """Return the user's page of a gfn; -1 if there is none."""
        for base, count, vpn in self.regions:
            if base <= gfn < base + count:
                return vpn + gfn - base
        return -1

    def gfns_of(self, vpn: int, count: int) -> "Iterator[tuple[int, int]]":
        """Yield first gfn and end of what a run of the user's pages is to the guest."""
        for base, size, first in self.regions:
            low, high = max(vpn, first), min(vpn + count, first + size)
            if low < high:
                yield base + low - first, base + high - first


def vm_create(vm: Vm, level: int, gfns: int) -> SharedVm:
    """Make a gmap with an empty root.

    :Kernel: gmap_create(), s390_enable_sie().
    """
    return SharedVm(vm, level, gfns)


s390_user_dirty = Choice("s390_user_dirty", "which bit of a PGSTE says written")
s390_user_dirty.add(PgsteEarly.uc.mask)
s390_user_dirty.add(PgsteMoved.uc.mask, "s390-faultin-pfn")

s390_notify = Choice("s390_notify", "which bit of a PGSTE asks for notification")
s390_notify.add(PgsteEarly.notify.mask)
s390_notify.add(PgsteMoved.notify.mask, "s390-faultin-pfn")

# -------------------------------------------------------------------------
# Walks
# -------------------------------------------------------------------------


def _walk(vm: Vm, gfn: int) -> tuple[Table, int, int]:
    """Return the lowest of gmap's tables for a gfn, the index in it, and the entry."""
    arch: SharedVm = vm.arch
    table = vm.tables.at(arch.root)
    while True:
        at = index(gfn, table.level)
        entry = table.get(at)
        if table.level == SEGMENT or entry == invalid_region(table.level):
            return table, at, entry
        table = vm.tables.at(entry & -4096)


def _host_entry(vm: Vm, vpn: int) -> int:
    return host_page(vm.mm.pte(vpn), protected=vpn in vm.arch.protected)


def entry_of(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn: the host's if gmap is linked."""
    arch: SharedVm = vm.arch
    if not arch.root:
        return invalid_region(arch.level), arch.level
    table, _at, entry = _walk(vm, gfn)
    vpn = arch.vpn_of(gfn)
    if entry == invalid_region(table.level) or vpn < 0:
        return entry, table.level
    return _host_entry(vm, vpn), PAGE


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return where an entry of gmap is. The host's page tables are not KVM's."""
    arch: SharedVm = vm.arch
    if not arch.root or not SEGMENT <= level <= arch.level:
        return None
    table = vm.tables.at(arch.root)
    while table.level > level:
        entry = table.get(index(gfn, table.level))
        if entry == invalid_region(table.level):
            return None
        table = vm.tables.at(entry & -4096)
    return table.pa, index(gfn, level)


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk gmap's tables, and then the host's page table.

    Simplified: that the user's memory is not executable (IEP) does not bind the guest,
    and a young entry is taken for one that is valid.

    :returns: the translation; ``beyond`` the root; ``missing`` or ``protection``.
    """
    vm = vcpu.vm
    arch: SharedVm = vm.arch
    if gfn >= arch.gfns:
        return "beyond"
    table, _at, entry = _walk(vm, gfn)
    vpn = arch.vpn_of(gfn)
    if entry == invalid_region(table.level) or vpn < 0:
        return "missing"
    host = vm.mm.pte(vpn)
    if host & _USABLE != _USABLE:
        return "missing"
    write = host & _MAY_WRITE == _MAY_WRITE and vpn not in arch.protected
    if access == "write" and not write:
        return "protection"
    return Translation(gfn, 1, HostPte.pfn.get(host), read=True, write=write, exec=True)


# -------------------------------------------------------------------------
# What the host does
# -------------------------------------------------------------------------


def _notify(vm: Vm, vpn: int) -> None:
    """Tell of a change what a PGSTE with IN asks to be told of, once.

    :Kernel: pgste_pte_notify(), kvm_gmap_notifier().
    """
    arch: SharedVm = vm.arch
    pgste = arch.pgstes.get(vpn, 0)
    if pgste & arch.notify:
        arch.pgstes[vpn] = pgste & ~arch.notify
        for start, end in arch.gfns_of(vpn, 1):
            release(vm, start, end)


def prefix_guarded(vm: Vm, gfn: int, mark: bool) -> bool:
    """Look at the host's entry, and at IN in its PGSTE.

    Simplified: a prefix outside of memory is none; KVM_RUN would fail.
    """
    arch: SharedVm = vm.arch
    vpn = arch.vpn_of(gfn)
    if vpn < 0:
        return True
    table, _at, entry = _walk(vm, gfn)
    host = vm.mm.pte(vpn)
    usable = host & _USABLE == _USABLE and host & _MAY_WRITE == _MAY_WRITE
    if not usable or vpn in arch.protected or entry == invalid_region(table.level):
        return False
    pgste = arch.pgstes.get(vpn, 0)
    if mark:
        arch.pgstes[vpn] = pgste = pgste | arch.notify
    return bool(pgste & arch.notify)


def entry_changed(vm: Vm, vpn: int, count: int, old: int, new: int) -> None:
    """Do to the guest what changing a host entry does.

    IPTE with the guest's ASCE drops what the guest's TLB has; an entry that may be
    written says so in its PGSTE.

    :Kernel: ptep_xchg_direct(), ptep_xchg_start(), pgste_set_pte(): under the PGSTE's
        lock (PCL), which makes it one step.
    """
    arch: SharedVm = vm.arch
    if not arch.root:
        return
    if old & _USABLE == _USABLE:
        for start, end in arch.gfns_of(vpn, count):
            invalidate_tlbs(vm, start, end, arch.asce)
    for page in range(vpn, vpn + count):
        _notify(vm, page)
    may_write = new & _P and new & _MAY_WRITE == _MAY_WRITE
    for page in range(vpn, vpn + count):
        # P goes with the next write fault, or with the page; pte_mkyoung() leaves it.
        if (old ^ new) != _YOUNG:
            arch.protected.discard(page)
        if may_write and page not in arch.protected:
            arch.pgstes[page] = arch.pgstes.get(page, 0) | arch.user_dirty


# -------------------------------------------------------------------------
# Faults
# -------------------------------------------------------------------------


@op(name="gmap_translate")
def _user_page(vm: Vm, gfn: int) -> int:
    """Return the user's page of a gfn; -1 if there is none."""
    return int(vm.arch.vpn_of(gfn))


@op(name="__gmap_link")
def _link(vm: Vm, gfn: int, vpn: int) -> bool:
    """Let gmap's segment entry lead to the host's page table, as the host's own does.

    :returns: False if there is no memory for a table (-ENOMEM).

    :Kernel: __gmap_link(), under gmap->guest_table_lock; gmap_alloc_table().
    """
    arch: SharedVm = vm.arch
    if arch.vpn_of(gfn) != vpn:
        return True
    table, at, entry = _walk(vm, gfn)
    while table.level > SEGMENT:
        if vm.out_of_tables:
            return False
        below = table.level - 1
        base = gfn & -pages(table.level)
        child = vm.tables.alloc(
            entries(below), below, base, empty=invalid_region(below)
        )
        table.set(at, table_entry(table.level, child.pa))
        table, at, entry = _walk(vm, gfn)
    if entry == invalid_region(SEGMENT):
        table.set(at, gmap_segment(pmd_of(vpn)))
    return True


s390_gmap_fault = Choice("s390_gmap_fault", "how the host's entry is made to allow it")


@s390_gmap_fault.when()
async def _gmap_fault(vcpu: Vcpu, gfn: int, vpn: int, write: bool) -> bool:
    """Fault on the user's address, and link (to v6.13).

    :Kernel: gmap_fault()
    """
    vm = vcpu.vm
    allowed: bool = await fixup_user_fault(vm, vpn << vm.page_shift, write)
    if allowed:
        allowed = await _link(vm, gfn, vpn)
    return allowed


@s390_gmap_fault.when("s390-faultin-pfn")
async def _faultin_and_link(vcpu: Vcpu, gfn: int, vpn: int, write: bool) -> bool:
    """Take the page of the memslot first, let it go under mmu_lock (v6.14 on)."""
    vm = vcpu.vm
    slot = await slot_of(vcpu, gfn)
    if slot is None or slot.invalid:
        return False
    found = await faultin_pfn(vm, slot, gfn, write)
    if found.error:
        return False
    allowed: bool = await vm.k.s390_link_shared(vcpu, gfn, vpn, write)
    async with vm.mmu_lock.write():
        await release_pfn(vm, found.pfn)
    return allowed


s390_link_shared = Choice("s390_link_shared", "how a page that is held is linked")
s390_link_shared.add(_gmap_fault)


@op(name="why not?")
def _is_forbidden(vm: Vm, vpn: int, write: bool) -> bool:
    """Return whether the user's memory forbids an access (-EFAULT), not the lack of it.

    Without memory KVM_RUN fails (-ENOMEM).
    """
    vma = vm.mm.find_vma(vpn << vm.page_shift)
    return vma is None or (write and not vma.write)


async def page_fault(vcpu: Vcpu, gfn: int, access: str, why: str) -> FaultResult:
    """Handle an interruption of SIE: the guest gets one where there is no memory.

    Nothing is emulated: guests of this architecture do I/O by instructions.

    :Kernel: vcpu_post_run_handle_fault(), vcpu_dat_fault_handler() from v6.12.
    """
    vm = vcpu.vm
    vpn = await _user_page(vm, gfn)
    if vpn < 0:
        return "exception"
    write = access == "write"
    mapped = await vm.k.s390_gmap_fault(vcpu, gfn, vpn, write)
    if mapped:
        return "guest"
    forbidden = await _is_forbidden(vm, vpn, write)
    return "exception" if forbidden else "error"


# -------------------------------------------------------------------------
# Memslots and the dirty log
# -------------------------------------------------------------------------


def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse what is beyond the root, or not aligned to 1 MiB."""
    return prepare_slot(vm, new, change, strict=vm.arch.strict)


@op(name="gmap_unmap_segment")
def _unmap(vm: Vm, slot: Memslot) -> None:
    """Forget a slot, with the segment entries that it meets."""
    arch: SharedVm = vm.arch
    first = slot.userspace_addr >> vm.page_shift
    arch.regions = tuple(
        region
        for region in arch.regions
        if region != (slot.base_gfn, slot.npages, first)
    )
    met = False
    step = pages(SEGMENT)
    for gfn in range(slot.base_gfn & -step, slot.end_gfn, step):
        table, at, entry = _walk(vm, gfn)
        if table.level == SEGMENT and entry != invalid_region(SEGMENT):
            table.set(at, invalid_region(SEGMENT))
            met = True
    if met:
        # The ASCE is flushed as a whole (gmap_flush_tlb).
        invalidate_tlbs(vm, 0, arch.gfns, arch.asce)


@op(name="gmap_map_segment")
def _map(vm: Vm, slot: Memslot) -> None:
    arch: SharedVm = vm.arch
    first = slot.userspace_addr >> vm.page_shift
    arch.regions = (*arch.regions, (slot.base_gfn, slot.npages, first))


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Take the old slot out of gmap, and put the new one in.

    Only here, after the new set of slots is visible: until then a guest goes on in what
    was deleted. Flags change nothing.

    :Kernel: kvm_arch_commit_memory_region(), gmap_unmap_segment(), gmap_map_segment().
    """
    if change == "flags_only":
        return
    async with vm.mm.mmap_lock.write():
        if old is not None:
            await _unmap(vm, old)
        if new is not None:
            await _map(vm, new)


@op(name="gmap_sync_dirty_log_pmd")
def _sync_next(vm: Vm, slot: Memslot, gfn: int) -> int:
    """Log the next page with UC from a gfn on, and protect it again.

    A segment that gmap is not linked to is passed over, and keeps its UC. Simplified:
    up to v4.18 the user's own table was looked at.

    :returns: the gfn after it; -1 if there is none.
    """
    arch: SharedVm = vm.arch
    for number in range(gfn, slot.end_gfn):
        vpn = arch.vpn_of(number)
        pgste = arch.pgstes.get(vpn, 0)
        table, _at, entry = _walk(vm, number)
        if not pgste & arch.user_dirty or entry == invalid_region(table.level):
            continue
        arch.pgstes[vpn] = pgste & ~arch.user_dirty
        host = vm.mm.pte(vpn)
        if host & _P:
            _notify(vm, vpn)
            if host & HostPte.write.mask:
                arch.protected.add(vpn)
            invalidate_tlbs(vm, number, number + 1, arch.asce)
        vm.mark_page_dirty(slot, number)
        return number + 1
    return -1


async def sync_dirty_log(vm: Vm, slot: Memslot) -> None:
    """Log every page that its PGSTE says was written, and protect it again.

    :Kernel: kvm_arch_sync_dirty_log(), ptep_test_and_clear_uc().
    """
    gfn: int = slot.base_gfn
    while gfn >= 0:
        gfn = await _sync_next(vm, slot, gfn)


# -------------------------------------------------------------------------
# The end
# -------------------------------------------------------------------------


@op(name="gmap_free")
def _free(vm: Vm) -> None:
    arch: SharedVm = vm.arch
    for table in list(vm.tables.live.values()):
        vm.tables.free(table)
    arch.root = 0


async def destroy_vm(vm: Vm) -> None:
    """Free gmap's tables; the host's stay with the host.

    :Kernel: gmap_remove(), gmap_put().
    """
    await _free(vm)


def no_hook(*_what: Any) -> None:
    """Stand for a hook that is called by nobody, because there is no notifier."""


async def no_path(*_what: Any) -> None:
    """Stand for an empty one: kvm_arch_flush_shadow_all(), _memslot()."""


CHOICES = (
    s390_user_dirty,
    s390_notify,
    s390_gmap_fault,
    s390_link_shared,
)
