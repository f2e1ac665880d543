"""Faults of radix guests: entries by release, sizes, races."""

from errno import EAGAIN

import pytest
from kvmarch_ppc.radix_fault import _insert, kvmppc_create_pte
from kvmarch_ppc.radix_tree import LPID

from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.huge_memory import split_huge
from kvmarch.kernel.mmap import mprotect
from kvmarch.kernel.reclaim import collapse

LARGE = {65536: 32, 4096: 512}


@pytest.mark.parametrize(
    ("release", "writable", "readonly"),
    [
        # R1 and R2, R3 and R4 of the fact sheet, without the address.
        pytest.param((4, 11), 0xC000_0000_0000_0187, 0xC000_0000_0000_0105, id="v4.11"),
        pytest.param((4, 18), 0xC000_0000_0000_0187, 0xC000_0000_0000_0105, id="v4.18"),
        pytest.param((4, 19), 0xC000_0000_0000_0387, 0xC000_0000_0000_0305, id="v4.19"),
        pytest.param((5, 8), 0xC000_0000_0000_0387, 0xC000_0000_0000_0305, id="v5.8"),
        pytest.param((7, 2), 0xC000_0000_0000_0387, 0xC000_0000_0000_0305, id="v7.2"),
    ],
)
@pytest.mark.parametrize("page_size", [65536, 4096])
def test_leaves_by_release(radix, release, writable, readonly, page_size):
    m = radix(release, page_size=page_size)
    m.slot()
    m.do(mprotect(m.mm, m.hva(1), m.hva(2), write=False))
    m.access(0)
    m.access(1)
    m.access(2, "write")

    assert [m.flags(gfn) for gfn in range(3)] == [writable, readonly, writable]
    assert [m.host.pages[m.pfn(gfn)].dirty for gfn in range(3)] == [True, False, True]
    assert m.exits(0) == ["missing"]
    assert not m.lost


def test_a_write_to_a_shared_page_is_unmapped_and_copied(radix):
    m = radix((6, 1))
    m.slot()
    m.protect(0)
    m.access(0)
    before = m.flags(0)
    m.host.pages[m.pfn(0)].kind = "ksm"
    m.access(0, "write")

    assert before == 0xC000_0000_0000_0305
    assert m.flags(0) == 0xC000_0000_0000_0387
    assert m.exits(0) == ["missing", "permission", "missing"]
    assert not m.lost


