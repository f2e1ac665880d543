"""MMIO entries and their generations (fact sheet x86, 1.6, D1, D2 and D15)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_x86.layout import decode, make_layout
from kvmarch_x86.mmio import (
    check_mmio_spte,
    generation_mmio_spte_mask,
    generation_mmio_spte_mask_unshifted,
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_generation_unshifted,
    get_mmio_spte_gfn,
    is_mmio_spte,
    kvm_current_mmio_generation,
    make_mmio_spte,
    mmio_generation_wrapped,
)

GFN = 0xFEBF0
IN_PROGRESS = 1 << 63

# Layout, access, generation, entry.
WORKED = [
    ("4.2", "ept", {}, 0, 2, 0xC0000000FEBF000E),
    ("4.2", "ept", {}, 0, 4, 0xC0000000FEBF0016),
    ("4.2", "ept", {}, 0, 0x400, 0xC0100000FEBF0006),
    ("4.2", "ept", {}, 0, 0xFFFFE, 0xFFF00000FEBF0FFE),
    ("4.2", "npt", {}, 6, 2, 0xC00FC000FEBF000F),
    ("4.2", "npt", {}, 6, 0x402, 0xC01FC000FEBF000F),
    ("5.10", "ept", {}, 0, 2, 0x00300000FEBF0016),
    ("5.10", "ept", {}, 0, 0x102, 0x00300000FEBF0816),
    ("5.10", "npt", {}, 6, 2, 0x00380000FEBF0017),
    ("6.1", "ept", {}, 0, 2, 0x00000000FEBF0016),
    ("6.1", "ept", {}, 0, 0x102, 0x00100000FEBF0016),
    ("6.1", "ept", {}, 0, 0x40000, 0x40000000FEBF0006),
    ("6.12", "ept", {}, 0, 2, 0x00000000FEBF0016),
    ("6.12", "ept", {}, 0, 0x102, 0x00100000FEBF0016),
    ("6.12", "ept", {}, 0, 0x40000, 0x40000000FEBF0006),
    ("7.2", "ept", {}, 0, 2, 0x00000000FEBF0016),
    ("7.2", "ept", {}, 0, 0x102, 0x00200000FEBF0016),
    ("6.1", "npt", {}, 6, 2, 0x00080000FEBF0017),
    ("6.1", "npt", {}, 6, 0x102, 0x00180000FEBF0017),
    ("6.12", "npt", {}, 6, 2, 0x00080000FEBF0017),
    ("6.12", "npt", {}, 6, 0x102, 0x00180000FEBF0017),
    ("6.12", "ept", {"l1tf_cache_bits": 46}, 0, 2, 0x00003E00FEBF0016),
]
CASES = [
    pytest.param(
        make_layout(r, p, **o),
        GFN,
        access,
        gen,
        entry,
        id=f"{r} {p} {gen:#x} {o or ''}",
    )
    for r, p, o, access, gen, entry in WORKED
]
CASES.append(
    pytest.param(
        make_layout("6.12", "ept", l1tf_cache_bits=46),
        0x3F0000000,
        0,
        2,
        0x0007FF0000000016,
        id="6.12 ept, a gfn in the guarded bits",
    )
)


@pytest.mark.parametrize(("layout", "gfn", "access", "generation", "entry"), CASES)
def test_worked_entries_are_built_and_taken_apart(
    layout, gfn, access, generation, entry
):
    made = make_mmio_spte(layout, gfn, 7, generation)

    assert f"{made:#018x}" == f"{entry:#018x}"
    assert is_mmio_spte(layout, entry)
    assert get_mmio_spte_gfn(layout, entry) == gfn
    assert get_mmio_spte_access(layout, entry) == access
    assert get_mmio_spte_generation(layout, entry) == generation
    assert check_mmio_spte(layout, entry, generation)
    kind, fmt, fields = decode(layout, entry, 1)
    assert (kind, fields["gfn"], fields["gen"]) == ("mmio", gfn, generation)
    assert fmt.pack(**fields) == entry


def test_a_wrapped_generation_of_7_2_looks_like_zero():
    layout = make_layout("7.2", "ept")

    assert make_mmio_spte(layout, GFN, 0, 0x40000) == 0x00000000FEBF0006
    assert mmio_generation_wrapped(layout, 0x40000)


def test_an_entry_made_during_an_update_of_4_2_never_matches_it():
    layout = make_layout("4.2", "ept")

    entry = make_mmio_spte(layout, GFN, 0, 3)

    assert entry == 0xC0000000FEBF000E
    assert get_mmio_spte_generation(layout, entry) == 2
    assert not check_mmio_spte(layout, entry, 3)
    assert not check_mmio_spte(layout, entry, 4)
    assert check_mmio_spte(layout, entry, 2)


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12", "7.2"])
def test_from_5_1_a_bit_of_its_own_says_that_an_update_is_under_way(release):
    layout = make_layout(release, "ept")

    entry = make_mmio_spte(layout, GFN, 0, 2 | IN_PROGRESS)

    assert entry == make_mmio_spte(layout, GFN, 0, 2)
    assert not check_mmio_spte(layout, entry, 2 | IN_PROGRESS)
    assert check_mmio_spte(layout, entry, 2)
    assert not check_mmio_spte(layout, entry, 4)


# Bits of the slice, and generations that count as wrapped or not.
@pytest.mark.parametrize(
    ("release", "bits", "wrapped", "not_wrapped"),
    [
        pytest.param("4.2", 20, (0, 1 << 20), (1, 2, 0xFFFFE), id="4.2"),
        pytest.param("5.10", 18, (0, 1, 1 << 18), (2, 3, 0x3FFFE), id="5.10"),
        pytest.param("6.1", 19, (0, 1, 1 << 19), (2, 1 << 18), id="6.1"),
        pytest.param("6.12", 19, (0, 1, 1 << 19), (2, 1 << 18), id="6.12"),
        pytest.param("7.2", 18, (0, 1, 1 << 18), (2, 1 << 17), id="7.2"),
    ],
)
def test_the_slice_wraps_after_so_many_bits(release, bits, wrapped, not_wrapped):
    layout = make_layout(release, "ept")

    assert layout.mmio_gen_mask == (1 << bits) - 1
    assert all(mmio_generation_wrapped(layout, g) for g in wrapped)
    assert not any(mmio_generation_wrapped(layout, g) for g in not_wrapped)


def test_without_mmio_entries_only_7_2_ignores_the_wrap():
    assert mmio_generation_wrapped(make_layout("6.1", "ept", mmio_caching=False), 0)
    assert not mmio_generation_wrapped(make_layout("7.2", "ept", mmio_caching=False), 0)


@pytest.mark.parametrize(
    ("gen", "wrong", "right"),
    [
        pytest.param(0x2, 0x0080000000000010, 0x10, id="0x2"),
        pytest.param(0x202, 0x0080000000000010, 0x0040000000000010, id="0x202"),
        pytest.param(0x402, 0x0080000000000010, 0x0080000000000010, id="0x402"),
    ],
)
def test_from_5_1_to_5_9_the_upper_part_was_misplaced(gen, wrong, right):
    layout = make_layout("5.10", "ept")

    assert generation_mmio_spte_mask(layout, gen) == right
    assert generation_mmio_spte_mask_unshifted(layout, gen) == wrong


@pytest.mark.parametrize(
    ("made_at", "now", "matches"),
    [
        pytest.param(0x2, 0x2, True, id="an early one matches"),
        pytest.param(0x2, 0x202, False, id="not 256 updates later"),
        pytest.param(0x202, 0x202, False, id="a later one never"),
        pytest.param(0x202, 0x2, True, id="but matches an earlier generation"),
    ],
)
def test_the_misplaced_part_makes_mmio_entries_useless_not_stale(made_at, now, matches):
    layout = make_layout("5.10", "ept")
    entry = make_mmio_spte(
        layout, GFN, 0, made_at, place=generation_mmio_spte_mask_unshifted
    )

    found = check_mmio_spte(layout, entry, now, read=get_mmio_spte_generation_unshifted)

    assert found == matches


def test_before_3_17_the_generation_was_biased_and_odd_ones_matched():
    layout = make_layout("4.2", "ept", generation="3.16")
    entry = make_mmio_spte(layout, GFN, 0, 3)

    assert kvm_current_mmio_generation(layout, 0) == (1 << 19) - 1 - 150
    assert check_mmio_spte(layout, entry, 3)
    assert not check_mmio_spte(layout, entry, 2)
    assert [g for g in range(300) if mmio_generation_wrapped(layout, g)] == [150]


def test_the_5_13_cycle_took_an_mmio_entry_for_a_leaf():
    layout = make_layout("6.1", "ept", generation="5.13-rc")

    assert make_mmio_spte(layout, GFN, 0, 0x102) == 0x00000000FEBF0816
    assert make_mmio_spte(layout, GFN, 0, 0x102) & layout.present_mask


def test_making_an_entry_where_none_can_be_is_a_mistake_of_the_caller():
    with pytest.raises(AssertionError, match="makes no MMIO entries"):
        make_mmio_spte(make_layout("6.1", "npt", maxphyaddr=52), GFN, 7, 2)
    with pytest.raises(AssertionError, match="out of range"):
        make_mmio_spte(make_layout("6.1", "npt", maxphyaddr=40), 1 << 28, 7, 2)


@given(
    layout=st.sampled_from([c.values[0] for c in CASES]),
    gfn=st.integers(0, (1 << 34) - 1),
    access=st.integers(0, 7),
    generation=st.integers(0, (1 << 63) - 1),
)
def test_an_entry_gives_back_what_was_put_in(layout, gfn, access, generation):
    entry = make_mmio_spte(layout, gfn, access, generation)

    assert decode(layout, entry, 1).kind == "mmio"
    assert get_mmio_spte_gfn(layout, entry) == gfn
    assert get_mmio_spte_access(layout, entry) == (
        access & 6 if layout.paging == "npt" else 0
    )
    odd = generation & 1 if layout.release == "4.2" else 0
    assert (
        get_mmio_spte_generation(layout, entry)
        == generation - odd & layout.mmio_gen_mask
    )
