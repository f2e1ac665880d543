import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_arm64.geometry import (
    KVM_PGTABLE_FIRST_LEVEL,
    KVM_PGTABLE_LAST_LEVEL,
    PAGE_SHIFTS,
    block_levels,
    kvm_block_mapping_supported,
    kvm_granule_shift,
    kvm_granule_size,
    kvm_init_ipa_range,
    kvm_ipa_limit,
    kvm_is_block_size_supported,
    kvm_level_supports_block_mapping,
    kvm_pgd_page_idx,
    kvm_pgtable_idx,
    kvm_supported_block_sizes,
    make_geometry,
    make_old_geometry,
)

from kvmarch import FormatError, KvmarchError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("page_size", "sizes"),
    [
        pytest.param(4096, (4 * KIB, 2 * MIB, GIB, 512 * GIB), id="4K"),
        pytest.param(16384, (16 * KIB, 32 * MIB, 64 * GIB, 128 * TIB), id="16K"),
        pytest.param(65536, (64 * KIB, 512 * MIB, 4 * TIB, 1 << 55), id="64K"),
    ],
)
def test_granules(page_size, sizes):
    shift = PAGE_SHIFTS[page_size]

    assert tuple(kvm_granule_size(shift, level) for level in (3, 2, 1, 0)) == sizes
    assert tuple(1 << kvm_granule_shift(shift, n) for n in (3, 2, 1, 0)) == sizes


@pytest.mark.parametrize(
    ("page_size", "levels", "sizes"),
    [
        pytest.param(4096, (1, 2), (4 * KIB, 2 * MIB, GIB), id="4K"),
        pytest.param(16384, (2,), (16 * KIB, 32 * MIB), id="16K"),
        pytest.param(65536, (2,), (64 * KIB, 512 * MIB), id="64K"),
    ],
)
def test_blocks(page_size, levels, sizes):
    shift = PAGE_SHIFTS[page_size]

    assert block_levels(shift) == levels
    assert kvm_supported_block_sizes(shift) == sum(sizes)
    assert [
        level for level in range(4) if kvm_level_supports_block_mapping(shift, level)
    ] == [*levels, 3]
    assert all(kvm_is_block_size_supported(shift, size) for size in sizes)
    assert not kvm_is_block_size_supported(shift, sum(sizes))
    assert not kvm_is_block_size_supported(shift, 2 * sizes[0])
    assert not kvm_is_block_size_supported(shift, 0)


@pytest.mark.parametrize(
    ("level", "addr", "end", "phys", "supported"),
    [
        pytest.param(2, 0x200000, 0x400000, 0x40200000, True, id="2M"),
        pytest.param(2, 0x200000, 0x3FF000, 0x40200000, False, id="too-short"),
        pytest.param(2, 0x201000, 0x600000, 0x40200000, False, id="ipa-unaligned"),
        pytest.param(2, 0x200000, 0x400000, 0x40201000, False, id="pa-unaligned"),
        pytest.param(2, 0x200000, 0x400000, None, True, id="annotation"),
        pytest.param(1, 0, GIB, 0, True, id="1G"),
        pytest.param(0, 0, 512 * GIB, 0, False, id="512G"),
        pytest.param(3, 0x1000, 0x2000, 0x5000, True, id="page"),
    ],
)
def test_leaf_possible(level, addr, end, phys, supported):
    geometry = make_geometry(4096, 40)

    assert kvm_block_mapping_supported(geometry, addr, end, phys, level) is supported


def test_levels_are_signed():
    geometry = make_geometry(4096, 48)

    assert (KVM_PGTABLE_FIRST_LEVEL, KVM_PGTABLE_LAST_LEVEL) == (-1, 3)
    assert geometry.shifts == (39, 30, 21, 12, 48)
    assert geometry.shifts[-1] == kvm_granule_shift(12, -1)


