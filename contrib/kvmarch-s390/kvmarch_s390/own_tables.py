"""KVM's own tables, from v7.0 on: state, walks, and changes of an entry.

Models arch/s390/kvm/dat.c and gmap.c (fact sheet s390, 3, 4.1, 4.3). Every change of an
entry that hardware may use goes by IPTE or CRDTE, which flushes all CPUs before it
returns: nothing is ever owed. What the kernel does to an entry under its lock (PCL), or
by a compare-and-exchange, is one step.
"""

__all__ = [
    "OwnVm",
    "Spot",
    "below",
    "drop",
    "entry_of",
    "exchange",
    "for_each_present",
    "is_marked",
    "leads_on",
    "leaf_table",
    "lookup",
    "mark_folio",
    "mark_prefix",
    "pfn_of",
    "prefix_guarded",
    "translate",
    "vm_create",
]

from collections.abc import Iterator
from typing import NamedTuple

from kvmarch import Part, Table, Translation, Vcpu, Vm, invalidate_tlbs

from kvmarch_s390 import dat
from kvmarch_s390.geometry import PAGE, entries, index, pages
from kvmarch_s390.prefix import release
from kvmarch_s390.region import Pgste, asce_of

_ZERO = Pgste.zero.mask
_NOTIF = Pgste.prefix_notif.mask
_LARGE_NOTIF = dat.Large.prefix_notif.mask
_PROTECTED = dat.OwnPte.p.mask


class OwnVm(Part):
    """The tables of one VM.

    ``pgstes`` are by address of the PGSTE; those that are 0 are left out.

    :param root: physical address of the root; 0 once it is freed.
    """

    variables = ("root", "pgstes")

    def __init__(self, vm: Vm, level: int, gfns: int) -> None:
        self.level = level
        self.gfns = gfns
        self.strict: bool = vm.options["align"] and vm.k.s390_aligned_slots
        self.large: bool = vm.options["huge"]
        self.prefix: bool = vm.options["prefix"]
        table = vm.tables.alloc(
            entries(level), level, 0, empty=dat.token(level, hole=True)
        )
        self.root = table.pa
        self.asce = asce_of(level, table.pa)
        self.pgstes: dict[int, int] = {}


def vm_create(vm: Vm, level: int, gfns: int) -> OwnVm:
    """Make a root that is all holes.

    :Kernel: gmap_new()
    """
    return OwnVm(vm, level, gfns)


class Spot(NamedTuple):
    """Where an entry is, and what it holds."""

    table: Table
    at: int
    entry: int

    @property
    def level(self) -> int:
        """Return the table's level."""
        return self.table.level

    @property
    def present(self) -> bool:
        """Return whether the entry leads to a page."""
        return dat.is_present(self.entry, self.table.level)

    @property
    def first(self) -> int:
        """Return the first gfn that the entry covers."""
        return self.table.base + self.at * pages(self.table.level)


def leads_on(entry: int, level: int) -> bool:
    """Return whether an entry leads to a table."""
    return level > PAGE and not dat.is_token(entry, level) and not dat.is_large(entry)


def below(vm: Vm, entry: int, level: int) -> Table:
    """Return the table that an entry of a level leads to."""
    return vm.tables.at(entry & (-4096 if level > 1 else -2048))


def lookup(vm: Vm, gfn: int, lowest: int = PAGE) -> Spot:
    """Return the lowest entry for a gfn, at a level or above.

    :Kernel: dat_entry_walk()
    """
    table = vm.tables.at(vm.arch.root)
    while True:
        at = index(gfn, table.level)
        entry = table.get(at)
        if table.level == lowest or not leads_on(entry, table.level):
            return Spot(table, at, entry)
        table = below(vm, entry, table.level)


def for_each_present(vm: Vm, start: int, end: int) -> Iterator[Spot]:
    """Yield each leaf that a range meets (gfn, end exclusive).

    :Kernel: dat_crste_walk_range(), dat_pte_walk_range() in it.
    """
    if vm.arch.root:
        yield from _present(vm, vm.tables.at(vm.arch.root), start, end)


