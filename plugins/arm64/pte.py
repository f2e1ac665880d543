"""Stage-2 entries as the kernel's functions make, read and change them.

:Kernel: arch/arm64/kvm/hyp/pgtable.c, v5.10 to v7.1, whose names the functions keep.

Entries are ints; what differs between configurations comes from a
:class:`~kvmarch_arm64.layout.Layout`.
"""

__all__ = [
    "kvm_init_invalid_leaf_owner",
    "kvm_init_table_pte",
    "kvm_init_valid_leaf_pte",
    "kvm_phys_to_pte",
    "kvm_pte_table",
    "kvm_pte_to_phys",
    "kvm_pte_valid",
    "kvm_set_invalid_pte",
    "may_change",
    "stage2_is_young",
    "stage2_mkold",
    "stage2_mkyoung",
    "stage2_pte_cacheable",
    "stage2_pte_executable",
    "stage2_pte_is_counted",
    "stage2_pte_is_locked",
    "stage2_pte_needs_update",
    "stage2_set_prot_attr",
    "stage2_wrprotect",
]

import errno

from kvmarch_arm64.formats import Descriptor, Leaf, Table
from kvmarch_arm64.geometry import KVM_PGTABLE_LAST_LEVEL
from kvmarch_arm64.layout import Layout

from kvmarch import EntryError

# Places that every layout shares, as plain ints for the functions below.
_VALID = Descriptor.valid.mask
_PAGE_OR_TABLE = Table.kind_mask
_R = Leaf.r.mask
_W = Leaf.w.mask
_AF = Leaf.af.mask
_OWNER_KINDS = ("owner", "donation")

# -------------------------------------------------------------------------
# Reading
# -------------------------------------------------------------------------


def kvm_pte_valid(pte: int) -> bool:
    """Return whether hardware uses an entry.

    :Kernel: kvm_pte_valid(), since v5.10
    """
    return pte & _VALID != 0


def kvm_pte_table(pte: int, level: int) -> bool:
    """Return whether an entry of this level points at a table.

    :Kernel: kvm_pte_table(), since v5.10
    """
    return pte & _PAGE_OR_TABLE == _PAGE_OR_TABLE and level != KVM_PGTABLE_LAST_LEVEL


def kvm_pte_to_phys(layout: Layout, pte: int) -> int:
    """Return the address that an entry holds, in bytes.

    :Kernel: kvm_pte_to_phys(), since v5.10
    """
    return (
        pte & layout.addr_mask | (pte << layout.addr_high_shift) & layout.addr_high_mask
    )


def kvm_phys_to_pte(layout: Layout, pa: int) -> int:
    """Return an address at its place in an entry, all other bits zero.

    :Kernel: kvm_phys_to_pte(), since v5.10
    :param pa: in bytes; the part below a page is dropped.
    """
    return (
        pa & layout.addr_mask | (pa & layout.addr_high_mask) >> layout.addr_high_shift
    )


def stage2_pte_is_counted(layout: Layout, pte: int) -> bool:
    """Return whether a reference on the table is held for an entry.

    A locked entry looks counted, but the break step stores it after dropping the
    reference (fact sheet arm64, 2.1).

    :Kernel: stage2_pte_is_counted(), since v5.13: any value but zero; before, any
        valid entry
    """
    return pte & layout.counted_mask != 0


def stage2_pte_is_locked(layout: Layout, pte: int) -> bool:
    """Return whether another walker is between break and make.

    :Kernel: stage2_pte_is_locked(), since v6.2; always false before
    """
    return pte & layout.locked_mask == layout.locked_value


def stage2_pte_executable(layout: Layout, pte: int) -> bool:
    """Return whether the I-cache needs care when an entry is installed.

    :Kernel: stage2_pte_executable(), since v5.14
    """
    # Simplified: older releases do not test validity. What they say of an invalid
    # entry has no effect, because guest tables get no annotations.
    return pte & layout.exec_mask in layout.exec_values


def stage2_pte_cacheable(layout: Layout, pte: int) -> bool:
    """Return whether the guest accesses memory through its D-cache.

    :Kernel: stage2_pte_cacheable(), since v5.10
    """
    # Simplified: as in stage2_pte_executable().
    return pte & layout.cacheable_mask == layout.cacheable_value


def stage2_is_young(pte: int) -> bool:
    """Return whether a valid leaf has been accessed.

    :Kernel: kvm_pgtable_stage2_is_young(), stage2_age_walker() since v6.5
    """
    return pte & _AF != 0


def stage2_pte_needs_update(layout: Layout, old: int, new: int) -> bool:
    """Return whether a map must store; if not, it answers -EAGAIN.

    :Kernel: stage2_pte_needs_update(), since v5.12 (694d071f8d85): not if both are
        valid and differ in permissions at most
    """
    return not old & new & _VALID or (old ^ new) & ~layout.perms_mask != 0


