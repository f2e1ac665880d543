"""Every worked value of leafs and tables, both ways (fact sheet x86, 1.5)."""

import pytest
from kvmarch_x86.geometry import MemType
from kvmarch_x86.layout import decode, make_layout
from kvmarch_x86.spte import (
    check_spte_writable_invariants,
    fast_page_fault_spte,
    is_access_track_spte,
    is_large_pte,
    is_last_spte,
    is_shadow_present_pte,
    make_nonleaf_spte,
    make_spte,
    mark_spte_for_access_track,
    spte_clear_dirty,
    spte_to_pfn,
    spte_write_protect,
)

PFN = 0x12345
NO_AD = {"ad": False}
NX_HUGE = {"nx_huge_pages": True}


def rwx(layout):
    return make_spte(layout, PFN, 1)


def tracked(layout):
    return mark_spte_for_access_track(layout, rwx(layout))


# Name, paging, options, how it is made, level, kind, values of 5.10, 6.1, 6.12, 7.2.
WORKED = [
    (
        "EPT 4K RWX",
        "ept",
        {},
        rwx,
        (1, "leaf"),
        (
            0x0000000012345F77,
            0x0600000012345B77,
            0x8600000012345B77,
            0x80A0000012345F77,
        ),
    ),
    (
        "prefetched",
        "ept",
        {},
        lambda layout: make_spte(layout, PFN, 1, prefetch=True),
        (1, "leaf"),
        (
            0x0000000012345E77,
            0x0600000012345A77,
            0x8600000012345A77,
            0x80A0000012345E77,
        ),
    ),
    (
        "write-protected for the dirty log",
        "ept",
        {},
        lambda layout: spte_write_protect(layout, rwx(layout), pt_protect=False),
        (1, "leaf"),
        (
            0x0000000012345F75,
            0x0600000012345B75,
            0x8600000012345B75,
            0x80A0000012345F75,
        ),
    ),
    (
        "PML re-arm",
        "ept",
        {},
        lambda layout: spte_clear_dirty(layout, rwx(layout)),
        (1, "leaf"),
        (
            0x0000000012345D77,
            0x0600000012345977,
            0x8600000012345977,
            0x80A0000012345D77,
        ),
    ),
    (
        "write-protected as guest page table",
        "ept",
        {},
        lambda layout: spte_write_protect(layout, rwx(layout), pt_protect=True),
        (1, "leaf"),
        (
            0x0000000012345775,
            0x0200000012345B75,
            0x8200000012345B75,
            0x8020000012345F75,
        ),
    ),
    (
        "read-only slot",
        "ept",
        {},
        lambda layout: make_spte(layout, PFN, 1, host_writable=False),
        (1, "leaf"),
        (
            0x0000000012345175,
            0x0000000012345975,
            0x8000000012345975,
            0x8000000012345D75,
        ),
    ),
    (
        "EPT 2M",
        "ept",
        {},
        lambda layout: make_spte(layout, 0x40000, 2),
        (2, "leaf"),
        (
            0x0000000040000FF7,
            0x0600000040000BF7,
            0x8600000040000BF7,
            0x80A0000040000FF7,
        ),
    ),
    (
        "EPT 2M with NX huge pages",
        "ept",
        NX_HUGE,
        lambda layout: make_spte(layout, 0x40000, 2),
        (2, "leaf"),
        (
            0x0000000040000FF3,
            0x0600000040000BF3,
            0x8600000040000BF3,
            0x80A0000040000FF3,
        ),
    ),
    (
        "EPT 1G",
        "ept",
        {},
        lambda layout: make_spte(layout, 0x80000, 3),
        (3, "leaf"),
        (
            0x0000000080000FF7,
            0x0600000080000BF7,
            0x8600000080000BF7,
            0x80A0000080000FF7,
        ),
    ),
    (
        "EPT 4K, a device of the host",
        "ept",
        {},
        lambda layout: make_spte(layout, 0xFEE00, 1, host_mmio=True),
        (1, "leaf"),
        (
            0x00000000FEE00F07,
            0x06000000FEE00B07,
            0x86000000FEE00B07,
            0x80A00000FEE00F07,
        ),
    ),
    (
        "EPT table",
        "ept",
        {},
        lambda layout: make_nonleaf_spte(layout, 0xABC000),
        (2, "table"),
        (
            0x0000000000ABC107,
            0x0000000000ABC907,
            0x8000000000ABC907,
            0x8000000000ABCD07,
        ),
    ),
    (
        "A/D off, 4K RWX",
        "ept",
        NO_AD,
        rwx,
        (1, "leaf"),
        (
            0x0010000012345C77,
            0x0610000012345877,
            0x8610000012345877,
            0x90A0000012345F77,
        ),
    ),
    (
        "A/D off, aged",
        "ept",
        NO_AD,
        tracked,
        (1, "tracked"),
        (
            0x0150000012345C70,
            0x0750000012345870,
            0x8750000012345870,
            0xD0F0000012345A70,
        ),
    ),
    (
        "A/D off, restored by a read",
        "ept",
        NO_AD,
        lambda layout: fast_page_fault_spte(layout, tracked(layout), write=False),
        (1, "leaf"),
        (
            0x0010000012345C75,
            0x0610000012345875,
            0x8610000012345875,
            0x90A0000012345F75,
        ),
    ),
    (
        "A/D off, restored by a write",
        "ept",
        NO_AD,
        lambda layout: fast_page_fault_spte(layout, tracked(layout), write=True),
        (1, "leaf"),
        (
            0x0010000012345C77,
            0x0610000012345877,
            0x8610000012345877,
            0x90A0000012345F77,
        ),
    ),
    (
        "A/D off, table",
        "ept",
        NO_AD,
        lambda layout: make_nonleaf_spte(layout, 0xABC000),
        (2, "table"),
        (
            0x0010000000ABC007,
            0x0010000000ABC807,
            0x8010000000ABC807,
            0x9000000000ABCC07,
        ),
    ),
    (
        "NPT 4K RWX",
        "npt",
        {},
        rwx,
        (1, "leaf"),
        (0x0000000012345C67, *[0x0000000012345E67] * 3),
    ),
    (
        "NPT 4K RW, not executable",
        "npt",
        {},
        lambda layout: make_spte(layout, PFN, 1, execute=False),
        (1, "leaf"),
        (0x8000000012345C67, *[0x8000000012345E67] * 3),
    ),
    (
        "NPT 4K read-only slot, executable",
        "npt",
        {},
        lambda layout: make_spte(layout, PFN, 1, host_writable=False),
        (1, "leaf"),
        (0x0000000012345025, *[0x0000000012345825] * 3),
    ),
    (
        "NPT 2M",
        "npt",
        {},
        lambda layout: make_spte(layout, 0x40000, 2),
        (2, "leaf"),
        (0x0000000040000CE7, *[0x0000000040000EE7] * 3),
    ),
    (
        "NPT table",
        "npt",
        {},
        lambda layout: make_nonleaf_spte(layout, 0xABC000),
        (2, "table"),
        (0x0000000000ABC027, *[0x0000000000ABC827] * 3),
    ),
    (
        "NPT aged",
        "npt",
        {},
        lambda layout: mark_spte_for_access_track(layout, rwx(layout)),
        (1, "leaf"),
        (0x0000000012345C47, *[0x0000000012345E47] * 3),
    ),
]
CASES = [
    pytest.param(
        make_layout(release, paging, **options),
        made,
        *where,
        value,
        id=f"{name} {release}",
    )
    for name, paging, options, made, where, values in WORKED
    for release, value in zip(("5.10", "6.1", "6.12", "7.2"), values, strict=True)
]


