"""Entries that real kernels made (recordings amd64-5.10 and amd64-6.1, all NPT)."""

import pytest
from kvmarch_x86.layout import decode, make_layout
from kvmarch_x86.mmio import (
    get_mmio_spte_access,
    get_mmio_spte_generation,
    get_mmio_spte_gfn,
    make_mmio_spte,
)
from kvmarch_x86.spte import (
    fast_page_fault_spte,
    make_huge_page_split_spte,
    make_nonleaf_spte,
    make_spte,
    spte_write_protect,
)

V5_10 = make_layout("5.10", "npt")
V6_1 = make_layout("6.1", "npt")


def hit(layout, pfn):
    """A prefetched leaf whose A bit the processor has set since."""
    return make_spte(layout, pfn, 1, prefetch=True) | layout.shadow_accessed_mask


# Layout, stage, level, entry, kind, frame, how the model makes it.
RECORDED = [
    (
        V5_10,
        "fault",
        1,
        0x3FDFEC67,
        "leaf",
        0x3FDFE,
        lambda: make_spte(V5_10, 0x3FDFE, 1),
    ),
    (V5_10, "fault", 1, 0x3FDF6C67, "leaf", 0x3FDF6, lambda: hit(V5_10, 0x3FDF6)),
    (V5_10, "fault", 1, 0x2271C67, "leaf", 0x2271, lambda: hit(V5_10, 0x2271)),
    (V5_10, "fault", 1, 0x3FDF7C67, "leaf", 0x3FDF7, lambda: hit(V5_10, 0x3FDF7)),
    (
        V5_10,
        "fault, event",
        1,
        0x3FDF6C47,
        "leaf",
        0x3FDF6,
        lambda: make_spte(V5_10, 0x3FDF6, 1, prefetch=True),
    ),
    (
        V5_10,
        "fault, parent",
        2,
        0x33DB3027,
        "table",
        0x33DB3,
        lambda: make_nonleaf_spte(V5_10, 0x33DB3000),
    ),
    (V5_10, "ksm", 1, 0x0, "none", None, lambda: V5_10.nonpresent),
    (
        V5_10,
        "ksm_reread",
        1,
        0x227A025,
        "leaf",
        0x227A,
        lambda: make_spte(V5_10, 0x227A, 1, host_writable=False),
    ),
    (
        V5_10,
        "dirty_on",
        1,
        0x3FDF7C65,
        "leaf",
        0x3FDF7,
        lambda: spte_write_protect(V5_10, 0x3FDF7C67, pt_protect=False),
    ),
    (
        V5_10,
        "dirty_write",
        1,
        0x3FDF7C67,
        "leaf",
        0x3FDF7,
        lambda: fast_page_fault_spte(V5_10, 0x3FDF7C65, write=True),
    ),
    (
        V5_10,
        "mprotect_ro",
        1,
        0x3FDF7025,
        "leaf",
        0x3FDF7,
        lambda: make_spte(V5_10, 0x3FDF7, 1, host_writable=False),
    ),
    (
        V5_10,
        "zeropage",
        1,
        0x33A62025,
        "leaf",
        0x33A62,
        lambda: make_spte(V5_10, 0x33A62, 1, host_writable=False),
    ),
    (
        V5_10,
        "mmio",
        1,
        0x38000020000037,
        "mmio",
        None,
        lambda: make_mmio_spte(V5_10, 0x20000, 7, 6),
    ),
    (
        V5_10,
        "huge",
        2,
        0x2400CE7,
        "leaf",
        0x2400,
        lambda: make_spte(V5_10, 0x2400, 2),
    ),
    (
        V5_10,
        "huge, parent",
        3,
        0x33DAC027,
        "table",
        0x33DAC,
        lambda: make_nonleaf_spte(V5_10, 0x33DAC000),
    ),
    (
        V5_10,
        "huge_dirty",
        2,
        0x2400CE5,
        "leaf",
        0x2400,
        lambda: spte_write_protect(V5_10, 0x2400CE7, pt_protect=False),
    ),
    (
        V5_10,
        "huge_dirty_write",
        1,
        0x2400C67,
        "leaf",
        0x2400,
        lambda: make_spte(V5_10, 0x2400, 1),
    ),
    (V6_1, "fault", 1, 0x2B42E67, "leaf", 0x2B42, lambda: make_spte(V6_1, 0x2B42, 1)),
    (V6_1, "fault", 1, 0x2B32E67, "leaf", 0x2B32, lambda: make_spte(V6_1, 0x2B32, 1)),
    (V6_1, "fault", 1, 0x2B2CE67, "leaf", 0x2B2C, lambda: make_spte(V6_1, 0x2B2C, 1)),
    (V6_1, "fault", 1, 0x2B20E67, "leaf", 0x2B20, lambda: make_spte(V6_1, 0x2B20, 1)),
    *(
        (
            V6_1,
            "fault, parents",
            level,
            child << 12 | 0x827,
            "table",
            child,
            lambda child=child: make_nonleaf_spte(V6_1, child << 12),
        )
        for level, child in ((5, 0x152FD), (4, 0x152FC), (3, 0x152FB), (2, 0x152FA))
    ),
    (V6_1, "ksm", 1, 0x0, "none", None, lambda: V6_1.nonpresent),
    (
        V6_1,
        "ksm_reread",
        1,
        0x2B32825,
        "leaf",
        0x2B32,
        lambda: make_spte(V6_1, 0x2B32, 1, host_writable=False),
    ),
    (
        V6_1,
        "dirty_on",
        1,
        0x2B2CE65,
        "leaf",
        0x2B2C,
        lambda: spte_write_protect(V6_1, 0x2B2CE67, pt_protect=False),
    ),
    (
        V6_1,
        "dirty_write",
        1,
        0x2B2CE67,
        "leaf",
        0x2B2C,
        lambda: fast_page_fault_spte(V6_1, 0x2B2CE65, write=True),
    ),
    (
        V6_1,
        "mprotect_ro",
        1,
        0x2B2C825,
        "leaf",
        0x2B2C,
        lambda: make_spte(V6_1, 0x2B2C, 1, host_writable=False),
    ),
    (
        V6_1,
        "zeropage",
        1,
        0x15D10825,
        "leaf",
        0x15D10,
        lambda: make_spte(V6_1, 0x15D10, 1, host_writable=False),
    ),
    (
        V6_1,
        "mmio",
        1,
        0x8000020000037,
        "mmio",
        None,
        lambda: make_mmio_spte(V6_1, 0x20000, 7, 6),
    ),
    (V6_1, "slot_del", 1, 0x5A0, "frozen", None, lambda: V6_1.frozen),
    (V6_1, "huge", 2, 0x3000EE7, "leaf", 0x3000, lambda: make_spte(V6_1, 0x3000, 2)),
    (
        V6_1,
        "huge, parent",
        3,
        0x152F2827,
        "table",
        0x152F2,
        lambda: make_nonleaf_spte(V6_1, 0x152F2000),
    ),
    (
        V6_1,
        "huge_dirty, split",
        1,
        0x3001E67,
        "leaf",
        0x3001,
        lambda: make_huge_page_split_spte(V6_1, 0x3000EE7, 1, 1),
    ),
    (
        V6_1,
        "huge_dirty",
        1,
        0x3003E65,
        "leaf",
        0x3003,
        lambda: spte_write_protect(V6_1, 0x3003E67, pt_protect=False),
    ),
]


