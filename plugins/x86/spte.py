"""What KVM/x86 does with one entry (SPTE): build it, test it, change it.

:Kernel: arch/x86/kvm/mmu.c up to v5.9, arch/x86/kvm/mmu/spte.c and spte.h from v5.11.

Functions are on ints, have the kernel's names, and return the new value where the
kernel writes it; reading, comparing and storing is the caller's. Facts are those of
the fact sheet x86, sections 1.2 to 1.5, 3.2 to 3.4 and 3.7.
"""

__all__ = [
    "check_spte_writable_invariants",
    "fast_page_fault_spte",
    "get_mt_mask",
    "is_access_allowed",
    "is_access_track_spte",
    "is_accessed_spte",
    "is_dirty_spte",
    "is_executable_pte",
    "is_frozen_spte",
    "is_large_pte",
    "is_last_spte",
    "is_mmu_writable_spte",
    "is_shadow_present_pte",
    "is_writable_pte",
    "kvm_mmu_changed_pte_notifier_make_spte",
    "make_huge_page_split_spte",
    "make_huge_spte",
    "make_nonleaf_spte",
    "make_spte",
    "mark_spte_for_access_track",
    "restore_acc_track_spte",
    "spte_ad_enabled",
    "spte_ad_need_write_protect",
    "spte_can_locklessly_be_made_writable",
    "spte_clear_dirty",
    "spte_has_volatile_bits",
    "spte_to_pfn",
    "spte_write_protect",
    "without_dirty",
]

from collections.abc import Callable

from kvmarch_x86.geometry import PAGE_SHIFT, MemType, pages_per_hpage
from kvmarch_x86.layout import Layout
from kvmarch_x86.spte_fields import EptEntry, EptLeaf


def is_shadow_present_pte(layout: Layout, spte: int) -> bool:
    """Return whether KVM has mapped something here, for hardware present or not.

    :Kernel: is_shadow_present_pte(); bit 0 and no MMIO entry up to v4.10, not zero and
        no MMIO entry in v5.10, a bit of its own from v5.13.
    """
    return (
        spte & layout.present_mask != 0
        and spte & layout.absent_mask != layout.absent_value
    )


def is_frozen_spte(layout: Layout, spte: int) -> bool:
    """Return whether somebody is changing the entry under a shared mmu_lock.

    :Kernel: is_removed_spte(), later is_frozen_spte(); from v5.12.
    """
    return spte == layout.frozen


def is_large_pte(layout: Layout, spte: int) -> bool:
    """Return whether the page size bit is set."""
    return spte & layout.large_mask != 0


def is_last_spte(layout: Layout, spte: int, level: int) -> bool:
    """Return whether a present entry of this level maps memory."""
    return level == 1 or spte & layout.large_mask != 0


def is_writable_pte(layout: Layout, spte: int) -> bool:
    """Return whether hardware allows writes."""
    return spte & layout.writable_mask != 0


def is_mmu_writable_spte(layout: Layout, spte: int) -> bool:
    """Return whether no shadowed guest page table forbids writes."""
    return spte & layout.shadow_mmu_writable_mask != 0


def is_executable_pte(layout: Layout, spte: int) -> bool:
    """Return whether hardware allows fetches (supervisor fetches with XU)."""
    x = layout.shadow_x_mask
    return spte & (x | layout.shadow_nx_mask) == x


def is_access_allowed(layout: Layout, spte: int, access: str) -> bool:
    """Return whether hardware allows an access by a present leaf.

    :Kernel: is_access_allowed()
    :param access: ``read``, ``write`` or ``exec``.
    """
    if access == "write":
        return spte & layout.writable_mask != 0
    if access == "exec":
        return is_executable_pte(layout, spte)
    return spte & EptEntry.r.mask != 0


def spte_to_pfn(layout: Layout, spte: int) -> int:
    """Return the frame that a present entry leads to."""
    return (spte & layout.pfn_mask) >> PAGE_SHIFT


def spte_can_locklessly_be_made_writable(layout: Layout, spte: int) -> bool:
    """Return whether a fast page fault may set W.

    :Kernel: spte_is_locklessly_modifiable(), later this name; host- and MMU-writable
        up to v5.12, MMU-writable alone later.
    """
    mask = layout.lockless_mask
    return spte & mask == mask


def check_spte_writable_invariants(layout: Layout, spte: int) -> bool:
    """Return whether the writability bits of a leaf agree.

    MMU-writable implies host-writable, and W implies MMU-writable. The kernel warns
    where this is false; change_pte of the 5.10 layout makes such an entry.

    :Kernel: check_spte_writable_invariants()
    """
    if spte & layout.shadow_mmu_writable_mask:
        return spte & layout.shadow_host_writable_mask != 0
    return spte & layout.writable_mask == 0


