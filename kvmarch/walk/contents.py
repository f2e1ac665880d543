"""What a tree holds: leaves counted, and ranges of leaves that are alike, in numpy."""

__all__ = ["Range", "Tally", "ranges_of", "tally"]

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kvmarch.walk.names import address_bits
from kvmarch.walk.path import UNKNOWN
from kvmarch.walk.tree import Found, Tree, pages_of
from kvmarch.walk.words import Ints

PEELS = 32
"""Distinct values that are looked for one by one before everything is sorted."""


class Tally(NamedTuple):
    """Entries of a level with the same attributes.

    :param role: what they are to a walk.
    :param shift: log2 of the bytes that each maps.
    :param entry: one of them, its address bits zero.
    """

    level: int
    role: str
    shift: int
    entry: int


class Range(NamedTuple):
    """Leaves that follow each other and differ in their address only.

    :param gpa: first guest-physical address in bytes.
    :param leaves: entries.
    :param pa: physical address in bytes of the first leaf, None if it has none.
    :param end: physical address behind the last leaf.
    :param pieces: stretches of physical memory without a gap.
    """

    gpa: int
    bytes: int
    leaves: int
    pa: int | None
    end: int | None
    pieces: int
    tally: Tally


def tally(tree: Tree) -> dict[Tally, int]:
    """Count the entries of a tree by what they are, apart from their addresses."""
    counts: dict[Tally, int] = {}
    for found in tree.find():
        level, shift = found.level, found.level.leaf_shift(found.rule)
        for entry, count in _distinct(_attributes(found)):
            key = Tally(level.level, _role(found), shift, entry)
            counts[key] = counts.get(key, 0) + count
    return counts


def _role(found: Found) -> str:
    return UNKNOWN if found.rule is None else found.rule.role


def _attributes(found: Found) -> Ints:
    bits = address_bits(found.rule)
    return found.entry & np.uint64(~bits % (1 << 64)) if bits else found.entry


def _distinct(values: Ints) -> Iterator[tuple[int, int]]:
    """Yield each value and how often it is there; quick if there are few."""
    for _ in range(PEELS):
        if not len(values):
            return
        first = values[0]
        other = values != first
        rest = int(np.count_nonzero(other))
        yield int(first), len(values) - rest
        if not rest:
            return
        values = values[other]
    every, counts = np.unique(values, return_counts=True)
    yield from zip(every.tolist(), counts.tolist(), strict=True)


def ranges_of(tree: Tree) -> list[Range]:
    """Return everything in a tree but tables and empty entries, by address."""
    ranges: list[Range] = []
    for found in tree.find():
        ranges.extend(_pieces(found))
    ranges.sort(key=lambda r: (r.gpa, -r.bytes))
    joined: list[Range] = []
    for each in ranges:
        if joined and _continues(joined[-1], each):
            before = joined.pop()
            follows = each.pa is not None and before.end == each.pa
            joined.append(
                before._replace(
                    bytes=before.bytes + each.bytes,
                    leaves=before.leaves + each.leaves,
                    end=each.end,
                    pieces=before.pieces + each.pieces - follows,
                )
            )
        else:
            joined.append(each)
    return joined


def _continues(before: Range, after: Range) -> bool:
    return before.tally == after.tally and before.gpa + before.bytes == after.gpa


def _pieces(found: Found) -> Iterator[Range]:
    """Yield the ranges in one stretch of entries."""
    level = found.level
    covers = np.uint64(1 << level.shift)
    attributes = _attributes(found)
    gpa = found.gpa
    breaks = (gpa[1:] != gpa[:-1] + covers) | (attributes[1:] != attributes[:-1])
    starts = np.concatenate(([0], np.flatnonzero(breaks) + 1))
    ends = np.append(starts[1:], len(gpa))
    pa = pages_of(found)
    jumps = np.zeros(len(gpa), np.int64)
    if pa is not None:
        jumps[1:] = pa[1:] != pa[:-1] + covers
    passed = np.cumsum(jumps)
    shift = level.leaf_shift(found.rule)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        key = Tally(level.level, _role(found), shift, int(attributes[start]))
        yield Range(
            int(gpa[start]),
            end - start << level.shift,
            end - start,
            None if pa is None else int(pa[start]),
            None if pa is None else int(pa[end - 1] + covers),
            0 if pa is None else int(passed[end - 1] - passed[start]) + 1,
            key,
        )
