"""What the host does on its own: swap, migrate, collapse, split, age."""

import pytest

from kvmarch.kernel.gup import get_user_page
from kvmarch.kernel.huge_memory import split_huge
from kvmarch.kernel.mmap import populate
from kvmarch.kernel.reclaim import age, collapse, migrate, reclaim, reclaim_idle
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import DIRTY, PFN_SHIFT, PRESENT, YOUNG, Vma

BIG = 0x7F80_0000_0000
PAGE = 4096
HUGE = 512 * PAGE
RELEASES = [(3, 16), (5, 12), (5, 15), (6, 1), (7, 2)]


@pytest.fixture
def one(bench):
    made = bench(pages=8)
    made.slot()
    return made


@pytest.fixture
def big(bench):
    """A machine whose memory could be one huge page and is 512 small ones."""
    made = bench(pages=0)
    made.mm.add_vma(Vma(BIG, BIG + HUGE))
    populate(made.mm, BIG, BIG + HUGE)
    return made


# -- swap --------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_page_is_swapped_out_and_comes_back(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")
    pfn, content = one.pfn(0), one.host.pages[one.pfn(0)].content

    done = one.do(reclaim(one.mm, one.at(0)))
    gone = (one.pfn(0), one.entry(0), one.host.pages[pfn].freed)
    one.access(0)

    assert done is True
    assert gone == (0, 0, True)
    assert one.host.pages[one.pfn(0)].content == content
    assert one.lost == []


@pytest.mark.parametrize("page", [100, 5], ids=["unmapped", "zero-page"])
def test_there_is_nothing_to_swap_out(one, page):
    if page == 5:
        one.mm.set_pte(one.vpn(5), one.host.zero_pfn << PFN_SHIFT | PRESENT)

    assert one.do(reclaim(one.mm, one.at(page))) is False
    assert one.host.pages[one.host.zero_pfn].refs == 1


@pytest.mark.parametrize("how", ["clear_flush_young", "test_young"])
def test_a_page_goes_only_if_it_is_idle(bench, how):
    one = bench((6, 1))
    one.slot()
    one.access(0)

    used = one.do(reclaim_idle(one.mm, one.at(0), how))
    kept = one.pfn(0)
    one.do(age(one.mm, one.at(0), one.at(1), "clear_young"))
    idle = one.do(reclaim_idle(one.mm, one.at(0), how))

    assert (used, kept > 0) == (False, True)
    assert (idle, one.pfn(0)) == (True, 0)


# -- migration ---------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_page_moves_to_another_frame(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")
    old = one.pfn(0)
    content = one.host.pages[old].content

    moved = one.do(migrate(one.mm, one.at(0)))

    new = one.host.pages[one.pfn(0)]
    assert moved is True
    assert one.host.pages[old].freed
    assert (new.content, new.refs, new.maps) == (content, 1, 1)
    assert one.access(0, "write") == "done"
    assert one.lost == []


def test_a_page_that_is_held_stays(one):
    before = one.mm.pte(one.vpn(0))
    one.host.get(one.pfn(0))

    assert one.do(migrate(one.mm, one.at(0))) is False
    assert one.mm.pte(one.vpn(0)) == before


def test_there_is_nothing_to_migrate(one):
    assert one.do(migrate(one.mm, one.at(100))) is False


def test_the_new_entry_notifies_nobody(one):
    names = one.trace(migrate(one.mm, one.at(0)))

    assert names.count("open range") == 1
    assert names.index("close range") < names.index("remove migration entry")


def test_a_guest_waits_for_the_migration(one):
    moving = one.actor("migrate", migrate(one.mm, one.at(0))).past("close range")
    guest = one.actor("vcpu0", guest_access(one.vcpu, 0, "read"))

    assert guest.waits() == "host fault"
    moving.end()
    assert guest.end() == "done"
    assert one.entry(0) >> 12 & ((1 << 40) - 1) == one.pfn(0)
    assert one.lost == []


# -- collapse and split ------------------------------------------------------------


