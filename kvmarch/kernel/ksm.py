"""KSM: merge pages of equal content.

Models mm/ksm.c; generic facts 2.15.
"""

__all__ = [
    "CHOICES",
    "ksm_scan",
    "madvise_mergeable",
    "madvise_unmergeable",
    "replace_page",
    "unmerge_ksm_pages",
    "write_protect_page",
]

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from kvmarch.changes import Choice
from kvmarch.kernel.gup import ptep_clear_flush, set_pte_at, wp_page_copy
from kvmarch.kernel.huge_memory import split_edges, split_huge, split_huge_page
from kvmarch.machine.host import (
    DIRTY,
    EXEC,
    PFN_SHIFT,
    PRESENT,
    WRITE,
    YOUNG,
    Mm,
)
from kvmarch.machine.steps import BLOCKED, op


@op(name="read PTE")
def _read_pte(mm: Mm, vpn: int) -> int:
    return mm.ptes.get(vpn, 0)


@op(name="read PTE of page")
def _pte_of_page(mm: Mm, vpn: int, pfn: int) -> int:
    """Return the PTE if it still maps the page (page_vma_mapped_walk()), else 0."""
    entry = mm.ptes.get(vpn, 0)
    return entry if entry & PRESENT and entry >> PFN_SHIFT == pfn else 0


@op(name="does anybody else hold the page?")
def _is_held(mm: Mm, pfn: int) -> bool:
    """Compare map count and reference count, less KSM's own reference."""
    page = mm.host.pages[pfn]
    return page.maps + 1 != page.refs


@op(name="becomes KSM page")
def _becomes_ksm(mm: Mm, pfn: int) -> None:
    mm.host.pages[pfn].kind = "ksm"


async def write_protect_page(mm: Mm, vpn: int, pfn: int) -> int:
    """Bracket 1: make the PTE read-only and clean, unless somebody holds the page.

    :Kernel: write_protect_page().
    :returns: the PTE as it is now; 0 if it was left alone.
    """
    hva = vpn << mm.page_shift
    end = hva + (1 << mm.page_shift)
    result = 0
    await mm.k.change_pte_start(mm, hva, end)
    async with mm.ptl.write():
        entry = await _pte_of_page(mm, vpn, pfn)
        if entry & (WRITE | DIRTY):
            entry = await ptep_clear_flush(mm, vpn)
            held = await _is_held(mm, pfn)
            if held:
                await set_pte_at(mm, vpn, entry)
            else:
                result = entry & ~(WRITE | DIRTY)
                await mm.k.set_pte_at_notify(mm, vpn, result)
        else:
            result = entry
    await mm.k.change_pte_end(mm, hva, end)
    return result


@op(name="page_remove_rmap, put old page")
def _replaced(mm: Mm, old: int, new: int) -> None:
    host = mm.host
    host.pages[old].maps -= 1
    host.put(old)
    page = host.pages[new]
    page.maps += 1
    page.refs += 1


async def replace_page(mm: Mm, vpn: int, expected: int, kpage: int) -> bool:
    """Bracket 2: point the PTE at the KSM page, if it is still the one of bracket 1.

    :Kernel: replace_page(). The old page may be freed before the bracket ends.
    """
    hva = vpn << mm.page_shift
    end = hva + (1 << mm.page_shift)
    done = False
    await mm.k.change_pte_start(mm, hva, end)
    async with mm.ptl.write():
        entry = await _read_pte(mm, vpn)
        if entry == expected:
            await ptep_clear_flush(mm, vpn)
            young = YOUNG if mm.k.mk_pte_young else 0
            new = kpage << PFN_SHIFT | PRESENT | young | entry & EXEC
            await mm.k.set_pte_at_notify(mm, vpn, new)
            await _replaced(mm, entry >> PFN_SHIFT, kpage)
            done = True
    await mm.k.change_pte_end(mm, hva, end)
    return done


@op(name="compare pages")
def _same_content(mm: Mm, one: int, other: int) -> bool:
    pages = mm.host.pages
    return bool(pages[one].content == pages[other].content)


