"""What user space does with its memory: map, unmap, protect, move, fork, exit.

Models mm/mmap.c, mm/mprotect.c, mm/madvise.c, mm/memory.c; the
notifications are those of generic facts 2.14.
"""

__all__ = [
    "CHOICES",
    "do_munmap",
    "exit_mmap",
    "fork",
    "madvise_dontneed",
    "mprotect",
    "munmap",
    "oom_reap",
    "touch_pages",
]

from dataclasses import replace
from typing import Any, NamedTuple

from kvmarch.changes import Choice
from kvmarch.errors import ModelError
from kvmarch.kernel.gup import get_user_page, huge_range_fits, map_huge
from kvmarch.kernel.huge_memory import (
    split_edges,
    split_huge,
    split_partial,
    split_pmd,
)
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_invalidate_range_start_nonblock,
    mmu_notifier_release,
)
from kvmarch.machine.host import (
    DIRTY,
    EXEC,
    PFN_SHIFT,
    PMD_TABLE_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    WRITE,
    YOUNG,
    Mm,
)
from kvmarch.machine.steps import op

reclaims_tables = Choice(
    "reclaims_tables", "whether MADV_DONTNEED frees tables that it leaves empty"
)
reclaims_tables.add(False)
reclaims_tables.add(True, "pt-reclaim")


@op(name="clear PTEs")
def zap_ptes(mm: Mm, start: int, end: int, reclaim: bool = False) -> tuple[int, ...]:
    """Clear the host PTEs of a range; return the pages that they held.

    A huge entry is met as a whole here, see split_partial().

    :param reclaim: free the tables, too, whose addresses are all in the range.
    """
    host = mm.host
    freed: list[int] = []
    whole = [vpn for vpn, _entry, pages in mm.mapped(start, end) if pages > 1]
    for vpn in whole:
        split_pmd(mm, vpn)
    first, stop = start >> mm.page_shift, -(-end >> mm.page_shift)
    for vpn in [vpn for vpn in mm.swapped if first <= vpn < stop]:
        del mm.swapped[vpn]
    for vpn, entry, _pages in list(mm.mapped(start, end)):
        mm.set_pte(vpn, 0)
        pfn = entry >> PFN_SHIFT
        if not host.is_zero(pfn):
            host.pages[pfn].maps -= 1
            freed.append(pfn)
    # The table of a huge page that goes as a whole was never used.
    mm.pte_tables.difference_update(vpn >> mm.pmd_order for vpn in whole)
    if reclaim:
        order = mm.pmd_order
        inside = range(-(-first >> order), stop >> order)
        mm.pte_tables.difference_update([n for n in mm.pte_tables if n in inside])
    return tuple(freed)


@op(name="free pages")
def free_pages(mm: Mm, pfns: tuple[int, ...]) -> None:
    """Give back the references of mappings that are gone."""
    for pfn in pfns:
        mm.host.put(pfn)


async def _clear(
    mm: Mm, start: int, end: int, *, reclaim: bool = False, split: bool = True
) -> tuple[int, ...]:
    """Clear a range inside a bracket.

    :Kernel: zap_page_range_single(), unmap_vmas(): end is called before
        tlb_finish_mmu(), which frees the last batch.
    :returns: the pages, which the caller is to free.
    """
    await mmu_notifier_invalidate_range_start(mm, start, end)
    if split:
        await split_partial(mm, start, end)
    async with mm.ptl.write():
        pfns: tuple[int, ...] = await zap_ptes(mm, start, end, reclaim)
    await mmu_notifier_invalidate_range_end(mm, start, end)
    return pfns


@op(name="remove VMAs")
def _remove_vmas(mm: Mm, start: int, end: int) -> tuple[int, ...] | None:
    """Remove the VMAs of a range; return where they may split huge pages.

    :returns: hvas, see split_edges(); None if there is no VMA in the range.
    """
    if not any(vma.start < end and start < vma.end for vma in mm.vmas):
        return None
    edges = split_edges(mm, start, end)
    mm.remove_vmas(start, end)
    return edges