def spte_ad_enabled(layout: Layout, spte: int) -> bool:
    """Return whether hardware sets A and D of a present entry."""
    return layout.ad and spte & layout.ad_mask != layout.ad_disabled


def spte_ad_need_write_protect(layout: Layout, spte: int) -> bool:
    """Return whether dirty logging must clear W of a present entry, not D."""
    return not layout.ad or spte & layout.ad_mask != 0


def is_access_track_spte(layout: Layout, spte: int) -> bool:
    """Return whether a present entry was aged by taking its permissions away."""
    return (
        spte & layout.ad_mask == layout.ad_disabled
        and spte & layout.shadow_acc_track_mask == 0
    )


def is_accessed_spte(layout: Layout, spte: int) -> bool:
    """Return whether a present leaf counts as accessed.

    :Kernel: is_accessed_spte(). Layout 4.2 without A/D has no such function; what it
        assumes when it drops an entry is returned.
    """
    if spte & layout.no_ad_mask == layout.no_ad_value:
        return spte & layout.no_ad_accessed_mask != 0
    return spte & layout.shadow_accessed_mask != 0


def is_dirty_spte(layout: Layout, spte: int) -> bool:
    """Return whether a present leaf counts as dirty.

    :Kernel: is_dirty_spte(); layout 4.2 as in :func:`is_accessed_spte`.
    """
    if spte & layout.no_ad_mask == layout.no_ad_value:
        return spte & layout.no_ad_dirty_mask != 0
    return spte & layout.shadow_dirty_mask != 0


def mark_spte_for_access_track(layout: Layout, spte: int) -> int:
    """Return a present leaf as ageing leaves it.

    With A/D that clears A. Without, the entry loses its permissions; R and X are put
    aside, W is not. Layout 4.2 without A/D does not change the entry at all.

    :Kernel: mark_spte_for_access_track(), from v4.11
    """
    if spte & layout.ad_mask != layout.ad_disabled:
        return spte & ~layout.shadow_accessed_mask
    if spte & layout.shadow_acc_track_mask == 0:
        return spte
    spte |= (spte & layout.saved_mask) << layout.saved_shift
    # Without A/D the A bit exists in the 7.2 layout only; elsewhere its mask is 0.
    return spte & ~(layout.shadow_acc_track_mask | layout.shadow_accessed_mask)


def restore_acc_track_spte(layout: Layout, spte: int) -> int:
    """Return a tracked leaf with the permissions that were put aside.

    :Kernel: restore_acc_track_spte(), from v4.11
    """
    mask, shift = layout.saved_mask, layout.saved_shift
    saved = spte >> shift & mask
    return spte & ~(layout.shadow_acc_track_mask | mask << shift) | saved


def fast_page_fault_spte(layout: Layout, spte: int, *, write: bool) -> int:
    """Return the value that a fast page fault tries to install over a present leaf.

    Whether it may try at all (huge leaf under dirty logging) is the caller's question.

    :Kernel: fast_page_fault(), fast_pf_fix_direct_spte()
    """
    new = spte
    if is_access_track_spte(layout, spte):
        # Only the 7.2 layout has an A bit here.
        new = restore_acc_track_spte(layout, spte) | layout.shadow_accessed_mask
    if write and spte_can_locklessly_be_made_writable(layout, spte):
        new |= layout.writable_mask
    return new


def _volatile_4_2(layout: Layout, spte: int) -> bool:
    if spte_can_locklessly_be_made_writable(layout, spte):
        return True
    if not layout.ad or not is_shadow_present_pte(layout, spte):
        return False
    return _hardware_may_set_ad(layout, spte)


def _volatile_5_10(layout: Layout, spte: int) -> bool:
    if not is_shadow_present_pte(layout, spte):
        return False
    if spte_can_locklessly_be_made_writable(layout, spte):
        return True
    if spte & layout.ad_mask == layout.ad_disabled:
        return spte & layout.shadow_acc_track_mask == 0
    return _hardware_may_set_ad(layout, spte)


def _volatile_6_1(layout: Layout, spte: int) -> bool:
    mmu_writable = layout.shadow_mmu_writable_mask
    if spte & (layout.writable_mask | mmu_writable) == mmu_writable:
        return True
    if spte & layout.ad_mask == layout.ad_disabled:
        return spte & layout.shadow_acc_track_mask == 0
    return _hardware_may_set_ad(layout, spte)