def _may_merge(mm: Mm, vpn: int) -> bool:
    """Return whether KSM may still merge a page (find_mergeable_vma()).

    :Locking: mmap_lock, so that it stays so.
    """
    vma = mm.find_vma(vpn << mm.page_shift)
    return vma is not None and vma.mergeable


async def _protect(root: Mm, mm: Mm, vpn: int, pfn: int) -> int:
    """Protect a page that is to be merged; split the huge page that it is part of.

    :param root: the mm whose children share pages with it.
    :returns: the PTE as it is now; 0 if it was left alone.
    """
    if mm.host.pages[pfn].order:
        split = await split_huge_page(root, vpn, pfn)
        if not split:
            return 0
    entry: int = await write_protect_page(mm, vpn, pfn)
    return entry


async def _make_ksm_page(root: Mm, mm: Mm, vpn: int, pfn: int) -> bool:
    """Make a KSM page of a page; return whether it is one.

    :Kernel: try_to_merge_one_page() without a KSM page to merge into.
    """
    made = False
    async with mm.mmap_lock.read():
        if _may_merge(mm, vpn):
            protected = await _protect(root, mm, vpn, pfn)
            if protected:
                await _becomes_ksm(mm, pfn)
                made = True
    return made


async def _merge_into(root: Mm, mm: Mm, vpn: int, pfn: int, kpage: int) -> bool:
    """Merge a page into a KSM page; return whether it was given up.

    :Kernel: try_to_merge_with_ksm_page(), try_to_merge_one_page().
    """
    merged = False
    async with mm.mmap_lock.read():
        if _may_merge(mm, vpn):
            protected = await _protect(root, mm, vpn, pfn)
            if protected:
                same = await _same_content(mm, pfn, kpage)
                if same:
                    merged = await replace_page(mm, vpn, protected, kpage)
    return merged


# -- the scan ----------------------------------------------------------------------

searches_first = Choice(
    "searches_first",
    "whether KSM looks for the like of a page that has just changed among KSM pages",
)
searches_first.add(True)
searches_first.add(False, "ksm-checksum-first")


SCANS = 2
"""Full scans after which all is merged that does not change."""


class _Place(NamedTuple):
    """How far ksmd has come: full scan, number of the mm, virtual page number."""

    scan: int
    number: int
    vpn: int


class _Pair(NamedTuple):
    """Two pages of equal content, each held by a reference.

    :param pfn: the page at hand, which ``mm`` maps at the virtual page ``vpn``.
    :param other: its like: a KSM page if ``other_mm`` is None, otherwise a page of
        the unstable tree, which that mm maps at ``other_vpn``.
    """

    place: _Place
    mm: Mm
    vpn: int
    pfn: int
    other: int
    other_mm: Mm | None = None
    other_vpn: int = -1


def _mergeable_pages(mms: tuple[Mm, ...]) -> Iterator[tuple[int, int, int]]:
    """Yield what ksmd looks at, in its order: number of the mm, virtual page, pfn."""
    for number, mm in enumerate(mms):
        for vma in mm.vmas:
            if vma.mergeable:
                for first, entry, pages in mm.mapped(vma.start, vma.end):
                    if entry & PRESENT:
                        pfn = entry >> PFN_SHIFT
                        for offset in range(pages):
                            yield number, first + offset, pfn + offset


max_page_sharing = Choice("max_page_sharing", "how often a KSM page may be mapped")
max_page_sharing.add(math.inf)
max_page_sharing.add(256, "ksm-sharing-limit")


def _stable_tree(mms: tuple[Mm, ...]) -> dict[Any, int]:
    """Return the KSM pages into which others may be merged, by content.

    :Kernel: stable_node_dup(): of several it is the one that is shared most.
    """
    pages, limit = mms[0].host.pages, mms[0].k.max_page_sharing
    mapped = {
        entry >> PFN_SHIFT
        for mm in mms
        for entry in mm.ptes.values()
        if entry & PRESENT
    }
    found = [
        pages[pfn]
        for pfn in sorted(mapped, reverse=True)
        if pages[pfn].kind == "ksm" and pages[pfn].maps < limit
    ]
    found.sort(key=lambda page: page.maps)
    return {page.content: page.pfn for page in found}


