"""Huge host mappings that are split because something meets them in part."""

import pytest

from kvmarch.kernel.mmap import (
    madvise_dontneed,
    mprotect,
    munmap,
    oom_reap,
    populate,
)
from kvmarch.machine.host import DIRTY, PFN_SHIFT, PRESENT, SPECIAL, Vma

HUGE = 512


@pytest.fixture
def huge(bench):
    """A machine whose memory is one huge page and 16 small ones after it."""
    one = bench(pages=0)
    one.pages = HUGE + 16
    one.mm.add_vma(Vma(one.at(0), one.at(one.pages), huge=True))
    populate(one.mm, one.at(0), one.at(one.pages), huge=True)
    one.slot()
    return one


def brackets(one):
    shift = one.mm.page_shift
    return [
        (data["start"] - one.hva >> shift, data["end"] - one.hva >> shift)
        for data in one.named("kvm_unmap_hva_range")
    ]


CHANGES = [
    pytest.param(lambda one, a, b: madvise_dontneed(one.mm, a, b), id="dontneed"),
    pytest.param(lambda one, a, b: munmap(one.mm, a, b), id="munmap"),
    pytest.param(lambda one, a, b: oom_reap(one.mm, a, b), id="oom"),
    pytest.param(lambda one, a, b: mprotect(one.mm, a, b, write=False), id="mprotect"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_whole_huge_page_gets_a_bracket_of_its_own(huge, change, request):
    huge.do(change(huge, huge.at(1), huge.at(2)))

    # Whoever splits the VMA splits the huge page first.
    splits = "munmap" in request.node.name or "mprotect" in request.node.name
    order = [(0, HUGE), (1, 2)]
    assert brackets(huge) == (order if splits else order[::-1])
    assert not huge.mm.pmds
    assert huge.lost == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_huge_page_that_is_met_as_a_whole_is_not_split(huge, change):
    huge.do(change(huge, huge.at(0), huge.at(HUGE)))

    assert brackets(huge) == [(0, HUGE)]
    assert huge.lost == []


def test_a_read_of_untouched_memory_maps_the_huge_zero_page(bench):
    one = bench(pages=0)
    one.pages = HUGE
    one.mm.add_vma(Vma(one.at(0), one.at(HUGE), huge=True))
    one.slot()

    assert one.access(3, "read") == "done"
    zero = one.mm.host.huge_zero_pfn
    assert len(one.mm.pmds) == 1
    assert one.mm.pte(one.vpn(3)) >> PFN_SHIFT == zero + 3

    assert one.access(3, "write") == "done"
    assert not one.mm.pmds
    assert one.mm.pte(one.vpn(4)) >> PFN_SHIFT == one.mm.host.zero_pfn
    assert not one.mm.host.is_zero(one.mm.pte(one.vpn(3)) >> PFN_SHIFT)

    one.do(munmap(one.mm, one.at(0), one.at(HUGE)))
    assert one.lost == []
    assert one.mm.host.pages[zero].refs == 1


@pytest.mark.parametrize(("release", "count"), [((6, 19), 0), ((7, 0), 1)])
def test_a_table_that_is_left_empty_goes_since_v7_0(bench, release, count):
    one = bench(release, pages=0)
    one.pages = HUGE
    one.mm.add_vma(Vma(one.at(0), one.at(HUGE), huge=True))
    populate(one.mm, one.at(0), one.at(HUGE), huge=True)
    one.do(madvise_dontneed(one.mm, one.at(1), one.at(2)))
    one.do(madvise_dontneed(one.mm, one.at(0), one.at(HUGE)))
    one.slot()

    assert one.access(3, "write") == "done"
    assert len(one.mm.pmds) == count


@pytest.mark.parametrize(("release", "count"), [((6, 12), 0), ((6, 13), 1)])
def test_a_write_to_the_huge_zero_page_gets_a_huge_page(bench, release, count):
    one = bench(release, pages=0)
    one.pages = HUGE
    one.mm.add_vma(Vma(one.at(0), one.at(HUGE), huge=True))
    one.slot()
    one.access(3, "read")
    assert one.access(3, "write") == "done"

    assert len(one.mm.pmds) == count
    assert one.mm.host.is_zero(one.mm.pte(one.vpn(4)) >> PFN_SHIFT) == (not count)
    assert brackets(one) == [(0, HUGE)] if count else [(0, HUGE), (3, 4)]
    assert one.lost == []


@pytest.mark.parametrize(("release", "special"), [((6, 17), False), ((6, 18), True)])
def test_the_huge_zero_page_is_special_since_v6_18(bench, release, special):
    one = bench(release, pages=0)
    one.pages = HUGE
    one.mm.add_vma(Vma(one.at(0), one.at(HUGE), huge=True))
    one.slot()
    one.access(3, "read")

    (entry,) = one.mm.pmds.values()
    assert bool(entry & SPECIAL) == special
    assert entry & PRESENT


def test_an_empty_table_of_base_pages_is_in_the_way_of_a_huge_page(huge):
    huge.do(madvise_dontneed(huge.mm, huge.at(1), huge.at(2)))
    huge.do(madvise_dontneed(huge.mm, huge.at(0), huge.at(HUGE)))
    assert huge.access(3, "write") == "done"
    assert not huge.mm.pmds

    huge.do(munmap(huge.mm, huge.at(0), huge.at(huge.pages)))
    huge.mm.add_vma(Vma(huge.at(0), huge.at(HUGE), huge=True))
    assert huge.access(3, "write") == "done"
    assert len(huge.mm.pmds) == 1


def test_a_huge_page_that_goes_as_a_whole_leaves_room_for_another(huge):
    huge.do(madvise_dontneed(huge.mm, huge.at(0), huge.at(HUGE)))

    assert huge.access(3, "write") == "done"
    assert len(huge.mm.pmds) == 1


@pytest.mark.parametrize(("release", "dirty"), [((6, 1), False), ((6, 2), True)])
def test_entries_of_a_split_page_are_dirty_since_v6_2(bench, release, dirty):
    one = bench(release, pages=0)
    one.mm.add_vma(Vma(one.at(0), one.at(HUGE), huge=True))
    populate(one.mm, one.at(0), one.at(HUGE), huge=True)
    one.do(madvise_dontneed(one.mm, one.at(1), one.at(2)))

    assert bool(one.mm.pte(one.vpn(0)) & DIRTY) == dirty