def test_collapsing_copies_into_a_huge_page(big):
    contents = [
        big.host.pages[big.mm.pte(BIG // PAGE + n) >> PFN_SHIFT].content
        for n in range(512)
    ]
    old = [entry >> PFN_SHIFT for entry in big.mm.ptes.values()]

    done = big.do(collapse(big.mm, BIG + 5 * PAGE))

    first = big.mm.pte(BIG // PAGE) >> PFN_SHIFT
    assert done is True
    assert big.mm.ptes == {}
    assert first % 512 == 0
    assert [big.host.pages[first + n].content for n in range(512)] == contents
    assert all(big.host.pages[pfn].freed for pfn in old)


def test_the_bracket_ends_before_the_copy(big):
    names = big.trace(collapse(big.mm, BIG))

    order = ["clear PMD", "close range", "copy, set huge PMD", "free pages"]
    assert sorted(order, key=names.index) == order
    assert names[0] == "read-lock mm mmap_lock"
    assert names.index("copy, set huge PMD") < names.index("unlock mm mmap_lock")


def test_a_page_that_somebody_got_meanwhile_stays(big):
    """Only after the PMD was cleared it is seen that a page cannot move."""
    before = dict(big.mm.ptes)
    collapsing = big.actor("khugepaged", collapse(big.mm, BIG)).past("scan PMD")
    pfn = big.do(get_user_page(big.mm, BIG // PAGE, False))
    collapsing.past("clear PMD")
    cleared = dict(big.mm.ptes)

    assert collapsing.end() is False
    assert cleared == {}
    assert (big.mm.ptes, big.mm.pmds) == (before, {})
    big.host.put(pfn)


def test_a_fault_waits_while_the_pmd_is_none(big):
    collapsing = big.actor("khugepaged", collapse(big.mm, BIG)).past("close range")
    reading = big.actor("gup", get_user_page(big.mm, BIG // PAGE, False))

    assert reading.waits() == "read-lock mm mmap_lock"
    collapsing.end()
    assert reading.end() == big.mm.pte(BIG // PAGE) >> PFN_SHIFT


@pytest.mark.parametrize("why", ["held", "absent", "shared"])
def test_what_cannot_be_collapsed_stays(big, why):
    entry = big.mm.ptes[BIG // PAGE + 7]
    page = big.host.pages[entry >> PFN_SHIFT]
    if why == "held":
        page.refs += 1
    elif why == "shared":
        page.maps += 1
    else:
        del big.mm.ptes[BIG // PAGE + 7]
    before = dict(big.mm.ptes)

    assert big.do(collapse(big.mm, BIG)) is False
    assert (big.mm.ptes, big.mm.pmds) == (before, {})
    assert big.mm.mmap_lock.writer is None
    assert big.lost == []


def test_splitting_keeps_the_pages(big):
    big.do(collapse(big.mm, BIG))
    # Until v6.1 D goes to the page only.
    before = [big.mm.pte(BIG // PAGE + n) & ~DIRTY for n in range(512)]

    done = big.do(split_huge(big.mm, BIG + 9 * PAGE))
    again = big.do(split_huge(big.mm, BIG + 9 * PAGE))

    assert (done, again) == (True, False)
    assert big.mm.pmds == {}
    assert [big.mm.pte(BIG // PAGE + n) for n in range(512)] == before
    ranges = {(d["start"], d["end"]) for d in big.named("kvm_unmap_hva_range")}
    assert ranges == {(BIG, BIG + HUGE)}


# -- aging -------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("how", "first", "second"),
    [
        pytest.param("clear_flush_young", True, False, id="clear_flush_young"),
        pytest.param("clear_young", True, False, id="clear_young"),
        pytest.param("test_young", True, True, id="test_young"),
    ],
)
def test_aging_asks_the_guest(bench, release, how, first, second):
    one = bench(release)
    one.slot()
    one.access(0)
    one.mm.ptes[one.vpn(0)] &= ~YOUNG

    answers = [one.do(age(one.mm, one.at(0), one.at(1), how)) for _ in range(2)]

    if how == "clear_young" and release < (4, 3):
        first = False
    assert answers == [first, second]
    assert one.lost == []


def test_aging_asks_the_host_too(one):
    assert one.do(age(one.mm, one.at(0), one.at(1), "clear_young")) is True
    assert one.do(age(one.mm, one.at(0), one.at(1), "clear_young")) is False
    assert one.mm.pte(one.vpn(1)) & YOUNG


def test_a_use_that_the_tlb_hides_is_seen_only_after_a_flush(one):
    one.access(0)
    one.do(age(one.mm, one.at(0), one.at(1), "clear_young"))
    one.access(0)
    unseen = one.do(age(one.mm, one.at(0), one.at(1), "test_young"))
    one.access(1)
    one.do(age(one.mm, one.at(1), one.at(2), "clear_flush_young"))
    one.access(1)

    assert unseen is False
    assert one.do(age(one.mm, one.at(1), one.at(2), "test_young")) is True
