"""Rmap words: from a page of a hash guest to the chain of HPTEs that map it.

:Kernel: KVMPPC_RMAP_* in arch/powerpc/include/asm/kvm_host.h, and
    arch/powerpc/kvm/book3s_hv_rm_mmu.c and book3s_64_mmu_hv.c, v4.9 to v6.19.

A memslot has one word per page, positions as in the fact sheet ppc, section 4.4. The
chain itself is in the ``rev[]`` array; a large HPTE is in the chain of its first page.
"""

__all__ = [
    "KVMPPC_RMAP_CHANGED",
    "KVMPPC_RMAP_INDEX",
    "KVMPPC_RMAP_LOCK",
    "KVMPPC_RMAP_PRESENT",
    "KVMPPC_RMAP_RC_SHIFT",
    "KVMPPC_RMAP_REFERENCED",
    "RMAP_KINDS",
    "RmapHpt",
    "hpte_mask_rc",
    "lock_rmap",
    "rmap_add",
    "rmap_harvest",
    "rmap_head",
    "rmap_remove_last",
    "unlock_rmap",
]

from collections.abc import Mapping

from kvmarch_ppc.hpte import HPTE_R_C, HPTE_R_R, HpteR
from kvmarch_ppc.layout import Empty

from kvmarch import EntryFormat, Field


class _Word(EntryFormat):
    # Simplified: words as from v4.20 on. Kernels before nested radix leave the type 0;
    # v4.9 and v4.11 also keep the order of the largest change here.
    lock = Field(43, doc="KVMPPC_RMAP_LOCK_BIT: KVM's bit lock")
    referenced = Field(40, doc="R of HPTEs that are gone")
    changed = Field(39, doc="C of HPTEs that are gone")

    live_changes = Empty.live_changes


class RmapHpt(_Word):
    """The word of a page that HPTEs map."""

    type = Field(63, 56, fixed=1, doc="KVMPPC_RMAP_HPT")
    present = Field(32, fixed=1, doc="KVMPPC_RMAP_PRESENT: there is a chain")
    index = Field(31, 0, doc="number of the HPTE at its head")


class RmapUnchained(_Word):
    """The word of a page that no HPTE maps any more."""

    type = Field(63, 56, fixed=1, doc="KVMPPC_RMAP_HPT")
    present = Field(32, fixed=0, doc="no chain")


class RmapUnused(_Word):
    """The word of a page that no HPTE has mapped yet."""


RMAP_KINDS: Mapping[str, type[EntryFormat]] = {
    "none": RmapUnused,
    "unchained": RmapUnchained,
    "chained": RmapHpt,
}
"""What the memslot's word of a page can be."""

KVMPPC_RMAP_LOCK = RmapHpt.lock.mask
KVMPPC_RMAP_REFERENCED = RmapHpt.referenced.mask
KVMPPC_RMAP_CHANGED = RmapHpt.changed.mask
KVMPPC_RMAP_PRESENT = RmapHpt.present.mask
KVMPPC_RMAP_INDEX = RmapHpt.index.mask
KVMPPC_RMAP_RC_SHIFT = RmapHpt.referenced.low - HpteR.r.low
"""How far R and C of an HPTE are moved into a word."""

_RC = HPTE_R_R | HPTE_R_C
_CHAINED = RmapHpt.kind_value
_CHAIN_BITS = KVMPPC_RMAP_PRESENT | KVMPPC_RMAP_INDEX


def lock_rmap(word: int) -> int:
    """Return a word with its bit lock taken.

    :Kernel: lock_rmap()
    """
    return word | KVMPPC_RMAP_LOCK


def unlock_rmap(word: int) -> int:
    """Return a word with its bit lock free.

    :Kernel: unlock_rmap()
    """
    return word & ~KVMPPC_RMAP_LOCK


def rmap_add(word: int, index: int) -> int:
    """Return a word whose chain begins with an HPTE; its other bits stay.

    :Kernel: kvmppc_add_revmap_chain(), for the first HPTE, and where the head leaves
        the chain for the one behind it.
    :param index: number of the HPTE in the table.
    """
    return word & ~KVMPPC_RMAP_INDEX | _CHAINED | index


def rmap_remove_last(word: int) -> int:
    """Return a word whose only HPTE has left the chain; its other bits stay.

    :Kernel: remove_revmap_chain(), kvmppc_unmap_hpte()
    """
    return word & ~_CHAIN_BITS


def rmap_head(word: int) -> int | None:
    """Return the number of the HPTE at the head of the chain, None without one."""
    return word & KVMPPC_RMAP_INDEX if word & KVMPPC_RMAP_PRESENT else None


def rmap_harvest(word: int, hpte_r: int) -> int:
    """Return a word that remembers R and C of an HPTE that goes.

    :Kernel: remove_revmap_chain(), kvmppc_unmap_hpte()
    """
    return word | (hpte_r & _RC) << KVMPPC_RMAP_RC_SHIFT


def hpte_mask_rc(hpte_r: int, word: int) -> int:
    """Return a new HPTE's second doubleword with only the R and C that are known.

    With the bit clear, hardware sets it at the first use (fact sheet ppc, 4.7).

    :Kernel: kvmppc_do_h_enter(), kvmppc_book3s_hv_page_fault()
    """
    return hpte_r & (word >> KVMPPC_RMAP_RC_SHIFT | ~_RC)
