"""mremap(): what moves, and whom it tells (generic facts 2.14)."""

from errno import EFAULT

import pytest
from brackets import brackets

from kvmarch.kernel.gup import get_user_page
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import mprotect, munmap, populate
from kvmarch.kernel.mremap import mremap
from kvmarch.kernel.reclaim import reclaim
from kvmarch.machine.host import DIRTY, PFN_SHIFT, SOFT_DIRTY, WRITE, Vma

BIG = 0x7F80_0000_0000
PAGE = 4096
HUGE = 512 * PAGE
RELEASES = [(3, 16), (5, 10), (5, 15), (6, 1), (7, 2)]


def huge(bench, pages=512):
    """Return a machine with a huge page, and a slot that has it."""
    one = bench(pages=0)
    one.hva = BIG
    one.mm.add_vma(Vma(BIG, BIG + pages * PAGE, huge=True))
    populate(one.mm, BIG, BIG + pages * PAGE, huge=True)
    one.do(set_memory_region(one.vm, Region(0, 0, 0, pages * PAGE, BIG)))
    return one


@pytest.mark.parametrize("release", RELEASES)
def test_a_moved_mapping_keeps_its_pages(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")
    pfns = [one.pfn(page) for page in range(2)]
    there = one.at(0x100)

    assert one.do(mremap(one.mm, one.at(0), one.at(2), there)) == 0

    moved = [one.mm.pte((there // PAGE) + n) >> PFN_SHIFT for n in range(2)]
    assert moved == pfns
    assert [one.pfn(page) for page in range(2)] == [0, 0]
    assert one.mm.find_vma(there) == Vma(
        there, there + 2 * PAGE, mergeable=True, anon=True
    )
    assert one.mm.find_vma(one.at(0)) is None
    assert one.entry(0) == 0
    assert one.lost == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_old_range_is_told_of_when_it_moves_and_when_it_goes(bench, release):
    one = bench(release)
    one.slot()

    moving = one.actor("mremap", mremap(one.mm, one.at(1), one.at(3), one.at(0x100)))
    moving.past("close range")
    assert brackets(one) == [(1, 3)]
    assert one.mm.find_vma(one.at(1)) is not None
    moving.end()

    assert brackets(one) == [(1, 3), (1, 3)]
    assert one.vm.mmu_invalidate_in_progress == 0


def test_what_moves_is_soft_dirty(one):
    one.mm.ptes[one.vpn(0)] &= ~(SOFT_DIRTY | WRITE | DIRTY)

    one.do(mremap(one.mm, one.at(0), one.at(2), one.at(0x100)))

    entry = one.mm.pte(one.vpn(0x100))
    assert entry & (SOFT_DIRTY | WRITE | DIRTY) == SOFT_DIRTY


def test_what_is_swapped_out_moves_too(one):
    one.host.pages[one.pfn(0)].content = "kept"
    one.do(reclaim(one.mm, one.at(0)))
    one.do(mremap(one.mm, one.at(0), one.at(2), one.at(0x100)))

    pfn = one.do(get_user_page(one.mm, one.vpn(0x100), False))

    assert one.host.pages[pfn].content == "kept"
    assert one.mm.swapped == {}


def test_what_was_there_is_unmapped(one):
    one.mm.add_vma(Vma(one.at(0x100), one.at(0x104)))
    populate(one.mm, one.at(0x100), one.at(0x104))
    gone = [one.pfn(0x100 + page) for page in range(4)]

    one.do(mremap(one.mm, one.at(0), one.at(2), one.at(0x100)))

    assert [one.host.pages[pfn].freed for pfn in gone] == [True, True, False, False]
    assert one.mm.parts(one.at(0x100), one.at(0x104)) == (
        (one.at(0x100), one.at(0x102)),
        (one.at(0x102), one.at(0x104)),
    )
    assert one.lost == []


# -- several mappings --------------------------------------------------------------


@pytest.mark.parametrize("release", [(6, 16), (6, 17)])
def test_several_mappings_are_moved_since_v6_17(bench, release):
    one = bench(release, pages=8)
    one.slot()
    one.do(mprotect(one.mm, one.at(2), one.at(4), write=False))
    one.do(munmap(one.mm, one.at(4), one.at(5)))
    pfns = [one.pfn(page) for page in range(8)]
    one.world.events.clear()

    error = one.do(mremap(one.mm, one.at(1), one.at(6), one.at(0x100)))

    moved = [one.pfn(0x100 + page) for page in range(5)]
    if release < (6, 17):
        assert error == EFAULT
        assert moved == [0] * 5
        assert brackets(one) == []
    else:
        assert error == 0
        assert moved == [*pfns[1:4], 0, pfns[5]]
        parts = [(1, 2), (2, 4), (5, 6)]
        assert brackets(one) == [part for part in parts for _ in range(2)]
        there = [one.mm.find_vma(one.at(0x100 + page)) for page in range(5)]
        assert [vma and vma.write for vma in there] == [True, False, False, None, True]


@pytest.mark.parametrize("release", [(6, 16), (6, 17)])
def test_a_range_that_begins_in_a_hole_is_refused(bench, release):
    one = bench(release, pages=8)

    error = one.do(mremap(one.mm, one.at(-1), one.at(2), one.at(0x100)))

    assert error == EFAULT
    assert one.mm.parts(one.at(0), one.at(8)) == ((one.at(0), one.at(8)),)
    assert one.mm.mmap_lock.writer is None


# -- huge pages --------------------------------------------------------------------


def test_a_huge_mapping_moves_whole(bench):
    one = huge(bench)
    before = one.mm.pte(BIG // PAGE + 5)

    one.do(mremap(one.mm, BIG, BIG + HUGE, BIG + 4 * HUGE))

    assert one.mm.pte((BIG + 4 * HUGE) // PAGE + 5) == before
    assert list(one.mm.pmds) == [(BIG + 4 * HUGE) // PAGE]
    assert brackets(one) == [(0, 512), (0, 512)]


def test_a_huge_mapping_is_split_where_it_would_not_be_aligned(bench):
    one = huge(bench)
    pfn = one.mm.pte(BIG // PAGE) >> PFN_SHIFT
    there = BIG + 4 * HUGE + PAGE

    one.do(mremap(one.mm, BIG, BIG + HUGE, there))

    assert not one.mm.pmds
    assert [one.mm.pte(there // PAGE + n) >> PFN_SHIFT for n in (0, 511)] == [
        pfn,
        pfn + 511,
    ]
    assert brackets(one) == [(0, 512)] * 3
    assert one.lost == []


def test_a_huge_mapping_that_moves_in_part_is_split(bench):
    one = huge(bench)

    one.do(mremap(one.mm, BIG + PAGE, BIG + 2 * PAGE, BIG + 4 * HUGE + PAGE))

    # For the move, and for the VMA's new edge, whether or not it is huge by then.
    assert brackets(one) == [(1, 2), (0, 512), (0, 512), (1, 2)]
    assert not one.mm.pmds
    assert one.lost == []