@pytest.mark.parametrize(
    ("page_size", "ipa", "addr", "page", "indexes"),
    [
        pytest.param(4096, 40, 0x40201000, 0, {1: 1, 2: 1, 3: 1}, id="4K"),
        pytest.param(4096, 40, 0x80_4020_1000, 1, {1: 1, 2: 1, 3: 1}, id="4K-page-1"),
        pytest.param(16384, 40, 0xFF_FFFF_C000, 15, {2: 2047, 3: 2047}, id="16K-last"),
        pytest.param(65536, 48, 0x2000_0000, 0, {1: 0, 2: 1, 3: 0}, id="64K"),
    ],
)
def test_indexes(page_size, ipa, addr, page, indexes):
    geometry = make_geometry(page_size, ipa)

    assert kvm_pgd_page_idx(geometry, addr) == page
    assert {n: kvm_pgtable_idx(geometry, addr, n) for n in indexes} == indexes
    assert kvm_pgd_page_idx(geometry, (1 << ipa) - 1) == geometry.root_pages - 1


@given(
    page_size=st.sampled_from(list(PAGE_SHIFTS)),
    ipa=st.integers(32, 48),
    data=st.data(),
)
def test_indexes_name_one_page(page_size, ipa, data):
    geometry = make_geometry(page_size, ipa)
    addr = data.draw(st.integers(0, (1 << ipa) - 1))

    again = (
        kvm_pgd_page_idx(geometry, addr) << geometry.shifts[geometry.start_level - 1]
    )
    for level in range(geometry.start_level, 4):
        again |= kvm_pgtable_idx(geometry, addr, level) << geometry.shifts[level]

    assert again == addr & -page_size
    assert geometry.levels >= 2
    assert 1 <= geometry.root_pages <= 16


@pytest.mark.parametrize(
    ("page_size", "start_level", "root_pages"),
    [
        pytest.param(4096, 1, 2, id="4K"),
        pytest.param(16384, 2, 16, id="16K"),
        pytest.param(65536, 2, 1, id="64K"),
    ],
)
def test_old_geometry(page_size, start_level, root_pages):
    geometry = make_old_geometry(page_size)

    assert geometry.ia_bits == 40
    assert geometry.start_level == start_level
    assert geometry.root_pages == root_pages
    assert geometry.sl0 == 1
    assert geometry == make_geometry(page_size, 40)


@pytest.mark.parametrize(
    ("page_size", "parange", "lpa2", "limit"),
    [
        pytest.param(4096, 44, False, 44, id="recorded"),
        pytest.param(4096, 52, False, 48, id="4K-capped"),
        pytest.param(16384, 52, False, 48, id="16K-capped"),
        pytest.param(4096, 52, True, 52, id="4K-lpa2"),
        pytest.param(65536, 52, False, 52, id="64K"),
    ],
)
def test_ipa_limit(page_size, parange, lpa2, limit):
    assert kvm_ipa_limit(page_size, parange, lpa2=lpa2) == limit


@pytest.mark.parametrize(
    ("requested", "limit", "size"),
    [
        pytest.param(0, 44, 40, id="default"),
        pytest.param(0, 36, -errno.EINVAL, id="default-too-large"),
        pytest.param(32, 44, 32, id="least"),
        pytest.param(31, 44, -errno.EINVAL, id="too-small"),
        pytest.param(44, 44, 44, id="most"),
        pytest.param(45, 44, -errno.EINVAL, id="too-large"),
    ],
)
def test_ipa_range(requested, limit, size):
    assert kvm_init_ipa_range(requested, limit) == size


@pytest.mark.parametrize(
    ("page_size", "ipa", "lpa2", "error", "text"),
    [
        pytest.param(8192, 40, False, FormatError, "granule of 8192", id="granule"),
        pytest.param(65536, 40, True, FormatError, "LPA2 is for", id="64K-lpa2"),
        pytest.param(4096, 49, False, KvmarchError, "there is 32 to 48", id="49"),
        pytest.param(4096, 31, False, KvmarchError, "there is 32 to 48", id="31"),
        pytest.param(65536, 53, False, KvmarchError, "there is 32 to 52", id="53"),
    ],
)
def test_no_such_geometry(page_size, ipa, lpa2, error, text):
    with pytest.raises(error, match=text):
        make_geometry(page_size, ipa, lpa2=lpa2)
