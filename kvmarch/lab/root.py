"""Finding the root of a VM's tables in the memory of a stopped machine.

From below: the pages that the guest has touched are known (gfn and frame, from the
host's pagemap). Every table of the image that could hold the leaf of one of them is a
candidate, every table that leads to a candidate from the right index is one of the
next level, and so on. What comes out on top is walked as a whole, and is the root only
if it maps every touched page to its frame, and nothing that is not known.

The host's own page tables hold the same frames, often in the same format. They map
them at the host's addresses, besides the program, its libraries and stack; so their
whole tree maps other things, or the pages elsewhere.

A tree that was freed and not overwritten may fit too, if the pages that were touched
are the same. Two roots that fit are an error, never a guess; more pages tell them
apart, and a kernel that is booted with ``init_on_free=1`` leaves no such trees.
"""

__all__ = ["Known", "find_root", "fits", "roots_of"]

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from kvmarch.errors import WalkError
from kvmarch.format.walk import WalkLayout, WalkLevel, WalkRule
from kvmarch.walk.image import Image
from kvmarch.walk.path import entry_order
from kvmarch.walk.scan import Scanner
from kvmarch.walk.tree import Tree, addresses, pages_of
from kvmarch.walk.words import Ints

LEADS = frozenset({"leaf", "kept"})


class Known(NamedTuple):
    """What is known of a VM without its tables.

    :param frames: pfn by gfn of all pages that could be mapped, as of now.
    :param touched: the gfns among them that the guest has reached, and that nothing
        has unmapped since.
    """

    frames: Mapping[int, int]
    touched: Collection[int]


class _Table(NamedTuple):
    """A place that may be a table, and the first address that it would translate."""

    pa: int
    base: int


def find_root(
    image: Image,
    layouts: Iterable[WalkLayout],
    known: Known,
    byteorder: str = "",
    others: Collection[int] = (),
) -> tuple[int, WalkLayout] | None:
    """Return the root and its layout, or None if there is no root yet.

    :param layouts: those that the machine may have. One with more levels is tried
        before one with fewer, whose root is a table of the former.
    :param others: roots that are known to be of other VMs.
    :raises WalkError: there are two roots that fit.
    """
    for layout in sorted(layouts, key=lambda one: -len(one.levels)):
        roots = [
            root
            for root in roots_of(image, layout, known, byteorder)
            if root not in others
        ]
        if len(roots) > 1:
            shown = ", ".join(f"{root:#x}" for root in roots)
            raise WalkError(f"{image.path}: several trees map what is known: {shown}")
        if roots:
            return roots[0], layout
    return None


def roots_of(
    image: Image, layout: WalkLayout, known: Known, byteorder: str = ""
) -> list[int]:
    """Return every root of a tree that maps what was touched, and nothing unknown."""
    touched = [gfn for gfn in sorted(known.touched) if known.frames.get(gfn)]
    if not touched:
        return []
    search = _Search(image, layout, byteorder)
    found = search.leaves(touched[0], known.frames[touched[0]])
    for depth in reversed(range(len(layout.levels) - 1)):
        found[depth] |= search.parents(depth, found[depth + 1])
    roots = sorted({table.pa for table in found[0]})
    return [root for root in roots if fits(image, layout, root, known, byteorder)]


class _Search:
    """Looks for tables that could be part of the tree."""

    def __init__(self, image: Image, layout: WalkLayout, byteorder: str) -> None:
        self.layout = layout
        order = entry_order(image, layout, byteorder)
        self._scan = Scanner(image, layout.entry_bytes, order)

    def leaves(self, gfn: int, pfn: int) -> list[set[_Table]]:
        """Return by level, root first, the tables that could hold a page's leaf."""
        gpa, pa = gfn << self.layout.page_shift, pfn << self.layout.page_shift
        found: list[set[_Table]] = []
        for level in self.layout.levels:
            here: set[_Table] = set()
            for rule in level.rules:
                inside = (1 << level.leaf_shift(rule)) - 1
                if rule.role in LEADS and not (gpa ^ pa) & inside:
                    here.update(self._holders(level, rule, gpa, {pa & ~inside}))
            found.append(here)
        return found

    def parents(self, depth: int, below: set[_Table]) -> set[_Table]:
        """Return the tables of a level that could lead to one of some tables."""
        level = self.layout.levels[depth]
        found: set[_Table] = set()
        for base in {table.base for table in below}:
            wanted = {table.pa for table in below if table.base == base}
            for rule in level.rules:
                if rule.role == "table":
                    found.update(self._holders(level, rule, base, wanted))
        return found

    def _holders(
        self, level: WalkLevel, rule: WalkRule, gpa: int, wanted: Collection[int]
    ) -> Iterable[_Table]:
        """Yield tables whose entry for an address is of a rule and leads somewhere."""
        length = self.layout.entry_bytes << level.bits
        index = gpa >> level.shift & (1 << level.bits) - 1
        base = gpa >> level.shift + level.bits << level.shift + level.bits
        for tables, entries in self._scan.column(index, length):
            hit = (entries & np.uint64(rule.mask)) == np.uint64(rule.value)
            led = addresses(rule, entries)
            hit &= np.logical_or.reduce([led == np.uint64(pa) for pa in wanted])
            for at in np.flatnonzero(hit).tolist():
                if _first(level, int(entries[at])) is rule:
                    yield _Table(int(tables[at]), base)


def _first(level: WalkLevel, entry: int) -> WalkRule | None:
    """Return the rule that counts for an entry."""
    return next((r for r in level.rules if entry & r.mask == r.value), None)


def fits(
    image: Image, layout: WalkLayout, root: int, known: Known, byteorder: str = ""
) -> bool:
    """Return whether a tree maps what was touched, and nothing but what is known."""
    gfns = np.array(sorted(known.frames), np.uint64)
    frames = np.array([known.frames[int(gfn)] for gfn in gfns], np.uint64)
    left = set(known.touched)
    try:
        for found in Tree(image, layout, root, byteorder).find():
            if found.rule is None:
                return False
            pages = pages_of(found)
            if pages is None:
                continue
            gfn, pfn = _each(
                found.gpa, pages, found.level.shift - layout.page_shift, layout
            )
            at = np.searchsorted(gfns, gfn)
            at[at == len(gfns)] = 0
            if (gfns[at] != gfn).any() or (frames[at] != pfn).any():
                return False
            left.difference_update(gfn.tolist())
    except WalkError:
        return False
    return not left


def _each(gpa: Ints, pa: Ints, order: int, layout: WalkLayout) -> tuple[Ints, Ints]:
    """Return gfn and pfn of every page that some leaves map."""
    shift = np.uint64(layout.page_shift)
    inside = np.arange(1 << order, dtype=np.uint64)
    gfn = (gpa >> shift)[:, None] + inside
    pfn = (pa >> shift)[:, None] + inside
    return gfn.ravel(), pfn.ravel()
