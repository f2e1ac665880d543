"""Huge host mappings that are split.

Models mm/huge_memory.c; the notification is that of generic facts 2.14.
"""

__all__ = ["split_huge", "split_pmd"]

from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.machine.host import PFN_SHIFT, Mm
from kvmarch.machine.steps import op


def split_pmd(mm: Mm, first: int) -> None:
    """Turn a huge host entry into entries of base page size."""
    entry = mm.pmds.pop(first)
    for offset in range(1 << mm.pmd_order):
        mm.ptes[first + offset] = entry + (offset << PFN_SHIFT)


@op(name="split huge PMD")
def _split(mm: Mm, first: int) -> bool:
    if first not in mm.pmds:
        return False
    split_pmd(mm, first)
    return True


async def split_huge(mm: Mm, hva: int) -> bool:
    """Split the huge mapping around an hva; the pages stay what they are.

    :Kernel: __split_huge_pmd() (event CLEAR).
    """
    first = hva >> mm.page_shift >> mm.pmd_order << mm.pmd_order
    start = first << mm.page_shift
    end = start + (1 << mm.pmd_order + mm.page_shift)
    await mmu_notifier_invalidate_range_start(mm, start, end)
    async with mm.ptl.write():
        done = await _split(mm, first)
    await mmu_notifier_invalidate_range_end(mm, start, end)
    return done