@pytest.mark.parametrize(("layout", "made", "level", "kind", "value"), CASES)
def test_worked_values_are_built_and_taken_apart(layout, made, level, kind, value):
    built = made(layout)
    found, fmt, fields = decode(layout, value, level)

    assert f"{built:#018x}" == f"{value:#018x}"
    assert found == kind
    assert fmt.pack(**fields) == value
    assert is_shadow_present_pte(layout, value)
    assert is_last_spte(layout, value, level) == (kind != "table")
    if kind != "table":
        assert fields["pfn"] == spte_to_pfn(layout, value)
        assert is_large_pte(layout, value) == (level > 1)
        assert is_access_track_spte(layout, value) == (kind == "tracked")
        assert check_spte_writable_invariants(layout, value)


# The sheet has no worked leafs of layout 4.2: these follow from its bits, which are
# those of 5.10 without the A/D kind.
@pytest.mark.parametrize(
    ("paging", "options", "made", "level", "value"),
    [
        pytest.param("ept", {}, rwx, 1, 0x12345F77, id="EPT 4K RWX"),
        pytest.param("ept", NO_AD, rwx, 1, 0x12345C77, id="EPT 4K RWX, A/D off"),
        pytest.param(
            "ept",
            {},
            lambda layout: make_nonleaf_spte(layout, 0xABC000),
            2,
            0xABC107,
            id="EPT table",
        ),
        pytest.param("npt", {}, rwx, 1, 0x12345C67, id="NPT 4K RWX"),
    ],
)
def test_entries_of_4_2(paging, options, made, level, value):
    layout = make_layout("4.2", paging, **options)

    assert made(layout) == value
    _, fmt, fields = decode(layout, value, level)
    assert fmt.pack(**fields) == value


def test_fields_have_the_meaning_of_the_sheet():
    layout = make_layout("6.1", "ept")

    assert decode(layout, 0x0600000012345B77, 1).fields == {
        "mmu_writable": 1,
        "host_writable": 1,
        "ad_kind": 0,
        "pfn": PFN,
        "mmu_present": 1,
        "dirty": 1,
        "accessed": 1,
        "ipat": 1,
        "memtype": MemType.WB,
        "x": 1,
        "w": 1,
        "r": 1,
    }
