"""Nested rmap words: worked values of the fact sheet ppc, 3.4 and 3.12."""

from hypothesis import given
from hypothesis import strategies as st
from kvmarch_ppc.layout import decode
from kvmarch_ppc.nest_rmap import (
    RMAP_NESTED_GPA_MASK,
    RMAP_NESTED_IS_SINGLE_ENTRY,
    RMAP_NESTED_LPID_MASK,
    NestRmap,
    is_single_entry,
    nest_rmap,
    nest_rmap_gpa,
    nest_rmap_lpid,
)
from kvmarch_ppc.radix_pte import RadixWord, make_radix_layout

K64 = make_radix_layout()


def test_nested_rmap_entries():
    single = nest_rmap(5, 0x1234567000, single=True)

    assert single == 0x0050001234567001
    assert nest_rmap(5, 0x1234567FFF, single=False) == 0x0050001234567000
    assert nest_rmap_lpid(single) == 5
    assert nest_rmap_gpa(single) == 0x1234567000
    assert is_single_entry(single)
    assert decode(K64, single, RadixWord.RMAP).kind == "nested"
    assert decode(K64, 0, RadixWord.RMAP).kind == "none"
    assert NestRmap.unpack(single - 1) == {
        "lpid": 5,
        "n_gpa": 0x1234567000,
        "single": 0,
    }


def test_an_rmap_word_with_an_address_is_a_list():
    word = 0xC000000012345678

    assert decode(K64, word, RadixWord.RMAP).kind == "nested-list"
    assert not is_single_entry(word)
    assert decode(K64, word | 4, RadixWord.RMAP).kind == "unknown"


@given(st.integers(1, 4095), st.integers(0, (1 << 40) - 1), st.booleans())
def test_an_entry_gives_back_what_went_in(lpid, frame, single):
    entry = nest_rmap(lpid, frame << 12, single=single)

    assert nest_rmap_lpid(entry) == lpid
    assert nest_rmap_gpa(entry) == frame << 12
    assert is_single_entry(entry) == single


def test_masks_are_the_sheets():
    assert RMAP_NESTED_LPID_MASK == 0xFFF0000000000000
    assert RMAP_NESTED_GPA_MASK == 0x000FFFFFFFFFF000
    assert RMAP_NESTED_IS_SINGLE_ENTRY == 1
