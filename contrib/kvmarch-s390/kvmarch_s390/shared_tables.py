"""gmap over the host's own page tables, up to v6.19: state, walks, what the host does.

Models arch/s390/mm/gmap.c and pgtable.c (fact sheet s390, 2). gmap owns region and
segment tables; a segment entry leads to the page table of the host process itself. So
there is nothing to unmap and nobody to notify: what the host does to its entry the
guest meets at once, and the IPTE with which it does so drops the guest's translation.

PGSTEs lie beside the host's entries. Of them the model keeps UC, which survives an
unmap, and IN, which guards prefix pages. Simplified: nested guests, for which VSIE is,
have no place here.
"""

__all__ = [
    "CHOICES",
    "SharedVm",
    "entry_changed",
    "entry_of",
    "leaf_table",
    "notify",
    "pmd_of",
    "prefix_guarded",
    "translate",
    "vm_create",
    "walk",
]

from collections.abc import Iterator

from kvmarch import (
    Choice,
    HostPte,
    Part,
    Table,
    Translation,
    Vcpu,
    Vm,
    invalidate_tlbs,
)

from kvmarch_s390.geometry import PAGE, SEGMENT, entries, index
from kvmarch_s390.host_pte import host_page, invalid_region
from kvmarch_s390.prefix import release
from kvmarch_s390.region import PgsteEarly, PgsteMoved, asce_of

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

    def gfns_of(self, vpn: int, count: int) -> Iterator[tuple[int, int]]:
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


def walk(vm: Vm, gfn: int, lowest: int = SEGMENT) -> tuple[Table, int, int]:
    """Return the lowest of gmap's tables for a gfn, the index in it, and the entry.

    :Kernel: gmap_tablewalk()
    :param lowest: level below which it does not go.
    """
    arch: SharedVm = vm.arch
    table = vm.tables.at(arch.root)
    while True:
        at = index(gfn, table.level)
        entry = table.get(at)
        if table.level == lowest or entry == invalid_region(table.level):
            return table, at, entry
        table = vm.tables.at(entry & -4096)


def _host_entry(vm: Vm, vpn: int) -> int:
    return host_page(vm.mm.pte(vpn), protected=vpn in vm.arch.protected)


def entry_of(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn: the host's if gmap is linked."""
    arch: SharedVm = vm.arch
    if not arch.root:
        return invalid_region(arch.level), arch.level
    table, _at, entry = walk(vm, gfn)
    vpn = arch.vpn_of(gfn)
    if entry == invalid_region(table.level) or vpn < 0:
        return entry, table.level
    return _host_entry(vm, vpn), PAGE


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return where an entry of gmap is. The host's page tables are not KVM's."""
    arch: SharedVm = vm.arch
    if not arch.root or not SEGMENT <= level <= arch.level:
        return None
    table, at, _entry = walk(vm, gfn, level)
    return (table.pa, at) if table.level == level else None


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
    table, _at, entry = walk(vm, gfn)
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


def notify(vm: Vm, vpn: int) -> None:
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

    :Kernel: gmap_mprotect_notify(), which sets IN
    :param mark: set IN if the page may be written.
    :returns: whether the page may be written and has IN.
    """
    arch: SharedVm = vm.arch
    vpn = arch.vpn_of(gfn)
    if vpn < 0:
        return True
    table, _at, entry = walk(vm, gfn)
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
        notify(vm, page)
    may_write = new & _P and new & _MAY_WRITE == _MAY_WRITE
    for page in range(vpn, vpn + count):
        # P goes with the next write fault, or with the page; pte_mkyoung() leaves it.
        if (old ^ new) != _YOUNG:
            arch.protected.discard(page)
        if may_write and page not in arch.protected:
            arch.pgstes[page] = arch.pgstes.get(page, 0) | arch.user_dirty


CHOICES = (s390_user_dirty, s390_notify)
