"""Shape of the x86 tables: indexes, page sizes, and the value that holds the root."""

__all__ = [
    "LEVEL_BITS",
    "MAX_LEVEL",
    "PAGE_SHIFT",
    "Eptp",
    "MemType",
    "construct_eptp",
    "nested_cr3",
    "pages_per_hpage",
    "spte_index",
]

from enum import IntEnum

from kvmarch import EntryFormat, Field

PAGE_SHIFT = 12
LEVEL_BITS = 9
MAX_LEVEL = 5
"""Levels are KVM's: 1 maps 4 KiB, 2 maps 2 MiB, 3 maps 1 GiB, 4 and 5 hold tables."""


class MemType(IntEnum):
    """Memory types of EPT; the other three numbers are misconfigurations."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6


class Eptp(EntryFormat):
    """The VMCS field that points at an EPT root (fact sheet x86, 1.1)."""

    root = Field(51, 12, doc="frame of the root table")
    ad = Field(6, doc="let hardware set A and D")
    walk = Field(5, 3, doc="levels of the walk, minus one")
    memtype = Field(2, 0, fixed=MemType.WB, enum=MemType, doc="how tables are read")


def spte_index(gpa: int, level: int) -> int:
    """Return the index of a guest-physical address in a table of this level.

    :Kernel: PT64_INDEX() up to v5.x, SPTE_INDEX() later.
    """
    return gpa >> PAGE_SHIFT + LEVEL_BITS * (level - 1) & (1 << LEVEL_BITS) - 1


def pages_per_hpage(level: int) -> int:
    """Return how many 4 KiB pages a leaf of this level maps.

    :Kernel: KVM_PAGES_PER_HPAGE()
    """
    return 1 << LEVEL_BITS * (level - 1)


def construct_eptp(root_hpa: int, levels: int, *, ad: bool) -> int:
    """Return the EPTP for a root table.

    :Kernel: construct_eptp()
    :param root_hpa: physical address of the root table.
    :param levels: 4 or 5.
    :param ad: whether hardware sets A and D.
    """
    return Eptp.pack(root=root_hpa >> PAGE_SHIFT, walk=levels - 1, ad=int(ad))


def nested_cr3(root_hpa: int, shadow_me_value: int = 0) -> int:
    """Return the nested CR3 for an NPT root; its depth is the host's own.

    :Kernel: svm_load_mmu_pgd(), set_tdp_cr3() in older releases. That the C bit is
        set here too is not in the fact sheet; it was read in the function.
    :param root_hpa: physical address of the root table.
    :param shadow_me_value: the C bit at its place, 0 without memory encryption.
    """
    return root_hpa | shadow_me_value
