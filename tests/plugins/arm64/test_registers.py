import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_arm64.geometry import (
    PAGE_SHIFTS,
    PARANGES,
    kvm_mmu_cache_min_pages,
    make_geometry,
)
from kvmarch_arm64.registers import (
    MAX_TLBI_RANGE_PAGES,
    RangeOp,
    TlbiIpa,
    Vtcr,
    Vttbr,
    Vttbr52,
    kvm_get_vtcr,
    kvm_get_vttbr,
    range_pages,
    tlbi_ipa,
    tlbi_range_ops,
)

from kvmarch import EntryError

# Fact sheet arm64, 1.5: IPA bits, page size, PARange, LPA2; VTCR; levels, start level,
# root pages, cache minimum.
TABLES = [
    pytest.param(32, 4096, 40, False, 0x0802A3520, (2, 2, 4, 1), id="32-4K-40"),
    pytest.param(40, 4096, 40, False, 0x0802A3558, (3, 1, 2, 2), id="40-4K-40"),
    pytest.param(43, 4096, 48, False, 0x0802D3555, (3, 1, 16, 2), id="43-4K-48"),
    pytest.param(44, 4096, 44, False, 0x0802C3594, (4, 0, 1, 3), id="44-4K-44"),
    pytest.param(48, 4096, 48, False, 0x0802D3590, (4, 0, 1, 3), id="48-4K-48"),
    pytest.param(52, 4096, 52, True, 0x1802E358C, (4, 0, 16, 3), id="52-4K-LPA2"),
    pytest.param(40, 16384, 48, False, 0x0802DB558, (2, 2, 16, 1), id="40-16K-48"),
    pytest.param(48, 16384, 48, False, 0x0802DB590, (3, 1, 2, 2), id="48-16K-48"),
    pytest.param(52, 16384, 52, True, 0x1802EB5CC, (4, 0, 1, 3), id="52-16K-LPA2"),
    pytest.param(40, 65536, 48, False, 0x0802D7558, (2, 2, 1, 1), id="40-64K-48"),
    pytest.param(48, 65536, 48, False, 0x0802D7590, (3, 1, 1, 2), id="48-64K-48"),
    pytest.param(52, 65536, 52, False, 0x0802E758C, (3, 1, 1, 2), id="52-64K-52"),
]


@pytest.mark.parametrize(
    ("ipa", "page_size", "parange", "lpa2", "vtcr", "shape"), TABLES
)
def test_worked_tables_both_ways(ipa, page_size, parange, lpa2, vtcr, shape):
    geometry = make_geometry(page_size, ipa, lpa2=lpa2)

    fields = Vtcr.unpack(vtcr)

    assert kvm_get_vtcr(geometry, parange) == vtcr
    assert Vtcr.pack(**fields) == vtcr
    assert 64 - fields["t0sz"] == ipa
    assert fields["ps"] == PARANGES[parange]
    assert fields["sl0"] == geometry.sl0
    assert shape == (
        geometry.levels,
        geometry.start_level,
        geometry.root_pages,
        kvm_mmu_cache_min_pages(geometry),
    )


def test_vtcr_without_options():
    vtcr = kvm_get_vtcr(make_geometry(4096, 40), 40, vmid_bits=8, ha=False)

    assert vtcr == 0x080023558


def test_output_size_is_capped_by_the_descriptor():
    vtcr = kvm_get_vtcr(make_geometry(4096, 48), 52)

    assert Vtcr.ps.get(vtcr) == PARANGES[48]


@pytest.mark.parametrize("bit", range(64))
def test_vtcr_bit_is_known_or_refused(bit):
    flipped = 0x0802A3558 ^ 1 << bit

    if Vtcr.accepts(flipped):
        assert Vtcr.pack(**Vtcr.unpack(flipped)) == flipped
    else:
        with pytest.raises(EntryError):
            Vtcr.unpack(flipped)


def test_worked_vttbr_both_ways():
    vttbr = kvm_get_vttbr(0x8_8000_0000, 5, cnp=True)

    assert vttbr == 0x0005000880000001
    assert Vttbr.unpack(vttbr) == {"vmid": 5, "baddr": 0x8_8000_0000 >> 1, "cnp": 1}


@pytest.mark.parametrize(
    "root", [0x8_8000_0000, 0xF_0000_0001_0000, 0x1_0000_0000_0040], ids=hex
)
def test_vttbr_with_52_bits(root):
    vttbr = kvm_get_vttbr(root, 5, pa_52=True)

    assert vttbr == 5 << 48 | (root | root >> 46) & 0xFFFF_FFFF_FFFC
    assert Vttbr52.baddr.get(vttbr) << 6 == root


def test_vmid_must_fit():
    with pytest.raises(EntryError, match="vmid"):
        kvm_get_vttbr(0, 1 << 16)


@pytest.mark.parametrize(
    ("page_size", "level", "operand"),
    [
        pytest.param(4096, 3, 0x700000040200, id="21-L3"),
        pytest.param(4096, 2, 0x600000040200, id="21-L2"),
        pytest.param(4096, None, 0x000000040200, id="no-hint"),
        pytest.param(4096, 4, 0x000000040200, id="no-such-level"),
        pytest.param(16384, 3, 0xB00000040200, id="16K"),
        pytest.param(65536, 3, 0xF00000040200, id="64K"),
    ],
)
def test_worked_tlbi_operand_both_ways(page_size, level, operand):
    assert tlbi_ipa(PAGE_SHIFTS[page_size], 0x40200000, level) == operand
    assert TlbiIpa.pack(**TlbiIpa.unpack(operand)) == operand


def test_worked_range_tlbi():
    ops = list(tlbi_range_ops(make_geometry(4096), 0x40000000, 512))

    assert ops == [RangeOp(start=0x40000000, pages=512, scale=1, num=7)]
    assert range_pages(1, 7) == 512
    assert MAX_TLBI_RANGE_PAGES == 1 << 21


@pytest.mark.parametrize(
    ("lpa2", "start", "pages", "ops"),
    [
        pytest.param(False, 0, 1, [(1, None, 0)], id="one"),
        pytest.param(False, 0, 3, [(2, 0, 0), (1, None, 0)], id="odd"),
        pytest.param(False, 0, 1 << 21, [(1 << 21, 3, 31)], id="most"),
        pytest.param(False, 0, 0, [], id="none"),
        pytest.param(True, 0xE000, 4, [(1, None, 0)] * 2 + [(2, 0, 0)], id="lpa2"),
    ],
)
def test_range_tlbi(lpa2, start, pages, ops):
    found = tlbi_range_ops(make_geometry(4096, lpa2=lpa2), start, pages)

    assert [tuple(op)[1:] for op in found] == ops


@given(
    start=st.integers(0, 1 << 20),
    pages=st.integers(0, MAX_TLBI_RANGE_PAGES),
    lpa2=st.booleans(),
)
def test_range_tlbi_covers_the_range_once(start, pages, lpa2):
    geometry = make_geometry(4096, lpa2=lpa2)

    at = start << 12
    for op in tlbi_range_ops(geometry, start << 12, pages):
        assert op.start == at
        at += op.pages << 12

    assert at == start + pages << 12
