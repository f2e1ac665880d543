"""Whole trees compared: pages are put in, and where KVM's tables lie is its own."""

import pytest

from kvmarch.plugins import link
from kvmarch.plugins import load as load_plugins
from kvmarch.recordings.surveys import alike_but_for_tables, compare_entries

REMAINS = 0x438C_4002
"""What v5.10 of arm64 leaves of an entry that led to a table at 0x438c4000."""


@pytest.fixture(scope="module")
def arm64():
    arch = load_plugins().get("arm64")
    kernel = link(arch, (5, 10), (), ())
    return alike_but_for_tables(kernel, arch.info.settle((5, 10), {}))


@pytest.mark.parametrize(
    ("left", "right", "level", "same"),
    [
        pytest.param(REMAINS, 0x1000_4002, 1, True, id="another-table"),
        pytest.param(REMAINS, 0x1000_4003, 1, False, id="a-table-that-hangs"),
        pytest.param(REMAINS, 0, 1, False, id="empty"),
        pytest.param(REMAINS, 0x1000_4002, 3, False, id="page-remains"),
        pytest.param(0x4000_0100_17FF, 0x4000_0200_17FF, 3, False, id="page"),
        pytest.param(0x40_0000_0100_17FF, 0x40_0000_0100_17FF, 3, True, id="equal"),
        pytest.param(1 << 62 | 2, 1 << 61 | 2, 1, False, id="unknown"),
    ],
)
def test_the_place_of_a_table_is_the_kernels(arm64, left, right, level, same):
    assert arm64(left, right, level) is same


def test_without_a_rule_every_bit_counts():
    def repoint(entry, level):
        return entry

    assert compare_entries([(0, 1, 2)], [(0, 1, 2)], repoint) == ""
    assert "recorded 0x2, model 0x6" in compare_entries(
        [(0, 1, 2)], [(0, 1, 6)], repoint
    )


def test_an_entry_that_one_side_lacks_is_not_alike():
    text = compare_entries(
        [(0, 1, 2)], [(8, 1, 2)], lambda entry, level: entry, lambda *_: True
    )

    assert "gfn 0x0 level 1: recorded 0x2, model none" in text
    assert "gfn 0x8 level 1: recorded none, model 0x2" in text
