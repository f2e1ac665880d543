"""What tells leafs from other entries, in every layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_x86.layout import make_layout
from kvmarch_x86.releases import RELEASES
from kvmarch_x86.rmap_entries import leafs, leafs_with
from kvmarch_x86.spte import is_last_spte, is_shadow_present_pte

LAYOUTS = [
    pytest.param(
        make_layout(release, paging, ad=ad, maxphyaddr=bits),
        id=f"{release} {paging} {ad} {bits}",
    )
    for release in RELEASES
    for paging, ad in (("ept", True), ("ept", False), ("npt", True))
    for bits in (46, 52)
]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_matches_agree_with_the_tests_of_one_entry(layout, data):
    level, _kind, fmt = data.draw(
        st.sampled_from(
            [row for row in layout.rows if row[0] <= 3 and row[1] != "frozen"]
        )
    )
    drawn = data.draw(st.integers(0, 2**64 - 1))
    entry = drawn & fmt.known & ~fmt.kind_mask | fmt.kind_value
    kind = fmt.fields.get("ad_kind")
    if kind is not None and kind.fixed is None:
        entry = kind.set(entry, 0)
    present = is_shadow_present_pte(layout, entry)
    leaf = present and is_last_spte(layout, entry, level)

    def matches(found):
        return sum(entry & m.mask == m.value for m in found)

    assert matches(leafs(layout, level)) == leaf
    for bit in (
        layout.writable_mask,
        layout.lockless_mask,
        *(m for m in (layout.shadow_accessed_mask, layout.shadow_dirty_mask) if m),
    ):
        wanted = leaf and entry & bit == bit
        assert matches(leafs_with(layout, level, bit)) == wanted


@pytest.mark.parametrize("layout", LAYOUTS)
def test_few_bits_are_looked_at(layout):
    assert all(
        len(match.bits) <= 4 for level in (1, 2, 3) for match in leafs(layout, level)
    )
