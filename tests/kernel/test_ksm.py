"""KSM: two brackets, and what makes it give up (generic facts 2.15)."""

import pytest

from kvmarch.kernel.ksm import (
    ksm_scan,
    madvise_mergeable,
    madvise_unmergeable,
    replace_page,
    write_protect_page,
)
from kvmarch.kernel.mmap import (
    fork,
    madvise_dontneed,
    munmap,
    populate,
    touch_pages,
)
from kvmarch.kernel.mremap import mremap
from kvmarch.kernel.reclaim import migrate
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import (
    DIRTY,
    PFN_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    WRITE,
    Vma,
)

RELEASES = [(3, 16), (5, 12), (5, 13), (5, 15), (6, 4), (6, 10)]


@pytest.fixture
def same(bench):
    """A machine whose first pages hold these values."""

    def make(release=(6, 1), contents=(7, 7, 3, 4)):
        one = bench(release, pages=len(contents))
        one.do(touch_pages(one.mm, one.hva, tuple(contents)))
        one.slot()
        return one

    return make


def scan(one):
    return one.do(ksm_scan(one.mm), "ksmd")


def kinds(one, pages):
    return [one.host.pages[one.pfn(p)].kind if one.pfn(p) else "" for p in range(pages)]


@pytest.mark.parametrize("release", RELEASES)
def test_two_equal_pages_become_one(same, release):
    one = same(release)
    second = one.pfn(1)

    merged = scan(one)

    assert merged == 1
    assert one.pfn(0) == one.pfn(1) == second
    assert kinds(one, 4) == ["ksm", "ksm", "anon", "anon"]
    assert not one.mm.pte(one.vpn(0)) & (WRITE | DIRTY)
    assert not one.mm.pte(one.vpn(1)) & (WRITE | DIRTY)
    page = one.host.pages[second]
    assert (page.refs, page.maps) == (2, 2)
    assert one.lost == []


def test_the_later_page_takes_one_bracket_and_the_earlier_one_two(same):
    one = same()
    scan(one)

    brackets = [(d["start"], d["end"]) for d in one.named("kvm_unmap_hva_range")]
    assert brackets == [
        (one.at(1), one.at(2)),
        (one.at(0), one.at(1)),
        (one.at(0), one.at(1)),
    ]
    assert [d["hva"] for d in one.named("kvm_set_spte_hva")] == [
        one.at(1),
        one.at(0),
        one.at(0),
    ]


def test_since_v6_10_nobody_is_told_of_the_new_pte(same):
    one = same((6, 10))
    scan(one)

    assert len(one.named("kvm_unmap_hva_range")) == 3
    assert one.named("kvm_set_spte_hva") == []


def test_a_third_page_joins_the_stable_tree(same):
    one = same(contents=(7, 7, 7, 4))

    merged = scan(one)

    assert merged == 2
    assert one.pfn(0) == one.pfn(1) == one.pfn(2)
    assert one.host.pages[one.pfn(0)].maps == 3
    assert one.lost == []


def test_a_second_scan_finds_nothing_new(same):
    one = same()
    scan(one)
    told = len(one.named("kvm_unmap_hva_range"))

    assert scan(one) == 0
    assert len(one.named("kvm_unmap_hva_range")) == told


def test_the_old_page_is_freed_inside_the_bracket(same):
    one = same()
    first = one.pfn(0)

    names = one.trace(ksm_scan(one.mm))

    last = len(names) - 1 - names[::-1].index("page_remove_rmap, put old page")
    assert one.host.pages[first].freed
    assert "close range" in names[last:]


@pytest.mark.parametrize(
    "why",
    [
        pytest.param("other content", id="content"),
        pytest.param("not mergeable", id="vma"),
        pytest.param("zero page", id="zero-page"),
        pytest.param("file", id="file-page"),
        pytest.param("absent", id="absent"),
    ],
)
def test_pages_that_are_left_alone(same, why):
    one = same(contents=(7, 7))
    if why == "other content":
        one.host.pages[one.pfn(1)].content = 8
    elif why == "not mergeable":
        one.mm.vmas = [Vma(one.hva, one.at(2))]
    elif why == "file":
        one.host.pages[one.pfn(0)].kind = "file"
    else:
        one.do(madvise_dontneed(one.mm, one.hva, one.at(2)))
        if why == "zero page":
            one.access(0)
            one.access(1)
    told = len(one.named("kvm_unmap_hva_range"))

    assert scan(one) == 0
    assert len(one.named("kvm_unmap_hva_range")) == told
    assert one.lost == []


