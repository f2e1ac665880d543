"""How a tree is walked, as data: the parts fit together, and fields become moves."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarch.errors import FormatError
from kvmarch.format.bits import EntryFormat, Field
from kvmarch.format.walk import WalkLayout, WalkLevel, WalkRule

ABSENT = WalkRule("absent", 1, 0)
TABLE = WalkRule("table", 3, 3, ((0xFFFF_FFFF_F000, 0),))
LEAF = WalkRule("leaf", 3, 1, ((0xFFFF_FFFF_F000, 0),))


class Split(EntryFormat):
    valid = Field(0, fixed=1)
    kind = Field(1, fixed=0)
    pfn = Field(49, 21, shift=9, parts=((9, 8),))


class Shifted(EntryFormat):
    valid = Field(0, fixed=1)
    ppn = Field(53, 10)


@given(st.integers(0, (1 << 31) - 1))
def test_a_split_field_becomes_moves(number):
    pfn = number << 9

    rule = WalkRule.of(Split, "leaf", "pfn", 12)

    assert rule.address_of(Split.pack(pfn=pfn)) == pfn << 12
    assert (rule.mask, rule.value) == (3, 1)


@given(st.integers(0, (1 << 44) - 1))
def test_a_number_that_is_kept_low_moves_left(ppn):
    rule = WalkRule.of(Shifted, "leaf", "ppn", 12)

    assert rule.address == ((0x3F_FFFF_FFFF_FC00, 2),)
    assert rule.address_of(Shifted.pack(ppn=ppn)) == ppn << 12


def test_an_exact_rule_wants_the_unclaimed_bits_clear():
    loose, exact = (
        WalkRule.of(Shifted, "leaf", "ppn", 12, exact=e) for e in (False, True)
    )

    assert loose.mask == 1
    assert exact.mask == 0xFFC0_0000_0000_03FF


def test_an_empty_format_is_the_zero():
    empty = type("Empty", (EntryFormat,), {})

    assert WalkRule.of(empty, "absent") == WalkRule("absent", (1 << 64) - 1, 0)


def test_size_and_reach_follow_from_the_levels():
    layout = WalkLayout(
        (WalkLevel(1, 30, 10, (ABSENT, TABLE)), WalkLevel(2, 12, 18, (ABSENT, LEAF))),
        page_shift=12,
    )

    assert (layout.gpa_bits, layout.root_bytes, layout.alignment) == (40, 8192, 8192)
    assert layout.by_level[2].bits == 18


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((), "a walk needs a level"),
        (
            (WalkLevel(1, 30, 9, (TABLE,)), WalkLevel(2, 12, 9, (LEAF,))),
            "level 1 covers 2^30 bytes an entry, tables of level 2 2^21",
        ),
        ((WalkLevel(1, 12, 9, (TABLE,)),), "level 1 has tables below it"),
        (
            (WalkLevel(1, 21, 9, (TABLE,)), WalkLevel(1, 12, 9, (LEAF,))),
            "two levels have the same number",
        ),
        (
            (WalkLevel(1, 12, 9, (WalkRule("leaf", 1, 2, LEAF.address),)),),
            "level 1, leaf: 0x2 has bits beside 0x1",
        ),
        (
            (WalkLevel(1, 12, 9, (WalkRule("leaf", 1, 1),)),),
            (
                "level 1, leaf: an entry that leads somewhere has an address, others "
                "have none"
            ),
        ),
        (
            (WalkLevel(1, 12, 9, (WalkRule("leaf", 1 << 64, 0, LEAF.address),)),),
            "level 1, leaf: a mask is wider than the entry",
        ),
        (
            (WalkLevel(1, 12, 9, (WalkRule("leaf", 1, 1, LEAF.address, 11),)),),
            "level 1, leaf: maps less than its entry covers",
        ),
        (
            (WalkLevel(1, 12, 9, (WalkRule("page", 1, 1, LEAF.address),)),),
            "level 1, page: there is table, leaf, kept, note, absent",
        ),
    ],
)
def test_what_does_not_fit_together(levels, message):
    with pytest.raises(FormatError, match=f"^{re.escape(message)}$"):
        WalkLayout(levels, page_shift=12)


def test_entries_have_four_or_eight_bytes():
    with pytest.raises(FormatError, match="no walk reads entries of 2 bytes"):
        WalkLayout((WalkLevel(1, 12, 9, (LEAF,)),), 12, entry_bytes=2)