def test_permission_that_is_only_added_is_ored_in_without_tlbie(radix):
    m = radix((6, 1))
    m.slot()
    m.protect(0)
    m.access(0)
    m.mm.ptes[m.hva(0) // m.page_size] |= 2
    m.access(0, "write")

    assert m.flags(0) == 0xC000_0000_0000_0387
    assert not m.named("tlb_invalidate")
    assert not m.lost


def test_before_v4_19_a_leaf_is_cleared_and_set_anew(radix):
    m = radix((4, 18))
    m.slot()
    m.protect(0)
    m.access(0)
    m.mm.ptes[m.hva(0) // m.page_size] |= 2
    m.access(0, "write")

    assert m.flags(0) == 0xC000_0000_0000_0187
    assert len(m.named("tlb_invalidate")) == 1
    assert not m.lost


def test_no_slot_is_emulated_and_leaves_no_entry(radix):
    m = radix((6, 1))
    m.slot()

    assert m.access(0x1000) == "mmio"
    assert m.entry(0x1000) == 0
    assert not m.lost


def test_root_and_tables(radix):
    m = radix((6, 1))
    m.slot()
    m.access(0)
    root = m.vm.arch.pgtable
    pa, index = m.k.leaf_table.fn(m.vm, 0, 1)

    assert m.vm.arch.partition == 0xC000_0000_0000_00AD | root
    assert m.vm.tables.at(root).get(0) & 0xE000_0000_0000_00FF == 0x8000_0000_0000_0009
    assert m.vm.tables.at(pa).get(index) & 0x1F == 5
    assert m.k.leaf_table.fn(m.vm, 0, 0)[1] == 0
    assert m.k.leaf_table.fn(m.vm, 1 << 30, 0) is None


# -- sizes -------------------------------------------------------------------------


@pytest.mark.parametrize("release", [(4, 11), (4, 19), (5, 8), (6, 1)])
@pytest.mark.parametrize("page_size", [65536, 4096])
def test_a_huge_page_is_one_leaf(radix, release, page_size):
    large = LARGE[page_size]
    m = radix(release, page_size=page_size, huge=True, pages=large)
    m.slot()
    m.access(3, "write")

    assert [m.level(gfn) for gfn in (0, 3, large - 1)] == [1, 1, 1]
    assert m.access(large - 1, "write") == "done"
    assert m.exits(large - 1) == []
    assert m.flags(0) & 0xFF == 0x87
    assert not m.lost


@pytest.mark.parametrize(
    ("release", "flags", "gfn", "level"),
    [
        pytest.param((6, 1), 0, 32, 1, id="aligned"),
        pytest.param((6, 1), 0, 1, 0, id="gpa and hva disagree below 2 MiB"),
        pytest.param((6, 1), LOG_DIRTY_PAGES, 32, 0, id="logs"),
        pytest.param((4, 19), LOG_DIRTY_PAGES, 32, 1, id="logs, before v5.0"),
    ],
)
def test_which_level(radix, release, flags, gfn, level):
    m = radix(release, huge=True, pages=32)
    m.slot(gfn=gfn, flags=flags)
    m.access(gfn + 3)

    assert m.level(gfn + 3) == level
    assert m.flags(gfn + 3, m.pfn(3 if not level else 0)) >> 60 == 0xC
    assert not m.lost


@pytest.mark.parametrize(
    ("plus", "level", "lost"),
    [
        pytest.param((), 1, ["no-slot"], id="L2: past the slot's end"),
        pytest.param(("ppc-radix-leaf-in-slot",), 0, [], id="inside the slot"),
    ],
)
def test_a_slot_that_ends_inside_a_huge_page(radix, plus, level, lost):
    m = radix((6, 1), huge=True, pages=32, plus=plus)
    m.slot(pages=16)
    m.access(0)
    m.access(20)

    assert m.level(0) == level
    assert m.lost == lost


@pytest.mark.parametrize(
    ("release", "level"),
    [pytest.param((4, 18), 1, id="v4.18"), pytest.param((4, 19), 0, id="v4.19")],
)
def test_a_huge_page_that_the_host_maps_by_small_entries(radix, release, level):
    m = radix(release, huge=True, pages=32)
    m.slot()
    m.do(split_huge(m.mm, m.hva(0)))
    m.access(3)

    assert m.level(3) == level
    assert not m.lost


def test_an_unmapped_table_gives_way_to_a_leaf(radix):
    m = radix((6, 1), pages=32)
    m.slot()
    m.access(0)
    m.access(5)
    small = m.k.leaf_table.fn(m.vm, 0, 0)[0]
    collapsed = m.do(collapse(m.mm, m.hva(0)))
    m.access(0)

    assert collapsed
    assert m.level(0) == 1
    assert small in m.vm.tables.freed
    assert m.named("kvmppc_radix_flush_pwc")
    assert not m.lost


def test_a_large_leaf_in_the_way_is_unmapped(radix):
    m = radix((6, 1), huge=True, pages=32)
    m.slot()
    m.access(0)
    pte = m.entry(0)
    seq = m.vm.mmu_invalidate_seq
    ret = m.do(kvmppc_create_pte(m.vm, pte, 0, 0, seq))

    assert ret == 0
    assert m.level(0) == 0
    assert m.entry(0) == pte
    assert m.entry(1) == 0
    assert m.named("tlb_invalidate") == [{"start": 0, "end": 32}]
    assert not m.lost


# -- races -------------------------------------------------------------------------


@pytest.mark.parametrize("release", [(4, 11), (4, 19), (5, 7), (5, 8), (6, 1), (7, 2)])
@pytest.mark.parametrize("after", ["fast gup", "allocate page tables"])
def test_a_fault_that_was_overtaken_is_tried_again(radix, release, after):
    m = radix(release)
    m.slot()
    vcpu = m.actor("vcpu0", m.guest(2)).past(after)
    m.do(m.dontneed(2), "host")

    assert vcpu.end() == "done"
    assert len(m.exits(2)) == 2
    assert m.host.zero_pfn == m.pfn(2)
    assert not m.lost


def test_two_faults_on_one_page(radix):
    m = radix((6, 1), vcpus=2)
    m.slot()
    one = m.actor("vcpu0", m.guest(2)).past("allocate page tables")
    other = m.actor("vcpu1", m.guest(2, "write", 1)).past("allocate page tables")

    assert (one.end(), other.end()) == ("done", "done")
    assert m.flags(2) == 0xC000_0000_0000_0387
    assert len(m.vm.tables.freed) == 3
    assert not m.lost


def test_a_larger_leaf_that_appears_meanwhile_is_left_alone(radix):
    m = radix((6, 1), huge=True, pages=32)
    m.slot()
    m.access(0)
    leaf = m.entry(0)
    # No table was allocated, because one hung there when the fault looked.
    ret, unused = _insert.fn(m.vm, leaf, 0, 0, (0, 0, 0, 0))

    assert (ret, unused) == (-EAGAIN, (0, 0, 0, 0))
    assert (m.entry(0), m.level(0)) == (leaf, 1)


@pytest.mark.parametrize(
    ("plus", "gone"),
    [
        pytest.param((), None, id="L3: at the host's address"),
        pytest.param(("ppc-radix-unmap-gpa",), 5, id="at the guest's address"),
    ],
)
def test_leaves_under_a_new_leaf(radix, plus, gone):
    m = radix((6, 1), pages=32, plus=plus)
    m.slot()
    m.access(5)
    pte = m.entry(5)
    large = pte & ~(m.pfn(5) << 16) | 0x1_0000_0000
    m.do(kvmppc_create_pte(m.vm, large, 0, 1, m.vm.mmu_invalidate_seq))
    (flushed,) = m.named("tlb_invalidate")

    assert m.entry(5) == large
    assert flushed["start"] == (m.pfn(5) if gone is None else gone)
    assert ((LPID, 5, 1) in m.vcpu.tlb.entries) == (gone is None)
    assert not m.lost


def test_a_tlbie_is_for_one_page_size(radix):
    m = radix((6, 1), huge=True, pages=32)
    m.slot()
    m.access(0)
    small = m.vcpu.tlb.entries[LPID, 0, 32]._replace(gfn=3, pages=1)
    m.vcpu.tlb.insert(LPID, small)
    m.do(m.dontneed(0, 32))

    assert list(m.vcpu.tlb.entries) == [(LPID, 3, 1)]


@pytest.mark.parametrize("how", ["read", "write"])
def test_set_rc(radix, how):
    m = radix((6, 1), rc="interrupt")
    m.slot()
    m.protect(0)
    m.access(0)
    m.age("clear_young")
    m.vcpu.tlb.drop_all()
    m.access(0, how)

    assert m.flags(0) == (
        0xC000_0000_0000_0305 if how == "read" else 0xC000_0000_0000_0387
    )
    assert m.exits(0)[:2] == ["missing", "set_rc" if how == "read" else "permission"]
    assert not m.lost


@pytest.mark.parametrize(
    ("minus", "lost"),
    [
        pytest.param((), [], id="6579804c4317"),
        pytest.param(("ppc-radix-null-host-pte",), ["warn"], id="P9"),
    ],
)
def test_host_page_table_that_is_gone(radix, minus, lost):
    m = radix((4, 19), pages=32, minus=minus)
    m.slot()
    vcpu = m.actor("vcpu0", m.guest(2)).past("fast gup")
    m.do(m.dontneed(0, 32), "host")

    assert vcpu.end() == "done"
    assert m.lost == lost


# -- no memory for tables ----------------------------------------------------------


@pytest.mark.parametrize("release", [(4, 11), (4, 18), (4, 19), (5, 8), (6, 1), (7, 2)])
def test_without_memory_for_tables_a_fault_fails(radix, release):
    m = radix(release)
    m.slot()
    m.host.environment.no_tables = 1
    failed = m.access(0)
    refs = m.host.pages[m.pfn(0)].refs
    m.host.environment.no_tables = 0

    assert failed == "error"
    assert refs == 1
    assert m.access(0) == "done"
    assert not m.lost


def test_a_table_that_is_there_by_then_is_not_missed(radix):
    m = radix((6, 1), vcpus=2)
    m.slot()
    m.host.environment.no_tables = 1
    one = m.actor("vcpu0", m.guest(2)).past("allocate page tables")
    m.host.environment.no_tables = 0
    m.access(3, vcpu=1)

    # Its walk under mmu_lock finds what the other fault has made.
    assert one.end() == "done"
    assert not m.lost


def test_an_invalidation_outweighs_missing_memory(radix):
    m = radix((6, 1))
    m.slot()
    m.host.environment.no_tables = 1
    one = m.actor("vcpu0", m.guest(2)).past("allocate page tables")
    m.host.environment.no_tables = 0
    m.do(m.dontneed(2), "host")

    assert one.end() == "done"
    assert len(m.exits(2)) == 2
