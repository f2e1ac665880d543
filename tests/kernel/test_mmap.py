"""What user space does to its memory, and whom it tells (generic facts 2.14)."""

import pytest
from brackets import brackets

from kvmarch.errors import ModelError
from kvmarch.kernel.gup import get_user_page
from kvmarch.kernel.mmap import (
    exit_mmap,
    fork,
    madvise_dontneed,
    mprotect,
    munmap,
    oom_reap,
    populate,
    touch_pages,
)
from kvmarch.kernel.reclaim import migrate, reclaim
from kvmarch.machine.host import DIRTY, PFN_SHIFT, WRITE, Vma

BIG = 0x7F80_0000_0000
PAGE = 4096
HUGE = 512 * PAGE
RELEASES = [(3, 16), (5, 10), (5, 15), (6, 1), (7, 2)]


def huge(bench, release=(6, 1)):
    one = bench(release, pages=0)
    one.mm.add_vma(Vma(BIG, BIG + HUGE, huge=True))
    populate(one.mm, BIG, BIG + HUGE, huge=True)
    return one


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("how", [munmap, madvise_dontneed])
def test_pages_go_after_the_bracket(bench, release, how):
    one = bench(release)
    one.slot()
    for gfn in range(4):
        one.access(gfn, "write")
    pfns = [one.pfn(page) for page in range(4)]

    one.do(how(one.mm, one.at(1), one.at(3)))

    order = [e.name for e in one.world.events]
    assert [one.host.pages[pfn].freed for pfn in pfns] == [False, True, True, False]
    assert order.index("page_free") > order.index("range_start_done")
    assert [bool(one.entry(gfn)) for gfn in range(4)] == [True, False, False, True]
    assert (1, 3) in brackets(one)
    assert one.vm.mmu_invalidate_in_progress == 0
    assert one.lost == []


def test_the_pages_are_freed_after_the_end(one):
    names = one.trace(madvise_dontneed(one.mm, one.at(0), one.at(1)))

    assert names.index("close range") < names.index("free pages")


def split(one):
    """Make three mappings of the eight pages, and a hole: 0 to 1, 2 to 4, 6 to 7."""
    one.do(mprotect(one.mm, one.at(2), one.at(5), write=False))
    one.do(munmap(one.mm, one.at(5), one.at(6)))
    one.world.events.clear()


@pytest.mark.parametrize("how", [madvise_dontneed, oom_reap])
def test_each_mapping_is_told_of_on_its_own(one, how):
    split(one)

    one.do(how(one.mm, one.at(1), one.at(7)))

    assert brackets(one) == [(1, 2), (2, 5), (6, 7)]
    assert [bool(one.pfn(page)) for page in range(8)] == [True, *[False] * 6, True]
    assert one.vm.mmu_invalidate_in_progress == 0
    assert one.lost == []


def test_munmap_tells_of_all_mappings_at_once(one):
    split(one)

    one.do(munmap(one.mm, one.at(1), one.at(7)))

    assert brackets(one) == [(1, 7)]


def test_dontneed_of_a_hole_tells_nobody(one):
    one.do(munmap(one.mm, one.at(2), one.at(4)))

    names = one.trace(madvise_dontneed(one.mm, one.at(2), one.at(4)))

    assert "open range" not in names


@pytest.mark.parametrize(("release", "batches"), [((6, 15), [2, 3]), ((6, 16), [5])])
def test_pages_of_several_mappings_are_freed_together_since_v6_16(
    bench, release, batches
):
    one = bench(release, pages=8)
    one.slot()
    split(one)
    pfns = [one.pfn(page) for page in range(5)]

    found = []
    dropping = one.actor("madvise", madvise_dontneed(one.mm, one.at(0), one.at(5)))
    while dropping.next:
        before = sum(one.host.pages[pfn].freed for pfn in pfns)
        dropping.step()
        gone = sum(one.host.pages[pfn].freed for pfn in pfns) - before
        found += [gone] if gone else []
    assert found == batches


def test_after_munmap_there_is_no_vma(one):
    one.do(munmap(one.mm, one.at(2), one.at(4)))

    assert one.mm.find_vma(one.at(1)) == Vma(
        one.hva, one.at(2), mergeable=True, anon=True
    )
    assert one.mm.find_vma(one.at(2)) is one.mm.find_vma(one.at(3)) is None
    assert one.do(get_user_page(one.mm, one.vpn(2), False)) == -1