async def munmap(mm: Mm, start: int, end: int) -> None:
    """Unmap a range of hvas, bytes, end exclusive (event UNMAP).

    A huge page at an end of the range is split when the VMA is, before the bracket
    begins. The bracket is around all of the range, holes included; where nothing is
    mapped at all nobody is told.

    :Kernel: do_munmap(), do_vmi_align_munmap().
    """
    async with mm.mmap_lock.write():
        await do_munmap(mm, start, end)


async def do_munmap(mm: Mm, start: int, end: int) -> None:
    """Unmap a range, see munmap().

    :Locking: mmap_lock for write.
    """
    edges = await _remove_vmas(mm, start, end)
    if edges is not None:
        for hva in edges:
            await split_huge(mm, hva)
        pfns = await _clear(mm, start, end, split=False)
        await free_pages(mm, pfns)


frees_together = Choice(
    "frees_together",
    "whether MADV_DONTNEED frees the pages of several mappings at its end",
)
frees_together.add(False)
frees_together.add(True, "madvise-frees-together")


async def madvise_dontneed(mm: Mm, start: int, end: int) -> None:
    """Drop the pages of a range; the next access finds zeroes (event CLEAR).

    Each VMA has a bracket of its own.

    :Kernel: madvise_walk_vmas(), madvise_dontneed_single_vma(); the walk was
        madvise()'s own before v5.15.
    """
    async with mm.mmap_lock.read():
        kept: tuple[int, ...] = ()
        for first, stop in mm.parts(start, end):
            pfns = await _clear(mm, first, stop, reclaim=bool(mm.k.reclaims_tables))
            kept = (*kept, *pfns)
            if not mm.k.frees_together:
                await free_pages(mm, kept)
                kept = ()
        if mm.k.frees_together:
            await free_pages(mm, kept)


async def oom_reap(mm: Mm, start: int, end: int) -> bool:
    """Reap a range with a non-blocking start for each VMA.

    Simplified: by address; since v6.18 the kernel begins at the other end.

    :Kernel: __oom_reap_task_mm(): a VMA that was refused is skipped and gets no end.
    :returns: False if one was refused.
    """
    agreed = True
    async with mm.mmap_lock.read():
        for first, stop in mm.parts(start, end):
            may = await mmu_notifier_invalidate_range_start_nonblock(mm, first, stop)
            if not may:
                agreed = False
                continue
            await split_partial(mm, first, stop)
            async with mm.ptl.write():
                pfns = await zap_ptes(mm, first, stop)
            await mmu_notifier_invalidate_range_end(mm, first, stop)
            await free_pages(mm, pfns)
    return agreed


class _Part(NamedTuple):
    """A part of a range that is protected anew.

    :param edges: where VMAs that are split may split huge pages, see split_edges().
    """

    start: int
    end: int
    edges: tuple[int, ...]


@op(name="change VMA protection")
def _protect_vmas(
    mm: Mm, start: int, end: int, write: bool, executable: bool
) -> tuple[_Part, ...]:
    """Change what VMAs allow; return the parts of the range for which that is new.

    Neighbours that allowed the same are one part, as they are one VMA to the kernel.
    """
    parts: list[tuple[int, int]] = []
    before = None
    for vma in mm.vmas:
        first, last = max(vma.start, start), min(vma.end, end)
        if first >= last or (vma.write, vma.exec) == (write, executable):
            continue
        allowed = replace(vma, start=0, end=0)
        if parts and parts[-1][1] == first and before == allowed:
            parts[-1] = parts[-1][0], last
        else:
            parts.append((first, last))
        before = allowed
    changed = tuple(_Part(*part, split_edges(mm, *part)) for part in parts)
    mm.change_vmas(start, end, write=write, exec=executable)
    mm.merge_vmas(start, end)
    return changed


first_populated = Choice(
    "first_populated", "which tables mprotect() looks for, to begin what it tells there"
)
"""Simplified: the kernel has a bracket of its own for each GiB of a range."""


