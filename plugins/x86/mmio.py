"""MMIO entries: "no slot here", for which gfn, and as of which memslot generation.

:Kernel: make_mmio_spte(), check_mmio_spte(), kvm_mmu_invalidate_mmio_sptes(); fact
    sheet x86, 1.6. Up to v5.9 the first is called mark_mmio_spte().

``generation`` is always that of the memslots, as ``kvm_memslots::generation`` holds it.
"""

__all__ = [
    "check_mmio_spte",
    "generation_mmio_spte_mask",
    "generation_mmio_spte_mask_unshifted",
    "get_mmio_spte_access",
    "get_mmio_spte_generation",
    "get_mmio_spte_generation_unshifted",
    "get_mmio_spte_gfn",
    "is_mmio_spte",
    "kvm_current_mmio_generation",
    "make_mmio_spte",
    "mmio_generation_wrapped",
]

from collections.abc import Callable

from kvmarch_x86.geometry import PAGE_SHIFT
from kvmarch_x86.layout import Layout
from kvmarch_x86.spte_formats import L1TF_BITS


def is_mmio_spte(layout: Layout, spte: int) -> bool:
    """Return whether a value is an MMIO entry."""
    return spte & layout.mmio_mask == layout.mmio_value


def kvm_current_mmio_generation(layout: Layout, generation: int) -> int:
    """Return the slice of the memslots' generation that MMIO entries are compared with.

    :Kernel: kvm_current_mmio_generation() up to v5.0, MMIO_SPTE_GEN_MASK later
    """
    return generation + layout.mmio_gen_bias & layout.mmio_gen_mask


def generation_mmio_spte_mask(layout: Layout, gen: int) -> int:
    """Return a slice of the generation at its place in an entry."""
    return (
        gen << layout.mmio_gen_low_shift & layout.mmio_gen_low_mask
        | gen << layout.mmio_gen_high_shift & layout.mmio_gen_high_mask
    )


def get_mmio_spte_generation(layout: Layout, spte: int) -> int:
    """Return the slice of the generation that an MMIO entry holds."""
    return (spte & layout.mmio_gen_low_mask) >> layout.mmio_gen_low_shift | (
        spte & layout.mmio_gen_high_mask
    ) >> layout.mmio_gen_high_shift


def generation_mmio_spte_mask_unshifted(layout: Layout, gen: int) -> int:
    """Return a slice of the generation as v5.1 up to v5.9 place it.

    The upper part of the entry gets the low bits of the slice once more (D2 of the
    fact sheet).

    :Kernel: generation_mmio_spte_mask() from cae7ed3c2cb0 (v5.1) until 34c0f6f2695a
        (v5.10-rc8); use a layout with generation ``5.10``
    """
    low, high = layout.mmio_gen_low_mask, layout.mmio_gen_high_mask
    return gen << _lowest(low) & low | gen << _lowest(high) & high


def get_mmio_spte_generation_unshifted(layout: Layout, spte: int) -> int:
    """Return the generation of an MMIO entry as v5.1 up to v5.9 read it.

    The reader has the writer's mistake: both parts land on the low bits. Entries made
    at a generation below 512 match as they should, later ones never do, and none
    matches a generation it was not made at.

    :Kernel: get_mmio_spte_generation() from cae7ed3c2cb0 (v5.1) until 34c0f6f2695a
        (v5.10-rc8); read in the patch that mends it
    """
    low, high = layout.mmio_gen_low_mask, layout.mmio_gen_high_mask
    return (spte & low) >> _lowest(low) | (spte & high) >> _lowest(high)


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def make_mmio_spte(
    layout: Layout,
    gfn: int,
    access: int,
    generation: int,
    *,
    place: Callable[[Layout, int], int] = generation_mmio_spte_mask,
) -> int:
    """Return an MMIO entry.

    :param access: ACC_WRITE_MASK (2) and ACC_USER_MASK (4) of the fault; EPT keeps
        neither.
    :param generation: the memslots' generation that the fault read.
    :param place: how the generation is put into the entry.
    """
    assert layout.shadow_mmio_value, f"{layout.name} makes no MMIO entries"
    assert not gfn >> layout.mmio_gfn_bits, f"gfn {gfn:#x} is out of range"
    guard = layout.shadow_nonpresent_or_rsvd_mask
    gpa = gfn << PAGE_SHIFT
    return (
        place(layout, kvm_current_mmio_generation(layout, generation))
        | layout.shadow_mmio_value
        | access & layout.shadow_mmio_access_mask
        | gpa
        | guard
        | (gpa & guard) << L1TF_BITS
    )


def get_mmio_spte_gfn(layout: Layout, spte: int) -> int:
    """Return the gfn of an MMIO entry."""
    gpa = spte & layout.mmio_gfn_mask
    gpa |= spte >> L1TF_BITS & layout.shadow_nonpresent_or_rsvd_mask
    return gpa >> PAGE_SHIFT


def get_mmio_spte_access(layout: Layout, spte: int) -> int:
    """Return the access of an MMIO entry; 0 in EPT."""
    return spte & layout.shadow_mmio_access_mask


def check_mmio_spte(
    layout: Layout,
    spte: int,
    generation: int,
    *,
    read: Callable[[Layout, int], int] = get_mmio_spte_generation,
) -> bool:
    """Return whether an MMIO entry is still good: nothing changed since it was made.

    While an update of the memslots is under way it is not; up to v5.0 because the
    generation is odd then and no entry holds an odd one.

    :param generation: the memslots' generation now.
    :param read: how the entry's generation is read.
    """
    if generation & layout.mmio_gen_in_progress:
        return False
    return read(layout, spte) == kvm_current_mmio_generation(layout, generation)


def mmio_generation_wrapped(layout: Layout, generation: int) -> bool:
    """Return whether old MMIO entries could match again, so that all must be zapped.

    :Kernel: kvm_mmu_invalidate_mmio_sptes(). The bits that tell address spaces apart
        are left out from v5.1. In v3.11 to v3.16 the last value counts, not zero:
        read in a v3.11 tree, unverified for v3.16. In v7.2 nothing wraps where MMIO
        entries are not made.
    :param generation: the memslots' new generation.
    """
    gen = kvm_current_mmio_generation(layout, generation)
    return gen & layout.mmio_gen_wrap_mask == layout.mmio_gen_wrap_value
