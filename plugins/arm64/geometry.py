"""Shape of the stage-2 tables: granules, levels, root, and the values that say so.

:Kernel: arch/arm64/include/asm/kvm_pgtable.h, stage2_pgtable.h and kvm_arm.h,
    arch/arm64/kvm/hyp/pgtable.c and reset.c, v5.10 to v7.1; the fixed geometry of
    virt/kvm/arm/mmu.c up to v4.19.

Levels are the architecture's: 3 holds pages, 0 is the highest one that stage 2
needs. They are signed since v6.8; with unsigned levels the arithmetic below gave
the same results, because level -1 only occurs one above a root.
"""

__all__ = [
    "KVM_PGTABLE_FIRST_LEVEL",
    "KVM_PGTABLE_LAST_LEVEL",
    "KVM_PHYS_SHIFT",
    "PAGE_SHIFTS",
    "PARANGES",
    "Geometry",
    "block_levels",
    "find_page_shift",
    "kvm_block_mapping_supported",
    "kvm_granule_shift",
    "kvm_granule_size",
    "kvm_init_ipa_range",
    "kvm_ipa_limit",
    "kvm_is_block_size_supported",
    "kvm_level_supports_block_mapping",
    "kvm_mmu_cache_min_pages",
    "kvm_pgd_page_idx",
    "kvm_pgtable_idx",
    "kvm_supported_block_sizes",
    "make_geometry",
    "make_old_geometry",
    "stage2_pgtable_levels",
]

import errno
from dataclasses import dataclass
from functools import cache

from kvmarch import FormatError, KvmarchError

PAGE_SHIFTS = {4096: 12, 16384: 14, 65536: 16}
"""PAGE_SHIFT by page size in bytes; the stage-2 granule is the host's page size."""

KVM_PGTABLE_FIRST_LEVEL = -1
"""The highest level that exists with LPA2; stage 2 never needs it."""
KVM_PGTABLE_LAST_LEVEL = 3

KVM_PHYS_SHIFT = 40
"""IPA bits of VM type 0, and of every VM up to v4.19."""

PARANGES = {32: 0, 36: 1, 40: 2, 42: 3, 44: 4, 48: 5, 52: 6}
"""Codes of ID_AA64MMFR0_EL1.PARange by physical address bits."""

_ENTRY_SHIFT = 3
_MIN_IPA_BITS = 32
_PLAIN_IPA_BITS = 48
_MOST_IPA_BITS = 52
_CONCATENATION_BITS = 4
_MIN_LEVELS = 2
_SL0_BASES = {12: 2, 14: 3, 16: 3}
_MIN_BLOCK_LEVELS = {12: 1, 14: 2, 16: 2}


@dataclass(frozen=True, slots=True)
class Geometry:
    """The tables of one VM; made by :func:`make_geometry`.

    :param page_shift: PAGE_SHIFT of host and stage 2.
    :param ia_bits: bits of an intermediate physical address.
    :param start_level: the level of the root.
    :param root_pages: pages of the root, contiguous; the walk crosses them in order.
    :param lpa2: 52-bit addresses with 4K and 16K granules (v6.8 and later).
    :param shifts: shift by level 0 to 3; ``shifts[-1]``, the last one, is that of
        level -1.
    :param index_mask: mask of an index within one table page.
    :param min_block_level: KVM_PGTABLE_MIN_BLOCK_LEVEL; the size of its blocks is
        the chunk of an unmap or a write-protection since v6.1.
    """

    page_shift: int
    ia_bits: int
    start_level: int
    root_pages: int
    lpa2: bool
    shifts: tuple[int, ...]
    index_mask: int
    min_block_level: int

    @property
    def levels(self) -> int:
        """Return how many levels a walk visits."""
        return KVM_PGTABLE_LAST_LEVEL + 1 - self.start_level

    @property
    def page_size(self) -> int:
        """Return the bytes of a page, and of a table page."""
        return 1 << self.page_shift

    @property
    def sl0(self) -> int:
        """Return VTCR_EL2.SL0, the code of the start level."""
        return _SL0_BASES[self.page_shift] - self.start_level


