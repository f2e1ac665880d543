"""KSM and huge pages, which it splits; and how many share a page."""

import pytest

from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.mmap import fork, madvise_dontneed, populate, touch_pages
from kvmarch.machine.host import PFN_SHIFT, Vma

HUGE = 512


@pytest.fixture
def huge(bench):
    """A machine whose memory is a huge page, and eight small ones after it."""

    def make(release=(6, 1), contents=()):
        one = bench(release, pages=0)
        one.pages = HUGE + 8
        one.mm.add_vma(Vma(one.at(0), one.at(one.pages), huge=True, mergeable=True))
        populate(one.mm, one.at(0), one.at(one.pages), huge=True)
        assert len(one.mm.pmds) == 1
        one.slot()
        for page, content in contents:
            one.do(touch_pages(one.mm, one.at(page), (content,)))
        one.world.events.clear()
        return one

    return make


def brackets(one):
    return [
        ((d["start"] - one.hva) // one.page, (d["end"] - one.hva) // one.page)
        for d in one.named("kvm_unmap_hva_range")
    ]


@pytest.mark.parametrize(("release", "times"), [((6, 15), 2), ((6, 16), 1)])
def test_a_huge_page_is_split_for_the_like_of_one_of_its_pages(huge, release, times):
    one = huge(release, [(3, 7), (HUGE + 1, 7)])
    shared = one.pfn(HUGE + 1)

    assert one.do(ksm_scan(one.mm), "ksmd") == 1

    assert one.pfn(3) == one.pfn(HUGE + 1) == shared
    assert not one.mm.pmds
    assert one.host.pages[one.pfn(4)].order == 0
    # The later page takes one bracket; the other is split before it takes two.
    last = (HUGE + 1, HUGE + 2)
    assert brackets(one) == [last, *[(0, HUGE)] * times, (3, 4), (3, 4)]
    assert one.lost == []


def test_a_huge_page_that_differs_is_left_alone(huge):
    one = huge()

    assert one.do(ksm_scan(one.mm), "ksmd") == 0
    assert len(one.mm.pmds) == 1
    assert brackets(one) == []


def test_a_huge_page_that_somebody_holds_is_not_split(huge):
    one = huge(contents=[(3, 7), (HUGE + 1, 7)])
    one.host.get(one.pfn(100))

    assert one.do(ksm_scan(one.mm), "ksmd") == 0
    assert len(one.mm.pmds) == 1
    assert one.host.pages[one.pfn(HUGE + 1)].kind == "anon"
    assert one.lost == []


def test_pages_of_one_huge_page_are_merged_by_the_next_scan(huge):
    contents = [(3, 7), (5, 7), (HUGE, 8), (HUGE + 1, 8)]
    one = huge((6, 16), contents)

    assert one.do(ksm_scan(one.mm), "ksmd") == 2

    assert one.pfn(3) == one.pfn(5)
    first = [(0, HUGE), (HUGE + 1, HUGE + 2), (HUGE, HUGE + 1), (HUGE, HUGE + 1)]
    assert brackets(one) == [*first, (5, 6), (3, 4), (3, 4)]
    assert one.lost == []


def test_small_entries_of_a_huge_page_do_not_keep_it_whole(huge):
    one = huge((6, 16), [(3, 7), (HUGE + 1, 7)])
    one.do(madvise_dontneed(one.mm, one.at(9), one.at(10)))
    assert not one.mm.pmds
    assert one.host.pages[one.pfn(3)].order
    one.world.events.clear()

    assert one.do(ksm_scan(one.mm), "ksmd") == 1
    assert (0, HUGE) in brackets(one)
    assert one.host.pages[one.pfn(4)].order == 0


def test_a_child_has_its_huge_page_split_as_well(huge):
    one = huge(contents=[(3, 7), (HUGE + 1, 7)])
    child = one.do(fork(one.mm))

    assert one.do(ksm_scan(one.mm), "ksmd") == 2

    assert not child.pmds
    shared = {mm.pte(one.vpn(3)) >> PFN_SHIFT for mm in (one.mm, child)}
    assert shared == {one.pfn(HUGE + 1)}
    assert one.lost == []


@pytest.mark.parametrize(("release", "zero"), [((6, 11), False), ((6, 12), True)])
def test_pages_of_zeroes_become_the_zero_page_since_v6_12(bench, release, zero):
    one = bench(release, pages=0)
    one.pages = HUGE
    one.mm.add_vma(Vma(one.at(0), one.at(HUGE), huge=True, mergeable=True))
    one.slot()
    one.access(3, "write")
    assert len(one.mm.pmds) == 1

    merged = one.do(ksm_scan(one.mm), "ksmd")

    kinds = [one.host.pages[one.pfn(page)].kind for page in range(HUGE)]
    assert kinds[3] == "anon"
    assert set(kinds) == {"anon", "zero" if zero else "ksm"}
    assert (merged == 0) == zero
    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "groups"), [((4, 12), [300]), ((4, 13), [256, 44])]
)
def test_a_page_is_shared_by_256_since_v4_13(bench, release, groups):
    one = bench(release, pages=300)
    one.do(touch_pages(one.mm, one.hva, (7,) * 300))

    one.do(ksm_scan(one.mm), "ksmd")

    shared = {one.pfn(page) for page in range(300)}
    maps = sorted((one.host.pages[pfn].maps for pfn in shared), reverse=True)
    assert maps == groups
    assert one.lost == []
