"""Entries, by the fact sheet's worked values and by properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch import EntryError

from kvmarch_loongarch.geometry import Directory, InvalidTable, find_geometry
from kvmarch_loongarch.pte import (
    EARLY,
    HUGE,
    LATE,
    Empty,
    children,
    huge_format,
    leaf_format,
    map_page_pte,
    mkclean,
    mkdirty,
    mkold,
    mkyoung,
    pfn_of,
    small,
)

RAM = 0x12344000
"""pfn 0x48d1 with pages of 16 KiB."""
ERAS = pytest.mark.parametrize("bits", [EARLY, LATE], ids=["v6.8", "v6.17"])
SHIFTS = pytest.mark.parametrize("shift", [12, 14, 16])


def mapped(bits, address=RAM, **what):
    """Return a leaf: writable RAM of a slot that is not logged, unless said."""
    return map_page_pte(
        bits, address, **{"writable": True, "write": True, "logging": False, **what}
    )


@pytest.mark.parametrize(
    ("what", "late", "early"),
    [
        pytest.param({}, 0x12344393, 0x12344193, id="write"),
        pytest.param(
            {"write": False, "logging": True}, 0x12344291, 0x12344191, id="read, logged"
        ),
        pytest.param({"write": False}, 0x12344393, 0x12344191, id="read"),
        pytest.param(
            {"write": False, "writable": False}, 0x12344091, 0x12344091, id="read-only"
        ),
        pytest.param({"device": True}, 0x12344383, 0x12344183, id="device"),
        pytest.param({"logging": True}, 0x12344393, 0x12344193, id="write, logged"),
        pytest.param({"address": 0x12345000}, 0x12345393, 0x12345193, id="4K"),
        pytest.param(
            {"address": 0x12345000, "write": False, "logging": True},
            0x12345291,
            0x12345191,
            id="4K clean",
        ),
        pytest.param(
            {"address": 0x12345000, "writable": False, "write": False},
            0x12345091,
            0x12345091,
            id="4K read-only",
        ),
    ],
)
def test_what_a_fault_maps(what, late, early):
    assert mapped(LATE, **what) == late
    assert mapped(EARLY, **what) == early


@pytest.mark.parametrize(
    ("bits", "old", "clean"),
    [
        pytest.param(LATE, 0x12344392, 0x12344291, id="v6.17"),
        pytest.param(EARLY, 0x12344192, 0x12344191, id="v6.8"),
    ],
)
def test_old_and_clean(bits, old, clean):
    assert mkold(mapped(bits)) == old
    assert mkyoung(old) == mapped(bits)
    assert mkclean(bits, mapped(bits)) == clean
    assert mkdirty(bits, clean) == mapped(bits)


def test_a_hardware_walker_finds_w_in_a_clean_entry_until_v6_16():
    w = LATE.format.w.mask

    assert mkclean(EARLY, mapped(EARLY)) & w
    assert not mkclean(LATE, mapped(LATE)) & w


def test_huge_leaves_and_their_children():
    huge = mapped(LATE, address=0x12000000) | HUGE
    below = children(huge, 14)

    assert huge == 0x120003D3
    assert (below[0], below[3]) == (0x12000393, 0x1200C393)
    assert len(below) == 2048
    assert mapped(LATE, address=0x12200000) | HUGE == 0x122003D3


@ERAS
@SHIFTS
def test_children_map_what_the_huge_leaf_maps(bits, shift):
    fmt = huge_format(bits, shift)
    pages = 1 << shift - 3
    huge = fmt.pack(pfn=5 * pages, v=1, mat=1)

    below = children(huge, shift)

    assert [pfn_of(entry, shift) for entry in below] == list(
        range(5 * pages, 6 * pages)
    )
    assert below[0] == small(huge)
    assert all(map(leaf_format(bits, shift).accepts, below))


@pytest.mark.parametrize(
    ("page_size", "shifts"),
    [(4096, (12, 21, 30)), (16384, (14, 25, 36)), (65536, (16, 29, 42))],
)
def test_shifts(page_size, shifts):
    geometry = find_geometry({"page_size": page_size, "levels": 3})

    assert tuple(s + geometry.page_shift for s in geometry.shifts) == shifts


def test_indexes():
    geometry = find_geometry({"page_size": 16384, "levels": 3})
    gfn = 0x123458000 >> 14

    assert [geometry.index(gfn, level) for level in (2, 1, 0)] == [0, 145, 1302]


def test_four_levels_go_with_small_pages_only():
    assert find_geometry({"page_size": 4096, "levels": 4}).shifts[3] + 12 == 39
    with pytest.raises(Exception, match="levels=4"):
        find_geometry({"page_size": 16384, "levels": 4})


@SHIFTS
def test_every_level_has_an_empty_entry_of_its_own(shift):
    empty = find_geometry({"page_size": 1 << shift, "levels": 3}).empty

    assert empty[0] == Empty.kind_value == 0
    assert len(set(empty)) == 3
    assert all(map(InvalidTable.accepts, empty[1:]))
    assert not any(entry & HUGE or Directory.accepts(entry) for entry in empty[1:])


@ERAS
@SHIFTS
@given(data=st.data())
def test_fields_go_in_and_out(bits, shift, data):
    for fmt in (leaf_format(bits, shift), huge_format(bits, shift)):
        values = {
            name: data.draw(st.integers(0, (1 << field.width) - 1)) << field.shift
            for name, field in fmt.fields.items()
            if field.fixed is None
        }
        entry = fmt.pack(**values)

        assert fmt.accepts(entry)
        assert {name: fmt.unpack(entry)[name] for name in values} == values


@ERAS
@given(
    pfn=st.integers(0, (1 << 34) - 1),
    writable=st.booleans(),
    write=st.booleans(),
    logging=st.booleans(),
    data=st.data(),
)
def test_dirty_implies_writeable(bits, pfn, writable, write, logging, data):
    entry = map_page_pte(
        bits,
        pfn << 14,
        writable=writable,
        write=write and writable,
        logging=logging,
    )
    for step in data.draw(
        st.lists(st.sampled_from(["old", "young", "clean", "dirty"]))
    ):
        if step == "old":
            entry = mkold(entry)
        elif step == "young":
            entry = mkyoung(entry)
        elif step == "clean":
            entry = mkclean(bits, entry)
        elif entry & bits.writeable:
            entry = mkdirty(bits, entry)

        assert leaf_format(bits, 14).accepts(entry)
        assert pfn_of(entry, 14) == pfn
        assert not entry & LATE.format.d.mask or entry & bits.writeable


@given(entry=st.integers(0, (1 << 64) - 1))
def test_a_value_is_of_one_kind_at_most(entry):
    for level, formats in (
        (0, (Empty, leaf_format(LATE, 14))),
        (1, (InvalidTable, huge_format(LATE, 14))),
    ):
        assert sum(fmt.accepts(entry) for fmt in formats) <= 1, level


def test_a_frame_that_does_not_fit_is_refused():
    with pytest.raises(EntryError, match="no multiple"):
        huge_format(LATE, 14).pack(pfn=1)
    with pytest.raises(EntryError, match="34 bits"):
        leaf_format(LATE, 14).pack(pfn=1 << 34)
