"""Host pages with their counts, VMAs and host page tables."""

import pytest

from kvmarch.errors import ModelError
from kvmarch.machine.host import (
    PFN_SHIFT,
    PRESENT,
    WRITE,
    HostMemory,
    HostPte,
    Mm,
    Vma,
)

PAGE = 4096


@pytest.fixture
def host(driver):
    return HostMemory(driver.world)


@pytest.fixture
def mm(driver, host):
    return Mm(driver.world, host, "mm", page_shift=12, pmd_order=2)


def present(pfn, bits=WRITE):
    return pfn << PFN_SHIFT | PRESENT | bits


def test_the_host_pte_states_each_bit_once():
    entry = HostPte.pack(pfn=0x1234, present=1, write=1)

    assert entry == present(0x1234)
    assert HostPte.unpack(entry)["pfn"] == 0x1234
    assert HostPte.known == ((1 << 64) - 1) & ~0xF80


def test_the_last_reference_frees_the_page(driver, host):
    pfn = host.alloc("anon", "x")
    host.get(pfn)
    host.get(pfn)

    host.put(pfn)
    assert not host.pages[pfn].freed
    host.put(pfn)
    assert host.pages[pfn].freed
    assert host.free_pages == [pfn]
    assert driver.named("page_free") == [{"pfn": pfn}]


def test_a_reference_that_was_never_taken(host):
    pfn = host.alloc("anon", "x")

    with pytest.raises(ModelError, match=rf"page {pfn:#x} has no reference to put"):
        host.put(pfn)


def test_freed_pages_are_not_used_again_unless_asked(driver, host):
    greedy = HostMemory(driver.world, reuse=True)
    for memory in (host, greedy):
        memory.get(memory.alloc("anon", 1))
        memory.put(memory.zero_pfn + 1)

    assert host.alloc("anon", 2) == host.zero_pfn + 2
    assert greedy.alloc("anon", 2) == greedy.zero_pfn + 1
    assert not greedy.pages[greedy.zero_pfn + 1].freed


def test_runs_of_pages_are_aligned(host):
    pfn = host.alloc("anon", 0, count=8, align=8)

    assert pfn % 8 == 0
    assert {pfn + i for i in range(8)} < set(host.pages)
    assert [host.pages[pfn + n].order for n in range(8)] == [3] * 8
    assert host.alloc("anon", 0) == pfn + 8
    assert host.pages[pfn + 8].order == 0


def test_the_zero_page_is_there_and_held(host):
    zero = host.pages[host.zero_pfn]

    assert (zero.kind, zero.content, zero.refs, zero.freed) == ("zero", 0, 1, False)


@pytest.mark.parametrize("pages_freed", [False, True], ids=["in-use", "freed"])
def test_reaching_a_freed_page_is_reported(driver, host, pages_freed):
    pfn = host.alloc("anon", 0)
    host.get(pfn)
    if pages_freed:
        host.put(pfn)

    host.touch(pfn, "vcpu0 read")
    host.mark(pfn, dirty=True, accessed=False, who="unmap")

    assert driver.lost == ["freed-page"] * 2 * pages_freed
    assert (host.pages[pfn].dirty, host.pages[pfn].accessed) == (True, False)


def test_marks_only_add(host):
    pfn = host.alloc("anon", 0)
    host.mark(pfn, dirty=True, accessed=False, who="x")
    host.mark(pfn, dirty=False, accessed=True, who="x")
    host.mark(0xDEAD, dirty=True, accessed=True, who="a page that is not RAM")

    assert (host.pages[pfn].dirty, host.pages[pfn].accessed) == (True, True)


# -- VMAs --------------------------------------------------------------------------


def test_a_vma_is_found_by_address(mm):
    mm.add_vma(Vma(0x4000, 0x8000))

    assert mm.find_vma(0x4000) == mm.find_vma(0x7FFF) == Vma(0x4000, 0x8000)
    assert mm.find_vma(0x3FFF) is mm.find_vma(0x8000) is None


@pytest.mark.parametrize("start", [0x3000, 0x4000, 0x7000], ids=hex)
def test_vmas_do_not_overlap(mm, start):
    mm.add_vma(Vma(0x4000, 0x8000))

    with pytest.raises(ModelError, match="is mapped already"):
        mm.add_vma(Vma(start, start + 0x2000))


def test_changing_a_part_splits_the_vma(mm):
    mm.add_vma(Vma(0x4000, 0x8000))

    mm.change_vmas(0x5000, 0x6000, write=False)

    assert mm.vmas == [
        Vma(0x4000, 0x5000),
        Vma(0x5000, 0x6000, write=False),
        Vma(0x6000, 0x8000),
    ]


def test_removing_a_part_splits_the_vma(mm):
    mm.add_vma(Vma(0x4000, 0x8000))
    mm.add_vma(Vma(0x8000, 0x9000, exec=True))

    mm.remove_vmas(0x7000, 0x9000)

    assert mm.vmas == [Vma(0x4000, 0x7000)]


# -- host page tables --------------------------------------------------------------


def test_a_huge_entry_is_read_as_one_of_base_size(mm):
    mm.pmds[4] = present(0x40)

    assert [mm.pte(vpn) >> PFN_SHIFT for vpn in (4, 5, 7)] == [0x40, 0x41, 0x43]
    assert mm.pte(5) == present(0x41)
    assert mm.pte(8) == 0
    assert [mm.level_pages(vpn) for vpn in (3, 4, 7, 8)] == [1, 4, 4, 1]


def test_without_huge_pages_each_entry_maps_one(driver, host):
    plain = Mm(driver.world, host, "mm", page_shift=16, pmd_order=0)
    plain.set_pte(3, present(7))

    assert (plain.pte(3), plain.level_pages(3)) == (present(7), 1)


def test_an_empty_entry_is_taken_away(mm):
    mm.set_pte(3, present(7))
    mm.set_pte(3, 0)
    mm.set_pte(3, 0)

    assert (mm.ptes, mm.pte(3)) == ({}, 0)


@pytest.mark.parametrize(
    ("start", "end", "found"),
    [
        pytest.param(0, 0x100, [1, 4, 9], id="all-wide-range"),
        pytest.param(1, 2, [1], id="one-page"),
        pytest.param(2, 4, [], id="hole"),
        pytest.param(7, 10, [4, 9], id="last-page-of-a-huge-one"),
        pytest.param(8, 9, [], id="behind-a-huge-one"),
    ],
)
def test_mapped_yields_what_maps_a_range(mm, start, end, found):
    mm.set_pte(9, present(0x99))
    mm.set_pte(1, present(0x11))
    mm.pmds[4] = present(0x40)

    rows = list(mm.mapped(start * PAGE, end * PAGE))

    assert [vpn for vpn, _entry, _pages in rows] == found
    assert all(pages == (4 if vpn == 4 else 1) for vpn, _entry, pages in rows)


def test_mapped_counts_a_page_of_which_one_byte_is_meant(mm):
    mm.set_pte(1, present(0x11))

    assert [v for v, _e, _p in mm.mapped(PAGE + 0x800, PAGE + 0x801)] == [1]


def test_the_frozen_mm_differs_with_its_entries(mm):
    before = mm.freeze()
    mm.set_pte(1, present(0x11))

    assert mm.freeze() != before
    assert hash(mm.freeze())
