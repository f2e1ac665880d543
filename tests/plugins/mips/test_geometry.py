import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_mips.geometry import (
    INDEX_BITS,
    InvalidTable,
    count_tables,
    find_geometry,
    index_split,
    table_entry,
    table_index,
    table_none,
    table_pa,
)

from kvmarch import EntryError, KvmarchError

CONFIGURATIONS = [
    pytest.param(12, False, id="4K"),
    pytest.param(14, False, id="16K"),
    pytest.param(14, True, id="16K-48"),
    pytest.param(16, False, id="64K"),
    pytest.param(12, True, id="4K-48"),
]

# Fact sheet mips, section 3: PTE, PMD, PUD, PGD bits; PMD_SHIFT, PGDIR_SHIFT; GPA
# bits; order of the root. A folded level has no bits.
TABLE = [
    pytest.param(12, False, (9, 9, None, 10), (21, 30), 40, 1, id="4K"),
    pytest.param(14, False, (11, 11, None, 11), (25, 36), 47, 0, id="16K"),
    pytest.param(14, True, (11, 11, None, 12), (25, 36), 48, 1, id="16K-48"),
    pytest.param(16, False, (13, None, None, 13), (None, 29), 42, 0, id="64K"),
    pytest.param(12, True, (9, 9, 9, 9), (21, 39), 48, 0, id="4K-48"),
]


@pytest.mark.parametrize(
    ("page_shift", "va_bits_48", "bits", "shifts", "gpa_bits", "order"), TABLE
)
def test_shape(page_shift, va_bits_48, bits, shifts, gpa_bits, order):
    geometry = find_geometry(page_shift, 5, va_bits_48)
    named = dict(zip(geometry.names, geometry.bits, strict=True))
    at = dict(zip(geometry.names, geometry.shifts, strict=True))

    assert tuple(named.get(name) for name in ("pte", "pmd", "pud", "pgd")) == bits
    assert (at.get("pmd"), at["pgd"]) == shifts
    assert at["pte"] == page_shift
    assert geometry.gpa_bits == gpa_bits
    assert geometry.pgd_order == order
    assert geometry.levels == sum(width is not None for width in bits)


@pytest.mark.parametrize(("page_shift", "va_bits_48"), CONFIGURATIONS)
def test_every_table_but_the_root_is_a_page(page_shift, va_bits_48):
    geometry = find_geometry(page_shift, 5, va_bits_48)

    assert {8 << bits for bits in geometry.bits[:-1]} == {1 << page_shift}
    assert 8 << geometry.bits[-1] == 1 << page_shift + geometry.pgd_order


@pytest.mark.parametrize(
    ("page_shift", "va_bits_48", "pages"),
    [
        pytest.param(12, False, 2, id="4K"),
        pytest.param(14, False, 2, id="16K"),
        pytest.param(16, False, 1, id="64K-folded-pmd"),
        pytest.param(12, True, 2, id="4K-48"),
    ],
)
def test_cache_min_pages(page_shift, va_bits_48, pages):
    assert find_geometry(page_shift, 5, va_bits_48).cache_min_pages == pages


@pytest.mark.parametrize(
    ("page_shift", "split"),
    [
        pytest.param(12, {"pgd": 72, "pmd": 418, "pte": 359}, id="4K"),
        pytest.param(14, {"pgd": 1, "pmd": 282, "pte": 345}, id="16K"),
    ],
)
def test_split_of_the_sheet_both_ways(page_shift, split):
    geometry = find_geometry(page_shift, 5)
    gpa = 0x12_3456_7000
    offset = gpa & (1 << page_shift) - 1

    assert index_split(geometry, gpa) == split
    assert list(index_split(geometry, gpa)) == ["pgd", "pmd", "pte"]
    assert gpa == offset | sum(
        split[name] << shift
        for name, shift in zip(geometry.names, geometry.shifts, strict=True)
    )


@given(st.sampled_from(sorted(INDEX_BITS)), st.data())
def test_indexes_hold_all_of_a_gpa(configuration, data):
    geometry = find_geometry(configuration[0], 5, configuration[1])
    gpa = data.draw(st.integers(0, (1 << geometry.gpa_bits) - 1))

    back = gpa & (1 << geometry.page_shift) - 1
    for level in range(1, geometry.levels + 1):
        index = table_index(geometry, gpa, level)
        back |= index << geometry.shifts[level - 1]
        assert index < 1 << geometry.bits[level - 1]

    assert back == gpa


@pytest.mark.parametrize(("page_shift", "va_bits_48"), CONFIGURATIONS)
def test_a_gpa_beyond_the_table_wraps_in_the_root(page_shift, va_bits_48):
    geometry = find_geometry(page_shift, 5, va_bits_48)
    gpa = 0x4567_0000

    assert index_split(geometry, gpa | 1 << geometry.gpa_bits) == index_split(
        geometry, gpa
    )


