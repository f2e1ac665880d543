"""Tier 1: entries, as values."""

__all__ = [
    "test_a_deviation_is_from_a_rule",
    "test_a_leaf_can_be_repointed",
    "test_a_walk_has_the_levels_of_the_formats",
    "test_an_entry_is_of_a_kind_or_unknown",
    "test_kinds_are_formats_at_levels",
]

from collections.abc import Iterator

import pytest

from kvmarch.arch import EntryKind
from kvmarch.format.bits import EntryFormat
from kvmarch.format.walk import WalkLayout
from kvmarch.testing.cases import Case
from kvmarch.testing.contract.rules import RULES

TIER = pytest.mark.kvmarch(tier=1)


def kinds(case: Case) -> list[EntryKind]:
    """Return the kinds of entries."""
    k = case.link()
    return list(k.formats.fn(k, case.options()))


def probes(case: Case) -> Iterator[tuple[int, int]]:
    """Yield entries and their levels: of each kind, with each bit of it turned."""
    for row in kinds(case):
        yield row.format.kind_value, row.level
        for bit in range(row.format.width):
            yield row.format.kind_value ^ 1 << bit, row.level


@TIER
def test_kinds_are_formats_at_levels(kvmarch_case: Case) -> None:
    rows = kinds(kvmarch_case)

    assert rows
    for row in rows:
        assert isinstance(row, EntryKind)
        assert isinstance(row.level, int)
        assert isinstance(row.format, type)
        assert issubclass(row.format, EntryFormat)
    assert len({(row.level, row.kind) for row in rows}) == len(rows)
    assert any(row.maps for row in rows)


@TIER
def test_an_entry_is_of_a_kind_or_unknown(kvmarch_case: Case) -> None:
    k, options = kvmarch_case.link(), kvmarch_case.options()
    known = {(row.level, row.kind): row.format for row in kinds(kvmarch_case)}

    for entry, level in probes(kvmarch_case):
        kind, fields = k.decode.fn(k, options, entry, level)
        where = f"{entry:#x} at level {level}: {kind}"
        assert isinstance(kind, str), where
        assert not (kind == "unknown" and fields), where
        if fields:
            assert (level, kind) in known, where
            assert fields == known[level, kind].unpack(entry), where


@TIER
def test_a_leaf_can_be_repointed(kvmarch_case: Case) -> None:
    k, options = kvmarch_case.link(), kvmarch_case.options()

    for entry, level in probes(kvmarch_case):
        pfn = k.entry_pfn.fn(k, options, entry, level)
        where = f"{entry:#x} at level {level}: pfn {pfn}"
        assert pfn is None or (isinstance(pfn, int) and pfn >= 0), where
        if pfn:
            here = k.entry_repoint.fn(k, options, entry, level, pfn)
            assert k.entry_pfn.fn(k, options, here, level) == pfn, where
            assert k.entry_repoint.fn(k, options, here, level, pfn) == here, where


@TIER
def test_a_walk_has_the_levels_of_the_formats(kvmarch_case: Case) -> None:
    k, options = kvmarch_case.link(), kvmarch_case.options()
    layout = k.walk.fn(k, options)

    assert layout is None or isinstance(layout, WalkLayout)
    levels = {row.level for row in kinds(kvmarch_case)}
    assert set(layout.by_level if layout else ()) <= levels


@TIER
def test_a_deviation_is_from_a_rule(kvmarch_case: Case) -> None:
    for row in kvmarch_case.arch.deviations:
        assert row.rule in RULES, f"{row.rule}: there is {', '.join(RULES)}"
        assert row.source
