"""The host's faults and gfn_to_pfn (generic facts 2.14)."""

import pytest

from kvmarch.kernel.gup import (
    FaultIn,
    faultin_pfn,
    get_user_page,
    handle_mm_fault,
    host_mapping,
    release_pfn,
    wp_page_copy,
)
from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.memslots import READONLY, gfn_to_memslot
from kvmarch.kernel.mmap import (
    exit_mmap,
    fork,
    madvise_dontneed,
    mprotect,
    munmap,
    populate,
)
from kvmarch.kernel.reclaim import migrate, reclaim
from kvmarch.machine.host import (
    DIRTY,
    EXEC,
    PFN_SHIFT,
    PRESENT,
    SPECIAL,
    WRITE,
    Vma,
)

HVA = 0x7F00_0000_0000
BIG = 0x7F80_0000_0000
PAGE = 4096


@pytest.fixture
def one(bench):
    """A machine with 4 written pages and 12 that nobody has touched."""
    made = bench(pages=4)
    made.mm.add_vma(Vma(made.at(4), made.at(16)))
    made.slot(pages=16)
    return made


def pin(one, page, write):
    return one.do(get_user_page(one.mm, one.vpn(page), write))


def refs(one, page):
    return one.host.pages[one.pfn(page)].refs


# -- faults of the host ------------------------------------------------------------


def test_a_read_of_untouched_memory_maps_the_zero_page(one):
    pfn = pin(one, 5, write=False)

    entry = one.mm.pte(one.vpn(5))
    assert pfn == one.host.zero_pfn
    assert entry & (PRESENT | WRITE | SPECIAL) == PRESENT | SPECIAL


def test_a_write_to_untouched_memory_gets_a_page_of_its_own(one):
    pfn = pin(one, 5, write=True)

    page = one.host.pages[pfn]
    assert (page.kind, page.content, page.refs, page.maps) == ("anon", 0, 2, 1)
    assert one.mm.pte(one.vpn(5)) & (WRITE | DIRTY) == WRITE | DIRTY


def test_a_write_to_the_zero_page_copies_it(one):
    one.host.put(pin(one, 5, write=False))

    pfn = pin(one, 5, write=True)

    assert pfn != one.host.zero_pfn
    assert one.host.pages[pfn].content == 0
    assert one.host.pages[one.host.zero_pfn].refs == 1
    assert len(one.named("kvm_unmap_hva_range")) == 1
    assert one.lost == []


def test_what_was_swapped_out_comes_back(one):
    one.host.pages[one.pfn(0)].content = "kept"
    one.do(reclaim(one.mm, one.at(0)))
    gone = one.pfn(0)

    pfn = pin(one, 0, write=False)

    assert gone == 0
    assert one.host.pages[pfn].content == "kept"
    assert one.mm.swapped == {}


@pytest.mark.parametrize(
    ("page", "write"),
    [
        pytest.param(16, False, id="no-vma"),
        pytest.param(16, True, id="no-vma-write"),
        pytest.param(0, True, id="write-to-a-read-only-vma"),
        pytest.param(5, True, id="write-to-an-untouched-page-of-it"),
    ],
)
def test_an_access_that_no_vma_allows(one, page, write):
    one.do(mprotect(one.mm, HVA, one.at(16), write=False))

    assert pin(one, page, write) == -1
    assert not one.do(handle_mm_fault(one.mm, one.vpn(page), write))


def test_a_page_with_one_mapping_is_reused_in_place(one):
    one.mm.ptes[one.vpn(0)] &= ~WRITE
    before = one.pfn(0)

    pfn = pin(one, 0, write=True)

    assert pfn == before
    assert one.named("kvm_unmap_hva_range") == []


def test_executable_memory_is_mapped_executable(one):
    one.do(mprotect(one.mm, HVA, one.at(16), write=True, executable=True))
    pin(one, 5, write=False)
    pin(one, 5, write=True)

    assert one.mm.pte(one.vpn(5)) & EXEC


# -- copy on write -----------------------------------------------------------------


def test_a_copy_is_made_before_the_bracket_and_the_old_page_put_after_it(one):
    one.do(fork(one.mm))
    old = one.pfn(0)
    one.host.pages[old].content = "shared"

    names = one.trace(handle_mm_fault(one.mm, one.vpn(0), True))

    new = one.pfn(0)
    order = [
        "copy page",
        "start returns",
        "ptep_clear_flush",
        "set PTE",
        "close range",
        "put old page",
    ]
    assert sorted(order, key=names.index) == order
    assert new != old
    assert one.host.pages[new].content == "shared"
    assert (one.host.pages[old].refs, one.host.pages[old].maps) == (1, 1)
    assert (one.host.pages[new].refs, one.host.pages[new].maps) == (1, 1)