def _volatile_7_2(layout: Layout, spte: int) -> bool:
    mmu_writable, writable = layout.shadow_mmu_writable_mask, layout.writable_mask
    if spte & (writable | mmu_writable) == mmu_writable:
        return True
    if spte & layout.ad_mask == layout.ad_disabled:
        return True
    return spte & (writable | layout.shadow_dirty_mask) == writable


def _hardware_may_set_ad(layout: Layout, spte: int) -> bool:
    if spte & layout.shadow_accessed_mask == 0:
        return True
    writable = layout.writable_mask
    return spte & (writable | layout.shadow_dirty_mask) == writable


_VOLATILE: dict[str, Callable[[Layout, int], bool]] = {
    "4.2": _volatile_4_2,
    "4.11": _volatile_5_10,
    "5.10": _volatile_5_10,
    "5.12": _volatile_5_10,
    "6.1": _volatile_6_1,
    "6.12": _volatile_6_1,
    "6.13": _volatile_7_2,
    "7.2": _volatile_7_2,
}


def spte_has_volatile_bits(layout: Layout, spte: int) -> bool:
    """Return whether others may change the entry while mmu_lock is held.

    Then a plain store may lose what they wrote; an exchange does not. The four rules
    are those of the fact sheet x86, 1.3. From v5.13 the entry must be present.

    :Kernel: spte_has_volatile_bits(), in v7.2 spte_needs_atomic_update(); the rmap MMU
        alone asks in v5.10, the TDP MMU too from v5.18
    """
    return _VOLATILE[layout.release](layout, spte)


def get_mt_mask(
    layout: Layout, *, host_mmio: bool = False, guest_memtype: MemType | None = None
) -> int:
    """Return the memory type of a leaf at its place.

    :Kernel: vmx_get_mt_mask(); NPT has none
    :param host_mmio: the frame belongs to a device of the host.
    :param guest_memtype: the guest's own type (MTRR) where KVM must honour it, because
        a device with non-coherent DMA is assigned; None otherwise. From v6.12 its
        value does not matter, the guest's PAT decides.
    """
    # Simplified: CR0.CD is taken as clear; harmless because the model's guests never
    # turn their caches off.
    if layout.memtype_mask == 0 or host_mmio:
        return 0
    if guest_memtype is None:
        return layout.memtype_default
    memtype = guest_memtype if layout.guest_mtrr else MemType.WB
    return EptLeaf.memtype.place(memtype)


def make_spte(
    layout: Layout,
    pfn: int,
    level: int,
    *,
    write: bool = True,
    execute: bool = True,
    host_writable: bool = True,
    prefetch: bool = False,
    wrprot_only: bool = False,
    host_mmio: bool = False,
    memtype: int | None = None,
) -> int:
    """Return a new leaf.

    Simplified: the dirty bitmap is the caller's; the kernel marks it in here if W is
    set and the slot logs.

    :Kernel: set_spte() up to v5.9, make_spte() later
    :param pfn: the first frame, aligned to the level.
    :param write: the guest may write; False too where the gfn is write-tracked or a
        shadowed guest page table.
    :param execute: the guest may execute.
    :param host_writable: slot and host mapping are writable.
    :param prefetch: made for a neighbour of the faulting page, not accessed yet.
    :param wrprot_only: dirty logging must clear W instead of D.
    :param host_mmio: the frame belongs to a device of the host.
    :param memtype: what :func:`get_mt_mask` returned; None for the usual one.
    """
    spte = pfn << PAGE_SHIFT
    assert not spte & ~layout.pfn_mask, f"pfn {pfn:#x} is out of range"
    spte |= layout.leaf_bits
    if wrprot_only:
        spte |= layout.ad_wrprot_only
    if not prefetch:
        spte |= layout.shadow_accessed_mask
    if level > 1:
        assert not pfn & pages_per_hpage(level) - 1, f"pfn {pfn:#x} is not aligned"
        spte |= layout.large_mask
    if not execute:
        spte |= layout.shadow_nx_mask
    elif level > 1 and layout.nx_huge_pages:
        # XU stays (fact sheet x86, 1.5).
        spte |= layout.shadow_nx_mask | layout.shadow_xu_mask
    else:
        spte |= layout.shadow_x_mask | layout.shadow_xu_mask
    if not host_mmio:
        spte |= layout.shadow_me_value
        spte |= layout.memtype_default if memtype is None else memtype
    if host_writable:
        spte |= layout.shadow_host_writable_mask
        if write:
            spte |= (
                layout.writable_mask
                | layout.shadow_mmu_writable_mask
                | layout.shadow_dirty_mask
            )
    if prefetch:
        return mark_spte_for_access_track(layout, spte)
    return spte


