"""e500: shadow entries in a software-loaded TLB."""

import pytest
from kvmarch_ppc import e500 as e500_mmu
from kvmarch_ppc.e500_tlbe import E500_TLB_VALID, E500_TLB_WRITABLE, E500Word

from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.mmap import mprotect

RELEASES = [(3, 16), (5, 12), (5, 13), (6, 9), (6, 12), (6, 13), (7, 2)]


@pytest.mark.parametrize("release", RELEASES)
def test_shadow_entry(e500, release):
    m = e500(release, page_size=4096)
    m.slot(gfn=0x1_0003)
    m.access(0x1_0003)
    shadow = m.vcpu.arch.tlb0[0x1_0003]

    assert shadow.mas1 == 0x8000_0100
    assert shadow.mas2 == 0x1000_3004
    assert shadow.mas7_3 == m.pfn(0) << 12 | 0x3F
    assert m.k.entry.fn(m.vm, 0x1_0003) == (shadow.mas7_3, E500Word.MAS7_3)
    assert m.k.entry.fn(m.vm, 0) == (0, E500Word.TLBE_REF)
    assert (m.kind(0x1_0003), m.kind(0)) == ("mas7-3", "none")
    assert m.k.leaf_table.fn(m.vm, 0x1_0003, 2) is None
    assert not m.lost


def test_64k_pages_are_entries_of_64k(e500):
    m = e500((6, 1))
    m.slot()
    m.access(2, "write")
    shadow = m.vcpu.arch.tlb0[2]

    assert shadow.mas1 >> 7 & 0x1F == 6
    assert shadow.mas2 == 0x2_0004
    assert m.flags(2) == 0x3F
    assert not m.lost


@pytest.mark.parametrize(
    ("release", "flags"),
    [
        pytest.param((6, 12), E500_TLB_VALID | 4, id="v6.12"),
        pytest.param((6, 13), E500_TLB_VALID | E500_TLB_WRITABLE | 4, id="v6.13"),
    ],
)
def test_notes(e500, release, flags):
    m = e500(release)
    m.slot()
    m.access(2)

    assert m.vcpu.arch.refs[2].flags == flags
    assert m.host.pages[m.pfn(2)].dirty


def test_a_note_refills_the_tlb_without_a_look(e500, monkeypatch):
    monkeypatch.setattr(e500_mmu, "TLB0_ENTRIES", 2)
    m = e500((6, 1))
    m.slot()
    for gfn in (0, 1, 2):
        m.access(gfn)
    evicted = list(m.vcpu.arch.tlb0)
    names = []
    m.world.observer = lambda task, step: names.append(step.op.name)
    m.access(0)
    m.world.observer = None

    assert evicted == [1, 2]
    assert "tlbwe" in names
    assert "fast gup" not in names
    assert not m.lost


def test_reading_a_shared_page_breaks_the_sharing(e500):
    m = e500((6, 1))
    m.slot()
    for page in (0, 1):
        m.host.pages[m.pfn(page)].content = "same"
    m.do(ksm_scan(m.mm))
    shared = m.pfn(0)
    m.access(0)

    # The sequence was taken before the page was copied.
    assert m.pfn(0) != shared
    assert m.exits(0) == ["missing", "missing"]
    assert not m.lost


def test_a_page_that_may_not_be_written_is_tried_for_ever(e500):
    m = e500((6, 1))
    m.slot()
    m.do(mprotect(m.mm, m.hva(1), m.hva(2), write=False))

    assert m.access(1) == "livelock"


@pytest.mark.parametrize(
    ("release", "flush"),
    [
        pytest.param((5, 12), "none", id="v5.12: inside"),
        pytest.param((5, 13), "owed", id="v5.13: by the generic code"),
        pytest.param((6, 9), "owed", id="v6.9"),
    ],
)
def test_unmapping_is_a_flush_of_everything(e500, release, flush):
    m = e500(release)
    slot = m.slot()
    m.access(1)
    m.access(2)

    async def path():
        async with m.vm.mmu_lock.write():
            owed = await m.vm.k.set_spte_gfn(m.vm, slot, 9, 0)
            m.vm.ledger.forgive("the test looks only")
        return owed

    owed = m.do(path())

    assert (owed is not None) == (flush == "owed")
    m.do(m.dontneed(2))
    assert m.vcpu.requests == {"tlb_flush"}
    assert m.kind(1) == "mas7-3"
    m.access(3)
    assert list(m.vcpu.arch.refs) == [3]
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_a_fault_that_was_overtaken(e500, release):
    m = e500(release)
    m.slot()
    early = m.actor("vcpu0", m.guest(2)).to("lock mmu_lock")
    m.do(m.dontneed(2), "host")
    done = [early.end()]
    # After the lock is dropped, the flush comes before the guest.
    late = m.actor("vcpu0", m.guest(3)).to("tlbwe")
    m.do(m.dontneed(3), "host")
    done.append(late.end())

    assert done == ["done", "done"]
    assert m.exits(2) == m.exits(3) == ["missing", "missing"]
    assert not m.lost


def test_pages_are_never_young(e500):
    m = e500((6, 1))
    m.slot()
    m.access(0)

    assert not m.age("clear_flush_young")
    assert not m.age("test_young")


def test_there_is_no_dirty_log(e500):
    m = e500((6, 1))
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(0, "write")

    assert m.dirty() == (95, 0)


def test_teardown(e500):
    m = e500((6, 1))
    m.slot()
    m.access(2)
    m.destroy()

    assert m.vm.tables.live == {}
    assert not m.lost