def test_after_dontneed_memory_reads_as_zeroes(one):
    one.do(madvise_dontneed(one.mm, one.at(0), one.at(1)))

    assert one.access(0) == "done"
    assert one.pfn(0) == one.host.zero_pfn
    assert one.lost == []


def test_dontneed_drops_what_was_swapped_out(one):
    one.do(reclaim(one.mm, one.at(0)))
    one.do(madvise_dontneed(one.mm, one.at(0), one.at(1)))

    assert one.do(get_user_page(one.mm, one.vpn(0), False)) == one.host.zero_pfn
    assert one.mm.swapped == {}


def test_nothing_is_freed_twice(one):
    one.do(madvise_dontneed(one.mm, one.hva, one.at(8)))
    one.do(madvise_dontneed(one.mm, one.hva, one.at(8)))
    one.do(munmap(one.mm, one.hva, one.at(8)))

    assert one.lost == []
    assert one.mm.ptes == {}


# -- protection --------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_write_is_refused_after_mprotect(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")
    pfn = one.pfn(0)

    one.do(mprotect(one.mm, one.at(0), one.at(1), write=False))

    assert one.entry(0) == 0
    assert one.access(0) == "done"
    assert one.entry(0) & 0b10 == 0
    assert one.pfn(0) == pfn
    assert one.access(0, "write") == "error"
    assert one.lost == []


def test_a_page_becomes_writable_by_the_next_write_only(bench):
    one = bench((5, 19), pages=8)
    one.slot()
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=False))
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=True))
    allowed = one.mm.find_vma(one.at(0)).write

    entry = one.mm.pte(one.vpn(0))
    assert allowed
    assert not entry & WRITE
    assert one.access(0, "write") == "done"
    assert one.mm.pte(one.vpn(0)) & WRITE