@first_populated.when()
def _first_page_table(mm: Mm, start: int, end: int) -> int:
    """Return the hva of a page, or of the first table of pages, full or empty.

    :Kernel: change_pmd_range(), v3.15 to v6.11.
    :returns: ``end`` if there is none.
    """
    shift = mm.page_shift + mm.pmd_order
    found = [vpn << mm.page_shift for vpn, _entry, _pages in mm.mapped(start, end)][:1]
    if mm.pmd_order:
        around = range(start >> shift, -(-end >> shift))
        found = [hva >> shift << shift for hva in found]
        found += [at << shift for at in mm.pte_tables if at in around]
    return max(start, min(found, default=end))


@first_populated.when("mprotect-by-gib")
def _first_huge_table(mm: Mm, start: int, end: int) -> int:
    """Return the hva of the first table of huge pages, full or empty.

    :Kernel: change_pud_range(), v6.12 on.
    :returns: ``end`` if there is none.
    """
    if not mm.pmd_order:
        return _first_page_table(mm, start, end)
    around = range(start >> PMD_TABLE_SHIFT, -(-end >> PMD_TABLE_SHIFT))
    found = [at << PMD_TABLE_SHIFT for at in mm.pmd_tables if at in around]
    return max(start, min(found, default=end))


@op(name="first populated table")
def _first_populated(mm: Mm, start: int, end: int) -> int:
    first: int = mm.k.first_populated.fn(mm, start, end)
    return first


stays_writable = Choice(
    "stays_writable", "whether mprotect() to writable makes an entry writable at once"
)


@stays_writable.when()
def _by_next_fault(mm: Mm, entry: int, pages: int) -> bool:
    """Leave it to the next write fault (to v5.19)."""
    return False


@stays_writable.when("mprotect-upgrades")
def _if_dirty(mm: Mm, entry: int, pages: int) -> bool:
    """Do so for a small page that nobody shares and that was written (v6.0, v6.1).

    :Kernel: can_change_pte_writable().
    """
    return pages == 1 and bool(entry & DIRTY) and _is_exclusive(mm, entry)


@stays_writable.when("mprotect-upgrades", "mprotect-upgrades-all")
def _if_exclusive(mm: Mm, entry: int, pages: int) -> bool:
    """Do so for every page that nobody shares, a huge one too (v6.2 on).

    :Kernel: can_change_pte_writable(), can_change_pmd_writable().
    """
    return _is_exclusive(mm, entry)


def _is_exclusive(mm: Mm, entry: int) -> bool:
    """Return whether nobody else has a page (PageAnonExclusive)."""
    page = mm.host.pages[entry >> PFN_SHIFT]
    return page.kind == "anon" and page.maps == 1


@op(name="change PTE permissions")
def _protect_ptes(mm: Mm, start: int, end: int, write: bool, executable: bool) -> None:
    upgrades = mm.k.stays_writable.fn
    for vpn, entry, pages in list(mm.mapped(start, end)):
        new = entry if write else entry & ~WRITE
        if write and upgrades(mm, entry, pages):
            new |= WRITE
        new = new | EXEC if executable else new & ~EXEC
        mm.set_entry(vpn, new, pages)


async def mprotect(
    mm: Mm, start: int, end: int, *, write: bool, executable: bool = False
) -> None:
    """Change what a range allows (event PROTECTION_VMA).

    A VMA that allows nothing else than before is left alone. The bracket of each other
    one begins lazily, at the first table that is there (choice ``first_populated``); a
    huge page at an end of it has been split by then, with the VMA.

    :Kernel: mprotect_fixup(), change_protection().
    """
    async with mm.mmap_lock.write():
        parts = await _protect_vmas(mm, start, end, write, executable)
        for part, stop, edges in parts:
            for hva in edges:
                await split_huge(mm, hva)
            first = await _first_populated(mm, part, stop)
            if first < stop:
                await mmu_notifier_invalidate_range_start(mm, first, stop)
                async with mm.ptl.write():
                    await _protect_ptes(mm, part, stop, write, executable)
                await mmu_notifier_invalidate_range_end(mm, first, stop)