@op(name="scan for equal pages")
def _next_pair(
    first: Mm, after: _Place, again: bool, failed: tuple[_Place, ...]
) -> Any:
    """Go on from a place to the next page that has its like; hold both.

    Simplified: all that lies between is looked at in one step. That loses nothing:
    what is found is looked at again with the locks held.

    :Kernel: scan_get_next_rmap_item(), stable_tree_search(),
        unstable_tree_search_insert().
    :param again: there is to be one scan more.
    :param failed: where pages were not merged that have their like: the unstable tree
        does not take these.
    :returns: a :class:`_Pair`; None at the end of the last scan.
    """
    mms = first.family()
    if any(mm.mmap_lock.writer is not None for mm in mms):
        return BLOCKED
    pages = first.host.pages
    stable = _stable_tree(mms)
    looked_at = [
        (number, vpn, pfn)
        for number, vpn, pfn in _mergeable_pages(mms)
        if pages[pfn].kind == "anon"
    ]
    # What did not change since it was scanned last is merged by the first full scan;
    # what did by the second, but before v6.11 with the like among KSM pages at once.
    for scan in range(after.scan, SCANS + again):
        unstable: dict[Any, tuple[int, int, int]] = {}
        for number, vpn, pfn in looked_at:
            place = _Place(scan, number, vpn)
            content = pages[pfn].content
            seen = mms[number].ksm_seen
            old = scan > 0 or (vpn in seen and seen[vpn] == content)
            may = old or first.k.searches_first
            if place > after and may and content in stable:
                pair = _Pair(place, mms[number], vpn, pfn, stable[content])
            elif not old:
                continue
            elif content not in unstable:
                if place not in failed:
                    unstable[content] = number, vpn, pfn
                continue
            elif place <= after or unstable[content][2] == pfn:
                # After a fork both find the same page.
                continue
            else:
                at, where, tree_page = unstable[content]
                pair = _Pair(place, mms[number], vpn, pfn, tree_page, mms[at], where)
            first.host.get(pair.pfn)
            first.host.get(pair.other)
            return pair
    for number, mm in enumerate(mms):
        mm.ksm_seen = {
            vpn: pages[pfn].content
            for at, vpn, pfn in _mergeable_pages(mms)
            if at == number
        }
    return None


@op(name="put pages")
def _put_pages(mm: Mm, *pfns: int) -> None:
    for pfn in pfns:
        mm.host.put(pfn)


def _in_one_huge_page(mm: Mm, one: int, other: int) -> bool:
    count = 1 << mm.host.pages[one].order
    return count > 1 and one // count == other // count


async def ksm_scan(mm: Mm) -> int:
    """Scan all mergeable memory of an mm and its children, until all is merged.

    As ksmd does once it has seen that pages do not change: mm by mm, each by address.
    The page at hand is merged first and the page of the unstable tree after it, so
    that the later page becomes the KSM page (as the recordings show).

    :Kernel: cmp_and_merge_page(), try_to_merge_two_pages().
    :returns: how many pages were given up.
    """
    merged = 0
    after = _Place(0, 0, -1)
    again = False
    failed: tuple[_Place, ...] = ()
    while True:
        pair: _Pair | None = await _next_pair(mm, after, again, failed)
        if pair is None:
            return merged
        after = pair.place
        done = False
        here = pair.mm, pair.vpn, pair.pfn
        if pair.other_mm is None:
            done = await _merge_into(mm, *here, pair.other)
        else:
            there = pair.other_mm, pair.other_vpn, pair.other
            made = await _make_ksm_page(mm, *here)
            if made:
                done = await _merge_into(mm, *there, pair.pfn)
                if not done:
                    # break_cow(): a KSM page that only one PTE maps is undone.
                    await _break_cow(pair.mm, pair.vpn)
        merged += done
        if not done:
            failed = (*failed, after)
        if pair.other_mm is None or not _in_one_huge_page(mm, pair.pfn, pair.other):
            await _put_pages(mm, pair.pfn, pair.other)
        else:
            # Each page that is held keeps the other from being split; what was one page
            # is merged by the next scan.
            await _put_pages(mm, pair.other)
            split = await split_huge_page(mm, pair.vpn, pair.pfn)
            again = again or split
            await _put_pages(mm, pair.pfn)