@pytest.mark.parametrize("release", [(3, 16), (5, 10), (6, 1), (6, 12)])
def test_a_guest_that_writes_gets_the_copy(bench, release):
    one = bench(release)
    one.slot()
    one.access(0)
    one.do(fork(one.mm))
    shared = one.pfn(0)

    how = one.access(0, "write")

    assert how == "done"
    assert one.pfn(0) != shared
    assert one.host.pages[one.pfn(0)].content[0] == "vcpu0"
    assert one.host.pages[shared].content == ("fresh", one.vpn(0))
    assert one.lost == []


def test_a_write_fault_on_a_shared_huge_page_splits_it_first(bench):
    one = bench(pages=0)
    size = 512 * PAGE
    one.mm.add_vma(Vma(BIG, BIG + size, huge=True))
    populate(one.mm, BIG, BIG + size, huge=True)
    one.do(fork(one.mm))
    first = BIG // PAGE
    shared = one.mm.pte(first + 3) >> PFN_SHIFT

    pfn = one.do(get_user_page(one.mm, first + 3, True))
    one.host.put(pfn)

    assert pfn != shared
    assert one.mm.pmds == {}
    assert one.mm.pte(first + 4) >> PFN_SHIFT == shared + 1
    one.do(munmap(one.mm, BIG, BIG + size))
    assert one.host.pages[pfn].freed
    assert one.host.pages[shared].refs == 1
    assert one.lost == []


