"""Entries of the secondary page table: the host's own format, as KVM uses it.

Models arch/loongarch/include/asm/pgtable-bits.h and kvm_mmu.h, v6.8 on (fact sheet
loongarch, 1.1, 1.5). The walker, software or hardware, reads the same bits as for a
process. V says valid and young at once; D and W say what may be written. Until v6.16 W
is also how KVM remembers that the host allows writing, from v6.17 on bit 9 is.
"""

__all__ = [
    "EARLY",
    "LATE",
    "Bits",
    "EarlyLeaf",
    "Leaf",
    "children",
    "huge_format",
    "leaf_format",
    "map_page_pte",
    "mkclean",
    "mkdirty",
    "mkold",
    "mkyoung",
    "pfn_of",
    "small",
]

from functools import cache
from typing import NamedTuple, cast

from kvmarch import EntryFormat, Field

LOW_PAGE_SHIFT = 12
"""Of the smallest page size; the frame number of larger ones begins higher up."""


class Leaf(EntryFormat):
    """A leaf, whatever its level; the frame number comes with page size and level."""

    # Whoever walks sees one store; KVM changes leaves in place, without a break.
    live_changes = (1 << EntryFormat.width) - 1

    rplv = Field(63, doc="only for privilege level PLV; KVM leaves 0")
    nx = Field(62, doc="no execution; KVM leaves 0")
    nr = Field(61, doc="no reads; KVM leaves 0")
    present_invalid = Field(60, doc="software; unused by KVM")
    special = Field(11, doc="software; unused by KVM")
    protnone = Field(10, doc="software; unused by KVM")
    writeable = Field(9, doc="the host allows writing (KVM_PAGE_WRITEABLE)")
    w = Field(8, doc="the hardware walker may set D; goes with D")
    p = Field(7, fixed=1, doc="maps a page; software, and the hardware walker")
    mat = Field(5, 4, doc="memory access type: 0 SUC, 1 CC, 2 WUC")
    plv = Field(3, 2, doc="privilege level; KVM leaves 0")
    d = Field(1, doc="stores do not trap")
    v = Field(0, doc="accesses do not trap; KVM's young")


class EarlyLeaf(Leaf):
    """A leaf up to v6.16."""

    writeable = Field(9, doc="_PAGE_MODIFIED; unused by KVM")
    w = Field(8, doc="the host allows writing; the hardware walker may set D")


class Empty(EntryFormat):
    """A leaf of level 0 that maps nothing: zero."""

    live_changes = Leaf.live_changes


V, D, P = Leaf.v.mask, Leaf.d.mask, Leaf.p.mask
W, MODIFIED = Leaf.w.mask, Leaf.writeable.mask
HUGE = 1 << 6
"""Global in a leaf of level 0, which KVM never sets; a leaf at level 1."""
CC = Leaf.mat.place(1)


class Bits(NamedTuple):
    """What the bits mean to KVM in one range of releases.

    :param format: of a leaf, without its frame number.
    :param writeable: says that the host allows writing.
    :param dirty: set and cleared together.
    :param logged_only: a writable page is mapped dirty by a read, too, unless its slot
        is logged.
    """

    format: type[Leaf]
    writeable: int
    dirty: int
    logged_only: bool


EARLY = Bits(EarlyLeaf, W, D, logged_only=False)
"""v6.8 to v6.16."""
LATE = Bits(Leaf, MODIFIED, D | W, logged_only=True)
"""From f58c9aa1065f on, v6.17."""


def _frame(page_shift: int, spare: int) -> Field:
    """Return the field of the frame number; ``spare`` low bits of it are zero."""
    return Field(
        47,
        page_shift + spare,
        shift=spare,
        doc="page frame number",
    )


@cache
def leaf_format(bits: Bits, page_shift: int) -> type[Leaf]:
    """Return the format of a leaf of level 0."""
    name = f"{bits.format.__name__}{1 << page_shift - 10}K"
    fields = {
        "__doc__": f"A leaf with {1 << page_shift - 10} KiB pages.",
        "global_": Field(6, fixed=0, doc="any address space, never in this table"),
        "pfn": _frame(page_shift, 0),
    }
    return cast("type[Leaf]", type(name, (bits.format,), fields))


@cache
def huge_format(bits: Bits, page_shift: int) -> type[Leaf]:
    """Return the format of a leaf of level 1."""
    name = f"Huge{bits.format.__name__}{1 << page_shift - 10}K"
    spare = page_shift - 3
    fields = {
        "__doc__": f"A leaf of {1 << page_shift + spare - 20} MiB.",
        "huge": Field(6, fixed=1, doc="a leaf, not the address of a table"),
        "pfn": _frame(page_shift, spare),
    }
    return cast("type[Leaf]", type(name, (bits.format,), fields))


# -------------------------------------------------------------------------
# What KVM does to an entry
# -------------------------------------------------------------------------


def map_page_pte(
    bits: Bits,
    address: int,
    *,
    writable: bool,
    write: bool,
    logging: bool,
    device: bool = False,
) -> int:
    """Return the leaf with which a fault maps a page (fact sheet, 1.6).

    :Kernel: the end of kvm_map_page(), since v6.8.
    :param address: physical address of the page, in bytes.
    :param writable: the host allows writing. A write fault without it never comes so
        far.
    :param write: the access was a store.
    :param logging: the slot is logged.
    :param device: there is no struct page: strongly ordered, uncached.
    """
    pte = address | P | V | (0 if device else CC)
    if not writable:
        return pte
    pte |= bits.writeable
    if write or (bits.logged_only and not logging):
        pte |= bits.dirty
    return pte


def mkold(pte: int) -> int:
    """Return the entry as aging leaves it: it maps, but every access traps."""
    return pte & ~V


def mkyoung(pte: int) -> int:
    """Return the entry as an access leaves it."""
    return pte | V


def mkdirty(bits: Bits, pte: int) -> int:
    """Return the entry as a logged store leaves it."""
    return pte | bits.dirty


def mkclean(bits: Bits, pte: int) -> int:
    """Return the entry so that the next store traps.

    Until v6.16 W stays, by which a hardware walker sets D again (fact sheet, bug 1).
    """
    return pte & ~bits.dirty


def small(pte: int) -> int:
    """Return a leaf of level 1 as one of level 0, for its first page."""
    return pte & ~HUGE


def children(pte: int, page_shift: int) -> list[int]:
    """Return the leaves of level 0 that stand for one of level 1.

    :Kernel: kvm_split_huge()
    """
    first = small(pte)
    return [first + (n << page_shift) for n in range(1 << page_shift - 3)]


def pfn_of(pte: int, page_shift: int) -> int:
    """Return the frame number of a leaf."""
    return (pte & (1 << 48) - 1) >> page_shift