@pytest.mark.parametrize(
    ("layout", "level", "entry", "kind", "pfn", "made"),
    [
        pytest.param(layout, *rest, id=f"{layout.release} {stage} {rest[1]:#x}")
        for layout, stage, *rest in RECORDED
    ],
)
def test_a_recorded_entry_is_made_and_decoded(layout, level, entry, kind, pfn, made):
    found, fmt, fields = decode(layout, entry, level)

    assert f"{made():#x}" == f"{entry:#x}"
    assert found == kind
    assert fields.get("pfn") == pfn
    assert fmt.pack(**fields) == entry


# The entries of the recorded tables that are not above: same pages, other stages.
@pytest.mark.parametrize(
    ("layout", "level", "entry", "kind", "writable"),
    [
        pytest.param(V5_10, 1, 0x3FDF6C65, "leaf", 0, id="5.10 dirty_on, gfn 0"),
        pytest.param(V5_10, 1, 0x3FDFEC65, "leaf", 0, id="5.10 dirty_on, gfn 3"),
        pytest.param(V6_1, 1, 0x2B42E65, "leaf", 0, id="6.1 dirty_on, gfn 0"),
        pytest.param(V6_1, 1, 0x2B20E65, "leaf", 0, id="6.1 dirty_on, gfn 3"),
        pytest.param(V6_1, 2, 0x152F9827, "table", 1, id="6.1 huge_dirty, parent"),
        pytest.param(V6_1, 1, 0x3000E65, "leaf", 0, id="6.1 huge_dirty, first page"),
        pytest.param(V6_1, 1, 0x3001E65, "leaf", 0, id="6.1 huge_dirty, second page"),
        pytest.param(V6_1, 1, 0x3002E65, "leaf", 0, id="6.1 huge_dirty, third page"),
        pytest.param(V6_1, 1, 0x3000E67, "leaf", 1, id="6.1 huge_dirty_write"),
    ],
)
def test_the_other_recorded_entries_decode(layout, level, entry, kind, writable):
    found, fmt, fields = decode(layout, entry, level)

    assert (found, fields["w"]) == (kind, writable)
    assert fmt.pack(**fields) == entry


@pytest.mark.parametrize(
    ("layout", "entry"),
    [
        pytest.param(V5_10, 0x38000020000037, id="5.10"),
        pytest.param(V6_1, 0x8000020000037, id="6.1"),
    ],
)
def test_the_recorded_mmio_entry_has_the_traced_parts(layout, entry):
    # mark_mmio_spte: gfn 20000 access 7 gen 6
    assert get_mmio_spte_gfn(layout, entry) == 0x20000
    assert get_mmio_spte_access(layout, entry) == 7 & 6
    assert get_mmio_spte_generation(layout, entry) == 6


def test_a_table_that_was_freed_and_used_again_holds_no_entry():
    # amd64-5.10, stage slot_del: the look at RAM finds the old table's page.
    assert decode(V5_10, 0x1, 1).kind == "unknown"


@pytest.mark.parametrize(
    ("layout", "entry"),
    [
        pytest.param(V6_1, 0x3FDFEC67, id="5.10 leaf in 6.1"),
        pytest.param(V5_10, 0x8000020000037, id="6.1 MMIO in 5.10"),
    ],
)
def test_a_recorded_entry_is_unknown_in_the_other_layout(layout, entry):
    assert decode(layout, entry, 1).kind == "unknown"