def may_change(layout: Layout, old: int, new: int) -> bool:
    """Return whether a live entry may change so without break-before-make.

    What :meth:`~kvmarch_arm64.formats.Descriptor.may_change` says of entries that
    KVM made, without the need to know their kind: a table entry has none of the bits
    of :attr:`~kvmarch_arm64.layout.Layout.live_mask`.
    """
    return not old & new & _VALID or not (old ^ new) & ~layout.live_mask


# -------------------------------------------------------------------------
# Making
# -------------------------------------------------------------------------


def stage2_set_prot_attr(
    layout: Layout,
    r: bool = False,
    w: bool = False,
    x: bool = False,
    device: bool = False,
    nc: bool = False,
    *,
    ux: bool | None = None,
    sw: int = 0,
) -> int:
    """Return the attributes of a leaf, or -EINVAL.

    Refused are: device and Normal-NC together or executable, and EL1 and EL0 apart
    on a CPU that cannot.

    :Kernel: stage2_map_set_prot_attr(), stage2_set_prot_attr() since v5.13
    :param x: EL1 may execute, and EL0 too unless ``ux`` says otherwise.
    :param nc: Normal non-cacheable.
    :param sw: software bits, in place.
    """
    ux = x if ux is None else ux
    if device or nc:
        if x or ux or (device and nc):
            return -errno.EINVAL
        memattr = layout.device if device else layout.normal_nc
    else:
        memattr = layout.normal
    xn = layout.xn_by_exec[x | ux << 1]
    if xn is None:
        return -errno.EINVAL
    return (
        layout.leaf_attrs
        | memattr
        | xn
        | (_R if r else 0)
        | (_W if w else 0)
        | sw & layout.sw_mask
    )


def kvm_init_valid_leaf_pte(layout: Layout, pa: int, attr: int, level: int) -> int:
    """Return a page or block entry.

    :Kernel: kvm_init_valid_leaf_pte(), since v5.12; part of kvm_set_valid_leaf_pte()
        before
    :param pa: in bytes, aligned to what the entry maps.
    :param attr: what :func:`stage2_set_prot_attr` returned, if that was no error.
    """
    assert attr >= 0
    kind = _PAGE_OR_TABLE if level == KVM_PGTABLE_LAST_LEVEL else _VALID
    return (
        pa & layout.addr_mask
        | (pa & layout.addr_high_mask) >> layout.addr_high_shift
        | attr & layout.leaf_attr_mask
        | kind
    )


def kvm_init_table_pte(layout: Layout, child_pa: int) -> int:
    """Return an entry that points at a table.

    :Kernel: kvm_init_table_pte(), since v6.2; kvm_set_table_pte() before
    :param child_pa: of the table, in bytes.
    """
    return kvm_phys_to_pte(layout, child_pa) | _PAGE_OR_TABLE


def kvm_init_invalid_leaf_owner(layout: Layout, owner_id: int) -> int:
    """Return an invalid entry that says who owns the page (pKVM).

    :Kernel: kvm_init_invalid_leaf_owner(), v5.13 to v7.0; from v7.1 on the donation
        that kvm_pgtable_stage2_annotate() writes, here without metadata
    :param owner_id: 1 is the hypervisor; 0, the host, leaves the entry empty.
    :raises EntryError: the release keeps no owner, or the id does not fit.
    """
    if owner_id == 0:
        return 0
    for _, kind, fmt in layout.rows:
        if kind in _OWNER_KINDS:
            return fmt.pack(owner=owner_id)
    raise EntryError(
        f"layout {layout.name} keeps no owner in invalid entries; "
        f"v5.13 and later releases do"
    )


def kvm_set_invalid_pte(pte: int) -> int:
    """Return what unmapping leaves of an entry in v5.10 to v5.12.

    :Kernel: kvm_set_invalid_pte(), until v5.13 stores 0 (f60ca2f9321a)
    """
    return pte & ~_VALID


# -------------------------------------------------------------------------
# Changing a valid leaf; the walkers test for validity
# -------------------------------------------------------------------------


def stage2_wrprotect(pte: int) -> int:
    """Return a leaf without write permission.

    :Kernel: kvm_pgtable_stage2_wrprotect(), since v5.10
    """
    return pte & ~_W


def stage2_mkold(pte: int) -> int:
    """Return a leaf without access flag.

    :Kernel: kvm_pgtable_stage2_mkold(), stage2_age_walker() since v6.5
    """
    return pte & ~_AF


def stage2_mkyoung(pte: int) -> int:
    """Return a leaf with access flag.

    :Kernel: kvm_pgtable_stage2_mkyoung(), since v5.10
    """
    return pte | _AF
