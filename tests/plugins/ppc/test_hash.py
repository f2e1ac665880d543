"""Hash guests: hypercalls, faults through HPTEs, the reverse map."""

import pytest
from kvmarch_ppc.hash_hcalls import kvmppc_do_h_remove, kvmppc_h_protect
from kvmarch_ppc.hash_table import find_hpte, get_hpte, get_rmap, lock_rmap_of
from kvmarch_ppc.hpte import HPTE_R_C, HPTE_R_R, Protection
from kvmarch_ppc.rmap import (
    KVMPPC_RMAP_CHANGED,
    KVMPPC_RMAP_PRESENT,
    KVMPPC_RMAP_REFERENCED,
)

from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.mmap import mprotect

RELEASES = [(3, 16), (4, 4), (4, 11), (5, 4), (5, 6), (5, 8), (5, 13), (6, 1), (7, 2)]
WORD = 64


def halves(m, gfn):
    value = m.entry(gfn)
    return value >> WORD, value & (1 << WORD) - 1


def hpte(m, gfn):
    """Return V and R in the old layout."""
    return get_hpte(m.vm, find_hpte(m.vm, gfn))


def rmap(m, gfn):
    return get_rmap(m.vm, m.vm.memslots[0].find(gfn), gfn)


# -- H_ENTER -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "v", "r"),
    [
        # H2 of the fact sheet, but for the address.
        pytest.param("power8", 0x4000_0012_3412_3405, 0x1112, id="old layout"),
        pytest.param("power9", 0x0000_0012_3412_3405, 0x0400_0000_0000_1112, id="3.0"),
    ],
)
def test_a_page_that_the_host_has_is_entered_at_once(hashed, cpu, v, r):
    m = hashed((6, 1), cpu=cpu)
    m.slot(gfn=0x12_3456)
    m.access(0x12_3456)
    m.access(0x12_3457, "write")

    assert halves(m, 0x12_3456) == (v, r | m.pfn(0) << 16)
    assert halves(m, 0x12_3457) == (v, r | HPTE_R_C | m.pfn(1) << 16)
    assert find_hpte(m.vm, 0x12_3456) == 0x2662 * 8
    assert m.exits(0x12_3456) == ["missing"]
    assert m.kind(0x12_3456) == "valid"
    assert m.k.leaf_table.fn(m.vm, 0x12_3456, 0) == (m.vm.arch.hpt, 0x2662 * 16)
    assert not m.lost


def test_4k_pages(hashed):
    m = hashed((6, 1), page_size=4096)
    m.slot()
    m.access(3)

    assert halves(m, 3) == (0x4000_0012_3400_0001, m.pfn(3) << 12 | 0x112)
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_a_page_that_the_host_lacks_is_absent_first(hashed, release):
    m = hashed(release)
    m.slot()
    m.do(m.dontneed(2))
    m.access(2, "write")

    assert m.exits(2) == ["missing", "absent"]
    assert m.flags(2) & 0xFFF == 0x192
    assert rmap(m, 2) & KVMPPC_RMAP_PRESENT
    assert m.host.pages[m.pfn(2)].dirty
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_a_page_that_the_host_has_read_only(hashed, release):
    m = hashed(release)
    m.slot()
    m.do(mprotect(m.mm, m.hva(1), m.hva(2), write=False))
    m.access(1)

    assert m.flags(1) & 0xFFF == 0x113
    assert m.access(1, "write") == "error"
    assert not m.lost


def test_groups_that_are_full(hashed):
    m = hashed((6, 1))
    m.slot(gfn=0x12_3456)
    arch = m.vm.arch
    table = m.vm.tables.at(arch.hpt)
    for first in (0x2662 * 8, 0x1D99D * 8):
        for index in range(first, first + 8):
            table.set(2 * index, 1 << 7 | 1)
            arch.guest_rpte[index] = 0
    m.access(0x12_3456)

    assert find_hpte(m.vm, 0x12_3456) == 0x2662 * 8
    assert not m.lost


