"""Unmapping, change_pte, ageing, dirty logging and memslots of radix guests."""

import pytest

from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.mmap import munmap

RELEASES = [(4, 11), (4, 17), (4, 19), (5, 4), (5, 8), (5, 13), (6, 1), (7, 2)]


@pytest.mark.parametrize(
    ("release", "left"),
    [
        pytest.param((4, 17), 0x4000_0000_0000_0187, id="v4.17: all but PRESENT"),
        pytest.param((4, 18), 0, id="v4.18"),
        pytest.param((7, 2), 0, id="v7.2"),
    ],
)
def test_what_unmapping_leaves(radix, release, left):
    m = radix(release)
    m.slot()
    m.access(2)
    old = m.pfn(2)
    m.do(m.dontneed(2))

    assert m.entry(2) == (left | old << 16 if left else 0)
    assert m.kind(2) == ("remains" if left else "none")
    assert m.k.leaf_table.fn(m.vm, 2, 0) is not None
    assert [e["start"] for e in m.named("tlb_invalidate")] == [2]
    assert not m.named("kvm_make_all_cpus_request")
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_a_range_is_unmapped_before_its_pages_are_freed(radix, release):
    m = radix(release)
    m.slot()
    for gfn in range(4):
        m.access(gfn, "write")
    m.do(munmap(m.mm, m.hva(0), m.hva(16)))

    assert [m.kind(gfn) in {"none", "remains"} for gfn in range(4)] == [True] * 4
    assert m.access(2, "write") == "error"
    assert not m.lost


@pytest.mark.parametrize(
    ("minus", "lost"),
    [
        pytest.param((), [], id="the whole range"),
        pytest.param(
            ("ppc-gfn-range-loop",), ["freed-page", "touched-after-start"], id="P1"
        ),
        pytest.param(("ppc-gfn-range-variable",), [], id="P2 is for hash guests"),
    ],
)
def test_first_gfn_only(radix, minus, lost):
    m = radix((5, 13), minus=minus)
    m.slot()
    for gfn in range(10, 14):
        m.access(gfn)
    host = m.actor("host", m.dontneed(10, 4)).past("free pages")
    m.access(12, "write")
    host.end()

    assert set(m.lost) <= {*lost, "stale-permission"}
    assert bool(m.lost) == bool(lost)


def test_ageing_of_the_first_gfn_only(radix):
    m = radix((5, 13), minus=("ppc-gfn-range-loop",))
    m.slot()
    m.access(0)
    m.access(1)
    m.age("clear_young", pages=2)

    assert (m.flags(0) & 0x100, m.flags(1) & 0x100) == (0, 0x100)


@pytest.mark.parametrize("release", [(4, 19), (5, 12), (5, 13), (6, 9), (6, 10)])
def test_change_pte_finds_nothing(radix, release):
    m = radix(release)
    m.slot()
    for page in (0, 1):
        m.host.pages[m.pfn(page)].content = "same"
        m.access(page)
    merged = m.do(ksm_scan(m.mm))
    called = [e["flush"] for e in m.named("change_pte_done")]

    assert merged == 1
    assert [m.entry(0), m.entry(1)] == [0, 0]
    assert called == ([] if release == (6, 10) else ["none"] * len(called))
    assert len(m.named("tlb_invalidate")) == 2
    # As recorded: the page that was replaced has lost its SOFT_DIRTY.
    m.access(0)
    m.access(1)
    assert sorted((m.flags(0), m.flags(1))) == [
        0xC000_0000_0000_0105,
        0xC000_0000_0000_0305,
    ]
    assert not m.lost


def test_set_spte_unmaps_what_is_mapped(radix):
    m = radix((6, 1))
    slot = m.slot()
    m.access(2)
    m.do(m.vm.k.set_spte_gfn(m.vm, slot, 2, 0))

    assert m.entry(2) == 0


@pytest.mark.parametrize("page_size", [65536, 4096])
def test_a_huge_leaf_goes_as_a_whole(radix, page_size):
    large = {65536: 32, 4096: 512}[page_size]
    m = radix((6, 1), page_size=page_size, huge=True, pages=large)
    m.slot()
    m.access(0, "write")
    m.do(m.dontneed(7))

    assert (m.entry(0), m.level(0)) == (0, 1)
    assert m.named("tlb_invalidate") == [{"start": 0, "end": large}]
    m.access(0, "write")
    assert m.level(0) == 0
    assert not m.lost


# -- ageing ------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_ageing_clears_r_without_a_tlbie(radix, release):
    m = radix(release)
    m.slot()
    m.access(0, "write")
    before = m.flags(0)

    assert m.age("clear_flush_young")
    assert m.flags(0) == before & ~0x100
    assert not m.named("tlb_invalidate")
    # The generic flush is a kick, which invalidates nothing: the page looks idle.
    assert m.access(0) == "done"
    assert not m.age("test_young")
    m.vcpu.tlb.drop_all()
    m.access(0)
    assert m.age("test_young")
    assert not m.lost