def told_of_big(one):
    """Return the brackets in pages of the huge memory; forget them."""
    there = [
        ((d["start"] - BIG) // PAGE, (d["end"] - BIG) // PAGE)
        for d in one.named("kvm_unmap_hva_range")
    ]
    one.world.events.clear()
    return there


def protect(one, first, stop, write=False):
    change = mprotect(one.mm, BIG + first * PAGE, BIG + stop * PAGE, write=write)
    one.do(change)


@pytest.mark.parametrize(("release", "first"), [((6, 1), 512), ((6, 12), 0)])
def test_the_bracket_begins_at_the_first_table_that_is_there(bench, release, first):
    # As seen on v6.1 and v6.12, x86, in the lab.
    one = bench(release, pages=0)
    one.mm.add_vma(Vma(BIG, BIG + 4 * HUGE, huge=True))
    protect(one, 0, 100)
    protect(one, 0, 100, write=True)
    assert told_of_big(one) == []

    one.do(touch_pages(one.mm, BIG + 600 * PAGE, (1,)))
    told_of_big(one)
    protect(one, 0, 700)
    assert told_of_big(one) == [(512, 1024), (first, 700)]

    protect(one, 1100, 1800)
    assert told_of_big(one)[:2] == [(1024, 1536), (1536, 2048)]


def test_a_table_without_pages_is_there_all_the_same(one):
    one.do(madvise_dontneed(one.mm, one.at(0), one.at(8)))
    told = len(brackets(one))
    one.do(mprotect(one.mm, one.at(2), one.at(4), write=False))

    assert brackets(one)[told:] == [(2, 4)]


def test_a_new_edge_in_room_for_a_huge_page_is_told(bench):
    one = huge(bench)
    one.do(madvise_dontneed(one.mm, BIG, BIG + HUGE))
    told_of_big(one)
    one.do(munmap(one.mm, BIG + 100 * PAGE, BIG + 110 * PAGE))
    one.do(munmap(one.mm, BIG + 300 * PAGE, BIG + 310 * PAGE))

    assert told_of_big(one) == [(0, 512), (100, 110), (300, 310)]


def test_nobody_is_told_of_a_hole(one):
    one.do(munmap(one.mm, one.at(2), one.at(4)))
    told = len(brackets(one))
    one.do(munmap(one.mm, one.at(2), one.at(4)))
    one.do(munmap(one.mm, one.at(1), one.at(5)))

    assert brackets(one)[told:] == [(1, 5)]
    assert [(v.start, v.end) for v in one.mm.vmas if v.start >= one.at(0)] == [
        (one.at(0), one.at(1)),
        (one.at(5), one.at(8)),
    ]


def test_nobody_is_told_of_a_protection_that_was_so_before(one):
    told = len(brackets(one))
    one.do(mprotect(one.mm, one.at(0), one.at(8), write=True))
    assert len(brackets(one)) == told

    one.do(mprotect(one.mm, one.at(2), one.at(4), write=False))
    one.do(mprotect(one.mm, one.at(0), one.at(6), write=True))

    assert brackets(one)[told:] == [(2, 4), (2, 4)]


def test_vmas_of_one_kind_are_protected_as_one(one):
    one.do(mprotect(one.mm, one.at(2), one.at(4), write=False))
    one.do(mprotect(one.mm, one.at(2), one.at(4), write=True))
    told = len(brackets(one))
    one.do(mprotect(one.mm, one.at(0), one.at(6), write=False))

    assert brackets(one)[told:] == [(0, 6)]


def test_protecting_a_part_of_a_huge_page_splits_it(bench):
    one = huge(bench)
    before = one.mm.pte(BIG // PAGE + 1)

    one.do(mprotect(one.mm, BIG + PAGE, BIG + 2 * PAGE, write=False))

    assert one.mm.pmds == {}
    assert one.mm.pte(BIG // PAGE + 1) == before & ~(WRITE | DIRTY)
    assert one.mm.pte(BIG // PAGE) & WRITE


def test_protecting_all_of_a_huge_page_keeps_it(bench):
    one = huge(bench)
    one.do(mprotect(one.mm, BIG, BIG + HUGE, write=False))

    assert len(one.mm.pmds) == 1
    assert not one.mm.pte(BIG // PAGE + 7) & WRITE


def test_dropping_a_part_of_a_huge_page_splits_it(bench):
    one = huge(bench)
    first = one.mm.pte(BIG // PAGE) >> PFN_SHIFT

    one.do(madvise_dontneed(one.mm, BIG + PAGE, BIG + 2 * PAGE))

    assert one.mm.pmds == {}
    assert one.mm.pte(BIG // PAGE + 1) == 0
    assert one.host.pages[first + 1].freed
    assert not one.host.pages[first].freed


# -- sharing ------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_fork_shares_copy_on_write(bench, release):
    one = bench(release, pages=4)
    one.slot()
    one.access(0, "write")

    child = one.do(fork(one.mm))

    pages = [one.host.pages[one.pfn(page)] for page in range(4)]
    assert [(p.refs, p.maps) for p in pages] == [(2, 2)] * 4
    assert child.ptes == one.mm.ptes
    assert not any(entry & WRITE for entry in one.mm.ptes.values())
    assert one.entry(0) == 0
    assert brackets(one) == [(0, 4)]
    assert one.lost == []


def test_a_child_reads_what_was_swapped_out(one):
    one.host.pages[one.pfn(0)].content = "kept"
    one.do(reclaim(one.mm, one.at(0)))
    child = one.do(fork(one.mm))

    for mm in (one.mm, child):
        pfn = one.do(get_user_page(mm, one.vpn(0), False))
        assert one.host.pages[pfn].content == "kept"


def test_a_childs_page_outlives_the_parent(one):
    child = one.do(fork(one.mm))
    pfn = one.pfn(0)
    one.do(exit_mmap(one.mm))

    assert not one.host.pages[pfn].freed
    one.do(exit_mmap(child))
    assert one.host.pages[pfn].freed


# -- exit --------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_exit_releases_first_and_then_unmaps(bench, release):
    one = bench(release, pages=4)
    one.slot()
    one.access(0, "write")
    pfns = [one.pfn(page) for page in range(4)]

    names = one.trace(exit_mmap(one.mm))

    assert names[0] == "mm_users--"
    assert names.index("hlist_del_init_rcu") < names.index("clear PTEs")
    assert all(one.host.pages[pfn].freed for pfn in pfns)
    assert (one.mm.vmas, one.mm.ptes, one.mm.mm_users) == ([], {}, 0)
    assert one.entry(0) == 0
    assert brackets(one) == []
    assert one.lost == []


# -- setting up --------------------------------------------------------------------


def test_touching_what_is_not_writable_kills_the_process(one):
    one.do(mprotect(one.mm, one.at(2), one.at(3), write=False))

    with pytest.raises(ModelError, match="without the right to is killed"):
        one.do(touch_pages(one.mm, one.at(1), ("a", "b")))


def test_touching_writes_one_value_into_each_page(one):
    one.do(touch_pages(one.mm, one.at(2), ("a", "b")))

    contents = [one.host.pages[one.pfn(page)].content for page in (2, 3)]
    assert contents == ["a", "b"]
    assert [one.host.pages[one.pfn(page)].refs for page in (2, 3)] == [1, 1]


def test_populating_leaves_what_is_there(bench):
    one = bench(pages=4)
    before = dict(one.mm.ptes)
    populate(one.mm, one.hva, one.at(4))

    assert one.mm.ptes == before
    assert len({entry >> PFN_SHIFT for entry in before.values()}) == 4


def test_populating_with_huge_pages_fills_the_rest_with_small_ones(bench):
    one = bench(pages=0)
    one.mm.add_vma(Vma(BIG, BIG + HUGE + 2 * PAGE, huge=True))
    populate(one.mm, BIG, BIG + HUGE + 2 * PAGE, huge=True)

    assert (len(one.mm.pmds), len(one.mm.ptes)) == (1, 2)


def test_a_page_that_is_unmapped_while_it_migrates_stays_unmapped(one):
    pfn = one.pfn(0)
    moving = one.actor("migrate", migrate(one.mm, one.at(0)))
    moving.past("close range")
    one.do(munmap(one.mm, one.at(0), one.at(1)), "unmap")
    moving.end()

    assert one.pfn(0) == 0
    assert one.host.pages[pfn].freed
    assert one.lost == []


def test_a_page_that_is_protected_while_it_migrates_stays_protected(one):
    moving = one.actor("migrate", migrate(one.mm, one.at(0)))
    moving.past("close range")
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=False), "protect")

    assert moving.end() is True
    assert not one.mm.pte(one.vpn(0)) & WRITE


@pytest.mark.parametrize(
    ("release", "dirty", "at_once"),
    [
        ((5, 19), True, False),
        ((6, 0), True, True),
        ((6, 1), False, False),
        ((6, 2), False, True),
    ],
)
def test_a_page_that_nobody_shares_becomes_writable_at_once(
    bench, release, dirty, at_once
):
    one = bench(release)
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=False))
    if not dirty:
        one.mm.ptes[one.vpn(0)] &= ~DIRTY
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=True))

    assert bool(one.mm.pte(one.vpn(0)) & WRITE) == at_once


@pytest.mark.parametrize(("release", "at_once"), [((6, 1), False), ((6, 2), True)])
def test_a_huge_page_that_nobody_shares_becomes_writable_at_once(
    bench, release, at_once
):
    one = huge(bench, release)
    one.do(mprotect(one.mm, BIG, BIG + HUGE, write=False))
    one.do(mprotect(one.mm, BIG, BIG + HUGE, write=True))

    assert len(one.mm.pmds) == 1
    assert bool(one.mm.pte(BIG // PAGE + 7) & WRITE) == at_once


def test_a_shared_page_becomes_writable_by_the_next_write_only(bench):
    one = bench((6, 12))
    one.do(fork(one.mm))
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=False))
    one.do(mprotect(one.mm, one.at(0), one.at(1), write=True))

    assert not one.mm.pte(one.vpn(0)) & WRITE


def test_fork_tells_nobody_of_memory_without_pages_of_its_own(bench):
    one = bench()
    one.mm.add_vma(Vma(1 << 40, (1 << 40) + 4 * PAGE))
    one.do(get_user_page(one.mm, (1 << 40) // PAGE, False))
    told = len(brackets(one))
    one.do(fork(one.mm))
    assert len(brackets(one)) == told + 1

    one.do(get_user_page(one.mm, (1 << 40) // PAGE + 1, True))
    one.do(fork(one.mm))
    assert len(brackets(one)) == told + 3


def test_neighbours_that_allow_the_same_are_one_vma_again(one):
    before = one.mm.vmas
    one.do(mprotect(one.mm, one.at(2), one.at(4), write=False))
    assert len(one.mm.vmas) == len(before) + 2

    one.do(mprotect(one.mm, one.at(2), one.at(4), write=True))
    assert one.mm.vmas == before