def find_page_shift(page_size: int) -> int:
    """Return PAGE_SHIFT for a page size in bytes.

    :raises FormatError: the architecture has no such granule.
    """
    if page_size not in PAGE_SHIFTS:
        known = ", ".join(map(str, PAGE_SHIFTS))
        raise FormatError(f"no arm64 granule of {page_size} bytes; there is {known}")
    return PAGE_SHIFTS[page_size]


def kvm_granule_shift(page_shift: int, level: int) -> int:
    """Return the address bits below an entry of this level; level -1 is allowed.

    :Kernel: kvm_granule_shift(), since v5.10
    """
    return (page_shift - _ENTRY_SHIFT) * (4 - level) + _ENTRY_SHIFT


def kvm_granule_size(page_shift: int, level: int) -> int:
    """Return the bytes that an entry of this level covers.

    :Kernel: kvm_granule_size(), since v5.10
    """
    return 1 << (page_shift - _ENTRY_SHIFT) * (4 - level) + _ENTRY_SHIFT


def block_levels(page_shift: int) -> tuple[int, ...]:
    """Return the levels below 3 at which KVM makes blocks, highest block first.

    Level 0 is not among them, not even with LPA2 (fact sheet arm64, 1.1).
    """
    return tuple(range(_MIN_BLOCK_LEVELS[page_shift], KVM_PGTABLE_LAST_LEVEL))


def kvm_level_supports_block_mapping(page_shift: int, level: int) -> bool:
    """Return whether KVM makes leaves at a level; pages count as blocks here.

    :Kernel: kvm_level_supports_block_mapping()
    """
    return level >= _MIN_BLOCK_LEVELS[page_shift]


def kvm_supported_block_sizes(page_shift: int) -> int:
    """Return the leaf sizes of this granule, in bytes, or-ed into one number.

    :Kernel: kvm_supported_block_sizes(), since v6.5
    """
    return sum(
        kvm_granule_size(page_shift, level)
        for level in (*block_levels(page_shift), KVM_PGTABLE_LAST_LEVEL)
    )


def kvm_is_block_size_supported(page_shift: int, size: int) -> bool:
    """Return whether one leaf can map so many bytes.

    :Kernel: kvm_is_block_size_supported(), since v6.5
    """
    return size.bit_count() == 1 and bool(size & kvm_supported_block_sizes(page_shift))


def kvm_block_mapping_supported(
    geometry: Geometry, addr: int, end: int, phys: int | None, level: int
) -> bool:
    """Return whether a leaf of this level may map ``addr``.

    :Kernel: kvm_block_mapping_supported(), since v5.10
    :param addr: where the mapping goes on, in bytes.
    :param end: where it ends.
    :param phys: what is mapped there; None for an annotation, which has no address.
    """
    if level < geometry.min_block_level:
        return False
    granule = 1 << geometry.shifts[level]
    return granule <= end - addr and not (addr | (phys or 0)) & granule - 1


def stage2_pgtable_levels(page_shift: int, ipa_bits: int) -> int:
    """Return the levels of a table whose root may have 16 concatenated pages.

    :Kernel: stage2_pgtable_levels(), ARM64_HW_PGTABLE_LEVELS()
    """
    return (ipa_bits - _CONCATENATION_BITS - 4) // (page_shift - _ENTRY_SHIFT)


@cache
def make_geometry(
    page_size: int, ia_bits: int = KVM_PHYS_SHIFT, *, lpa2: bool = False
) -> Geometry:
    """Return the tables that KVM makes for a VM (v5.4 and later).

    :Kernel: kvm_get_vtcr(), kvm_pgd_pages(), __kvm_pgtable_stage2_init(); before
        v5.10 kvm_arm_setup_stage2()
    :param page_size: of the host, in bytes.
    :param ia_bits: the VM's IPA size.
    :raises FormatError: there is no such granule, or it has no LPA2.
    :raises KvmarchError: no such IPA size.
    """
    page_shift = find_page_shift(page_size)
    most = _address_bits(page_shift, lpa2=lpa2)
    if not _MIN_IPA_BITS <= ia_bits <= most:
        raise KvmarchError(
            f"no IPA size of {ia_bits} bits with {page_size} byte pages; "
            f"there is {_MIN_IPA_BITS} to {most}"
        )
    levels = max(_MIN_LEVELS, stage2_pgtable_levels(page_shift, ia_bits))
    start_level = KVM_PGTABLE_LAST_LEVEL + 1 - levels
    above_root = kvm_granule_shift(page_shift, start_level - 1)
    return _geometry(
        page_shift,
        ia_bits=ia_bits,
        start_level=start_level,
        root_pages=((1 << ia_bits) - 1 >> above_root) + 1,
        lpa2=lpa2,
    )


