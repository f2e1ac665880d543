"""Indexes, page sizes and root registers (fact sheet x86, 1.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_x86.geometry import (
    Eptp,
    construct_eptp,
    nested_cr3,
    pages_per_hpage,
    spte_index,
)
from kvmarch_x86.layout import make_layout

from kvmarch import EntryError


@pytest.mark.parametrize(
    ("level", "index"), [(5, 0x0), (4, 0x24), (3, 0xD1), (2, 0xB3), (1, 0x189)]
)
def test_the_worked_address_has_the_worked_indexes(level, index):
    assert spte_index(0x123456789000, level) == index


@given(st.integers(0, (1 << 57) - 1))
def test_the_indexes_and_the_offset_make_up_the_address(gpa):
    parts = sum(spte_index(gpa, level) << 12 + 9 * (level - 1) for level in range(1, 6))

    assert parts | gpa & 0xFFF == gpa


@pytest.mark.parametrize(
    ("level", "pages"), [(1, 1), (2, 0x200), (3, 0x40000)], ids=["4K", "2M", "1G"]
)
def test_a_leaf_maps_so_many_pages(level, pages):
    assert pages_per_hpage(level) == pages


@pytest.mark.parametrize(
    ("levels", "ad", "eptp"),
    [
        pytest.param(4, True, 0xABC05E, id="4 levels with A/D"),
        pytest.param(5, False, 0xABC026, id="5 levels without"),
    ],
)
def test_the_eptp_has_the_worked_value(levels, ad, eptp):
    assert construct_eptp(0xABC000, levels, ad=ad) == eptp
    assert Eptp.unpack(eptp) == {
        "root": 0xABC,
        "ad": int(ad),
        "walk": levels - 1,
        "memtype": 6,
    }


def test_an_eptp_of_another_memory_type_is_refused():
    with pytest.raises(EntryError, match="memtype is always 0x6"):
        Eptp.unpack(0xABC058)


def test_the_nested_cr3_carries_the_c_bit():
    layout = make_layout("6.1", "npt", maxphyaddr=43, c_bit=47)

    assert nested_cr3(0xABC000) == 0xABC000
    assert nested_cr3(0xABC000, layout.shadow_me_value) == 0x800000ABC000
