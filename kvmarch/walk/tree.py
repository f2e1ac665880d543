"""Whole trees and many addresses at once, in numpy (extra ``kvmarch[lab]``)."""

__all__ = [
    "OUTSIDE",
    "ROLE_CODES",
    "Found",
    "Translated",
    "Tree",
    "addresses",
    "pages_of",
]

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvmarch.errors import WalkError
from kvmarch.format.walk import ROLES, WalkLayout, WalkLevel, WalkRule
from kvmarch.walk.image import Image
from kvmarch.walk.path import UNKNOWN, check_root, entry_order
from kvmarch.walk.words import NOWHERE, Ints, Words

CHUNK = 1 << 15
"""Entries, or addresses, that are worked on at a time: what fits into a cache."""

ROLE_CODES = (*ROLES, UNKNOWN, "outside")
"""Numbers of roles in arrays; ``outside``: the next table is not in the image."""
OUTSIDE = ROLE_CODES.index("outside")
_UNKNOWN = ROLE_CODES.index(UNKNOWN)
_MAPPED = (ROLE_CODES.index("leaf"), ROLE_CODES.index("kept"))


class Found(NamedTuple):
    """Entries of one level that match one rule, as arrays by gpa.

    :param rule: None for entries that match nothing.
    :param gpa: guest-physical address in bytes that each begins at.
    :param at: physical address in bytes of each.
    """

    level: WalkLevel
    rule: WalkRule | None
    gpa: Ints
    entry: Ints
    at: Ints


class Translated(NamedTuple):
    """What addresses lead to, as arrays in the order of the addresses.

    :param pa: physical address in bytes, 0 where there is none.
    :param role: of the last entry, an index into ROLE_CODES.
    :param level: of the last entry, the architecture's own number.
    """

    pa: Ints
    role: npt.NDArray[np.uint8]
    level: npt.NDArray[np.int8]