def test_a_huge_page_that_nobody_shares_is_written_in_place(bench):
    one = bench(pages=0)
    size = 512 * PAGE
    one.mm.add_vma(Vma(BIG, BIG + size, huge=True))

    pfn = one.do(get_user_page(one.mm, BIG // PAGE + 5, True))

    (entry,) = one.mm.pmds.values()
    assert pfn == (entry >> PFN_SHIFT) + 5
    assert one.mm.level_pages(BIG // PAGE + 5) == 512


def test_a_huge_page_needs_room_in_its_vma(bench):
    one = bench(pages=0)
    one.mm.add_vma(Vma(BIG + PAGE, BIG + 512 * PAGE, huge=True))

    one.do(get_user_page(one.mm, BIG // PAGE + 5, True))

    assert one.mm.pmds == {}


# -- a page on its way -------------------------------------------------------------


def test_a_fault_waits_for_a_migration(one):
    moving = one.actor("migrate", migrate(one.mm, one.at(0)))
    moving.past("install migration entry")
    old = one.pfn(0)
    reading = one.actor("gup", get_user_page(one.mm, one.vpn(0), False))

    assert reading.waits() == "host fault"
    assert moving.end() is True
    pfn = reading.end()
    assert pfn == one.pfn(0) != old
    assert one.lost == []


def test_a_fault_waits_while_the_page_table_is_locked(one):
    content = [one.host.pages[one.pfn(page)] for page in (0, 1)]
    content[0].content = content[1].content = "equal"
    merging = one.actor("ksm", ksm_scan(one.mm))
    merging.past("ptep_clear_flush")
    reading = one.actor("gup", get_user_page(one.mm, one.vpn(1), False))

    # The entry is empty now, and is not to be taken for one that was never mapped.
    assert reading.waits() == "host fault"
    assert merging.end() == 1
    assert reading.end() == one.pfn(0) == one.pfn(1)
    assert one.lost == []


# -- gfn_to_pfn --------------------------------------------------------------------


def faultin(one, gfn, write, flags=0):
    if flags:
        one.slot(slot=1, gfn=0x100, pages=4, flags=flags)
        gfn += 0x100
    slot = gfn_to_memslot(one.vm, gfn)
    return one.do(faultin_pfn(one.vm, slot, gfn, write))


def test_a_read_of_a_writable_page_is_mapped_writable(one):
    assert faultin(one, 0, write=False) == FaultIn(one.pfn(0), writable=True)
    assert refs(one, 0) == 2


def test_a_read_of_an_untouched_page_is_not(one):
    assert faultin(one, 5, write=False) == FaultIn(one.host.zero_pfn, writable=False)


def test_a_write_is_writable(one):
    assert faultin(one, 5, write=True) == FaultIn(one.pfn(5), writable=True)


def test_a_read_only_slot_maps_nothing_writable(one):
    assert faultin(one, 0, write=False, flags=READONLY) == FaultIn(
        one.pfn(0), writable=False
    )
    assert faultin(one, 0, write=True, flags=READONLY).error == "readonly"


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_slot_without_memory_behind_it(one, write):
    one.do(munmap(one.mm, HVA, one.at(16)))

    assert faultin(one, 0, write).error == "fault"


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("page", [0, 5], ids=["touched", "untouched"])
def test_the_reference_is_given_back(one, page, write):
    found = faultin(one, page, write)
    held = one.host.pages[found.pfn].refs
    one.do(release_pfn(one.vm, found.pfn))

    assert one.host.pages[found.pfn].refs == held - 1 == 1


def test_a_swapped_page_becomes_writable_with_one_reference(one):
    one.do(reclaim(one.mm, one.at(0)))

    found = faultin(one, 0, write=False)

    assert found.writable
    assert refs(one, 0) == 2


def test_the_host_mapping_is_looked_at(one):
    slot = gfn_to_memslot(one.vm, 0)

    assert one.do(host_mapping(one.vm, slot, 0)) == (one.mm.pte(one.vpn(0)), 1)
    assert one.do(host_mapping(one.vm, slot, 5)) == (0, 1)


def test_copies_do_not_leak_pages(one):
    child = one.do(fork(one.mm))
    one.do(wp_page_copy(one.mm, one.vpn(0)))
    one.do(exit_mmap(one.mm))
    one.do(exit_mmap(child))

    left = {p: (g.refs, g.maps) for p, g in one.host.pages.items() if not g.freed}
    assert left == {one.host.zero_pfn: (1, 0)}
    assert one.lost == []


@pytest.mark.parametrize("steps", range(24))
@pytest.mark.parametrize("other", ["dontneed", "write", "protect"])
def test_a_copy_is_given_up_if_the_entry_has_changed(one, other, steps):
    one.do(fork(one.mm))
    pages = len([page for page in one.host.pages.values() if not page.freed])
    copying = one.actor("gup", get_user_page(one.mm, one.vpn(0), True))
    for _ in range(steps):
        copying.step()
    paths = {
        "dontneed": madvise_dontneed(one.mm, one.at(0), one.at(1)),
        "write": handle_mm_fault(one.mm, one.vpn(0), True),
        "protect": mprotect(one.mm, one.at(0), one.at(1), write=False),
    }
    changing = one.actor("other", paths.pop(other))
    for path in paths.values():
        path.close()

    one.interleave(changing, copying)

    pfn = copying.task.result
    if pfn >= 0:
        one.host.put(pfn)
    left = [page for page in one.host.pages.values() if not page.freed]
    assert len(left) <= pages + 1
    assert all(page.refs == max(page.maps, 1) for page in left)
    assert one.lost == []


@pytest.mark.parametrize("steps", range(30))
def test_no_count_of_mappings_is_ever_negative(one, steps):
    one.do(fork(one.mm))
    copying = one.actor("copy", wp_page_copy(one.mm, one.vpn(0)))
    for _ in range(steps):
        copying.step()
    zapping = one.actor("zap", madvise_dontneed(one.mm, one.at(0), one.at(1)))
    counts = []
    one.world.observer = lambda _task, _step: counts.append(
        min(page.maps for page in one.host.pages.values())
    )

    one.interleave(zapping, copying)

    assert min(counts) >= 0


@pytest.mark.parametrize(
    ("release", "copied"),
    [((5, 8), False), ((5, 9), True), ((5, 18), True), ((5, 19), False)],
)
def test_a_write_to_one_page_of_a_huge_one_that_is_mapped_page_by_page(
    bench, release, copied
):
    """As fuzzing found on 5.10: the count that decides is that of the huge page."""
    one = bench(release, pages=0)
    start, page = 0x7F80_0000_0000, 1 << one.mm.page_shift
    one.mm.add_vma(Vma(start, start + 512 * page, huge=True))
    populate(one.mm, start, start + 512 * page, huge=True)
    one.do(munmap(one.mm, start, start + page))
    last = start + 511 * page
    one.do(mprotect(one.mm, last, last + page, write=False))
    one.do(mprotect(one.mm, last, last + page, write=True))
    before = one.mm.pte(last >> one.mm.page_shift)

    one.do(get_user_page(one.mm, last >> one.mm.page_shift, True))

    after = one.mm.pte(last >> one.mm.page_shift)
    assert (after >> PFN_SHIFT != before >> PFN_SHIFT) is copied
    assert after & WRITE