@pytest.mark.parametrize(
    ("page_shift", "first", "last", "tables"),
    [
        pytest.param(12, 0, 0, (1, 1, 1), id="one-page"),
        pytest.param(12, 511, 512, (2, 1, 1), id="across-a-leaf-table"),
        pytest.param(12, 0, (1 << 18) - 1, (512, 1, 1), id="one-pmd-table"),
        pytest.param(12, 0, 1 << 18, (513, 2, 1), id="and-a-page"),
        pytest.param(12, 0, (1 << 28) - 1, (1 << 19, 1 << 10, 1), id="all-of-it"),
        pytest.param(16, 0, 8192, (2, 1), id="64K-two-levels"),
    ],
)
def test_count_tables(page_shift, first, last, tables):
    assert count_tables(find_geometry(page_shift, 5), first, last) == tables


@pytest.mark.parametrize(
    ("first", "last"),
    [
        pytest.param(1, 0, id="empty"),
        pytest.param(-1, 0, id="negative"),
        pytest.param(0, 1 << 28, id="beyond"),
    ],
)
def test_count_tables_refuses_what_is_no_range(first, last):
    with pytest.raises(KvmarchError, match="is no range of gfns below 0x10000000"):
        count_tables(find_geometry(12, 5), first, last)


@pytest.mark.parametrize(
    ("cca", "entry"),
    [
        pytest.param(3, 0x9800_0000_0123_4000, id="noncoherent"),
        pytest.param(5, 0xA800_0000_0123_4000, id="coherent"),
    ],
)
def test_table_entry_both_ways(cca, entry):
    geometry = find_geometry(12, cca)

    assert table_entry(geometry, 0x123_4000) == entry
    assert table_pa(geometry, entry) == 0x123_4000
    assert geometry.directory.pack(cca=cca, table=0x1234) == entry
    assert geometry.directory.unpack(entry) == {"segment": 2, "cca": cca, "table": 4660}


@given(st.sampled_from(sorted(INDEX_BITS)), st.integers(0, 7), st.data())
def test_table_entry_round_trip(configuration, cca, data):
    geometry = find_geometry(configuration[0], cca, configuration[1])
    pa = data.draw(st.integers(0, (1 << 59 - geometry.page_shift) - 1))
    pa <<= geometry.page_shift

    entry = table_entry(geometry, pa)

    assert table_pa(geometry, entry) == pa
    assert geometry.directory.accepts(entry)


@pytest.mark.parametrize(("page_shift", "va_bits_48"), CONFIGURATIONS)
def test_empty_entries(page_shift, va_bits_48):
    geometry = find_geometry(page_shift, 5, va_bits_48)
    leaf, *invalid = geometry.empty

    assert leaf == 0
    assert len({leaf, *invalid}) == geometry.levels
    assert all(entry % (1 << page_shift) == 0 for entry in invalid)
    assert all(InvalidTable.accepts(entry) for entry in invalid)
    assert not any(geometry.directory.accepts(entry) for entry in invalid)


@pytest.mark.parametrize(("page_shift", "va_bits_48"), CONFIGURATIONS)
def test_none_means_equal_to_the_invalid_table_of_the_level(page_shift, va_bits_48):
    geometry = find_geometry(page_shift, 5, va_bits_48)
    levels = range(1, geometry.levels + 1)

    for level in levels:
        found = [table_none(geometry, entry, level) for entry in geometry.empty]
        assert found == [level == other for other in levels]
        assert not table_none(geometry, table_entry(geometry, 0x10_0000), level)


@pytest.mark.parametrize(("page_shift", "va_bits_48"), CONFIGURATIONS)
@pytest.mark.parametrize("bit", range(64))
def test_flipped_bit_of_a_directory_entry_is_known_or_refused(
    bit, page_shift, va_bits_48
):
    directory = find_geometry(page_shift, 5, va_bits_48).directory
    entry = directory.pack(cca=5, table=0x1234)
    flipped = entry ^ 1 << bit

    if bit < page_shift:
        with pytest.raises(EntryError, match=f"does not know bit {bit}$"):
            directory.unpack(flipped)
    elif bit >= 62:
        with pytest.raises(EntryError, match="segment is always 0x2"):
            directory.unpack(flipped)
    else:
        assert directory.pack(**directory.unpack(flipped)) == flipped


@pytest.mark.parametrize("bit", range(64))
def test_flipped_bit_of_an_invalid_table_is_known_or_refused(bit):
    entry = find_geometry(12, 5).empty[1]
    flipped = entry ^ 1 << bit

    if bit < 12 or bit >= 29:
        with pytest.raises(EntryError):
            InvalidTable.unpack(flipped)
    else:
        assert InvalidTable.pack(**InvalidTable.unpack(flipped)) == flipped


@pytest.mark.parametrize(
    ("page_shift", "va_bits_48", "message"),
    [
        pytest.param(13, False, "for page shift 13; there is 12, 14", id="8K"),
        pytest.param(16, True, "shift 16 with VA_BITS_48; there is", id="64K-48"),
    ],
)
def test_unknown_configurations_are_refused(page_shift, va_bits_48, message):
    with pytest.raises(KvmarchError, match=message):
        find_geometry(page_shift, 5, va_bits_48)


def test_wrong_cca_is_refused():
    with pytest.raises(EntryError, match="cca: 0x8 does not fit into 3 bits"):
        find_geometry(12, 8)


def test_a_configuration_is_one_object():
    assert find_geometry(12, 5) is find_geometry(12, 5)
    assert find_geometry(12, 5) != find_geometry(12, 3)
