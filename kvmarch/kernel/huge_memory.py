"""Huge host mappings that are split.

Models mm/huge_memory.c; the notification is that of generic facts 2.14.
"""

__all__ = ["CHOICES", "split_edges", "split_huge", "split_partial", "split_pmd"]

from kvmarch.changes import Choice
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.machine.host import DIRTY, PFN_SHIFT, PMD_TABLE_SHIFT, SPECIAL, Mm
from kvmarch.machine.steps import op

split_keeps_dirty = Choice(
    "split_keeps_dirty", "whether the entries of a huge page that is split are dirty"
)
split_keeps_dirty.add(False)
split_keeps_dirty.add(True, "split-keeps-dirty")


def split_pmd(mm: Mm, first: int) -> None:
    """Turn a huge host entry into entries of base page size.

    Those of the huge zero page become entries of the zero page. Before v6.2 D goes to
    the page and not to the entries.

    :Kernel: __split_huge_pmd_locked(), __split_huge_zero_page_pmd().
    """
    entry = mm.pmds[first]
    pages = 1 << mm.pmd_order
    step = 1 << PFN_SHIFT
    mm.set_entry(first, 0, pages)
    if not mm.k.split_keeps_dirty:
        entry &= ~DIRTY
    if mm.host.is_zero(entry >> PFN_SHIFT):
        entry = mm.host.zero_pfn << PFN_SHIFT | entry & step - 1 | SPECIAL
        step = 0
    for offset in range(pages):
        mm.set_pte(first + offset, entry + offset * step)


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


@op(name="huge mappings to split")
def _to_split(mm: Mm, start: int, end: int, whole: bool) -> tuple[int, ...]:
    shift = mm.page_shift
    return tuple(
        vpn << shift
        for vpn, _entry, pages in mm.mapped(start, end)
        if pages > 1
        and (whole or not (start <= vpn << shift and vpn + pages << shift <= end))
    )


async def split_partial(mm: Mm, start: int, end: int, *, whole: bool = False) -> None:
    """Split the huge mappings that a range of hvas meets only in part.

    Each with a bracket of its own around the whole huge page, inside the bracket of
    whoever changes the range: KVM may have mapped the huge page.

    :param whole: split those as well that are in the range as a whole.
    :Kernel: the calls of __split_huge_pmd() in zap_pmd_range(), change_pmd_range(),
        move_page_tables().
    """
    if not mm.pmds:
        return
    met = await _to_split(mm, start, end, whole)
    for hva in met:
        await split_huge(mm, hva)


def split_edges(mm: Mm, start: int, end: int) -> tuple[int, ...]:
    """Split the VMAs that a range of hvas meets only in part.

    :Kernel: vma_adjust_trans_huge(), as of every split of a VMA.
    :returns: the hvas where :func:`split_huge` is called for that: wherever the VMA had
        room for a huge page around its new edge, and a table to hold it in, whether or
        not there is one.
    """
    span = 1 << mm.pmd_order + mm.page_shift
    found: list[int] = []
    for edge in (start, end):
        first = edge // span * span
        vma = mm.find_vma(edge)
        if vma is None or vma.start == edge:
            continue
        mm.split_vmas(edge, edge)
        room = vma.start <= first < edge and first + span <= vma.end
        if room and mm.pmd_order and first >> PMD_TABLE_SHIFT in mm.pmd_tables:
            found.append(first)
    return tuple(found)


CHOICES = (split_keeps_dirty,)