@cache
def make_old_geometry(page_size: int) -> Geometry:
    """Return the tables of the old MMU up to v4.19: 40 bits, whatever the CPU has.

    :Kernel: S2_PGDIR_SHIFT, PTRS_PER_S2_PGD, KVM_MMU_CACHE_MIN_PAGES
    :raises FormatError: there is no such granule.
    """
    page_shift = find_page_shift(page_size)
    levels = stage2_pgtable_levels(page_shift, KVM_PHYS_SHIFT)
    start_level = KVM_PGTABLE_LAST_LEVEL + 1 - levels
    s2_pgdir_shift = kvm_granule_shift(page_shift, start_level)
    ptrs_per_s2_pgd = 1 << KVM_PHYS_SHIFT - s2_pgdir_shift
    return _geometry(
        page_shift,
        ia_bits=KVM_PHYS_SHIFT,
        start_level=start_level,
        root_pages=max(1, (ptrs_per_s2_pgd << _ENTRY_SHIFT) >> page_shift),
        lpa2=False,
    )


def _geometry(
    page_shift: int, *, ia_bits: int, start_level: int, root_pages: int, lpa2: bool
) -> Geometry:
    return Geometry(
        page_shift=page_shift,
        ia_bits=ia_bits,
        start_level=start_level,
        root_pages=root_pages,
        lpa2=lpa2,
        # The last place is also index -1, which is the level above 0.
        shifts=tuple(kvm_granule_shift(page_shift, n) for n in (0, 1, 2, 3, -1)),
        index_mask=(1 << page_shift - _ENTRY_SHIFT) - 1,
        min_block_level=_MIN_BLOCK_LEVELS[page_shift],
    )


def kvm_pgtable_idx(geometry: Geometry, addr: int, level: int) -> int:
    """Return the index of an address in a table page of this level.

    :Kernel: kvm_pgtable_idx(), since v5.10
    """
    return addr >> geometry.shifts[level] & geometry.index_mask


def kvm_pgd_page_idx(geometry: Geometry, addr: int) -> int:
    """Return which page of the root an address belongs to.

    :Kernel: kvm_pgd_page_idx(), since v5.10
    """
    return (addr & (1 << geometry.ia_bits) - 1) >> geometry.shifts[
        geometry.start_level - 1
    ]


def kvm_mmu_cache_min_pages(geometry: Geometry) -> int:
    """Return the table pages that one fault may need: all levels but the root.

    :Kernel: kvm_mmu_cache_min_pages(); KVM_MMU_CACHE_MIN_PAGES before v5.4
    """
    return geometry.levels - 1


def _address_bits(page_shift: int, *, lpa2: bool) -> int:
    """Return the address bits that the descriptors of a granule have room for."""
    if page_shift == PAGE_SHIFTS[65536]:
        if lpa2:
            raise FormatError("LPA2 is for 4096 and 16384 byte pages")
        return _MOST_IPA_BITS
    return _MOST_IPA_BITS if lpa2 else _PLAIN_IPA_BITS


def kvm_ipa_limit(page_size: int, parange_bits: int, *, lpa2: bool = False) -> int:
    """Return the largest IPA size that a VM may ask for, in bits.

    :Kernel: kvm_set_ipa_limit(); the cap by the descriptor since 5e5df9571c31
    :param parange_bits: physical address bits of the CPU.
    """
    return min(parange_bits, _address_bits(find_page_shift(page_size), lpa2=lpa2))


def kvm_init_ipa_range(requested: int, limit: int) -> int:
    """Return a VM's IPA size in bits, or -EINVAL.

    :Kernel: kvm_init_ipa_range(), in older releases kvm_arm_setup_stage2()
    :param requested: from the VM type; 0 means 40 bits.
    :param limit: what :func:`kvm_ipa_limit` returned.
    """
    size = requested or KVM_PHYS_SHIFT
    return size if _MIN_IPA_BITS <= size <= limit else -errno.EINVAL
