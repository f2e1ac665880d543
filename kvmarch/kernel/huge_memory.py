"""Huge host mappings that are split.

Models mm/huge_memory.c; the notification is that of generic facts 2.14.
"""

__all__ = [
    "CHOICES",
    "split_edges",
    "split_huge",
    "split_huge_page",
    "split_partial",
    "split_pmd",
]

from kvmarch.changes import Choice
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.machine.host import (
    DIRTY,
    EXEC,
    PFN_SHIFT,
    PMD_TABLE_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    SPECIAL,
    YOUNG,
    Mm,
)
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


# -- huge pages that are split for good --------------------------------------------

splits_in_bracket = Choice(
    "splits_in_bracket",
    "whether the bracket in which a huge page is unmapped has the split of its PMD",
)
splits_in_bracket.add(False)
splits_in_bracket.add(True, "splits-in-bracket")
maps_zeroes = Choice(
    "maps_zeroes",
    "whether pages of zeroes become the zero page when a huge page is split",
)
maps_zeroes.add(False)
maps_zeroes.add(True, "split-maps-zeroes")


@op(name="may the huge page be split?")
def _extent(mm: Mm, pfn: int) -> tuple[int, int]:
    """Return the first page of a huge page and how many it has; none if it is held.

    The caller holds it by one reference.
    """
    pages = mm.host.pages
    count = 1 << pages[pfn].order
    head = pfn // count * count
    held = sum(
        pages[each].refs - pages[each].maps for each in range(head, head + count)
    )
    return (head, count) if held == 1 else (head, 0)


@op(name="split huge page")
def _split_page(mm: Mm, head: int, count: int) -> None:
    """Make base pages of a huge page; map the zero page in place of zeroes."""
    host = mm.host
    inside = range(head, head + count)
    for pfn in inside:
        host.pages[pfn].order = 0
    if not mm.k.maps_zeroes:
        return
    bits = SPECIAL | PRESENT | YOUNG
    for each in mm.family():
        for vpn, entry in list(each.ptes.items()):
            pfn = entry >> PFN_SHIFT
            if pfn in inside and host.pages[pfn].content == 0:
                kept = bits | entry & (EXEC | SOFT_DIRTY)
                each.set_pte(vpn, host.zero_pfn << PFN_SHIFT | kept)
                host.pages[pfn].maps -= 1
                host.put(pfn)


async def split_huge_page(mm: Mm, vpn: int, pfn: int) -> bool:
    """Split a huge page for good, wherever an mm and its children map it.

    Notifiers are told of each VMA that has part of it, see ``splits_in_bracket``.
    Simplified: the entries are not migration entries meanwhile; harmless because
    whoever maps a page in between is told when KSM protects it. All that is mapped of
    it is taken to be where the page at hand says.

    :Kernel: split_huge_page(), unmap_folio(), try_to_migrate_one() (event CLEAR).
    :param vpn: where a page of it is mapped; ``pfn`` is that page, which the caller
        holds.
    :returns: False if somebody else holds it.
    """
    head, count = await _extent(mm, pfn)
    if not count:
        return False
    shift = mm.page_shift
    start = vpn - (pfn - head) << shift
    end = start + (count << shift)
    for each in mm.family():
        for first, stop in each.parts(start, end):
            if not mm.k.splits_in_bracket:
                await split_huge(each, first)
            await mmu_notifier_invalidate_range_start(each, first, stop)
            async with each.ptl.write():
                await _split(each, start >> shift)
            await mmu_notifier_invalidate_range_end(each, first, stop)
    await _split_page(mm, head, count)
    return True


CHOICES = (split_keeps_dirty, splits_in_bracket, maps_zeroes)