@pytest.mark.parametrize("held", [0, 1], ids=["earlier", "later"])
def test_a_page_that_somebody_holds_is_not_merged(same, held):
    one = same()
    one.host.get(one.pfn(held))
    entries = [one.mm.pte(one.vpn(p)) for p in (0, 1)]

    merged = scan(one)

    assert merged == 0
    assert one.pfn(0) != one.pfn(1)
    assert one.mm.pte(one.vpn(held)) == entries[held]
    assert one.mm.vmas[0].mergeable
    assert one.lost == []


def test_a_ksm_page_that_stays_alone_is_undone(same):
    one = same()
    one.host.get(one.pfn(0))
    later = one.pfn(1)

    scan(one)

    assert one.host.pages[later].freed
    assert kinds(one, 2) == ["anon", "anon"]
    assert one.host.pages[one.pfn(1)].content == 7
    assert one.mm.pte(one.vpn(1)) & WRITE


def test_write_protection_is_taken_back_if_the_page_is_held(same):
    one = same()
    one.host.get(one.pfn(0))
    one.host.get(one.pfn(0))
    before = one.mm.pte(one.vpn(0))

    result = one.do(write_protect_page(one.mm, one.vpn(0), one.pfn(0)))

    assert (result, one.mm.pte(one.vpn(0))) == (0, before)
    assert one.named("kvm_set_spte_hva") == []


def test_a_page_that_is_protected_already_is_not_protected_again(same):
    one = same()
    one.mm.ptes[one.vpn(0)] &= ~(WRITE | DIRTY)
    one.host.get(one.pfn(0))
    before = one.mm.pte(one.vpn(0))

    assert one.do(write_protect_page(one.mm, one.vpn(0), one.pfn(0))) == before


def test_a_page_that_left_its_place_is_not_protected(same):
    one = same()
    old = one.pfn(0)
    one.host.get(old)
    one.do(madvise_dontneed(one.mm, one.hva, one.at(1)))
    one.do(touch_pages(one.mm, one.hva, (7,)))
    before = one.mm.pte(one.vpn(0))

    result = one.do(write_protect_page(one.mm, one.vpn(0), old))

    assert (result, one.mm.pte(one.vpn(0))) == (0, before)


def test_a_page_that_migrates_is_not_protected(same):
    one = same()
    old = one.pfn(0)
    moving = one.actor("migrate", migrate(one.mm, one.at(0)))
    moving.past("install migration entry")
    one.host.get(old)
    moving.past("close range")

    result = one.do(write_protect_page(one.mm, one.vpn(0), old))
    moving.end()

    assert result == 0
    assert one.mm.pte(one.vpn(0)) & (PRESENT | WRITE) == PRESENT | WRITE


def test_the_second_bracket_fails_if_the_pte_has_changed(same):
    one = same()
    kpage, old = one.pfn(1), one.pfn(0)
    one.host.get(old)
    protected = one.do(write_protect_page(one.mm, one.vpn(0), old))
    one.host.put(old)
    one.do(touch_pages(one.mm, one.hva, (7,)))
    before = one.mm.pte(one.vpn(0))

    done = one.do(replace_page(one.mm, one.vpn(0), protected, kpage))

    assert done is False
    assert one.mm.pte(one.vpn(0)) == before
    assert one.host.pages[kpage].maps == 1


@pytest.mark.parametrize("release", RELEASES)
def test_a_guest_that_reads_between_the_brackets_maps_the_old_page(same, release):
    one = same(release)
    old = one.pfn(0)
    merging = one.actor("ksmd", ksm_scan(one.mm))
    merging.past("becomes KSM page").to("compare pages")

    one.access(0)
    between = one.entry(0)
    merging.end()

    assert between >> 12 & ((1 << 40) - 1) == old
    assert not between & 0b10
    assert one.pfn(0) == one.pfn(1)
    assert one.access(0) == "done"
    assert one.lost == []


