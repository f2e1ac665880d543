"""The hashed page table: worked values of the fact sheet ppc, 4.2, 4.3 and 4.5."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from kvmarch_ppc.hpt import (
    HPTES_PER_GROUP,
    KVM_DEFAULT_HPT_ORDER,
    PAGE_SIZES,
    VRMA_VSID,
    HashWord,
    RbLarge,
    RbSmall,
    compute_tlbie_rb,
    hpt_hash,
    hpte_avpn,
    hpte_rpn,
    is_vrma_hpte,
    kvmppc_actual_pgsz,
    kvmppc_hpt_mask,
    kvmppc_hpt_npte,
    kvmppc_hpte_actual_page_shift,
    kvmppc_hpte_base_page_shift,
    kvmppc_hpte_page_shifts,
    lp_encoding,
    make_hash_layout,
    primary_group,
    secondary_group,
    slb_v,
    vrma_hpte,
)
from kvmarch_ppc.hpte import (
    HPTE_V_BOLTED,
    HPTE_V_LARGE,
    HPTE_V_SECONDARY,
    HPTE_V_VALID,
    SegmentSize,
)
from kvmarch_ppc.layout import formats

from kvmarch import EntryError

S256M, S1T = SegmentSize.S256M, SegmentSize.S1T
H1 = {"vsid": 0x123456, "ea": 0xABC000, "pshift": 12, "ssize": S256M}
H2 = {"vsid": 0x1234, "ea": 0x1234560000, "pshift": 16, "ssize": S1T}
H2_R = 0x0000000223451192


def avpn_of(vsid, ea, pshift, ssize):
    return hpte_avpn(slb_v(vsid, ssize), ea, pshift)


@pytest.mark.parametrize(
    ("address", "low", "v", "group", "secondary"),
    [
        pytest.param(H1, 1, 0x0000000123456081, 0x3EEA, 0x1C115, id="H1"),
        pytest.param(
            H2,
            HPTE_V_VALID | HPTE_V_LARGE,
            0x4000001234123405,
            0x2662,
            0x1D99D,
            id="H2",
        ),
    ],
)
def test_an_address_says_v_and_group(address, low, v, group, secondary):
    found = hpt_hash(**address)

    assert avpn_of(**address) | low == v
    assert primary_group(found, KVM_DEFAULT_HPT_ORDER) == group
    assert secondary_group(found, KVM_DEFAULT_HPT_ORDER) == secondary


def test_the_index_of_h1():
    assert 0x3EEA * HPTES_PER_GROUP == 0x1F750


@pytest.mark.parametrize("pshift", [24, 34])
def test_the_avpn_of_large_pages_is_shorter(pshift):
    segment = slb_v(0x1234, S1T)

    assert hpte_avpn(segment, (1 << 40) - 1, pshift) == (
        segment + (1 << 24) - (1 << pshift - 16)
    )


def test_the_size_of_a_table():
    assert kvmppc_hpt_npte(24) == 1 << 20
    assert kvmppc_hpt_mask(24) == 0x1FFFF
    assert kvmppc_hpt_npte(18) == HPTES_PER_GROUP * (kvmppc_hpt_mask(18) + 1)


def test_the_vrma():
    v, r, index = vrma_hpte(3, 16, 24)

    assert (v, r, index) == (0x4001FFFFFF000014, 0x31190, 0xFFFE7)
    assert is_vrma_hpte(v | HPTE_V_VALID)
    assert not is_vrma_hpte(0x4000001234123405)
    assert VRMA_VSID == 0x1FFFFFF


@pytest.mark.parametrize(
    ("porder", "low"),
    [
        pytest.param(12, HPTE_V_BOLTED, id="4K"),
        pytest.param(16, HPTE_V_BOLTED | HPTE_V_LARGE, id="64K"),
        pytest.param(24, HPTE_V_BOLTED | HPTE_V_LARGE, id="16M"),
    ],
)
def test_the_vrma_takes_all_its_page_sizes(porder, low):
    v, r, _ = vrma_hpte(1, porder, 24)

    assert v & 0x7F == low
    assert kvmppc_actual_pgsz(v, r) == 1 << porder
    assert hpte_rpn(r, 1 << porder, 12) == 1 << porder - 12


SIZES = [
    pytest.param(False, 0, 0, 12, 12, id="4K"),
    pytest.param(False, 7, 3, 12, 12, id="4K whatever the address"),
    pytest.param(True, 0, 0, 24, 24, id="16M"),
    pytest.param(True, 0, 1, 0, 0, id="0/1 invalid"),
    pytest.param(True, 1, 0, 16, 16, id="64K"),
    pytest.param(True, 1, 9, 16, 16, id="64K whatever the address"),
    pytest.param(True, 3, 0, 34, 34, id="16G"),
    pytest.param(True, 3, 2, 0, 0, id="3/2 invalid"),
    pytest.param(True, 7, 0xF, 12, 16, id="64K in 4K"),
    pytest.param(True, 8, 0, 16, 24, id="16M in 64K"),
    pytest.param(True, 8, 3, 12, 24, id="16M in 4K"),
    pytest.param(True, 8, 1, 0, 0, id="8/1 invalid"),
    pytest.param(True, 2, 0, 0, 0, id="2 invalid"),
]


@pytest.mark.parametrize(("large", "lp", "high", "base", "actual"), SIZES)
def test_page_sizes(large, lp, high, base, actual):
    v = 0x123456081 | HPTE_V_LARGE * large
    r = 0x300000192 | lp << 12 | high << 16

    assert kvmppc_hpte_base_page_shift(v, r) == base
    assert kvmppc_hpte_actual_page_shift(v, r) == actual
    assert kvmppc_actual_pgsz(v, r) == (1 << actual if actual else 0)
    assert kvmppc_hpte_page_shifts(v, r) == (
        base if base == actual else actual << 8 | base
    )


@pytest.mark.parametrize("size", PAGE_SIZES, ids=str)
def test_encodings_and_sizes_are_inverse(size):
    large, low = lp_encoding(size.base, size.actual)

    assert large == HPTE_V_LARGE
    assert kvmppc_hpte_base_page_shift(large, low) == size.base
    assert kvmppc_hpte_actual_page_shift(large, low) == size.actual


def test_only_some_sizes_go_together():
    assert lp_encoding(12, 12) == (0, 0)
    with pytest.raises(EntryError, match=r"no page of 2\^16 bytes with base 2\^24"):
        lp_encoding(24, 16)


def test_the_first_page_of_an_hpte():
    assert hpte_rpn(0x5ABC192, 4096, 12) == 0x5ABC
    assert hpte_rpn(0x5ABC192, 4096, 16) == 0x5AB
    assert hpte_rpn(H2_R, 1 << 16, 16) == 0x22345


def test_rb_of_h1():
    rb = compute_tlbie_rb(0x0000000123456081, 0x000000022345C192, 0x1F750 + 2)

    assert rb == 0x0001234560ABC000
    assert RbSmall.unpack(rb) == {"ava": 0x1234560ABC, "b": 0, "ap": 0, "large": 0}


def test_rb_of_h2():
    rb = compute_tlbie_rb(0x4000001234123405, H2_R, 0x2662 * HPTES_PER_GROUP)

    # By hand: address 0x12341234560000, LP 1, B 1, address bits 19:13 as 0x60, L.
    assert rb == 0x0012341234560000 | 0x1000 | 0x100 | 0x60 | 1
    assert RbLarge.unpack(rb) == {
        "ava": 0x123412345,
        "lp": 0x61,
        "b": 1,
        "aval": 0x30,
        "large": 1,
    }


@pytest.mark.parametrize(
    ("actual", "ap"),
    [pytest.param(16, 5, id="64K in 4K"), pytest.param(24, 4, id="16M in 4K")],
)
def test_rb_of_a_large_page_in_a_4k_segment(actual, ap):
    large, low = lp_encoding(12, actual)
    v = avpn_of(**H1) | HPTE_V_VALID | large

    rb = compute_tlbie_rb(v, low, 0x1F750)

    assert rb == 0x0001234560ABC000 | ap << 5


segments = st.sampled_from([(S256M, 40, 28), (S1T, 28, 40)])
sizes = st.sampled_from([(12, 12), *((s.base, s.actual) for s in PAGE_SIZES)])


@given(st.data(), segments, sizes, st.booleans(), st.integers(18, 46))
def test_rb_gives_the_address_back(data, segment, size, secondary, order):
    ssize, vsid_bits, ea_bits = segment
    base, actual = size
    assume(actual < ea_bits)
    vsid = data.draw(st.integers(0, (1 << vsid_bits) - 1), label="vsid")
    ea = data.draw(st.integers(0, (1 << ea_bits) - 1), label="ea") & -(1 << actual)
    large, low = lp_encoding(base, actual)
    found = hpt_hash(vsid, ea, base, ssize)
    group = (secondary_group if secondary else primary_group)(found, order)
    v = hpte_avpn(slb_v(vsid, ssize), ea, base) | large | HPTE_V_VALID
    v |= HPTE_V_SECONDARY * secondary

    rb = compute_tlbie_rb(v, low, group * HPTES_PER_GROUP + 5)

    address = (vsid << ea_bits | ea) & (1 << 64) - 1
    assert rb & -(1 << actual) == address & -(1 << actual)
    if base == 12:
        assert RbSmall.accepts(rb)
        assert (RbSmall.b.get(rb), rb & -4096) == (ssize, address & -4096)
    else:
        fields = RbLarge.unpack(rb)
        assert fields["b"] == ssize
        assert fields["aval"] == address >> 13 & 0x7F & -(1 << max(0, base - 13))
        if actual == base == 16:
            assert fields["lp"] & 0xF == 1


def test_the_masks_of_a_layout_are_its_formats():
    old, new = make_hash_layout(), make_hash_layout(isa300=True)

    assert (old.avpn_mask, new.avpn_mask) == (0x3FFFFFFFFFFFFF80, 0x000FFFFFFFFFFF80)
    assert (old.rpn_mask, new.rpn_mask) == (0x0FFFFFFFFFFFF000, 0x01FFFFFFFFFFF000)
    assert not old.isa300
    assert new.isa300
    assert {r.kind for r in formats(old) if r.maps} == {"valid", "invalidating"}
    assert {r.level for r in formats(new)} == set(HashWord)
    assert HashWord.PARTITION0 not in old.by_level
