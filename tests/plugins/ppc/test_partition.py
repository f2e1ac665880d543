"""Partition-table entries: worked values of the fact sheet ppc, 3.3 and 3.4."""

import pytest
from kvmarch_ppc.hpt import HashWord, make_hash_layout
from kvmarch_ppc.layout import decode
from kvmarch_ppc.partition import (
    PartitionHash0,
    PartitionRadix0,
    hash_dword0,
    make_sdr1,
    radix_dword0,
    radix_dword1,
)
from kvmarch_ppc.radix_pte import RadixWord, make_radix_layout

from kvmarch import EntryError

K64 = make_radix_layout()
HASH = make_hash_layout(isa300=True)


@pytest.mark.parametrize(
    ("pgd", "value"),
    [
        pytest.param(0x30000000, 0xC0000000300000AD, id="P1"),
        pytest.param(0x21E0000, 0xC0000000021E00AD, id="recorded"),
    ],
)
def test_the_root_is_the_first_partition_doubleword(pgd, value):
    kind, fmt, fields = decode(K64, value, RadixWord.PARTITION0)

    assert radix_dword0(pgd) == value
    assert kind == "root"
    assert fmt is PartitionRadix0
    assert fields == {"hr": 1, "rts": 52 - 31, "pa": pgd, "rpds": 13}
    assert fmt.pack(pa=pgd) == value


def test_rts_is_split_as_the_sheet_says():
    assert PartitionRadix0.rts.place(21) == 5 << 5 | 2 << 61


def test_the_second_partition_doubleword_is_the_process_table():
    value = radix_dword1(0x1230004)

    assert value == 0x8000000001230004
    assert decode(K64, value, RadixWord.PARTITION1).fields == {
        "gr": 1,
        "prtb": 0x1230000,
        "prts": 4,
    }


@pytest.mark.parametrize(
    ("sizes", "value"),
    [
        pytest.param({}, 0x40000006, id="4K"),
        pytest.param({"vrma_64k": True}, 0x400000A6, id="64K"),
        pytest.param({"vrma_large": True}, 0x40000086, id="16M"),
    ],
)
def test_the_root_of_a_hash_guest_is_sdr1_and_the_vrma_page_size(sizes, value):
    assert hash_dword0(make_sdr1(0x40000000, 24), **sizes) == value


@pytest.mark.parametrize("order", [17, 47])
def test_there_are_no_smaller_or_larger_hpts(order):
    with pytest.raises(EntryError, match="is not in 18 to 46"):
        make_sdr1(0, order)


def test_an_unaligned_root_is_refused():
    with pytest.raises(EntryError, match="0x1000 is no multiple of 0x10000"):
        radix_dword0(0x1000)


@pytest.mark.parametrize(
    ("process_table", "value"),
    [
        pytest.param(0x1230004, 0x8000000001230004, id="radix"),
        pytest.param(0x800000001230004, 0x8800000001230004, id="a high address"),
    ],
)
def test_gr_is_added_to_the_process_table(process_table, value):
    assert radix_dword1(process_table) == value


def test_the_root_of_a_hash_guest_decodes():
    value = hash_dword0(make_sdr1(0x40000000, 24), vrma_64k=True)

    assert decode(HASH, value, HashWord.PARTITION0) == (
        "root",
        PartitionHash0,
        {"hr": 0, "htaborg": 0x40000000, "vrma_l": 1, "vrma_lp": 1, "htabsize": 6},
    )
