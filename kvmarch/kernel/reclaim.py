"""What the host mm does on its own: age, reclaim, migrate, collapse.

Models mm/rmap.c, mm/migrate.c, mm/khugepaged.c; the notifications are those of
generic facts 2.14.
"""

__all__ = ["age", "collapse", "migrate", "reclaim", "reclaim_any", "reclaim_idle"]

from kvmarch.kernel.mmap import free_pages
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_clear_flush_young,
    mmu_notifier_clear_young,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_test_young,
)
from kvmarch.machine.host import PFN_SHIFT, PRESENT, SPECIAL, YOUNG, Mm
from kvmarch.machine.steps import op


@op(name="test and clear young")
def _clear_young(mm: Mm, start: int, end: int) -> bool:
    young = False
    for vpn, entry, pages in list(mm.mapped(start, end)):
        young |= bool(entry & YOUNG)
        mm.set_entry(vpn, entry & ~YOUNG, pages)
    return young


async def age(mm: Mm, start: int, end: int, how: str) -> bool:
    """Ask whether a range of hvas was used since the last time.

    :param how: ``clear_flush_young`` (reclaim), ``clear_young`` (idle pages,
        DAMON, MGLRU) or ``test_young``.
    """
    if how == "test_young":
        return await mmu_notifier_test_young(mm, start, end)
    host = await _clear_young(mm, start, end)
    if how == "clear_flush_young":
        guest = await mmu_notifier_clear_flush_young(mm, start, end)
    else:
        guest = await mmu_notifier_clear_young(mm, start, end)
    return host or guest


@op(name="replace PTE by swap entry")
def _swap_out(mm: Mm, vpn: int) -> tuple[int, ...]:
    entry = mm.ptes.get(vpn, 0)
    pfn = entry >> PFN_SHIFT
    if not entry & PRESENT or mm.host.is_zero(pfn):
        return ()
    page = mm.host.pages[pfn]
    page.maps -= 1
    mm.set_pte(vpn, 0)
    mm.swapped[vpn] = page.content
    return (pfn,)


async def reclaim(mm: Mm, hva: int) -> bool:
    """Swap one page out; return whether there was one.

    :Kernel: try_to_unmap_one() (event CLEAR). The caller holds a reference, so the
        page is freed after the bracket.
    """
    end = hva + (1 << mm.page_shift)
    await mmu_notifier_invalidate_range_start(mm, hva, end)
    async with mm.ptl.write():
        pfns = await _swap_out(mm, hva >> mm.page_shift)
    await mmu_notifier_invalidate_range_end(mm, hva, end)
    await free_pages(mm, pfns)
    return bool(pfns)


@op(name="choose a page")
def _choose(mm: Mm, pages: int) -> int:
    return mm.host.environment.choice % pages


async def reclaim_any(mm: Mm, start: int, pages: int) -> bool:
    """Swap out the page that the environment has chosen by then.

    :param start: hva of the first of the pages that reclaim looks at.
    """
    chosen = await _choose(mm, pages)
    hva = start + (chosen << mm.page_shift)
    return await reclaim(mm, hva)


async def reclaim_idle(mm: Mm, hva: int, how: str) -> bool:
    """Swap one page out unless somebody has used it; return whether it went.

    :Kernel: folio_referenced() of reclaim, which asks with clear_flush_young;
        damon_folio_young() of DAMON, v5.15 on, which asks with test_young.
    :param how: see :func:`age`.
    """
    young = await age(mm, hva, hva + (1 << mm.page_shift), how)
    if young:
        return False
    return await reclaim(mm, hva)


@op(name="install migration entry")
def _to_migration_entry(mm: Mm, vpn: int) -> int:
    """Make the PTE one that faults wait for; return what it was."""
    entry = mm.ptes.get(vpn, 0)
    if not entry & PRESENT or mm.host.is_zero(entry >> PFN_SHIFT):
        return 0
    mm.set_pte(vpn, entry & ~PRESENT | SPECIAL)
    return entry


@op(name="is the page held?")
def _is_held(mm: Mm, entry: int) -> bool:
    """Return whether somebody else holds or maps the page.

    Simplified: a page that is mapped more than once stays where it is; the kernel
    would move all its mappings.
    """
    page = mm.host.pages[entry >> PFN_SHIFT]
    return not page.refs == page.maps == 1


@op(name="remove migration entry")
def _from_migration_entry(mm: Mm, vpn: int, entry: int, move: bool) -> tuple[int, ...]:
    """Map the new page (or the old one again); return what is to be freed.

    What became of the migration entry meanwhile stays so: it may be gone, or allow
    less than before.
    """
    host = mm.host
    now = mm.ptes.get(vpn, 0)
    if now & (PRESENT | SPECIAL) != SPECIAL or now >> PFN_SHIFT != entry >> PFN_SHIFT:
        return ()
    entry = now & ~SPECIAL | PRESENT
    if not move or host.environment.short:
        mm.set_pte(vpn, entry)
        return ()
    old = entry >> PFN_SHIFT
    page = host.pages[old]
    new = host.alloc(page.kind, page.content)
    host.pages[new].refs = host.pages[new].maps = 1
    page.maps -= 1
    mm.set_pte(vpn, new << PFN_SHIFT | entry & (1 << PFN_SHIFT) - 1)
    return (old,)


