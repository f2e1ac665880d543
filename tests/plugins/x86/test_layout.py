"""Masks, tests and formats of every layout (fact sheet x86, 1.2 and 1.3)."""

import itertools

import pytest
from kvmarch_x86.geometry import MAX_LEVEL
from kvmarch_x86.layout import decode, formats, make_layout, refusals
from kvmarch_x86.mmio import is_mmio_spte
from kvmarch_x86.releases import GENERATIONS, RELEASES
from kvmarch_x86.spte import is_frozen_spte, is_shadow_present_pte

from kvmarch import EntryError, FormatError

CONFIGURATIONS = [
    *({"release": r, "paging": p} for r in RELEASES for p in ("ept", "npt")),
    *({"release": r, "paging": "ept", "ad": False} for r in RELEASES),
    *(
        {"release": r, "paging": "ept", "l1tf_cache_bits": 46}
        for r in RELEASES
        if r != "4.2"
    ),
    *(
        {"release": r, "paging": "npt", "maxphyaddr": 43, "c_bit": 47}
        for r in RELEASES
        if r != "4.2"
    ),
    *({"release": r, "paging": "npt", "maxphyaddr": 52} for r in RELEASES),
]
LAYOUTS = [
    pytest.param(make_layout(**c), id=" ".join(map(str, c.values())))
    for c in CONFIGURATIONS
]

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def bit(*numbers):
    return sum(1 << n for n in numbers)


# Columns: host- and MMU-writable in EPT, in NPT, A/D kind, what saved R, X and XU use,
# empty entry, frozen entry.
SOFTWARE_BITS = [
    pytest.param("4.2", (10, 11), (10, 11), (), (), 0, None, id="4.2"),
    pytest.param("4.11", (10, 11), (10, 11), (62,), (52, 54), 0, None, id="4.11"),
    pytest.param("5.10", (10, 11), (10, 11), (53, 52), (54, 56), 0, None, id="5.10"),
    pytest.param("5.12", (10, 11), (10, 11), (53, 52), (54, 56), 0, 1 << 59, id="5.12"),
    pytest.param("6.1", (57, 58), (9, 10), (53, 52), (54, 56), 0, 0x5A0, id="6.1"),
    pytest.param(
        "6.12",
        (57, 58),
        (9, 10),
        (53, 52),
        (54, 56),
        1 << 63,
        0x80000000000005A0,
        id="6.12",
    ),
    pytest.param(
        "7.2",
        (53, 55),
        (9, 10),
        (61, 60),
        (52, 54, 62),
        1 << 63,
        0x80000000000001A0,
        id="7.2",
    ),
]


@pytest.mark.parametrize(
    ("release", "ept", "npt", "kind", "saved", "nonpresent", "frozen"), SOFTWARE_BITS
)
def test_software_bits_are_where_the_sheet_says(
    release, ept, npt, kind, saved, nonpresent, frozen
):
    for paging, (host, mmu) in (("ept", ept), ("npt", npt)):
        layout = make_layout(release, paging)

        assert layout.shadow_host_writable_mask == bit(host)
        assert layout.shadow_mmu_writable_mask == bit(mmu)
        assert layout.ad_mask == bit(*kind)
        assert layout.nonpresent == nonpresent
        assert layout.frozen == frozen
    layout = make_layout(release, "ept", ad=False)
    assert layout.saved_mask << layout.saved_shift == bit(*saved)


@pytest.mark.parametrize(
    ("release", "with_exec_only", "without"),
    [
        pytest.param("5.10", 0, 1, id="5.10"),
        pytest.param("6.1", 0, 1, id="6.1"),
        pytest.param("6.12", 1 << 63, 1 << 63 | 1, id="6.12"),
        pytest.param("7.2", 1 << 63, 1 << 63, id="7.2"),
    ],
)
def test_the_present_mask_of_ept_depends_on_execute_only(
    release, with_exec_only, without
):
    assert make_layout(release, "ept").shadow_present_mask == with_exec_only
    assert make_layout(release, "ept", exec_only=False).shadow_present_mask == without


@pytest.mark.parametrize("release", RELEASES)
def test_the_present_mask_of_npt_is_p(release):
    assert make_layout(release, "npt").shadow_present_mask == 1


