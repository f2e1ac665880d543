"""Notifiers in the TDP MMU: unmap, change_pte, ageing."""

import pytest

from kvmarch import HostPte, kvm_flush_remote_tlbs
from kvmarch.kernel.mmap import madvise_dontneed
from kvmarch.kernel.reclaim import age

NO_AD = {"ad": 0}
TDP = [(5, 10), (5, 12), (5, 13), (5, 17), (6, 1), (6, 12), (6, 15), (7, 2)]


@pytest.fixture
def tdp(machine):
    """Boot a machine with the TDP MMU and some pages that the guest has written."""

    def make(release, *written, **options):
        m = machine(release, mmu="tdp", **options)
        m.slot()
        for gfn in written:
            m.access(gfn, "write")
        return m

    return make


def locked_path(m, path):
    """Run a path with mmu_lock held for write; pay nothing."""

    async def run():
        async with m.vm.mmu_lock.write():
            return await path

    return m.do(run())


# -- unmap -----------------------------------------------------------------------------


@pytest.mark.parametrize("release", TDP)
@pytest.mark.parametrize("options", [{}, {"paging": "npt"}, NO_AD], ids=str)
def test_unmap_drops_what_is_mapped_and_nothing_else(tdp, release, options):
    m = tdp(release, 2, 3, 9, **options)
    m.access(0x5000)
    slot = m.vm.memslots[0].by_id(0)
    owed = m.unmap(slot, 2, 4)
    again = m.unmap(slot, 2, 4)

    assert (owed.start, owed.end, owed.due) == (2, 4, "unlock")
    assert again is None
    assert m.mapped() == [9]
    assert m.entry(3) == m.layout.nonpresent
    # No notifier speaks of a gfn without a slot.
    assert m.k.decode.fn(m.k, m.vm.options, m.entry(0x5000), 1)[0] == "mmio"
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "tables"),
    [
        pytest.param((5, 10), 3, id="5.10: a whole table goes"),
        pytest.param((5, 17), 3, id="5.17: likewise"),
        pytest.param((5, 18), 4, id="5.18: leafs only"),
        pytest.param((7, 2), 4, id="7.2: leafs only"),
    ],
)
def test_what_an_unmap_leaves_of_the_tables(tdp, release, tables):
    m = tdp(release, 1, pages=512)
    slot = m.vm.memslots[0].by_id(0)
    m.unmap(slot, 0, 512)

    assert len(m.vm.tables.live) == tables
    assert m.mapped(1) == []
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "marked"),
    [pytest.param((6, 12), True, id="6.12"), pytest.param((6, 13), False, id="6.13")],
)
def test_page_flags_are_set_by_the_zap_up_to_6_12(tdp, release, marked):
    m = tdp(release, 1)
    page = m.page(1)
    at_fault = page.dirty, page.accessed
    m.do(madvise_dontneed(m.mm, m.hva(1), m.hva(2)))

    assert at_fault == (not marked, not marked)
    assert (page.dirty, page.accessed) == (True, True)
    assert not m.world.violations


# -- change_pte ------------------------------------------------------------------------

# Entries of 3.4 for pfn 0x12345, all bits set, whose page becomes 0x777, read-only.
CHANGED = [
    pytest.param(
        (5, 10), 0x0000000012345F77, 0x0000000000777A75, "inside", True, id="5.10: BUG"
    ),
    pytest.param(
        (5, 13),
        0x0600000012345B77,
        0x0400000000777A75,
        "inside",
        True,
        id="5.13: MMU-writable kept, BUG",
    ),
    pytest.param(
        (6, 1),
        0x0600000012345B77,
        0x0000000000777A75,
        "owed",
        True,
        id="6.1: BUG, as the old entry is not volatile",
    ),
    pytest.param(
        (6, 1),
        0x0600000012345977,
        0x0000000000777875,
        "owed",
        False,
        id="6.1: none, as it is",
    ),
]


@pytest.mark.parametrize(("release", "old", "new", "flush", "bug"), CHANGED)
def test_change_pte_without_a_bracket(tdp, release, old, new, flush, bug):
    m = tdp(release, 0)
    table, index = m.k.leaf_table.fn(m.vm, 0, 1)
    m.vm.tables.at(table).set(index, old)
    slot = m.vm.memslots[0].by_id(0)
    pte = HostPte.pack(pfn=0x777, present=1, young=1)
    owed = locked_path(m, m.k.set_spte_gfn(m.vm, slot, 0, pte))
    flushed = len(m.named("kvm_make_all_cpus_request"))

    assert m.entry(0) == new
    assert (owed is not None) == (flush == "owed")
    assert flushed == (2 if flush == "inside" else 0)
    assert ("warn" in m.lost) == bug


