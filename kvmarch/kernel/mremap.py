"""Mappings that move to other addresses.

Models mm/mremap.c; the notifications are those of generic facts 2.14.
"""

__all__ = ["CHOICES", "mremap"]

from dataclasses import replace
from errno import EFAULT

from kvmarch.changes import Choice
from kvmarch.kernel.huge_memory import split_partial
from kvmarch.kernel.ksm import unmerge_ksm_pages
from kvmarch.kernel.mmap import do_munmap
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.machine.host import SOFT_DIRTY, Mm
from kvmarch.machine.steps import op

moves_several = Choice(
    "moves_several", "whether mremap() moves a range that several mappings have"
)
moves_several.add(False)
moves_several.add(True, "mremap-moves-several")


def _may_move(mm: Mm, parts: tuple[tuple[int, int], ...], start: int, end: int) -> bool:
    """Return whether a range with these parts may be moved."""
    if mm.k.moves_several:
        return bool(parts) and parts[0][0] == start
    return parts == ((start, end),)


async def mremap(mm: Mm, start: int, end: int, to: int) -> int:
    """Move a range of hvas to another address, whatever is mapped there.

    Before v6.17 one mapping must have all of it; since then several are moved one after
    the other, and holes between them stay.

    :Kernel: mremap_to() with MREMAP_FIXED; remap_move() from v6.17.
    :returns: 0, or EFAULT.
    """
    async with mm.mmap_lock.write():
        if mm.parts(to, to + end - start):
            await do_munmap(mm, to, to + end - start)
        parts = mm.parts(start, end)
        if not _may_move(mm, parts, start, end):
            return EFAULT
        for first, stop in parts:
            await _move_vma(mm, first, stop, to + first - start)
    return 0


@op(name="copy VMA")
def _copy_vma(mm: Mm, start: int, end: int, to: int) -> None:
    vma = mm.find_vma(start)
    if vma is not None:
        mm.add_vma(replace(vma, start=to, end=to + end - start))


async def _move_vma(mm: Mm, start: int, end: int, to: int) -> None:
    """Move what one VMA has of a range.

    Notifiers are told of the old range twice: when its entries move, and when it is
    unmapped, although nothing is left there then. Pages that KSM has merged get copies
    before.

    :Kernel: move_vma().
    """
    await unmerge_ksm_pages(mm, start, end)
    await _copy_vma(mm, start, end, to)
    await _move_page_tables(mm, start, end, to)
    await do_munmap(mm, start, end)


async def _move_page_tables(mm: Mm, start: int, end: int, to: int) -> None:
    """Move the entries of a range (event UNMAP).

    Simplified: from v6.7 on the kernel begins at the first address of a table of pages,
    and tells so, where nothing lies before the range in that table, neither in the old
    place nor in the new one, and the range begins equally deep in both.

    :Kernel: move_page_tables(). A huge page that the range has only in part, or that
        would not be aligned in its new place, is split.
    """
    await mmu_notifier_invalidate_range_start(mm, start, end)
    span = 1 << mm.page_shift + mm.pmd_order
    await split_partial(mm, start, end, whole=(to - start) % span > 0)
    async with mm.ptl.write():
        await _move_ptes(mm, start, end, to)
    await mmu_notifier_invalidate_range_end(mm, start, end)


@op(name="move PTEs")
def _move_ptes(mm: Mm, start: int, end: int, to: int) -> None:
    """Move entries, which are soft-dirty from then on.

    :Kernel: move_ptes(), move_soft_dirty_pte(); seen on ppc64el 6.12.
    """
    distance = to - start >> mm.page_shift
    for vpn, entry, pages in list(mm.mapped(start, end)):
        mm.set_entry(vpn, 0, pages)
        mm.set_entry(vpn + distance, entry | SOFT_DIRTY, pages)
    first, stop = start >> mm.page_shift, -(-end >> mm.page_shift)
    for vpn in [vpn for vpn in mm.swapped if first <= vpn < stop]:
        mm.swapped[vpn + distance] = mm.swapped.pop(vpn)


CHOICES = (moves_several,)