async def migrate(mm: Mm, hva: int) -> bool:
    """Move one page to another frame; return False if it stays where it is.

    :Kernel: try_to_migrate_one() (event CLEAR), then remove_migration_pte(), which
        notifies nobody.
    """
    vpn = hva >> mm.page_shift
    end = hva + (1 << mm.page_shift)
    await mmu_notifier_invalidate_range_start(mm, hva, end)
    async with mm.ptl.write():
        entry = await _to_migration_entry(mm, vpn)
    await mmu_notifier_invalidate_range_end(mm, hva, end)
    if not entry:
        return False
    held = await _is_held(mm, entry)
    pfns = await _from_migration_entry(mm, vpn, entry, not held)
    await free_pages(mm, pfns)
    return bool(pfns)


def _is_free_to_move(mm: Mm, entry: int) -> bool:
    page = mm.host.pages[entry >> PFN_SHIFT]
    return page.kind == "anon" and page.maps == 1 and page.refs == 1


def _entries(mm: Mm, first: int) -> tuple[tuple[int, int], ...]:
    vpns = range(first, first + (1 << mm.pmd_order))
    return tuple((vpn, mm.ptes.get(vpn, 0)) for vpn in vpns)


@op(name="scan PMD")
def _scan(mm: Mm, first: int) -> bool:
    """Return whether all pages of a huge range are there, and held by nobody.

    Nothing is collapsed if there is no memory for the huge page, or if the process may
    have none.
    """
    return (
        mm.pmd_order > 0
        and not mm.host.environment.short
        and all(
            entry & PRESENT and _is_free_to_move(mm, entry)
            for _vpn, entry in _entries(mm, first)
        )
    )


@op(name="clear PMD")
def _detach(mm: Mm, first: int) -> tuple[tuple[int, int], ...]:
    """Take the entries of a huge range away, whatever they are by now."""
    entries = tuple(each for each in _entries(mm, first) if each[1])
    for vpn, _entry in entries:
        mm.set_pte(vpn, 0)
    return entries


@op(name="isolate pages, or restore PMD")
def _isolate(mm: Mm, entries: tuple[tuple[int, int], ...]) -> bool:
    """Return whether all pages may move; if not, put the entries back."""
    if len(entries) == 1 << mm.pmd_order and all(
        entry & PRESENT and _is_free_to_move(mm, entry) for _vpn, entry in entries
    ):
        return True
    for vpn, entry in entries:
        mm.set_pte(vpn, entry)
    return False


@op(name="copy, set huge PMD")
def _attach(
    mm: Mm, first: int, entries: tuple[tuple[int, int], ...]
) -> tuple[int, ...]:
    host = mm.host
    count = len(entries)
    pfn = host.alloc("anon", 0, count=count, align=count)
    old = []
    bits = 0
    for offset, (_vpn, entry) in enumerate(entries):
        page = host.pages[pfn + offset]
        before = host.pages[entry >> PFN_SHIFT]
        page.content = before.content
        page.refs = page.maps = 1
        before.maps -= 1
        old.append(entry >> PFN_SHIFT)
        bits = entry & (1 << PFN_SHIFT) - 1
    mm.set_entry(first, pfn << PFN_SHIFT | bits, count)
    return tuple(old)


async def collapse(mm: Mm, hva: int) -> bool:
    """Collapse the base pages around an hva into a huge page.

    :Kernel: hpage_collapse_scan_pmd(), collapse_huge_page(): end is called right
        after the PMD is cleared, before the pages are looked at, copied, and the huge
        PMD is set. If somebody holds a page, the old PMD comes back. mmap_lock is
        held for write throughout, so faults wait; who walks without it finds no PTE.
    """
    first = hva >> mm.page_shift >> mm.pmd_order << mm.pmd_order
    start = first << mm.page_shift
    end = start + (1 << mm.pmd_order + mm.page_shift)
    async with mm.mmap_lock.read():
        fits = await _scan(mm, first)
    if not fits:
        return False
    async with mm.mmap_lock.write():
        await mmu_notifier_invalidate_range_start(mm, start, end)
        async with mm.ptl.write():
            entries = await _detach(mm, first)
        await mmu_notifier_invalidate_range_end(mm, start, end)
        isolated = await _isolate(mm, entries)
        if not isolated:
            return False
        pfns = await _attach(mm, first, entries)
    await free_pages(mm, pfns)
    return True
