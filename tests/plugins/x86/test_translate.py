"""What hardware makes of each kind of entry, and the kernel's own tests beside it."""

import pytest
from kvmarch_x86.layout import decode, make_layout
from kvmarch_x86.mmio import make_mmio_spte
from kvmarch_x86.releases import RELEASES
from kvmarch_x86.spte import (
    is_shadow_present_pte,
    make_nonleaf_spte,
    make_spte,
    mark_spte_for_access_track,
)
from kvmarch_x86.state import hardware_tests, leaf_match
from kvmarch_x86.tdp_tables import is_table
from kvmarch_x86.translate import _reason

LAYOUTS = [
    *(pytest.param(make_layout(r, "ept"), id=f"{r} ept") for r in RELEASES),
    *(pytest.param(make_layout(r, "npt"), id=f"{r} npt") for r in RELEASES),
    *(
        pytest.param(make_layout(r, "npt", maxphyaddr=52), id=f"{r} npt 52")
        for r in RELEASES
    ),
    *(
        pytest.param(make_layout(r, "ept", ad=False), id=f"{r} no A/D")
        for r in RELEASES
    ),
]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def judge(layout, spte):
    """Return which accesses hardware allows, or why it does not look."""
    allowed = []
    for access, (mask, value, _sets) in hardware_tests(layout).items():
        if spte & mask == value:
            allowed.append(access)
    return allowed or [_reason(layout, spte)]


@every_layout
def test_a_leaf_allows_what_it_says(layout):
    rwx = make_spte(layout, 0x12345, 1)

    assert judge(layout, rwx) == ["read", "write", "exec"]
    assert judge(layout, rwx & ~layout.writable_mask) == ["read", "exec"]
    assert judge(layout, make_spte(layout, 0x12345, 1, execute=False)) == [
        "read",
        "write",
    ]
    assert judge(layout, make_spte(layout, 0, 1, host_writable=False)) == [
        "read",
        "exec",
    ]


@every_layout
def test_what_is_no_leaf_is_never_used(layout):
    assert judge(layout, layout.nonpresent) == ["missing"]
    if layout.frozen is not None:
        assert judge(layout, layout.frozen) == ["missing"]
    if not layout.ad and layout.saved_mask:
        aged = mark_spte_for_access_track(layout, make_spte(layout, 0x12345, 1))
        assert judge(layout, aged) == ["missing"]


@every_layout
@pytest.mark.parametrize("access", [0, 7])
def test_an_mmio_entry_is_reserved_unless_no_bit_is(layout, access):
    if not layout.shadow_mmio_value:
        # From v5.13 none is made where hardware has no reserved bit.
        assert layout.paging == "npt"
        return
    spte = make_mmio_spte(layout, 0xFEBF0, access, 4)
    present = spte & 1 or layout.paging == "ept"

    assert judge(layout, spte) == ["reserved" if present else "missing"]


@every_layout
def test_tables_and_leaves_are_told_apart(layout):
    table = make_nonleaf_spte(layout, 0xABC000)
    huge = make_spte(layout, 0x40000, 2)

    assert is_table(table)
    assert not any(map(is_table, (huge, layout.nonpresent, layout.frozen or 0)))
    if not layout.ad and layout.saved_mask:
        assert not is_table(mark_spte_for_access_track(layout, huge))


# The layouts in which the TDP MMU exists.
TDP = [p for p in LAYOUTS if p.values[0].release not in {"4.2", "4.11"}]


@pytest.mark.parametrize("layout", TDP)
def test_a_leaf_is_matched_as_the_kernel_tests_it(layout):
    match = leaf_match(layout)
    leaf = make_spte(layout, 0x12345, 1)
    entries = [
        leaf,
        leaf & ~layout.writable_mask,
        mark_spte_for_access_track(layout, leaf),
        layout.nonpresent,
        *([] if layout.frozen is None else [layout.frozen]),
        *(
            make_mmio_spte(layout, 0xFEBF0, access, generation)
            for access in (0, 7)
            for generation in (0, 2, 0x102, 0x3FFFE)
            if layout.shadow_mmio_value
        ),
    ]

    for entry in entries:
        present = is_shadow_present_pte(layout, entry)
        assert (entry & match.mask == match.value) == present, f"{entry:#x}"
        assert (decode(layout, entry, 1).kind in {"leaf", "tracked"}) == present


@every_layout
def test_hardware_sets_a_and_d_only_where_it_has_them(layout):
    tests = hardware_tests(layout)
    a = layout.shadow_accessed_mask if layout.ad else 0
    d = layout.shadow_dirty_mask if layout.ad else 0

    assert [tests[access][2] for access in ("read", "exec", "write")] == [a, a, a | d]