@pytest.mark.parametrize("release", [(5, 10), (5, 17), (6, 9)])
def test_change_pte_to_a_writable_page_only_drops_the_entry(tdp, release):
    m = tdp(release, 0)
    slot = m.vm.memslots[0].by_id(0)
    pte = HostPte.pack(pfn=0x777, present=1, write=1)
    locked_path(m, _pay(m, m.k.set_spte_gfn(m.vm, slot, 0, pte)))

    assert m.entry(0) == m.layout.nonpresent
    assert "warn" not in m.lost


@pytest.mark.parametrize("release", [(5, 10), (5, 17), (6, 9)])
def test_change_pte_finds_nothing_after_start_has_unmapped(tdp, release):
    m = tdp(release, 0)
    slot = m.vm.memslots[0].by_id(0)
    m.unmap(slot, 0, 1)
    before = len(m.named("kvm_make_all_cpus_request"))
    pte = HostPte.pack(pfn=0x777, present=1)
    owed = locked_path(m, m.k.set_spte_gfn(m.vm, slot, 0, pte))

    assert owed is None
    assert m.entry(0) == m.layout.nonpresent
    assert len(m.named("kvm_make_all_cpus_request")) == before
    assert not m.world.violations


def test_there_is_no_change_pte_from_6_10_on(x86, machine):
    m = machine((6, 10))

    assert "change-pte-removed" in m.k.applied


async def _pay(m, path):
    owed = await path
    await kvm_flush_remote_tlbs(m.vm)
    return owed


# -- ageing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "kept"),
    [
        pytest.param((5, 10), 0, id="5.10: D goes too (D17)"),
        pytest.param((5, 12), 0, id="5.12: likewise"),
        pytest.param((5, 13), 1, id="5.13: D stays"),
        pytest.param((6, 12), 1, id="6.12"),
        pytest.param((7, 2), 1, id="7.2"),
    ],
)
def test_ageing_takes_a_and_leaves_d(tdp, release, kept):
    m = tdp(release, 1)
    a, d = m.layout.shadow_accessed_mask, m.layout.shadow_dirty_mask
    before = m.entry(1)
    tested = m.do(age(m.mm, m.hva(0), m.hva(4), "test_young"))
    young = m.do(age(m.mm, m.hva(0), m.hva(4), "clear_young"))
    after = m.entry(1)
    again = m.do(age(m.mm, m.hva(0), m.hva(4), "test_young"))

    assert (tested, young, again) == (True, True, False)
    assert after == before & ~a & ~(0 if kept else d)
    # What the entry forgets the page has to know; from v6.13 on it was told before.
    assert m.page(1).dirty == (not kept or release >= (6, 13))
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "flushes"),
    [
        pytest.param((6, 12), 1, id="6.12"),
        pytest.param((6, 13), 0, id="6.13: elided"),
        pytest.param((7, 2), 0, id="7.2: elided"),
    ],
)
def test_the_flush_after_ageing(tdp, release, flushes):
    m = tdp(release, 1)
    m.do(age(m.mm, m.hva(0), m.hva(4), "clear_flush_young"))

    assert len(m.named("flush")) == flushes
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "locked"),
    [pytest.param((6, 14), True, id="6.14"), pytest.param((6, 15), False, id="6.15")],
)
@pytest.mark.parametrize("options", [{}, NO_AD], ids=["A/D", "no A/D"])
def test_ageing_needs_no_lock_from_6_15_on(tdp, release, locked, options):
    m = tdp(release, 1, **options)
    m.do(age(m.mm, m.hva(0), m.hva(4), "clear_young"))
    m.vcpu.tlb.drop_all()
    m.access(1)
    task = m.task("aging", age(m.mm, m.hva(0), m.hva(4), "clear_young"))
    taken = m.reaches(task, "lock mmu_lock")
    if not task.done:
        m.finish(task)

    assert taken == locked
    assert task.result
    assert not m.world.violations


@pytest.mark.parametrize("release", TDP)
def test_ageing_without_ad_tracks_and_loses_no_dirty_page(tdp, release):
    m = tdp(release, 1, **NO_AD)
    young = m.do(age(m.mm, m.hva(0), m.hva(4), "clear_flush_young"))
    again = m.do(age(m.mm, m.hva(0), m.hva(4), "test_young"))

    assert (young, again) == (True, False)
    assert m.k.decode.fn(m.k, m.vm.options, m.entry(1), 1)[0] == "tracked"
    assert m.page(1).dirty
    assert m.mapped() == [1]
    assert not m.world.violations