def _present(vm: Vm, table: Table, start: int, end: int) -> Iterator[Spot]:
    step = pages(table.level)
    low = max(start - table.base, 0) // step
    high = min(-(-(end - table.base) // step), entries(table.level))
    for at, entry in list(table.used(low, high)):
        if dat.is_present(entry, table.level):
            yield Spot(table, at, entry)
        elif leads_on(entry, table.level):
            yield from _present(vm, below(vm, entry, table.level), start, end)


def entry_of(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn, and its level."""
    arch: OwnVm = vm.arch
    if not arch.root:
        return dat.token(arch.level, hole=True), arch.level
    spot = lookup(vm, gfn)
    return spot.entry, spot.level


def leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return the table that holds a gfn's entry of a level, and the index in it."""
    arch: OwnVm = vm.arch
    if not arch.root or not PAGE <= level <= arch.level:
        return None
    spot = lookup(vm, gfn, level)
    return (spot.table.pa, spot.at) if spot.level == level else None


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk as hardware does.

    :returns: the translation; ``beyond`` the root; ``hole``, ``missing`` (empty or
        invalid) or ``protection``.
    """
    vm = vcpu.vm
    arch: OwnVm = vm.arch
    if gfn >= arch.gfns:
        return "beyond"
    spot = lookup(vm, gfn)
    level, entry = spot.level, spot.entry
    if not spot.present:
        return "hole" if entry == dat.token(level, hole=True) else "missing"
    if entry & dat.masks(level)[0]:
        return "missing"
    write = not entry & dat.OwnPte.p.mask
    if access == "write" and not write:
        return "protection"
    size = pages(level)
    return Translation(
        gfn & -size, size, pfn_of(entry, level), read=True, write=write, exec=True
    )


def pfn_of(entry: int, level: int) -> int:
    """Return the first page of a leaf."""
    fmt = dat.OwnPte if level == PAGE else dat.large_format(level)
    return fmt.fields["pfra"].get(entry)


# -------------------------------------------------------------------------
# Changes of an entry
# -------------------------------------------------------------------------


def pgste_at(spot: Spot) -> int:
    """Return the address of the PGSTE of a page's entry, behind its table."""
    return spot.table.pa + (entries(PAGE) + spot.at) * 8


def is_marked(vm: Vm, spot: Spot) -> bool:
    """Return whether an entry holds a prefix page and says so."""
    if spot.level == PAGE:
        return bool(vm.arch.pgstes.get(pgste_at(spot), 0) & _NOTIF)
    return spot.present and bool(spot.entry & _LARGE_NOTIF)


def mark_prefix(vm: Vm, spot: Spot) -> None:
    """Say of an entry that it holds a prefix page."""
    if spot.level == PAGE:
        where = pgste_at(spot)
        vm.arch.pgstes[where] = vm.arch.pgstes.get(where, 0) | _NOTIF
    else:
        spot.table.set(spot.at, spot.entry | _LARGE_NOTIF)


def prefix_guarded(vm: Vm, gfn: int, mark: bool) -> bool:
    """Look at KVM's own entry and its mark.

    Simplified: a prefix outside of memory is none; KVM_RUN would fail.

    :Kernel: kvm_s390_fixup_prefix(), which sets the mark
    :param mark: mark the entry if the page may be written.
    :returns: whether the page may be written and is marked.
    """
    spot = lookup(vm, gfn)
    if spot.entry == dat.token(spot.level, hole=True):
        return True
    if not spot.present or spot.entry & (dat.masks(spot.level)[0] | _PROTECTED):
        return False
    if mark:
        mark_prefix(vm, spot)
        spot = lookup(vm, gfn)
    return is_marked(vm, spot)


def _unmark(vm: Vm, spot: Spot, new: int) -> int:
    """Take the mark away; return what is to be stored without it."""
    if spot.level == PAGE:
        vm.arch.pgstes[pgste_at(spot)] &= ~_NOTIF
        return new
    return new & ~_LARGE_NOTIF if dat.is_present(new, spot.level) else new


def exchange(vm: Vm, spot: Spot, new: int) -> None:
    """Store an entry: by IPTE if hardware could use the old one.

    Only soft bits may change without. d that becomes set is told to the folio, and what
    the guest said about the content counts no more (fact sheet, bug 11).

    :Kernel: gmap_ptep_xchg(), __dat_ptep_xchg(), gmap_crstep_xchg_atomic().
    """
    table, at, old = spot
    level = table.level
    invalid, young, dirty, writable = dat.masks(level)
    soft = young | dirty | writable | dat.OwnPte.sd.mask
    size = pages(level)
    usable = dat.is_present(new, level) and not new & (invalid | _PROTECTED)
    if is_marked(vm, spot) and not usable:
        new = _unmark(vm, spot, new)
        release(vm, spot.first, spot.first + size)
    if spot.present and not old & invalid and (old ^ new) & ~soft:
        invalidate_tlbs(vm, spot.first, spot.first + size, vm.arch.asce)
    if (
        dat.is_present(new, level)
        and new & dirty
        and not (spot.present and old & dirty)
    ):
        mark_folio(vm, pfn_of(new, level), "gmap_ptep_xchg")
    if level == PAGE:
        where = pgste_at(spot)
        pgste = vm.arch.pgstes.get(where, 0)
        if pgste & _ZERO:
            vm.arch.pgstes[where] = pgste & ~_ZERO
    table.set(at, new)


def mark_folio(vm: Vm, pfn: int, who: str) -> None:
    """Tell the host that a page is dirty: SetPageDirty()."""
    vm.host.mark(pfn, dirty=True, accessed=False, who=who)


def drop(vm: Vm, spot: Spot) -> None:
    """Leave an entry empty, and free the page's translation everywhere."""
    exchange(vm, spot, dat.token(spot.level, hole=False))