@op(name="copy PTEs to child")
def _copy_ptes(mm: Mm, child: Mm, start: int, end: int) -> None:
    host = mm.host
    first, stop = start >> mm.page_shift, -(-end >> mm.page_shift)
    for vpn, content in mm.swapped.items():
        if first <= vpn < stop:
            child.swapped[vpn] = content
    for vpn, entry, pages in list(mm.mapped(start, end)):
        shared = entry & ~WRITE
        mm.set_entry(vpn, shared, pages)
        child.set_entry(vpn, shared, pages)
        pfn = entry >> PFN_SHIFT
        if not host.is_zero(pfn):
            for each in range(pfn, pfn + pages):
                page = host.pages[each]
                page.refs += 1
                page.maps += 1


@op(name="dup mm")
def _dup_mm(mm: Mm) -> Mm:
    child = mm.new_child()
    child.vmas = list(mm.vmas)
    child.k = mm.k
    return child


async def fork(mm: Mm) -> Mm:
    """Share all memory copy-on-write with a child.

    Simplified: a migration entry that the child gets stays one, for nobody runs in the
    child, and the page that it names stays where it is.

    :Kernel: dup_mmap(), copy_page_range(): one bracket per VMA that is copied on
        write, on the parent's mm (event PROTECTION_PAGE); none for a VMA that has no
        page of its own, vma_needs_copy().
    :returns: the child's address space.
    """
    async with mm.mmap_lock.write():
        child = await _dup_mm(mm)
        for vma in tuple(mm.vmas):
            if not vma.anon:
                continue
            await mmu_notifier_invalidate_range_start(mm, vma.start, vma.end)
            async with mm.ptl.write():
                await _copy_ptes(mm, child, vma.start, vma.end)
            await mmu_notifier_invalidate_range_end(mm, vma.start, vma.end)
    return child


async def exit_mmap(mm: Mm) -> None:
    """Take the address space down: ->release first, then every mapping.

    :Kernel: exit_mmap(), last user gone.
    """
    await _last_user(mm)
    await mmu_notifier_release(mm)
    for vma in tuple(mm.vmas):
        pfns = await _clear(mm, vma.start, vma.end)
        await free_pages(mm, pfns)
    await _forget_vmas(mm)


@op(name="mm_users--")
def _last_user(mm: Mm) -> None:
    mm.mm_users -= 1


@op(name="free VMAs")
def _forget_vmas(mm: Mm) -> None:
    mm.vmas.clear()


# -- setting up memory, as a program does before the guest runs --------------------


@op(name="write to memory")
def _write(mm: Mm, pfn: int, content: Any) -> None:
    mm.host.pages[pfn].content = content
    mm.host.put(pfn)


async def touch_pages(mm: Mm, start: int, contents: tuple[Any, ...]) -> None:
    """Write to pages from the host, one value into each, from ``start`` (hva) on."""
    first = start >> mm.page_shift
    for offset in range(len(contents)):
        pfn = await get_user_page(mm, first + offset, True)
        if pfn < 0:
            raise ModelError(
                "a process that writes to memory without the right to is killed"
            )
        await _write(mm, pfn, contents[offset])


def populate(mm: Mm, start: int, end: int, *, huge: bool = False) -> None:
    """Fault in a range at once, without steps: what happened before the scenario.

    :param huge: use huge pages where they fit.
    """
    host = mm.host
    bits = PRESENT | WRITE | DIRTY | YOUNG | SOFT_DIRTY
    for vma in tuple(mm.vmas):
        if vma.start < end and start < vma.end:
            mm.prepare_anon(vma)
    vpn, stop = start >> mm.page_shift, end >> mm.page_shift
    span = 1 << mm.pmd_order
    while vpn < stop:
        if huge and mm.pmd_order and vpn % span == 0 and vpn + span <= stop:
            if huge_range_fits(mm, vpn):
                map_huge(mm, vpn, bits)
                pfn = mm.pmds[vpn] >> PFN_SHIFT
                for offset in range(span):
                    host.pages[pfn + offset].content = "fresh", vpn + offset
            vpn += span
            continue
        if not mm.pte(vpn):
            pfn = host.alloc("anon", ("fresh", vpn))
            page = host.pages[pfn]
            page.refs = page.maps = 1
            mm.set_pte(vpn, pfn << PFN_SHIFT | bits)
        vpn += 1


CHOICES = (reclaims_tables, frees_together, stays_writable, first_populated)
