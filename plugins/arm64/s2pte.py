"""Stage-2 entries of the old MMU: the host's pgprot macros on the same bits.

:Kernel: PAGE_S2 of arch/arm64/include/asm/pgtable-prot.h and the macros of
    asm/kvm_mmu.h, up to v5.9 (fact sheet arm64, 1.7). The pmd and pud macros do to a
    block what these do to a page.
"""

__all__ = [
    "kvm_pfn_pte",
    "kvm_pmd_mkhuge",
    "kvm_s2pte_exec",
    "kvm_s2pte_mkexec",
    "kvm_s2pte_mkwrite",
    "kvm_s2pte_readonly",
    "kvm_set_s2pte_readonly",
    "page_s2",
    "pte_mkold",
    "pte_mkyoung",
]

from kvmarch_arm64.formats import Leaf, Table
from kvmarch_arm64.layout import Layout
from kvmarch_arm64.pte import kvm_phys_to_pte, stage2_mkold, stage2_mkyoung

_PAGE = Table.kind_mask
_TYPE = Table.kind.mask
_R = Leaf.r.mask
_W = Leaf.w.mask


def page_s2(layout: Layout, *, device: bool = False, xn: bool) -> int:
    """Return the protection bits of a page, read-only.

    :Kernel: PAGE_S2; PAGE_S2_DEVICE, which is never executable
    :param xn: memory is not executable: since v4.19 unless the CPU has DIC, never
        before.
    """
    memattr, never = (layout.device, True) if device else (layout.normal, xn)
    return _PAGE | layout.leaf_attrs | memattr | _R | (layout.xn if never else 0)


def kvm_pfn_pte(layout: Layout, pfn: int, prot: int) -> int:
    """Return the entry of a page.

    :Kernel: kvm_pfn_pte(), pfn_pte()
    :param prot: what :func:`page_s2` returned.
    """
    return kvm_phys_to_pte(layout, pfn << layout.page_shift) | prot


def kvm_pmd_mkhuge(pte: int) -> int:
    """Return a block entry made of a page entry with the block's first frame.

    :Kernel: kvm_pmd_mkhuge(), kvm_pud_mkhuge()
    """
    return pte & ~_TYPE


def kvm_s2pte_mkwrite(pte: int) -> int:
    """Return the entry writable.

    :Kernel: kvm_s2pte_mkwrite(); kvm_set_s2pte_writable() in older releases
    """
    return pte | _R | _W


def kvm_s2pte_mkexec(layout: Layout, pte: int) -> int:
    """Return the entry executable.

    :Kernel: kvm_s2pte_mkexec(), since (v4.15, v4.19]
    """
    return pte & ~layout.xn


def kvm_set_s2pte_readonly(pte: int) -> int:
    """Return the entry readable but not writable.

    :Kernel: kvm_set_s2pte_readonly()
    """
    return pte & ~_W | _R


def kvm_s2pte_readonly(pte: int) -> bool:
    """Return whether the entry is readable but not writable.

    :Kernel: kvm_s2pte_readonly()
    """
    return pte & (_R | _W) == _R


def kvm_s2pte_exec(layout: Layout, pte: int) -> bool:
    """Return whether the entry is executable.

    :Kernel: kvm_s2pte_exec(), since (v4.15, v4.19]
    """
    return not pte & layout.xn


pte_mkyoung = stage2_mkyoung
pte_mkold = stage2_mkold