@pytest.mark.parametrize(
    ("release", "paging", "mask", "value"),
    [
        pytest.param(
            "4.2", "ept", 0xC000000000000006, 0xC000000000000006, id="4.2 ept"
        ),
        pytest.param(
            "4.2", "npt", 0xC00FC00000000001, 0xC00FC00000000001, id="4.2 npt"
        ),
        pytest.param("5.10", "ept", 3 << 52, 3 << 52, id="5.10 ept"),
        pytest.param("5.10", "npt", 3 << 52, 3 << 52, id="5.10 npt"),
        pytest.param("6.1", "ept", 7, 6, id="6.1 ept"),
        pytest.param("6.1", "npt", 1 << 51 | 1, 1 << 51 | 1, id="6.1 npt"),
        pytest.param("6.12", "ept", 1 << 63 | 7, 6, id="6.12 ept"),
        pytest.param("6.12", "npt", 1 << 51 | 1, 1 << 51 | 1, id="6.12 npt"),
        pytest.param("7.2", "ept", 1 << 63 | 7, 6, id="7.2 ept"),
        pytest.param("7.2", "npt", 1 << 51 | 1, 1 << 51 | 1, id="7.2 npt"),
    ],
)
def test_the_mmio_test_is_the_sheets(release, paging, mask, value):
    layout = make_layout(release, paging)

    assert (layout.mmio_mask, layout.mmio_value) == (mask, value)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        pytest.param({"release": "4.2", "maxphyaddr": 52}, 3 << 62, id="4.2, 52 bits"),
        pytest.param(
            {"release": "5.10", "maxphyaddr": 52}, 3 << 52, id="5.10, 52 bits"
        ),
        pytest.param({"release": "6.1", "maxphyaddr": 52}, 0, id="6.1, 52 bits"),
        pytest.param(
            {"release": "6.1", "maxphyaddr": 43, "c_bit": 47},
            0x000FF80000000001,
            id="6.1, SME",
        ),
        pytest.param(
            {"release": "6.1", "maxphyaddr": 47, "c_bit": 47},
            0x000F000000000001,
            id="6.1, the C bit follows the address",
        ),
        pytest.param(
            {"release": "5.10", "maxphyaddr": 43, "c_bit": 47},
            0x003FF80000000001,
            id="5.10, SME",
        ),
        pytest.param(
            {"release": "6.1", "mmio_caching": False}, 0, id="6.1, switched off"
        ),
    ],
)
def test_mmio_entries_of_npt_depend_on_the_processor(options, value):
    assert make_layout(paging="npt", **options).shadow_mmio_value == value


def test_without_mmio_entries_no_value_is_one():
    layout = make_layout("6.1", "npt", maxphyaddr=52)

    assert not any(is_mmio_spte(layout, e) for e in (0, 1, 1 << 51 | 1, 3 << 52))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(
            {"release": "6.2", "paging": "ept"}, "no x86 layout", id="release"
        ),
        pytest.param(
            {"release": "6.1", "paging": "sv39"}, "no x86 paging", id="paging"
        ),
        pytest.param(
            {"release": "6.1", "paging": "ept", "generation": "x"},
            "no MMIO generation",
            id="generation",
        ),
        pytest.param(
            {"release": "6.1", "paging": "npt", "ad": False},
            "NPT without hardware A/D",
            id="npt without A/D",
        ),
        pytest.param(
            {"release": "6.1", "paging": "npt", "l1tf_cache_bits": 44},
            "processors with EPT",
            id="npt with L1TF",
        ),
        pytest.param(
            {"release": "4.2", "paging": "ept", "l1tf_cache_bits": 44},
            "knows no L1TF",
            id="4.2 with L1TF",
        ),
        pytest.param(
            {"release": "6.1", "paging": "ept", "l1tf_cache_bits": 47},
            "not in 32 to 46",
            id="L1TF too wide",
        ),
        pytest.param(
            {"release": "6.1", "paging": "ept", "c_bit": 47},
            "with NPT only",
            id="ept with C bit",
        ),
        pytest.param(
            {"release": "4.2", "paging": "npt", "c_bit": 47},
            "no memory encryption",
            id="4.2 with C bit",
        ),
        pytest.param(
            {"release": "6.1", "paging": "npt", "c_bit": 45},
            "c_bit 45 is not in",
            id="C bit inside the address",
        ),
        pytest.param(
            {"release": "4.2", "paging": "ept", "nx_huge_pages": True},
            "no NX huge pages",
            id="4.2 with NX huge pages",
        ),
        pytest.param(
            {"release": "6.1", "paging": "ept", "maxphyaddr": 53},
            "maxphyaddr 53",
            id="address too wide",
        ),
        pytest.param(
            {"release": "5.10", "paging": "ept", "generation": "6.1"},
            "overlap",
            id="generation over the mark",
        ),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(FormatError, match=message):
        make_layout(**options)


def test_the_name_tells_the_options():
    layout = make_layout("6.12", "ept", ad=False, nx_huge_pages=True)

    assert layout.name == "6.12-ept no-ad nx-huge"
    assert repr(layout) == "Layout(6.12-ept no-ad nx-huge)"
    assert make_layout("6.12", "ept", ad=False, nx_huge_pages=True) is layout


@every_layout
def test_every_bit_of_every_format_is_known_or_refused(layout):
    for _, _, fmt in formats(layout):
        entry = fmt.kind_value
        for number in range(64):
            flipped = entry ^ 1 << number
            if not fmt.known >> number & 1 or fmt.kind_mask >> number & 1:
                assert not fmt.accepts(flipped)
                with pytest.raises(EntryError):
                    fmt.check(flipped)
            elif fmt.accepts(flipped):
                assert fmt.pack(**fmt.unpack(flipped)) == flipped
            else:
                with pytest.raises(EntryError, match=r"there is|needs host_writable"):
                    fmt.check(flipped)