def test_the_secondary_group(hashed):
    m = hashed((6, 1))
    m.slot(gfn=0x12_3456)
    table = m.vm.tables.at(m.vm.arch.hpt)
    for index in range(0x2662 * 8, 0x2662 * 8 + 8):
        table.set(2 * index, 1 << 7 | 1)
    m.access(0x12_3456)

    assert find_hpte(m.vm, 0x12_3456) == 0x1D99D * 8
    assert halves(m, 0x12_3456)[0] == 0x4000_0012_3412_3407


@pytest.mark.parametrize("release", RELEASES)
def test_h_enter_that_was_overtaken_makes_an_absent_hpte(hashed, release):
    m = hashed(release)
    m.slot()
    vcpu = m.actor("vcpu0", m.guest(2)).past("find free HPTE, lock")
    m.do(m.dontneed(2), "host")
    vcpu.past("store HPTE")

    assert m.kind(2) == "absent"
    assert vcpu.end() == "done"
    assert not m.lost


# -- MMIO --------------------------------------------------------------------------


def test_mmio(hashed):
    m = hashed((6, 1))
    m.slot()
    how = [m.access(0x100), m.access(0x100)]

    assert how == ["mmio", "mmio"]
    assert m.kind(0x100) == "mmio"
    assert hpte(m, 0x100) == (0x4000_0012_3400_0124, 0x3000_0000_0100_1F92)
    assert m.vcpu.arch.mmio_cache == [(0x100, 1)]
    assert m.exits(0x100) == ["missing", "absent", "absent"]
    # A new slot makes the cache stale; its pages are mapped by the fault.
    m.slot(slot=1, gfn=0x100, pages=4)
    assert m.access(0x100, "write") == "done"
    assert m.kind(0x100) == "valid"
    assert not m.lost


def test_deleting_a_slot_leaves_the_mmio_cache_alone(hashed):
    m = hashed((6, 1))
    m.slot()
    m.access(0x100)
    m.slot(pages=0)

    assert m.vm.arch.mmio_update == 1
    for gfn in range(0x101, 0x105):
        m.access(gfn)
    assert [gfn for gfn, _update in m.vcpu.arch.mmio_cache] == [
        0x101,
        0x102,
        0x103,
        0x104,
    ]


# -- unmapping ---------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_unmapping_makes_an_hpte_absent(hashed, release):
    m = hashed(release)
    m.slot()
    m.access(2, "write")
    before = rmap(m, 2)
    index = find_hpte(m.vm, 2)
    m.do(m.dontneed(2))

    assert before == 0x0100_0001_0000_0000 | index
    assert m.kind(2) == "absent"
    assert rmap(m, 2) == (
        0x0100_0000_0000_0000 | KVMPPC_RMAP_REFERENCED | KVMPPC_RMAP_CHANGED
    )
    assert m.named("tlb_invalidate") == [{"start": 2, "end": 3}]
    assert not m.named("kvm_make_all_cpus_request")
    m.access(2, "write")
    # R and C of HPTEs that are gone are known, and so not cleared.
    assert m.flags(2) & 0xFFF == 0x192
    assert not m.lost