class Tree:
    """The tables below one root.

    :param byteorder: of the machine, where neither layout nor image tells it.
    :raises WalkError: no root can be there.
    """

    def __init__(
        self, image: Image, layout: WalkLayout, root: int, byteorder: str = ""
    ) -> None:
        check_root(image, layout, root)
        self.image, self.layout, self.root = image, layout, root
        order = entry_order(image, layout, byteorder)
        self._words = Words(image, layout.entry_bytes, order)
        self._levels = tuple(
            _Level(level, layout.entry_bytes) for level in layout.levels
        )
        self.tables: dict[int, int] = {}
        """Tables by level, once find() is through with it."""

    # -- everything -----------------------------------------------------------------

    def find(self) -> Iterator[Found]:
        """Yield everything but tables and empty entries, level by level.

        Each level comes by address; within a stretch of addresses, entries of one
        rule come together.

        :raises WalkError: a table is not in the image, or is linked twice.
        """
        seen = np.array([self.root], np.uint64)
        tables, bases = seen, np.array([0], np.uint64)
        for compiled in self._levels:
            self.tables[compiled.level.level] = len(tables)
            below: list[tuple[Ints, Ints]] = []
            for found in self._level(compiled, tables, bases):
                rule = found.rule
                if rule is not None and rule.role == "table":
                    below.append((addresses(rule, found.entry), found.gpa))
                else:
                    yield found
            if not below:
                break
            tables = np.concatenate([pa for pa, _ in below])
            bases = np.concatenate([gpa for _, gpa in below])
            seen = self._unseen(compiled.level, seen, tables, bases)

    def _unseen(self, level: WalkLevel, seen: Ints, tables: Ints, bases: Ints) -> Ints:
        """Return all tables so far, refusing one that is there twice."""
        every = np.concatenate((seen, tables))
        every.sort()
        twice = every[1:][every[1:] == every[:-1]]
        if len(twice):
            table = twice[0]
            gpa = int(bases[tables == table][-1])
            what = "a loop" if table in seen else "two entries"
            raise WalkError(
                f"{what}: the entry for {gpa:#x} at level {level.level} leads to the "
                f"table at {int(table):#x}, which is already part of the tree"
            )
        return every

    def _level(self, level: "_Level", tables: Ints, bases: Ints) -> Iterator[Found]:
        """Yield what is in the tables of a level and not empty, in pieces."""
        size = self.layout.entry_bytes
        length = 1 << level.level.bits
        offsets = self._words.offsets(tables, size * length)
        outside = np.flatnonzero(offsets == NOWHERE)
        if len(outside):
            first = outside[0]
            raise WalkError(
                f"the table of level {level.level.level} for {int(bases[first]):#x} is "
                f"at {int(tables[first]):#x}, outside the image ({self.image.span})"
            )
        step = max(1, CHUNK // length)
        index = np.arange(length, dtype=np.uint64)
        for start in range(0, len(tables), step):
            part = slice(start, start + step)
            entries = self._words.tables(offsets[part], length).ravel()
            for rule, chosen in level.classify(entries):
                if rule is not None and rule.role == "absent":
                    continue
                # The usual table is all of one kind, and then nothing is picked.
                gpa = bases[part, None] + (index << level.shift)
                at = tables[part, None] + index * np.uint64(size)
                if chosen is None:
                    yield Found(level.level, rule, gpa.ravel(), entries, at.ravel())
                else:
                    yield Found(
                        level.level,
                        rule,
                        gpa.ravel()[chosen],
                        entries[chosen],
                        at.ravel()[chosen],
                    )

    # -- many addresses -------------------------------------------------------------

    def translate(self, gpas: npt.ArrayLike) -> Translated:
        """Return what guest-physical addresses, in bytes, lead to.

        :raises WalkError: one of them is beyond the tree.
        """
        wanted = np.ascontiguousarray(gpas, np.uint64)
        if len(wanted) and int(wanted.max()) >> self.layout.gpa_bits:
            raise WalkError(
                f"address {int(wanted.max()):#x} is beyond the tree, which tells "
                f"{self.layout.gpa_bits} bits apart"
            )
        out = Translated(
            np.zeros(len(wanted), np.uint64),
            np.full(len(wanted), OUTSIDE, np.uint8),
            np.zeros(len(wanted), np.int8),
        )
        root = np.array([self.root], np.uint64)
        size = self.layout.root_bytes
        base = self._words.offsets(root, size).view(np.int64)[0]
        for start in range(0, len(wanted), CHUNK):
            part = slice(start, start + CHUNK)
            view = Translated(out.pa[part], out.role[part], out.level[part])
            self._descend(0, wanted[part], base, None, view)
        return out

    def _descend(
        self,
        depth: int,
        gpa: Ints,
        table: npt.NDArray[np.int64],
        where: npt.NDArray[np.intp] | None,
        out: Translated,
    ) -> None:
        """Go on from tables of one level.

        :param table: offset in the file of each address's table, or one for all.
        :param where: the places in ``out`` of the addresses; None for all.
        """
        level = self._levels[depth]
        at = ((gpa >> level.shift) & level.mask).view(np.int64)
        at <<= level.scale
        at += table
        entries = self._words.pick(at)
        for rule, chosen in level.classify(entries):
            if chosen is None:
                self._go_on(depth, rule, gpa, entries, where, out)
                return
            places = chosen if where is None else where[chosen]
            self._go_on(depth, rule, gpa[chosen], entries[chosen], places, out)

    def _go_on(
        self,
        depth: int,
        rule: WalkRule | None,
        gpa: Ints,
        entries: Ints,
        where: npt.NDArray[np.intp] | None,
        out: Translated,
    ) -> None:
        level = self._levels[depth]
        to = slice(None) if where is None else where
        out.level[to] = level.level.level
        if rule is None or rule.role != "table":
            code = _UNKNOWN if rule is None else ROLE_CODES.index(rule.role)
            out.role[to] = code
            if rule is not None and code in _MAPPED:
                out.pa[to] = _page(rule, level.level, entries, gpa)
            return
        below = self._levels[depth + 1]
        size = self.layout.entry_bytes << below.level.bits
        tables = self._words.offsets(addresses(rule, entries), size)
        outside = tables == NOWHERE
        if outside.any():
            keep = np.flatnonzero(~outside)
            places = keep if where is None else where[keep]
            self._descend(
                depth + 1, gpa[keep], tables[keep].view(np.int64), places, out
            )
            return
        self._descend(depth + 1, gpa, tables.view(np.int64), where, out)


class _Level:
    """A level with what numpy needs at hand."""

    def __init__(self, level: WalkLevel, entry_bytes: int) -> None:
        self.level = level
        self.shift = np.uint64(level.shift)
        self.mask = np.uint64((1 << level.bits) - 1)
        self.scale = entry_bytes.bit_length() - 1
        leading = [r for r in level.rules if r.address]
        common = 0
        for rule in leading:
            common |= rule.mask
        self._common = np.uint64(common)
        self._known: dict[int, tuple[WalkRule | None, bool]] = {}

    def classify(
        self, entries: Ints
    ) -> Iterator[tuple[WalkRule | None, npt.NDArray[np.intp] | None]]:
        """Yield each rule that some entries match, and their places; None means all."""
        if not len(entries):
            return
        bits = entries & self._common
        first = bits[0]
        if (bits == first).all():
            rule, certain = self._rule_of(int(first))
            if certain:
                yield rule, None
                return
        left: npt.NDArray[np.intp] | None = None
        for rule in self.level.rules:
            some = entries if left is None else entries[left]
            if not len(some):
                return
            hit = (some & np.uint64(rule.mask)) == np.uint64(rule.value)
            places = np.flatnonzero(hit)
            if not len(places):
                continue
            if len(places) == len(entries):
                yield rule, None
                return
            yield rule, places if left is None else left[places]
            rest = np.flatnonzero(~hit)
            left = rest if left is None else left[rest]
        if left is None:
            yield None, None
        elif len(left):
            yield None, left

    def _rule_of(self, bits: int) -> tuple[WalkRule | None, bool]:
        """Return the rule of entries whose bits of interest are known, if that tells.

        It does if the first rule that they do not contradict looks at no other bits.
        """
        if bits not in self._known:
            common = int(self._common)
            answer: tuple[WalkRule | None, bool] = (None, True)
            for rule in self.level.rules:
                if (bits ^ rule.value) & rule.mask & common:
                    continue
                answer = rule, not rule.mask & ~common
                break
            self._known[bits] = answer
        return self._known[bits]


def pages_of(found: Found) -> Ints | None:
    """Return the physical address, in bytes, that each entry maps; None if none does.

    Each entry of a leaf that is repeated has its own part of it.
    """
    if found.rule is None or not found.rule.address:
        return None
    return _page(found.rule, found.level, found.entry, found.gpa)


def _page(rule: WalkRule, level: WalkLevel, entries: Ints, gpa: Ints) -> Ints:
    """Return the physical address that guest-physical addresses are mapped to."""
    inside = (1 << level.leaf_shift(rule)) - 1
    address = addresses(rule, entries)
    address |= gpa & np.uint64(inside)
    return address


def addresses(rule: WalkRule, entries: Ints) -> Ints:
    """Return the physical addresses that entries of a rule hold, as a new array."""
    (mask, move), *more = rule.address
    address = _moved(entries, mask, move)
    for mask, move in more:
        address |= _moved(entries, mask, move)
    return address


def _moved(entries: Ints, mask: int, move: int) -> Ints:
    part = entries & np.uint64(mask)
    if move > 0:
        part <<= np.uint64(move)
    elif move < 0:
        part >>= np.uint64(-move)
    return part