@pytest.mark.parametrize("release", RELEASES)
def test_a_guest_that_writes_later_breaks_the_sharing(same, release):
    one = same(release)
    scan(one)
    shared = one.pfn(1)

    one.access(0, "write")

    assert one.pfn(0) != shared
    assert one.pfn(1) == shared
    assert one.host.pages[shared].content == 7
    assert one.lost == []


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("access", ["read", "write"])
def test_a_guest_and_ksm_at_once_at_every_step(same, release, access):
    for steps in range(0, 110, 5):
        one = same(release)
        one.access(0, "write")
        one.host.pages[one.pfn(0)].content = 7
        merging = one.actor("ksmd", ksm_scan(one.mm))
        for _ in range(steps):
            merging.step()
        guest = one.actor("vcpu0", guest_access(one.vcpu, 0, access))
        one.interleave(guest, merging)

        assert guest.task.result == "done"
        assert one.lost == []
        content = one.host.pages[one.pfn(0)].content
        assert content == 7 or (access == "write" and content[0] == "vcpu0")


@pytest.mark.parametrize(("release", "writable"), [((6, 1), True), ((6, 2), False)])
def test_a_merged_page_is_copied_before_it_is_moved(same, release, writable):
    one = same(release)
    assert scan(one) == 1
    shared = one.pfn(0)
    there = one.at(0x100)

    one.do(mremap(one.mm, one.at(1), one.at(2), there))

    entry = one.mm.pte(there // 4096)
    assert one.pfn(0) == shared
    assert entry >> PFN_SHIFT not in {shared, 0}
    assert one.host.pages[entry >> PFN_SHIFT].content == 7
    assert bool(entry & WRITE) == writable
    assert one.lost == []


# -- all that is mergeable, in order -----------------------------------------------


def more(one, contents, at=0x100, mergeable=True):
    """Map another memory behind the first; return the pfn of each of its pages."""
    one.mm.add_vma(Vma(one.at(at), one.at(at + len(contents)), mergeable=mergeable))
    one.do(touch_pages(one.mm, one.at(at), contents))
    return [one.pfn(at + page) for page in range(len(contents))]


def test_all_mergeable_memory_is_merged_whatever_was_advised_last(same):
    one = same(contents=(1, 2, 7, 7))
    first, second, third = more(one, (2, 9, 9))
    one.do(madvise_mergeable(one.mm, one.at(2), one.at(4)))

    assert scan(one) == 3
    assert one.pfn(2) == one.pfn(3)
    assert one.pfn(1) == one.pfn(0x100) == first
    assert one.pfn(0x101) == one.pfn(0x102) == third
    assert one.host.pages[second].freed
    assert one.lost == []


def test_memory_that_is_not_mergeable_is_left_alone(same):
    one = same(contents=(1, 7))
    more(one, (7, 7, 1), mergeable=False)

    assert scan(one) == 0

    one.do(madvise_mergeable(one.mm, one.at(0x101), one.at(0x102)))
    assert scan(one) == 1
    assert one.pfn(1) == one.pfn(0x101) != one.pfn(0x100)
    assert [vma.mergeable for vma in one.mm.vmas] == [True, False, True, False]


def merged_in_order(one):
    """Return the pages that KSM told notifiers of, each once."""
    told = [d["start"] for d in one.named("kvm_unmap_hva_range")]
    pages = [(hva - one.hva) // one.page for hva in told]
    return list(dict.fromkeys(pages))


@pytest.mark.parametrize(
    ("release", "order"), [((6, 10), [2, 3, 1, 0]), ((6, 11), [1, 0, 2, 3])]
)
def test_pages_like_a_ksm_page_go_before_pairs_of_new_ones_until_v6_11(
    same, release, order
):
    one = same(release, contents=(1, 2, 3, 4))
    more(one, (7, 7))
    assert scan(one) == 1
    one.do(touch_pages(one.mm, one.hva, (5, 5, 7, 7)))
    one.world.events.clear()

    assert scan(one) == 3
    assert merged_in_order(one) == order


@pytest.mark.parametrize(("release", "order"), [((6, 10), [1, 2]), ((6, 11), [2, 1])])
def test_since_v6_11_what_changed_since_the_last_scan_waits(same, release, order):
    # As seen on v6.1 and v6.12, x86 and ppc: page 2 holds again what it held.
    one = same(release, (3, 3, 1, 1))
    scan(one)
    one.do(touch_pages(one.mm, one.at(1), (1, 1)))
    one.world.events.clear()

    scan(one)

    assert merged_in_order(one) == order


def test_a_child_is_scanned_after_its_parent(same):
    one = same(contents=(7, 7, 3))
    child = one.do(fork(one.mm))
    before = one.pfn(0)
    one.do(touch_pages(one.mm, one.at(2), (8,)))

    assert scan(one) == 2
    entries = [mm.pte(one.vpn(page)) for mm in (one.mm, child) for page in (0, 1)]
    assert {entry >> PFN_SHIFT for entry in entries} == {one.pfn(1)}
    assert one.host.pages[one.pfn(1)].maps == 4
    assert one.host.pages[before].freed
    assert one.lost == []


def test_a_page_that_parent_and_child_share_is_not_its_own_like(same):
    one = same(contents=(7, 8))
    one.do(fork(one.mm))
    told = len(one.named("kvm_unmap_hva_range"))

    assert scan(one) == 0
    assert kinds(one, 2) == ["anon", "anon"]
    assert len(one.named("kvm_unmap_hva_range")) == told


def test_madvise_waits_for_whoever_uses_the_mappings(same):
    one = same()
    one.mm.vmas = [Vma(one.hva, one.at(4))]
    zapping = one.actor("zap", madvise_dontneed(one.mm, one.at(3), one.at(4)))
    zapping.past("clear PTEs")
    advising = one.actor("madvise", madvise_mergeable(one.mm, one.hva, one.at(2)))

    assert advising.waits() == "MADV_MERGEABLE"
    zapping.end()
    advising.end()
    assert [(v.start, v.mergeable) for v in one.mm.vmas] == [
        (one.hva, True),
        (one.at(2), False),
    ]


def test_the_scan_waits_for_a_change_of_the_mappings(same):
    one = same()
    unmapping = one.actor("unmap", munmap(one.mm, one.at(0), one.at(1)))
    unmapping.past("remove VMAs")
    merging = one.actor("ksmd", ksm_scan(one.mm))

    assert merging.waits() == "scan for equal pages"
    unmapping.end()
    assert merging.end() == 0


def test_a_mapping_that_goes_while_its_page_is_held_is_not_touched(same):
    one = same()
    kept = one.pfn(1)
    merging = one.actor("ksmd", ksm_scan(one.mm))
    merging.past("scan for equal pages")

    one.do(munmap(one.mm, one.at(0), one.at(2)))
    assert not one.host.pages[kept].freed
    assert merging.end() == 0
    assert one.host.pages[kept].freed
    assert one.lost == []


def test_madvise_splits_a_huge_page_at_an_edge(bench):
    one = bench((6, 1), pages=0)
    base, huge = one.hva, 512
    one.mm.add_vma(Vma(base, one.at(2 * huge), huge=True))
    populate(one.mm, base, one.at(2 * huge), huge=True)

    one.do(madvise_mergeable(one.mm, one.at(huge + 3), one.at(2 * huge)))

    assert list(one.mm.pmds) == [one.vpn(0)]
    assert [v.mergeable for v in one.mm.vmas] == [False, True]


WRITTEN = WRITE | DIRTY | SOFT_DIRTY


@pytest.mark.parametrize(
    ("release", "bits"), [((6, 1), [WRITTEN, WRITTEN]), ((6, 2), [0, SOFT_DIRTY])]
)
def test_pages_that_are_given_back_are_their_own(same, release, bits):
    """The PTE of page 0 was made from nothing when it was merged into page 1."""
    one = same(release)
    scan(one)

    one.do(madvise_unmergeable(one.mm, one.at(0), one.at(2)))

    assert one.pfn(0) != one.pfn(1)
    assert kinds(one, 4) == ["anon"] * 4
    for page in (0, 1):
        assert one.mm.pte(one.vpn(page)) & WRITTEN == bits[page]
        assert one.host.pages[one.pfn(page)].content == 7
    assert not one.mm.find_vma(one.at(0)).mergeable
    assert one.mm.find_vma(one.at(2)).mergeable
    assert scan(one) == 0
    assert one.lost == []


def test_who_unshares_keeps_the_page_soft_dirty(same):
    """As when KSM has protected a page that it could not merge then."""
    one = same((6, 2))
    before = one.mm.pte(one.vpn(0))
    assert before & SOFT_DIRTY
    one.do(write_protect_page(one.mm, one.vpn(0), one.pfn(0)))
    one.host.pages[one.pfn(0)].kind = "ksm"

    one.do(madvise_unmergeable(one.mm, one.at(0), one.at(1)))

    assert one.mm.pte(one.vpn(0)) & WRITTEN == SOFT_DIRTY