def test_unmapping_waits_for_an_hpte_without_the_rmap_lock(hashed):
    m = hashed((6, 1))
    m.slot()
    m.protect(2)
    m.access(2)
    m.mm.ptes[m.hva(2) // m.page_size] |= 2
    vcpu = m.actor("vcpu0", m.guest(2, "write")).to("build R").past("lock HPTE")
    host = m.actor("host", m.dontneed(2))

    assert host.waits() == "HVLOCK free?"
    vcpu.past("mmu_invalidate_retry?").past("unlock HPTE")
    host.end()
    assert vcpu.end() == "done"
    assert m.pfn(2) << 16 == hpte(m, 2)[1] & ~0x1FFF
    assert not m.lost


def test_a_fault_waits_for_the_rmap_lock(hashed):
    m = hashed((6, 1))
    slot = m.slot()
    m.do(lock_rmap_of(m.vm, slot, 2))
    vcpu = m.actor("vcpu0", m.guest(2))

    assert vcpu.waits() == "lock_rmap"
    vcpu.close()


@pytest.mark.parametrize(
    ("minus", "lost"),
    [
        pytest.param((), False, id="the whole range"),
        pytest.param(("ppc-gfn-range-loop",), True, id="P1"),
        pytest.param(("ppc-gfn-range-variable",), True, id="P2"),
    ],
)
def test_first_gfn_only(hashed, minus, lost):
    m = hashed((5, 13), minus=minus)
    m.slot()
    for gfn in range(10, 14):
        m.access(gfn, "write")
    m.do(m.dontneed(10, 4))
    m.access(12, "write")

    assert ("freed-page" in m.lost) == lost
    assert m.kind(10) == "absent"


# -- faults ------------------------------------------------------------------------


def test_an_upgrade_invalidates_and_keeps_the_chain(hashed):
    m = hashed((6, 1))
    m.slot()
    m.protect(2)
    m.access(2)
    word = rmap(m, 2)
    m.mm.ptes[m.hva(2) // m.page_size] |= 2
    m.access(2, "write")

    assert rmap(m, 2) == word
    assert m.flags(2) & 0xFFF == 0x192
    assert len(m.named("tlb_invalidate")) == 1
    assert not m.lost


@pytest.mark.parametrize("release", RELEASES)
def test_a_fault_that_was_overtaken_is_tried_again(hashed, release):
    m = hashed(release)
    m.slot()
    m.access(2)
    m.do(m.dontneed(2))
    vcpu = m.actor("vcpu0", m.guest(2)).to("build R")
    m.do(m.dontneed(2), "host")

    assert vcpu.end() == "done"
    assert m.exits(2) == ["missing", "absent", "absent"]
    assert not m.lost


@pytest.mark.parametrize(
    ("release", "result"),
    [
        pytest.param((5, 4), "done", id="v5.4"),
        pytest.param((5, 6), "error", id="P10"),
        pytest.param((5, 7), "done", id="ae49dedaa92b"),
        pytest.param((5, 8), "done", id="under mmu_lock"),
    ],
)
def test_host_pte_that_is_not_present(hashed, release, result):
    m = hashed(release)
    m.slot()
    m.access(2)
    m.do(m.dontneed(2))
    vcpu = m.actor("vcpu0", m.guest(2))
    while vcpu.next not in {"read host PTE", "lock mmu_lock", "build R"}:
        vcpu.step()
    m.do(m.dontneed(2), "host")

    assert vcpu.end() == result
    assert not m.lost


# -- ageing ------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_ageing_clears_r_with_a_tlbie(hashed, release):
    m = hashed(release)
    m.slot()
    m.access(2, "write")

    assert m.age("test_young", 2)
    assert m.age("clear_flush_young", 2)
    assert not hpte(m, 2)[1] & HPTE_R_R
    assert m.named("tlb_invalidate") == [{"start": 2, "end": 3}]
    assert not m.age("test_young", 2)
    m.access(2)
    assert m.age("clear_flush_young", 2)
    # What an HPTE that is gone has seen is in the rmap word.
    m.access(2)
    m.do(m.dontneed(2))
    assert m.age("test_young", 2)
    assert m.age("clear_flush_young", 2)
    assert not m.age("clear_flush_young", 2)
    assert not m.lost


def test_ageing_waits_for_an_hpte_without_the_rmap_lock(hashed):
    m = hashed((6, 1))
    m.slot()
    m.access(2)
    index = find_hpte(m.vm, 2)
    remover = m.actor("vcpu1", kvmppc_do_h_remove(m.vm, index)).past("lock HPTE")
    clear = m.actor("host", m.vm.k.clear_young(m.vm, m.hva(2), m.hva(3)))

    assert clear.waits() == "HVLOCK free?"
    remover.end()
    assert clear.end() is True
    assert not m.lost


# -- dirty log ---------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("rc", ["hardware", "delayed"])
def test_nothing_written_is_lost(hashed, release, rc):
    m = hashed(release, rc=rc)
    m.slot()
    m.access(2, "write")
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(2, "write")
    m.access(5, "write")
    m.do(m.dontneed(5))
    m.vcpu.mode = "outside"
    first = m.dirty()
    cleaned = hpte(m, 2)[1] & HPTE_R_C
    m.access(2, "write")
    m.vcpu.mode = "outside"

    assert first == (0, 0x24)
    assert not cleaned
    assert m.exits(2) == ["missing"]
    assert m.dirty() == (0, 4)
    assert not m.lost


@pytest.mark.parametrize(
    ("minus", "mode", "bits"),
    [
        pytest.param((), "outside", 4, id="no vCPU runs"),
        pytest.param((), "in_guest", 0, id="C comes later"),
        pytest.param(("ppc-dirty-log-owed-c",), "outside", 0, id="P5"),
    ],
)
def test_c_that_hardware_still_owes(hashed, minus, mode, bits):
    m = hashed((3, 16), rc="delayed", minus=minus)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(2, "write")
    m.vcpu.mode = mode

    assert m.dirty() == (0, bits)
    assert m.vm.arch.owed_c == (set() if bits else {find_hpte(m.vm, 2)})


# -- H_REMOVE and H_PROTECT --------------------------------------------------------


@pytest.mark.parametrize(
    ("minus", "bits"),
    [
        pytest.param((), 4, id="R is read after the tlbie"),
        pytest.param(("ppc-h-remove-late-rc",), 0, id="P4"),
    ],
)
def test_h_remove_keeps_c(hashed, minus, bits):
    m = hashed((6, 1), rc="delayed", minus=minus)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(2, "write")
    m.do(kvmppc_do_h_remove(m.vm, find_hpte(m.vm, 2)))

    assert m.entry(2) == 0
    assert not rmap(m, 2) & KVMPPC_RMAP_PRESENT
    assert m.dirty() == (0, bits)


@pytest.mark.parametrize(
    ("minus", "lost"),
    [
        pytest.param((), [], id="b4a839009a08"),
        pytest.param(("ppc-h-protect-readonly",), ["stale-permission"], id="P3"),
    ],
)
def test_h_protect_of_a_shared_page(hashed, minus, lost):
    m = hashed((6, 1), minus=minus)
    m.slot()
    m.protect(2)
    m.access(2)
    vpn = m.hva(2) // m.page_size
    shared = m.mm.ptes[vpn]
    # The host's PTE is not present for a moment, and KVM is not told, for nothing of
    # it changes.
    m.mm.ptes[vpn] = shared & ~1
    m.do(kvmppc_h_protect(m.vm, find_hpte(m.vm, 2), Protection.RWRW))
    m.mm.ptes[vpn] = shared
    if lost:
        m.access(2, "write")

    assert m.lost == lost
    assert hpte(m, 2)[1] & 3 == (2 if lost else 3)


def test_h_protect_takes_and_gives_what_the_host_allows(hashed):
    m = hashed((6, 1))
    m.slot()
    m.access(2, "write")
    index = find_hpte(m.vm, 2)
    m.do(kvmppc_h_protect(m.vm, index, Protection.RXRX))
    readonly = hpte(m, 2)[1]
    m.do(kvmppc_h_protect(m.vm, index, Protection.RWRW))

    assert readonly & 3 == 3
    assert readonly & HPTE_R_C
    assert hpte(m, 2)[1] & 3 == 3
    m.access(2, "write")
    assert hpte(m, 2)[1] & 3 == 2
    assert not m.lost


# -- memslots and teardown ---------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
def test_a_slot_that_moves_or_goes_leaves_nothing(hashed, release):
    m = hashed(release)
    m.slot()
    m.access(2, "write")
    m.slot(gfn=0x100)

    assert m.access(2) == "mmio"
    assert m.kind(2) == "absent"
    assert m.access(0x102) == "done"
    m.slot(pages=0)
    assert m.access(0x102) == "mmio"
    assert not m.lost


def test_teardown(hashed):
    m = hashed((6, 1))
    m.slot()
    m.access(2)
    m.destroy()

    assert m.vm.tables.live == {}
    assert m.k.entry.fn(m.vm, 2) == (0, 0)
    assert m.k.leaf_table.fn(m.vm, 2, 0) is None
    assert not m.lost