# -- dirty logging -----------------------------------------------------------------


def test_dirty_log_as_recorded(radix):
    m = radix((6, 1))
    m.slot()
    m.access(2, "write")
    m.access(3, "exec")
    m.slot(flags=LOG_DIRTY_PAGES)
    emptied = [m.entry(gfn) for gfn in (2, 3)]
    m.access(3, "exec")
    m.access(2, "write")
    logged = [m.flags(gfn) for gfn in (2, 3)]
    first = m.dirty()
    harvested = [m.flags(gfn) for gfn in (2, 3)]
    second = m.dirty()
    m.access(2, "write")
    third = m.dirty()
    m.slot()

    assert emptied == [0, 0]
    assert logged == [0xC000_0000_0000_0387] * 2
    assert (first, second, third) == ((0, 0xC), (0, 0), (0, 4))
    assert harvested == [0xC000_0000_0000_0307] * 2
    # C is set again without a fault.
    assert m.exits(2) == ["missing", "missing"]
    assert m.entry(2) == 0
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_nothing_written_is_lost(radix, release):
    m = radix(release)
    m.slot()
    m.access(2, "write")
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(2, "write")
    m.access(5, "write")
    m.do(m.dontneed(5))
    first = m.dirty()
    m.access(2, "write")

    assert first == (0, 0x24)
    assert m.dirty() == (0, 4)
    assert not m.lost


def test_before_v5_0_logging_leaves_what_is_mapped(radix):
    m = radix((4, 19), huge=True, pages=32)
    m.slot()
    m.access(0, "write")
    m.slot(flags=LOG_DIRTY_PAGES)

    assert m.level(0) == 1
    assert m.dirty() == (0, (1 << 32) - 1)
    assert m.flags(0) & 0x80 == 0
    assert not m.lost


@pytest.mark.parametrize(
    ("minus", "lost"),
    [
        pytest.param((), [], id="e641a317830b"),
        pytest.param(("ppc-one-dirty-bitmap",), ["warn"], id="P17"),
    ],
)
def test_bitmap_of_a_huge_leaf(radix, minus, lost):
    m = radix((4, 19), huge=True, pages=1024, page_size=4096, minus=minus)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(600, "write")
    m.do(m.dontneed(600))

    assert m.lost == lost
    assert m.dirty()[1] == (0 if lost else (1 << 1024) - (1 << 512))


@pytest.mark.parametrize(
    ("release", "steps"),
    [
        pytest.param((4, 19), [], id="v4.19: logging flushes nothing"),
        pytest.param((5, 4), ["unmap memslot"], id="v5.4"),
        pytest.param(
            (5, 8), ["unmap memslot", "mmu_invalidate_seq++"], id="11362b1befea"
        ),
    ],
)
def test_what_the_flush_of_a_memslot_does_under_mmu_lock(radix, release, steps):
    m = radix(release)
    m.slot()
    m.access(2)
    names = []
    m.world.observer = lambda task, step: names.append(step.op.name)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.world.observer = None
    first = names.index("lock mmu_lock") if steps else 0
    stop = names.index("unlock mmu_lock") if steps else 1

    assert names[first + 1 : stop] == steps
    assert bool(m.entry(2)) == (not steps)


@pytest.mark.parametrize("release", [(5, 4), (5, 8), (7, 2)])
def test_a_fault_holds_the_switch_of_logging_back(radix, release):
    """P7 was found by reasoning: kvm->srcu keeps the flush behind the fault."""
    m = radix(release, huge=True, pages=32)
    m.slot()
    vcpu = m.actor("vcpu0", m.guest(0, "write")).past("allocate page tables")
    vmm = m.actor("vmm", m.region(flags=LOG_DIRTY_PAGES))

    assert vmm.waits() == "wait for readers of kvm->srcu"
    assert (vcpu.end(), vmm.end()) == ("done", 0)
    assert m.entry(0) == 0
    m.access(0, "write")
    assert m.level(0) == 0
    assert not m.lost


# -- memslots ----------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_slot_that_moves_or_goes_leaves_nothing(radix, release):
    m = radix(release)
    m.slot()
    m.access(2, "write")
    m.slot(gfn=0x100)

    assert m.access(2) == "mmio"
    assert m.access(0x102) == "done"
    m.slot(pages=0)
    assert m.access(0x102) == "mmio"
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_teardown(radix, release):
    m = radix(release)
    m.slot()
    m.access(2)
    m.access(0x4000_0000)
    m.destroy()

    assert m.vm.tables.live == {}
    assert m.vm.arch.partition == 0
    assert m.k.entry.fn(m.vm, 2) == (0, 3)
    assert m.k.leaf_table.fn(m.vm, 2, 0) is None
    assert not m.lost
