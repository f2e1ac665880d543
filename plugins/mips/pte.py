"""Entries of the GPA page table, and what the TLB makes of them.

Models the R4000-style entries of a 64-bit kernel (arch/mips/include/asm/pgtable-bits.h
and pgtable.h) and the values that arch/mips/kvm/mmu.c writes, v4.11 on (fact sheet
mips, sections 4 and 6.4). Bits are numbered in the order of an enumeration, so that
an optional bit moves all later ones; a :class:`Layout` is one configuration.

Accessed and dirty are kept twice: ACCESSED and MODIFIED are what the kernel knows,
VALID and DIRTY what hardware sees. Hardware sets neither.
"""

__all__ = [
    "LAYOUTS",
    "Decoded",
    "EmptyPte",
    "EntryLo",
    "Layout",
    "LayoutBits",
    "Pte",
    "decode",
    "find_layout",
    "formats",
    "host_pte",
    "map_page_pte",
    "mips3_tlbpfn_to_paddr",
    "pfn_pte",
    "pte_dirty",
    "pte_mkclean",
    "pte_mkdirty",
    "pte_mkold",
    "pte_mkyoung",
    "pte_pfn",
    "pte_present",
    "pte_to_entrylo",
    "pte_write",
    "pte_wrprotect",
    "pte_young",
    "set_spte_flush",
    "set_spte_value",
    "shadows_hold",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, cast

from kvmarch_mips.geometry import Geometry, InvalidTable, find_geometry

from kvmarch import EntryError, EntryFormat, EntryKind, Field, KvmarchError

# -------------------------------------------------------------------------
# Formats
# -------------------------------------------------------------------------


class Pte(EntryFormat):
    """A leaf that maps a page; each layout and page size adds its own fields."""

    # Hardware never reads the table: the refill handler copies an entry into the
    # TLB, and KVM overwrites entries without a break (fact sheet, 5.1).
    live_changes = (1 << EntryFormat.width) - 1

    present = Field(0, fixed=1, doc="maps a page; software only")


class EmptyPte(EntryFormat):
    """A leaf that maps nothing: zero."""

    live_changes = Pte.live_changes


class EntryLo(EntryFormat):
    """One half of a TLB entry, as EntryLo0 and EntryLo1 hold it (fact sheet, 4.2)."""

    ri = Field(63, doc="read inhibit")
    xi = Field(62, doc="execute inhibit")
    pfn = Field(61, 6, doc="frame in units of 4 KiB whatever the page size")
    c = Field(5, 3, doc="cache coherency attribute")
    d = Field(2, doc="writes do not trap")
    v = Field(1, doc="accesses do not trap")
    g = Field(0, doc="any ASID")


class LayoutBits(NamedTuple):
    """Which optional bits a kernel configuration has."""

    rixi: bool
    huge: bool
    special: bool


LAYOUTS: Mapping[str, LayoutBits] = MappingProxyType(
    {
        "A": LayoutBits(rixi=True, huge=True, special=False),
        "B": LayoutBits(rixi=True, huge=True, special=True),
        "F": LayoutBits(rixi=True, huge=False, special=True),
        "D": LayoutBits(rixi=False, huge=True, special=True),
    }
)
"""The layouts by the sheet's letters. A: v4.7 to about v5.2. B: from then on, the
usual one. F: B without huge TLB pages. D: a CPU without RIXI, trap and emulate only."""


def _flags(bits: LayoutBits) -> dict[str, str]:
    """Return the one-bit fields above PRESENT, lowest first, with their meaning."""
    no_read = {"no_read": "read inhibit"}
    return {
        **({} if bits.rixi else no_read),
        "write": "may become dirty; software only",
        "accessed": "young; software only",
        "modified": "dirty; software only",
        **({"huge": "huge page, not in this table"} if bits.huge else {}),
        **({"special": "no struct page (pte_special)"} if bits.special else {}),
        **({"no_exec": "execute inhibit", **no_read} if bits.rixi else {}),
        "global_": "any ASID, never in this table",
        "valid": "hardware sees it: young and readable",
        "dirty": "hardware may write: dirty and writable",
    }


@cache
def _make_format(name: str, bits: LayoutBits, page_shift: int) -> type[Pte]:
    """Return the format of a layout: its fields follow from the enumeration.

    :Kernel: enum pgtable_bits, _CACHE_SHIFT, _PFN_SHIFT.
    """
    at = Pte.present.low + 1
    fields: dict[str, Field] = {}
    for flag, doc in _flags(bits).items():
        # Both are bits of other tables: KVM maps no huge pages, and no guest page
        # is global.
        fixed = 0 if flag in {"huge", "global_"} else None
        fields[flag] = Field(at, fixed=fixed, doc=doc)
        at += 1
    fields["cca"] = Field(at + 2, at, doc="cache coherency attribute")
    # Whole pages at the place where EntryLo counts units of 4 KiB.
    at += fields["cca"].width + page_shift - 12
    fields["pfn"] = Field(Pte.width - 1, at, doc="page frame number")
    title = f"A leaf of layout {name} with {1 << page_shift - 10} KiB pages."
    made = type(
        f"Pte{name}{1 << page_shift - 10}K", (Pte,), {"__doc__": title, **fields}
    )
    return cast("type[Pte]", made)


# -------------------------------------------------------------------------
# Layouts
# -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """One configuration: bit positions as masks, 0 for a bit that it lacks.

    :param name: ``A``, ``B``, ``F`` or ``D``.
    :param page_shift: 12, 14 or 16.
    :param cca: cache coherency attribute of ordinary memory, Config.K0.
    :param geometry: shape of the table.
    :param format: format of a leaf that maps a page.
    :param readable: ``__READABLE``.
    :param writeable: ``__WRITEABLE``.
    :param rixi: bits that go to the top of EntryLo.
    :param rixi_shift: how far up.
    :param global_shift: how far down the rest of EntryLo goes.
    :param map_read: what a page that is not writable is mapped with.
    :param map_clean: what a writable page is mapped with on a read.
    :param map_dirty: what a writable page is mapped with on a write.
    """

    name: str
    page_shift: int
    cca: int
    geometry: Geometry
    format: type[Pte] = field(compare=False, repr=False)
    present: int = field(compare=False, repr=False)
    write: int = field(compare=False, repr=False)
    accessed: int = field(compare=False, repr=False)
    modified: int = field(compare=False, repr=False)
    special: int = field(compare=False, repr=False)
    no_exec: int = field(compare=False, repr=False)
    no_read: int = field(compare=False, repr=False)
    valid: int = field(compare=False, repr=False)
    dirty: int = field(compare=False, repr=False)
    readable: int = field(compare=False, repr=False)
    writeable: int = field(compare=False, repr=False)
    pfn_shift: int = field(compare=False, repr=False)
    global_shift: int = field(compare=False, repr=False)
    rixi: int = field(compare=False, repr=False)
    rixi_shift: int = field(compare=False, repr=False)
    map_read: int = field(compare=False, repr=False)
    map_clean: int = field(compare=False, repr=False)
    map_dirty: int = field(compare=False, repr=False)


@cache
def find_layout(
    name: str, page_shift: int, cca: int, va_bits_48: bool = False
) -> Layout:
    """Return the layout of a configuration.

    :param name: ``A``, ``B``, ``F`` or ``D``.
    :param page_shift: 12, 14 or 16.
    :param cca: Config.K0 or ``cca=``; 3 and 5 are typical.
    :param va_bits_48: CONFIG_MIPS_VA_BITS_48.
    :raises KvmarchError: there is no such layout or no table with this page size.
    :raises EntryError: the CCA has more than three bits.
    """
    bits = LAYOUTS.get(name)
    if bits is None:
        raise KvmarchError(f"no PTE layout {name!r}; there is {', '.join(LAYOUTS)}")
    geometry = find_geometry(page_shift, cca, va_bits_48)
    made = _make_format(name, bits, page_shift)
    fields = made.fields
    mask = {flag: row.mask for flag, row in fields.items()}
    readable = mask["valid"] | mask["accessed"]
    writeable = mask["dirty"] | mask["write"] | mask["modified"]
    map_read = made.pack(cca=cca) | readable
    # A CPU without RIXI has no such bits in EntryLo; its NO_READ is software only.
    rixi = mask["no_exec"] | mask["no_read"] if bits.rixi else 0
    return Layout(
        name=name,
        page_shift=page_shift,
        cca=cca,
        geometry=geometry,
        format=made,
        present=mask["present"],
        write=mask["write"],
        accessed=mask["accessed"],
        modified=mask["modified"],
        special=mask.get("special", 0),
        no_exec=mask.get("no_exec", 0),
        no_read=mask["no_read"],
        valid=mask["valid"],
        dirty=mask["dirty"],
        readable=readable,
        writeable=writeable,
        pfn_shift=fields["pfn"].low,
        global_shift=fields["global_"].low,
        rixi=rixi,
        rixi_shift=EntryLo.ri.low - fields["no_read"].low,
        map_read=map_read,
        map_clean=map_read | mask["write"],
        map_dirty=map_read | writeable,
    )


def formats(layout: Layout) -> list[EntryKind]:
    """Return level, kind and format of every entry in the table, root last."""
    geometry = layout.geometry
    rows = [
        EntryKind(1, "none", EmptyPte),
        EntryKind(1, "leaf", layout.format, maps=True),
    ]
    for level in range(2, geometry.levels + 1):
        rows.append(EntryKind(level, "none", InvalidTable))
        rows.append(EntryKind(level, "table", geometry.directory))
    return rows


class Decoded(NamedTuple):
    """What a value means."""

    kind: str
    """``leaf``, ``table``, ``none`` or ``unknown``."""
    format: type[EntryFormat] | None
    """None if no format accepts the value."""
    fields: dict[str, int]
    """The fields by name, highest bit first."""


def decode(layout: Layout, entry: int, level: int) -> Decoded:
    """Return what a value means in a table of this level.

    A value that KVM never writes there is ``unknown``. So is the address of an
    invalid table that belongs to another level, although its format knows it.

    :param level: 1 for a leaf, up to the geometry's ``levels`` for the root.
    :raises EntryError: the value is no 64-bit value, or there is no such level.
    """
    geometry = layout.geometry
    if not 1 <= level <= geometry.levels:
        raise EntryError(f"the table has levels 1 to {geometry.levels}, not {level}")
    if not 0 <= entry < 1 << EntryFormat.width:
        raise EntryError(f"{entry:#x} is no {EntryFormat.width}-bit value")
    if entry == geometry.empty[level - 1]:
        empty = EmptyPte if level == 1 else InvalidTable
        return Decoded("none", empty, empty.unpack(entry))
    used = layout.format if level == 1 else geometry.directory
    if used.accepts(entry):
        return Decoded("leaf" if level == 1 else "table", used, used.unpack(entry))
    return Decoded("unknown", None, {})


# -------------------------------------------------------------------------
# Entries: the kernel's functions of these names, on ints
# -------------------------------------------------------------------------


def pte_present(layout: Layout, pte: int) -> bool:
    """Return whether the entry maps a page."""
    return pte & layout.present != 0


def pte_young(layout: Layout, pte: int) -> bool:
    """Return whether the page was accessed since it was last made old."""
    return pte & layout.accessed != 0


def pte_dirty(layout: Layout, pte: int) -> bool:
    """Return whether the page counts as written."""
    return pte & layout.modified != 0


def pte_write(layout: Layout, pte: int) -> bool:
    """Return whether the page may become dirty."""
    return pte & layout.write != 0


def pte_mkold(layout: Layout, pte: int) -> int:
    """Return the entry old: the next access traps."""
    return pte & ~layout.readable


def pte_mkyoung(layout: Layout, pte: int) -> int:
    """Return the entry young: accesses no longer trap, unless reads are inhibited."""
    return pte | (layout.accessed if pte & layout.no_read else layout.readable)


def pte_mkclean(layout: Layout, pte: int) -> int:
    """Return the entry clean: the next write traps, but stays allowed."""
    return pte & ~(layout.modified | layout.dirty)


def pte_mkdirty(layout: Layout, pte: int) -> int:
    """Return the entry dirty: writes no longer trap, if they are allowed."""
    if pte & layout.write:
        return pte | layout.modified | layout.dirty
    return pte | layout.modified


def pte_wrprotect(layout: Layout, pte: int) -> int:
    """Return the entry without the right to write; a dirty one stays dirty."""
    return pte & ~(layout.write | layout.dirty)


def pfn_pte(layout: Layout, pfn: int, prot: int) -> int:
    """Return the entry for a page with these bits below the frame number."""
    return pfn << layout.pfn_shift | prot


def pte_pfn(layout: Layout, pte: int) -> int:
    """Return the frame number, in pages."""
    return pte >> layout.pfn_shift


def pte_to_entrylo(layout: Layout, pte: int) -> int:
    """Return what the refill handler loads into EntryLo, see :class:`EntryLo`."""
    return pte >> layout.global_shift | (pte & layout.rixi) << layout.rixi_shift


def mips3_tlbpfn_to_paddr(entrylo: int) -> int:
    """Return the physical address, in bytes, that an EntryLo value maps."""
    return (entrylo & EntryLo.pfn.mask) << 12 - EntryLo.pfn.low


def shadows_hold(layout: Layout, pte: int) -> bool:
    """Return whether hardware sees no more and no less than the kernel knows.

    VALID stands for young and readable, DIRTY for dirty and writable (fact sheet,
    4.2). Every function here that returns an entry keeps it so.
    """
    young = pte & layout.accessed != 0 and not pte & layout.no_read
    written = pte & layout.modified != 0 and pte & layout.write != 0
    return (pte & layout.valid != 0) == young and (pte & layout.dirty != 0) == written


# -------------------------------------------------------------------------
# What KVM writes
# -------------------------------------------------------------------------


def map_page_pte(layout: Layout, pfn: int, writeable: bool, write_fault: bool) -> int:
    """Return the entry with which a fault maps a page (fact sheet, 4.3).

    A writable page that was only read is mapped clean, so that its first write
    traps, whether the slot logs dirty pages or not.

    :Kernel: kvm_mips_map_page(), since v4.11.
    :param pfn: the host page.
    :param writeable: the host allows writes. A write fault without it never comes
        this far.
    :param write_fault: the access was a write; the caller marks the page dirty too.
    """
    if not writeable:
        prot = layout.map_read
    elif write_fault:
        prot = layout.map_dirty
    else:
        prot = layout.map_clean
    return pfn << layout.pfn_shift | prot


def host_pte(
    layout: Layout,
    pfn: int,
    *,
    write: bool,
    dirty: bool,
    young: bool,
    executable: bool,
    special: bool,
) -> int:
    """Return the host PTE that change_pte hands to KVM (fact sheet, 4.4 and 6.4).

    The host's page tables have the same layout as the GPA page table; that is why
    KVM can take an entry over as it is. What the layout has no bit for is lost:
    ``executable`` without RIXI, ``special`` in layout A.

    :Kernel: pfn_pte(), pte_mkyoung(), pte_mkdirty(), pte_mkspecial() on protection_map.
    :param write: the host allows writes.
    :param dirty: MODIFIED; without ``write`` hardware does not see it.
    :param young: ACCESSED and VALID.
    :param executable: the VMA allows execution.
    :param special: a zero page; KSM pages are not special.
    """
    # Simplified: a readable page with the default CCA; protection_map has NO_READ
    # for PROT_NONE and drivers map devices uncached, neither of which change_pte
    # announces.
    pte = pfn << layout.pfn_shift | layout.map_read & ~layout.readable
    if young:
        pte |= layout.readable
    if write:
        pte |= layout.write
    if dirty:
        pte = pte_mkdirty(layout, pte)
    if not executable:
        pte |= layout.no_exec
    if special:
        pte |= layout.special
    return pte


def set_spte_value(
    layout: Layout, old: int, new: int, log_dirty: bool, readonly: bool
) -> int:
    """Return what change_pte stores (fact sheet, 6.4 step 2).

    It stores the host's entry even where none was. The order of the two tests
    matters: with both flags a clean old entry keeps the host's right to write.

    :Kernel: kvm_set_spte_handler() v4.11 to v5.12, kvm_set_spte_gfn() v5.13 to v6.9.
    :Locking: mmu_lock.
    :Steps: plain.
    :param old: the GPA entry, 0 if absent.
    :param new: the host PTE.
    :param log_dirty: the slot has KVM_MEM_LOG_DIRTY_PAGES.
    :param readonly: the slot has KVM_MEM_READONLY.
    """
    if log_dirty and not pte_dirty(layout, old):
        return pte_mkclean(layout, new)
    if readonly:
        return pte_wrprotect(layout, new)
    return new


def set_spte_flush(layout: Layout, old: int, stored: int) -> bool:
    """Return whether change_pte asks for a TLB flush (fact sheet, 6.4 step 4).

    The right to write alone may go without a flush: a page that stays the same, young
    and dirty is none of the reasons.

    :Kernel: kvm_set_spte_handler() v4.11 to v5.12, kvm_set_spte_gfn() v5.13 to v6.9.
    :param old: the GPA entry as it was.
    :param stored: what :func:`set_spte_value` returned.
    """
    seen = layout.present | layout.accessed
    if old & seen != seen:
        return False
    moved = old >> layout.pfn_shift != stored >> layout.pfn_shift
    cleaned = old & ~stored & layout.modified != 0
    return stored & seen != seen or moved or cleaned