@every_layout
def test_formats_of_one_level_exclude_each_other(layout):
    for level in range(1, MAX_LEVEL + 1):
        here = [fmt for at, _, fmt in formats(layout) if at == level]
        for a, b in itertools.combinations(here, 2):
            both = a.kind_mask & b.kind_mask
            assert (
                (a.kind_value ^ b.kind_value) & both
                or a.kind_value & ~b.known
                or b.kind_value & ~a.known
            )


@every_layout
def test_the_four_predicates_agree_with_the_formats(layout):
    expected = {
        "leaf": (True, False, False),
        "tracked": (True, False, False),
        "table": (True, False, False),
        "mmio": (False, True, False),
        "frozen": (False, False, True),
        "none": (False, False, False),
    }

    for _, kind, fmt in formats(layout):
        entries = [fmt.kind_value]
        entries += [
            e for e in (entries[0] ^ 1 << n for n in range(64)) if fmt.accepts(e)
        ]
        for entry in entries:
            found = (
                is_shadow_present_pte(layout, entry),
                is_mmio_spte(layout, entry),
                is_frozen_spte(layout, entry),
            )
            assert found == expected[kind], f"{kind} {entry:#x}"


@every_layout
def test_formats_are_listed_with_their_levels(layout):
    levels = {}
    for level, kind, _ in formats(layout):
        levels.setdefault(kind, []).append(level)

    assert levels["leaf"] == [1, 2, 3]
    assert levels["table"] == [2, 3, 4, 5]
    assert levels["none"] == [1, 2, 3, 4, 5]
    assert levels.get("frozen", [1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert levels.get("mmio", [1]) == [1]
    assert levels.get("tracked", [1, 2, 3]) == [1, 2, 3]


def test_tracked_formats_exist_without_hardware_ad_from_5_10():
    kinds = {
        (release, ad): {k for _, k, _ in formats(make_layout(release, "ept", ad=ad))}
        for release in RELEASES
        for ad in (True, False)
    }

    tracked = {key for key, names in kinds.items() if "tracked" in names}
    assert tracked == {(r, False) for r in RELEASES if r != "4.2"}


def test_a_value_of_no_format_is_unknown_and_told_why():
    layout = make_layout("5.10", "npt")

    assert decode(layout, 0x1, 1) == ("unknown", None, {})
    assert [kind for kind, _ in refusals(layout, 0x1, 1)] == ["leaf", "mmio", "none"]
    assert dict(refusals(layout, 0x1, 1))["leaf"].endswith("user is always 0x1")


def test_a_value_of_another_level_is_unknown():
    layout = make_layout("6.1", "npt")

    assert decode(layout, 0x40000EE7, 2).kind == "leaf"
    assert decode(layout, 0x40000EE7, 1).kind == "unknown"
    assert decode(layout, 0x40000EE7, 3).kind == "leaf"
    assert decode(layout, 0x40200EE7, 3).kind == "unknown"
    assert decode(layout, 0xABC827, 2).kind == "table"
    assert decode(layout, 0xABC827, 1).kind == "unknown"
    assert decode(layout, 0x8000020000037, 2).kind == "unknown"


@pytest.mark.parametrize(("entry", "level"), [(-1, 1), (1 << 64, 1), (0, 0), (0, 6)])
def test_no_value_and_no_level_are_errors(entry, level):
    layout = make_layout("6.1", "ept")

    with pytest.raises(EntryError, match=r"64-bit|level"):
        decode(layout, entry, level)


def test_a_number_without_its_low_bits_must_be_aligned():
    fmt = next(
        f for at, k, f in formats(make_layout("6.1", "ept")) if (at, k) == (2, "leaf")
    )

    assert fmt.pfn.get(fmt.pfn.set(0, 0x40000)) == 0x40000
    with pytest.raises(EntryError, match="no multiple of 0x200"):
        fmt.pack(pfn=0x40001)


def test_a_leaf_does_not_change_its_page_in_one_step():
    fmt = next(
        f for at, k, f in formats(make_layout("6.1", "ept")) if (at, k) == (1, "leaf")
    )
    old = 0x0600000012345B77

    assert fmt.may_change(old, old & ~2)
    assert fmt.may_change(old, 0)
    assert fmt.may_change(old, 0x5A0)
    assert not fmt.may_change(old, 0x0600000012346B77)


@pytest.mark.parametrize("name", GENERATIONS)
def test_only_the_generation_of_the_5_13_cycle_covers_the_present_bit(name):
    field = GENERATIONS[name].field()

    covered = field.mask & make_layout("6.1", "ept").present_mask != 0
    # Older layouts cover bit 11 too, but have no present bit there.
    old = {"3.16", "4.2", "4.11", "5.1", "5.10", "5.12"}
    assert covered == (name in {*old, "5.13-rc"})


def test_the_generation_of_the_5_13_cycle_makes_mmio_entries_present():
    layout = make_layout("6.1", "ept", generation="5.13-rc")
    entry = 0x00000000FEBF0816

    assert decode(layout, entry, 1).fields["gen"] == 0x102
    assert is_mmio_spte(layout, entry)
    assert is_shadow_present_pte(layout, entry)
