"""What is done with entries (fact sheet x86, 1.3, 1.4, 1.5, 3.4 and 3.7)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_x86.geometry import MemType
from kvmarch_x86.layout import decode, make_layout
from kvmarch_x86.releases import RELEASES
from kvmarch_x86.spte import (
    check_spte_writable_invariants,
    fast_page_fault_spte,
    get_mt_mask,
    is_access_track_spte,
    is_accessed_spte,
    is_dirty_spte,
    is_executable_pte,
    is_mmu_writable_spte,
    is_writable_pte,
    kvm_mmu_changed_pte_notifier_make_spte,
    make_huge_page_split_spte,
    make_huge_spte,
    make_nonleaf_spte,
    make_spte,
    mark_spte_for_access_track,
    restore_acc_track_spte,
    spte_ad_enabled,
    spte_ad_need_write_protect,
    spte_can_locklessly_be_made_writable,
    spte_clear_dirty,
    spte_has_volatile_bits,
    spte_to_pfn,
    spte_write_protect,
)

PFN = 0x12345
NO_AD = {"ad": False}


def rwx(layout):
    return make_spte(layout, PFN, 1)


def tracked(layout):
    return mark_spte_for_access_track(layout, rwx(layout))


@pytest.mark.parametrize(
    ("level", "index", "value"),
    [
        pytest.param(1, 5, 0x8600000040005B77, id="2M to 4K"),
        pytest.param(2, 5, 0x8600000080A00BF7, id="1G to 2M"),
    ],
)
def test_a_split_gives_the_worked_child(level, index, value):
    layout = make_layout("6.12", "ept")
    huge = make_spte(layout, 0x40000 * level, level + 1)

    child = make_huge_page_split_spte(layout, huge, level, index)

    assert child == value
    assert decode(layout, child, level).kind == "leaf"


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12", "7.2"])
@pytest.mark.parametrize("paging", ["ept", "npt"])
def test_under_the_nx_mitigation_a_small_child_may_execute_again(release, paging):
    layout = make_layout(release, paging, nx_huge_pages=True)
    huge = make_spte(layout, 0x40000, 2)

    child = make_huge_page_split_spte(layout, huge, 1, 5)

    assert not is_executable_pte(layout, huge)
    assert child == make_spte(layout, 0x40005, 1)
    assert not is_executable_pte(
        layout, make_huge_page_split_spte(layout, huge, 1, 5, execute=False)
    )


def test_a_split_of_an_aged_leaf_puts_execute_aside():
    layout = make_layout("6.12", "ept", ad=False, nx_huge_pages=True)
    huge = mark_spte_for_access_track(layout, make_spte(layout, 0x40000, 2))

    child = make_huge_page_split_spte(layout, huge, 1, 5)

    assert child == mark_spte_for_access_track(layout, make_spte(layout, 0x40005, 1))


@pytest.mark.parametrize(
    ("nx_huge_pages", "value"),
    [
        pytest.param(False, 0x80A0000040000FF7, id="usual"),
        pytest.param(True, 0x80A0000040000BF3, id="NX mitigation: X and XU go"),
    ],
)
def test_recovery_gives_the_worked_huge_leaf(nx_huge_pages, value):
    layout = make_layout("7.2", "ept", nx_huge_pages=nx_huge_pages)

    assert make_huge_spte(layout, 0x80A0000040005F77, 2) == value


@pytest.mark.parametrize(
    ("release", "old", "new"),
    [
        pytest.param("4.2", 0x12345F77, 0x777A75, id="4.2"),
        pytest.param("5.10", 0x12345F77, 0x777A75, id="5.10"),
        pytest.param("6.1", 0x0600000012345B77, 0x777A75, id="6.1"),
    ],
)
def test_change_pte_gives_the_worked_leaf(release, old, new):
    layout = make_layout(release, "ept")

    made = kvm_mmu_changed_pte_notifier_make_spte(layout, old, 0x777)

    assert made == new
    assert decode(layout, made, 1).kind == "leaf"


@pytest.mark.parametrize(
    ("release", "keep", "legal"),
    [
        pytest.param("5.10", None, False, id="5.10 keeps MMU-writable"),
        pytest.param("5.10", False, True, id="5.10 with f082d86ea685"),
        pytest.param("6.1", None, True, id="6.1 clears it"),
        pytest.param("6.1", True, False, id="6.1 without f082d86ea685"),
    ],
)
def test_change_pte_makes_an_illegal_leaf_if_mmu_writable_stays(release, keep, legal):
    layout = make_layout(release, "ept")

    new = kvm_mmu_changed_pte_notifier_make_spte(
        layout, rwx(layout), 0x777, keep_mmu_writable=keep
    )

    assert is_mmu_writable_spte(layout, new) != legal
    assert check_spte_writable_invariants(layout, new) == legal


def test_change_pte_without_ad_leaves_a_tracked_leaf():
    layout = make_layout("6.1", "ept", ad=False)

    new = kvm_mmu_changed_pte_notifier_make_spte(layout, rwx(layout), 0x777)

    assert decode(layout, new, 1).kind == "tracked"


@pytest.mark.parametrize(
    ("write", "prefetch", "expected"),
    [
        pytest.param(False, False, 0x12345575, id="write-tracked"),
        pytest.param(True, True, 0x12345E77, id="prefetched"),
    ],
)
def test_make_spte_of_5_10(write, prefetch, expected):
    layout = make_layout("5.10", "ept")

    assert make_spte(layout, PFN, 1, write=write, prefetch=prefetch) == expected


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12", "7.2"])
def test_without_ad_a_prefetched_leaf_is_tracked(release):
    layout = make_layout(release, "ept", ad=False)

    spte = make_spte(layout, PFN, 1, prefetch=True)

    assert decode(layout, spte, 1).kind == "tracked"
    assert spte == tracked(layout)


def test_4_2_without_ad_knows_no_ageing():
    layout = make_layout("4.2", "ept", ad=False)
    spte = make_spte(layout, PFN, 1, prefetch=True)

    assert spte == rwx(layout)
    assert mark_spte_for_access_track(layout, spte) == spte
    assert is_accessed_spte(layout, spte)
    assert is_dirty_spte(layout, spte)
    assert is_dirty_spte(layout, spte_write_protect(layout, spte, pt_protect=False))


@pytest.mark.parametrize("paging", ["ept", "npt"])
def test_wrprot_only_is_a_kind_of_its_own(paging):
    layout = make_layout("6.12", paging)
    spte = make_spte(layout, PFN, 1, wrprot_only=True)

    assert spte_ad_enabled(layout, spte)
    assert spte_ad_need_write_protect(layout, spte)
    assert not spte_ad_need_write_protect(layout, rwx(layout))
    # NPT has nothing like PML, so the kind is EPT's alone.
    assert decode(layout, spte, 1).kind == ("leaf" if paging == "ept" else "unknown")


@pytest.mark.parametrize("release", RELEASES)
def test_without_ad_dirty_logging_clears_w(release):
    layout = make_layout(release, "ept", ad=False)

    assert not spte_ad_enabled(layout, rwx(layout))
    assert spte_ad_need_write_protect(layout, rwx(layout))


@pytest.mark.parametrize(
    ("release", "host_mmio", "guest", "mask"),
    [
        pytest.param("6.1", False, None, 0x70, id="usual"),
        pytest.param("6.1", True, MemType.WB, 0x00, id="device of the host"),
        pytest.param("6.1", False, MemType.WC, 0x08, id="6.1 honours the MTRR"),
        pytest.param("6.12", False, MemType.WC, 0x30, id="6.12 honours the PAT alone"),
    ],
)
def test_memory_types(release, host_mmio, guest, mask):
    layout = make_layout(release, "ept")

    found = get_mt_mask(layout, host_mmio=host_mmio, guest_memtype=guest)

    assert found == mask
    assert make_spte(layout, PFN, 1, memtype=found) & layout.memtype_mask == mask
    assert get_mt_mask(make_layout(release, "npt"), guest_memtype=guest) == 0


def test_the_c_bit_is_set_for_memory_and_tables_not_for_devices():
    layout = make_layout("6.1", "npt", maxphyaddr=43, c_bit=47)
    page = make_spte(layout, PFN, 1)

    assert page == 0x0000800012345E67
    assert spte_to_pfn(layout, page) == PFN
    assert decode(layout, page, 1).fields["c"] == 1
    assert make_spte(layout, 0xFEE00, 1, host_mmio=True) & 1 << 47 == 0
    assert make_nonleaf_spte(layout, 0xABC000) == 0x0000800000ABC827


# Worked by hand from the rules of 1.3, for a leaf of the worked page. Columns: how the
# leaf is changed, and whether 4.2, 5.10, 6.1, 6.12 and 7.2 call it volatile.
VOLATILE = [
    pytest.param({}, lambda _, s: s, (1, 1, 0, 0, 0), id="W A D"),
    pytest.param({}, spte_clear_dirty, (1, 1, 1, 1, 1), id="W A, not D"),
    pytest.param(
        {},
        mark_spte_for_access_track,
        (1, 1, 1, 1, 0),
        id="W D, not A",
    ),
    pytest.param(
        {},
        lambda lo, s: spte_write_protect(lo, s, pt_protect=False),
        (1, 1, 1, 1, 1),
        id="A D, write-protected for the dirty log",
    ),
    pytest.param(
        {},
        lambda lo, s: spte_write_protect(lo, s, pt_protect=True),
        (0, 0, 0, 0, 0),
        id="A D, write-protected as guest page table",
    ),
    pytest.param(NO_AD, lambda _, s: s, (1, 1, 0, 0, 1), id="no A/D, W"),
    pytest.param(
        NO_AD,
        lambda lo, s: spte_write_protect(lo, s, pt_protect=True),
        (0, 0, 0, 0, 1),
        id="no A/D, write-protected as guest page table",
    ),
    pytest.param(
        NO_AD,
        lambda lo, s: mark_spte_for_access_track(
            lo, spte_write_protect(lo, s, pt_protect=True)
        ),
        (0, 1, 1, 1, 1),
        id="no A/D, aged",
    ),
    pytest.param({}, lambda lo, _: lo.nonpresent, (0, 0, 1, 1, 0), id="nothing here"),
]


@pytest.mark.parametrize(("options", "change", "expected"), VOLATILE)
def test_volatile_bits_by_layout(options, change, expected):
    found = []
    for release in ("4.2", "5.10", "6.1", "6.12", "7.2"):
        layout = make_layout(release, "ept", **options)
        found.append(spte_has_volatile_bits(layout, change(layout, rwx(layout))))

    assert tuple(found) == expected


@pytest.mark.parametrize("release", RELEASES)
def test_a_fast_page_fault_needs_mmu_writable_and_before_5_13_host_writable(release):
    layout = make_layout(release, "ept")
    logged = spte_write_protect(layout, rwx(layout), pt_protect=False)
    changed = logged & ~layout.shadow_host_writable_mask

    assert fast_page_fault_spte(layout, logged, write=True) == rwx(layout)
    assert fast_page_fault_spte(layout, logged, write=False) == logged
    assert spte_can_locklessly_be_made_writable(layout, changed) == (
        release not in {"4.2", "4.11", "5.10", "5.12"}
    )
    shadowed = spte_write_protect(layout, rwx(layout), pt_protect=True)
    assert fast_page_fault_spte(layout, shadowed, write=True) == shadowed


@pytest.mark.parametrize("release", ["5.10", "6.1", "6.12"])
def test_without_ad_accessed_and_dirty_are_guessed(release):
    layout = make_layout(release, "ept", ad=False)
    read_only = spte_write_protect(layout, rwx(layout), pt_protect=False)

    assert is_accessed_spte(layout, rwx(layout))
    assert not is_accessed_spte(layout, tracked(layout))
    assert is_dirty_spte(layout, rwx(layout))
    assert not is_dirty_spte(layout, read_only)


def test_7_2_keeps_a_and_d_in_software():
    layout = make_layout("7.2", "ept", ad=False)
    read_only = spte_write_protect(layout, rwx(layout), pt_protect=False)

    assert is_accessed_spte(layout, rwx(layout))
    assert not is_accessed_spte(layout, tracked(layout))
    assert is_dirty_spte(layout, read_only)
    assert not is_dirty_spte(layout, spte_clear_dirty(layout, rwx(layout)))


@pytest.mark.parametrize("pfn", [1 << 34, 0x40001], ids=["too wide", "not aligned"])
def test_a_huge_leaf_of_no_frame_is_a_mistake_of_the_caller(pfn):
    with pytest.raises(AssertionError, match="pfn"):
        make_spte(make_layout("6.1", "ept"), pfn, 2)


layouts = st.one_of(
    st.builds(make_layout, st.sampled_from(sorted(RELEASES)), st.just("ept")),
    st.builds(make_layout, st.sampled_from(sorted(RELEASES)), st.just("npt")),
    st.builds(
        make_layout,
        st.sampled_from(sorted(RELEASES)),
        st.just("ept"),
        ad=st.just(False),
    ),
)


@given(
    layout=layouts,
    level=st.integers(1, 3),
    frame=st.integers(0, (1 << 16) - 1),
    bits=st.fixed_dictionaries(
        {
            name: st.booleans()
            for name in ("write", "execute", "host_writable", "prefetch")
        }
    ),
)
def test_every_leaf_that_is_made_decodes_to_what_was_asked(layout, level, frame, bits):
    pfn = frame << 9 * (level - 1)

    spte = make_spte(layout, pfn, level, **bits)

    kind, fmt, fields = decode(layout, spte, level)
    assert kind in {"leaf", "tracked"}
    assert fmt.pack(**fields) == spte
    assert fields["pfn"] == spte_to_pfn(layout, spte) == pfn
    assert check_spte_writable_invariants(layout, spte)
    if kind == "leaf":
        assert is_executable_pte(layout, spte) == bits["execute"]
        assert is_writable_pte(layout, spte) == (
            bits["write"] and bits["host_writable"]
        )


@given(
    release=st.sampled_from(["5.10", "6.1", "6.12", "7.2"]),
    write=st.booleans(),
    execute=st.booleans(),
)
def test_ageing_and_restoring_lose_w_only(release, write, execute):
    layout = make_layout(release, "ept", ad=False)
    spte = make_spte(layout, PFN, 1, write=write, execute=execute)

    aged = mark_spte_for_access_track(layout, spte)
    restored = restore_acc_track_spte(layout, aged)

    assert is_access_track_spte(layout, aged)
    assert mark_spte_for_access_track(layout, aged) == aged
    # The A bit that the 7.2 layout keeps in software comes back with the fault.
    lost = layout.writable_mask | layout.shadow_accessed_mask
    assert restored == spte & ~lost
    assert fast_page_fault_spte(layout, aged, write=True) == spte