def without_dirty(layout: Layout, new: int, old: int) -> int:
    """Return a new leaf, without D if what it replaces has W.

    A table and an MMIO entry have it as well as a leaf that is writable.

    :Kernel: make_spte(), is_writable_pte(); v5.16 to v6.12
    """
    if old & layout.writable_mask:
        return new & ~layout.shadow_dirty_mask
    return new


def make_nonleaf_spte(layout: Layout, child: int) -> int:
    """Return an entry that points at a table.

    :Kernel: link_shadow_page() up to v5.9, make_nonleaf_spte() later
    :param child: physical address of the table.
    """
    assert not child & ~layout.pfn_mask, f"{child:#x} is no table"
    return child | layout.nonleaf_bits


def spte_write_protect(layout: Layout, spte: int, *, pt_protect: bool) -> int:
    """Return a leaf without W.

    :Kernel: spte_write_protect()
    :param pt_protect: the page is a shadowed guest page table: MMU-writable goes too.
    """
    if pt_protect:
        return spte & ~(layout.writable_mask | layout.shadow_mmu_writable_mask)
    return spte & ~layout.writable_mask


def spte_clear_dirty(layout: Layout, spte: int) -> int:
    """Return a leaf without D, which re-arms the page modification log.

    :Kernel: spte_clear_dirty()
    """
    return spte & ~layout.shadow_dirty_mask


def _modify_spte_protections(layout: Layout, spte: int, on: int, off: int) -> int:
    """Change permissions, of a tracked entry those that were put aside."""
    tracked = is_access_track_spte(layout, spte)
    if tracked:
        spte = restore_acc_track_spte(layout, spte)
    spte = (spte | on) & ~off
    return mark_spte_for_access_track(layout, spte) if tracked else spte


def make_huge_page_split_spte(
    layout: Layout, huge_spte: int, level: int, index: int, *, execute: bool = True
) -> int:
    """Return one child of a huge leaf; it inherits all bits.

    Under the NX mitigation a 4 KiB child gets its execute permission back. The fact
    sheet names X for that; XU is set too, which changes nothing for an entry of
    :func:`make_spte`, as that keeps XU.

    :Kernel: make_huge_page_split_spte(), from v5.18; make_small_spte() in v7.2
    :param level: the children's level.
    :param index: the child's index in the new table.
    :param execute: the table allows execution (``role.access``).
    """
    child = huge_spte | index * pages_per_hpage(level) << PAGE_SHIFT
    if level > 1:
        return child
    child &= ~layout.large_mask
    if layout.nx_huge_pages and execute:
        x = layout.shadow_x_mask | layout.shadow_xu_mask
        child = _modify_spte_protections(layout, child, x, layout.shadow_nx_mask)
    return child


def make_huge_spte(layout: Layout, small_spte: int, level: int) -> int:
    """Return the huge leaf that takes over the bits of one of its pages.

    :Kernel: make_huge_spte(), from v6.13 (13e2e4f62a4b)
    :param level: the huge leaf's level.
    """
    offset = pages_per_hpage(level) - 1 << PAGE_SHIFT
    huge = (small_spte | layout.large_mask) & ~offset
    if layout.nx_huge_pages:
        x = layout.shadow_x_mask | layout.shadow_xu_mask
        huge = _modify_spte_protections(layout, huge, layout.shadow_nx_mask, x)
    return huge


def kvm_mmu_changed_pte_notifier_make_spte(
    layout: Layout,
    old_spte: int,
    new_pfn: int,
    *,
    keep_mmu_writable: bool | None = None,
) -> int:
    """Return the leaf that change_pte puts in place of an old one: read-only, aged.

    D is kept. With MMU-writable kept the result is not a legal state, see
    :func:`check_spte_writable_invariants`.

    :Kernel: kvm_set_pte_rmapp() up to v5.9, this name from v5.10 until v6.9
    :param keep_mmu_writable: leave MMU-writable as it is, as before f082d86ea685
        (v5.17); None for what the layout's own release does.
    """
    mmu_writable = layout.shadow_mmu_writable_mask
    keep = layout.change_pte_keeps
    if keep_mmu_writable is not None:
        keep = mmu_writable if keep_mmu_writable else 0
    cleared = layout.pfn_mask | layout.writable_mask | layout.shadow_host_writable_mask
    new = old_spte & ~(cleared | mmu_writable & ~keep) | new_pfn << PAGE_SHIFT
    return mark_spte_for_access_track(layout, new)
