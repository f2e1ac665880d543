"""KSM: merge pages of equal content.

Models mm/ksm.c; generic facts 2.15.
"""

__all__ = [
    "CHOICES",
    "ksm_scan",
    "replace_page",
    "unmerge_ksm_pages",
    "write_protect_page",
]

from kvmarch.changes import Choice
from kvmarch.kernel.gup import (
    handle_mm_fault,
    ptep_clear_flush,
    set_pte_at,
    wp_page_copy,
)
from kvmarch.machine.host import (
    DIRTY,
    EXEC,
    PFN_SHIFT,
    PRESENT,
    WRITE,
    YOUNG,
    Mm,
)
from kvmarch.machine.steps import op


@op(name="get page")
def _get_page(mm: Mm, vpn: int) -> int:
    """Hold the page of a virtual page; -1 if KSM has no business with it."""
    vma = mm.find_vma(vpn << mm.page_shift)
    entry = mm.ptes.get(vpn, 0)
    if vma is None or not vma.mergeable or not entry & PRESENT:
        return -1
    pfn = entry >> PFN_SHIFT
    if mm.host.pages[pfn].kind not in {"anon", "ksm"}:
        return -1
    mm.host.get(pfn)
    return pfn


@op(name="put page")
def _put_page(mm: Mm, pfn: int) -> None:
    mm.host.put(pfn)


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


@op(name="get KSM page")
def _get_ksm_page(mm: Mm, pfn: int) -> bool:
    """Hold a page of the stable tree; return whether it is still one."""
    page = mm.host.pages[pfn]
    if page.kind != "ksm" or page.freed:
        return False
    mm.host.get(pfn)
    return True


async def _make_ksm_page(mm: Mm, vpn: int) -> int:
    """Make a KSM page of the page at hand; return its pfn, held, or -1.

    :Kernel: try_to_merge_one_page() without a KSM page to merge into.
    """
    pfn = await _get_page(mm, vpn)
    if pfn < 0:
        return -1
    protected = await write_protect_page(mm, vpn, pfn)
    if not protected:
        await _put_page(mm, pfn)
        return -1
    await _becomes_ksm(mm, pfn)
    return pfn


async def _merge_into(mm: Mm, vpn: int, kpage: int) -> bool:
    """Merge one page into a KSM page that the caller holds.

    :Kernel: try_to_merge_one_page().
    """
    pfn = await _get_page(mm, vpn)
    if pfn < 0:
        return False
    merged = False
    protected = await write_protect_page(mm, vpn, pfn)
    if protected:
        same = await _same_content(mm, pfn, kpage)
        if same:
            merged = await replace_page(mm, vpn, protected, kpage)
    await _put_page(mm, pfn)
    return merged


@op(name="compare pages")
def _same_content(mm: Mm, one: int, other: int) -> bool:
    pages = mm.host.pages
    return bool(pages[one].content == pages[other].content)


@op(name="search stable and unstable tree")
def _find_equal(mm: Mm, vpn: int, seen: tuple[int, ...]) -> tuple[str, int]:
    """Look for a page of equal content: a KSM page, or one seen before in this scan.

    :returns: ``stable`` and a pfn, ``unstable`` and a virtual page number, or
        empty if there is none.
    """
    pages = mm.host.pages
    entry = mm.ptes.get(vpn, 0)
    if not entry & PRESENT or pages[entry >> PFN_SHIFT].kind != "anon":
        return "", 0
    content = pages[entry >> PFN_SHIFT].content
    for pfn in sorted({e >> PFN_SHIFT for e in mm.ptes.values()}):
        if pages[pfn].kind == "ksm" and pages[pfn].content == content:
            return "stable", pfn
    for other in seen:
        there = mm.ptes.get(other, 0)
        if not there & PRESENT:
            continue
        page = pages[there >> PFN_SHIFT]
        if page.kind == "anon" and page.content == content:
            return "unstable", other
    return "", 0


async def ksm_scan(mm: Mm, start: int, end: int) -> int:
    """Scan a range once, as ksmd does when checksums have settled.

    The page at hand is merged first and the page of the unstable tree after it, so
    that the later page becomes the KSM page (as the recordings show).

    :Kernel: cmp_and_merge_page(), try_to_merge_two_pages().
    :returns: how many pages were given up.
    """
    merged = 0
    seen: tuple[int, ...] = ()
    async with mm.mmap_lock.read():
        for vpn in range(start >> mm.page_shift, end >> mm.page_shift):
            where, found = await _find_equal(mm, vpn, seen)
            if where == "stable":
                held = await _get_ksm_page(mm, found)
                if held:
                    done = await _merge_into(mm, vpn, found)
                    merged += done
                    await _put_page(mm, found)
            elif where == "unstable":
                kpage = await _make_ksm_page(mm, vpn)
                if kpage >= 0:
                    done = await _merge_into(mm, found, kpage)
                    merged += done
                    await _put_page(mm, kpage)
                    if not done:
                        # break_cow(): a KSM page that only one PTE maps is undone.
                        await handle_mm_fault(mm, vpn, True)
            else:
                seen = (*seen, vpn)
    return merged


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


CHOICES = (unmerged_writable,)