async def _break_cow(mm: Mm, vpn: int) -> None:
    async with mm.mmap_lock.read():
        await unmerge_ksm_pages(mm, vpn << mm.page_shift, vpn + 1 << mm.page_shift)


@op(name="MADV_MERGEABLE")
def _make_mergeable(mm: Mm, start: int, end: int) -> Any:
    """Change VMAs; return where that may split huge pages, see split_edges()."""
    fresh = [
        (max(start, vma.start), min(end, vma.end))
        for vma in mm.vmas
        if vma.start < end and start < vma.end and not vma.mergeable
    ]
    if not fresh:
        return ()
    if mm.mmap_lock.writer is not None or mm.mmap_lock.readers:
        return BLOCKED
    edges = tuple(hva for part in fresh for hva in split_edges(mm, *part))
    mm.change_vmas(start, end, mergeable=True)
    mm.merge_vmas(start, end)
    return edges


async def madvise_mergeable(mm: Mm, start: int, end: int) -> None:
    """Let KSM merge a range of hvas.

    Simplified: mmap_lock is taken, used and dropped in one step, and is not waited
    for where nothing changes; harmless because nobody could look in between.

    :Kernel: madvise_behavior(), ksm_madvise().
    """
    edges = await _make_mergeable(mm, start, end)
    for hva in edges:
        await split_huge(mm, hva)


# -- pages that are not to be KSM's any more ---------------------------------------

unmerged_writable = Choice(
    "unmerged_writable", "whether a page that KSM gives back is writable at once"
)
unmerged_writable.add(True)
unmerged_writable.add(False, "ksm-unshares")


@op(name="KSM pages of a range")
def _ksm_pages(mm: Mm, start: int, end: int) -> tuple[tuple[int, bool], ...]:
    """Return the virtual pages that map KSM pages, and whether they may be written."""
    found = []
    for vpn, entry, _pages in mm.mapped(start, end):
        vma = mm.find_vma(vpn << mm.page_shift)
        kind = mm.host.pages[entry >> PFN_SHIFT].kind
        if vma is not None and vma.mergeable and kind == "ksm":
            found.append((vpn, vma.write))
    return tuple(found)


async def unmerge_ksm_pages(mm: Mm, start: int, end: int) -> None:
    """Give each KSM page of a range back its own copy.

    By a write fault, or from v6.2 on by one that only unshares. Simplified: where the
    VMA may not be written, the former leaves a clean copy as the latter does; harmless
    because nobody but KSM looks at D.

    :Kernel: unmerge_ksm_pages(), break_ksm().
    :Locking: mmap_lock.
    """
    pages = await _ksm_pages(mm, start, end)
    for vpn, writable in pages:
        unshare = not (writable and mm.k.unmerged_writable)
        await wp_page_copy(mm, vpn, unshare=unshare)


@op(name="mergeable parts of a range")
def _mergeable_parts(mm: Mm, start: int, end: int) -> tuple[tuple[int, int], ...]:
    return tuple(
        (max(start, vma.start), min(end, vma.end))
        for vma in mm.vmas
        if vma.start < end and start < vma.end and vma.mergeable
    )


@op(name="MADV_UNMERGEABLE")
def _end_mergeable(mm: Mm, start: int, end: int) -> tuple[int, ...]:
    """Change a VMA; return where that may split huge pages, see split_edges()."""
    edges = split_edges(mm, start, end)
    mm.change_vmas(start, end, mergeable=False)
    mm.merge_vmas(start, end)
    return edges


async def madvise_unmergeable(mm: Mm, start: int, end: int) -> None:
    """Take a range of hvas away from KSM: each page gets its own copy back.

    :Kernel: madvise_behavior(), ksm_madvise().
    """
    async with mm.mmap_lock.write():
        parts = await _mergeable_parts(mm, start, end)
        for first, last in parts:
            await unmerge_ksm_pages(mm, first, last)
            edges = await _end_mergeable(mm, first, last)
            for hva in edges:
                await split_huge(mm, hva)


CHOICES = (searches_first, max_page_sharing, unmerged_writable)
