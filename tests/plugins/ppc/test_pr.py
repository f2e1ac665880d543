"""Book3S PR: shadow HPTEs of each vCPU."""

import pytest
from kvmarch_ppc import pr as book3s_pr

from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.mmap import mprotect

RELEASES = [(3, 16), (4, 4), (5, 12), (5, 13), (6, 1), (6, 13), (7, 2)]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("page_size", "large", "low"),
    [
        pytest.param(65536, 4, 0x1000, id="64K"),
        pytest.param(4096, 0, 0, id="4K"),
    ],
)
def test_shadow_hptes(pr, release, page_size, large, low):
    m = pr(release, page_size=page_size)
    m.slot()
    m.do(mprotect(m.mm, m.hva(1), m.hva(2), write=False))
    m.access(0)
    m.access(1)
    v = 1 << 20 << 12 | large | 1

    assert m.flags(0) == v << 64 | low | 0x192
    assert m.flags(1) == v << 64 | low | 0x193
    assert m.exits(0) == ["missing"]
    assert [m.kind(gfn) for gfn in (0, 2)] == ["valid", "free"]
    assert m.k.leaf_table.fn(m.vm, 0, 0)[0] == m.vm.arch.hpt
    assert m.k.leaf_table.fn(m.vm, 2, 0) is None
    assert not m.lost


def test_each_vcpu_has_its_own(pr):
    m = pr((6, 1), vcpus=2)
    m.slot()
    m.access(0)
    m.access(0, vcpu=1)
    one, other = (vcpu.arch.hpte_cache[0] for vcpu in m.vm.vcpus)

    assert one != other
    m.do(m.dontneed(0))
    assert [vcpu.arch.hpte_cache for vcpu in m.vm.vcpus] == [{}, {}]
    assert {e["vcpu"] for e in m.named("tlb_invalidate")} == {"vcpu0", "vcpu1"}
    m.access(0, vcpu=1)
    assert m.kind(0) == "valid"
    assert not m.lost


def test_isa_3_0(pr):
    m = pr((6, 1), cpu="power9")
    m.slot()
    m.access(0)

    assert m.flags(0) == (1 << 20 << 12 | 5) << 64 | 0x1192
    assert not m.lost


def test_a_read_only_hpte_is_removed_before_a_write(pr):
    m = pr((6, 1))
    m.slot()
    m.protect(0)
    m.access(0)
    m.access(0, "write")

    assert m.exits(0) == ["missing", "permission"]
    assert m.flags(0) & 0xFFF == 0x192
    assert not m.lost


@pytest.mark.parametrize("mmu", ["pr", "e500"])
@pytest.mark.parametrize(
    ("plus", "how"),
    [
        pytest.param((), "livelock", id="tried for ever"),
        pytest.param(("ppc-shadow-fault-fails",), "error", id="with a fix"),
    ],
)
def test_a_page_that_may_not_be_written(machine, mmu, plus, how):
    m = machine((6, 1), mmu=mmu, plus=plus)
    m.slot()
    m.do(mprotect(m.mm, m.hva(1), m.hva(2), write=False))

    assert m.access(1, "write") == how


@pytest.mark.parametrize("release", RELEASES)
def test_a_fault_that_was_overtaken_is_tried_again(pr, release):
    m = pr(release)
    m.slot()
    vcpu = m.actor("vcpu0", m.guest(2)).to("kvmppc_mmu_hpte_cache_next")
    m.do(m.dontneed(2), "host")

    assert vcpu.end() == "done"
    assert m.exits(2) == ["missing", "missing"]
    assert not m.lost


@pytest.mark.parametrize("mmu", ["pr", "e500"])
@pytest.mark.parametrize(
    ("release", "order"),
    [
        pytest.param((6, 12), ["unlock mmu_lock", "release page"], id="v6.12"),
        pytest.param((6, 13), ["release page", "unlock mmu_lock"], id="v6.13"),
    ],
)
def test_when_the_page_is_released(machine, mmu, release, order):
    m = machine(release, mmu=mmu)
    m.slot()
    names = []
    m.world.observer = lambda task, step: names.append(step.op.name)
    m.access(2)
    m.world.observer = None

    assert [name for name in names if name in order] == order


def test_a_full_cache_is_flushed(pr, monkeypatch):
    monkeypatch.setattr(book3s_pr, "HPTEG_CACHE_NUM", 4)
    m = pr((6, 1))
    m.slot()
    for gfn in range(5):
        m.access(gfn)

    assert list(m.vcpu.arch.hpte_cache) == [4]
    assert m.kind(0) == "free"
    assert not m.lost


def test_groups_that_are_full(pr):
    m = pr((6, 1))
    m.slot()
    m.access(0)
    index = m.vcpu.arch.hpte_cache[0]
    table = m.vm.tables.at(m.vm.arch.hpt)
    secondary = (index // 8 ^ 0x1FFFF) * 8
    for first in (index // 8 * 8, secondary):
        for each in range(first, first + 8):
            if each != secondary:
                table.set(2 * each, table.get(2 * each) or 1 << 7 | 1)
    m.do(m.dontneed(0))
    table.set(2 * index, 1 << 7 | 1)
    m.access(0)
    there = m.vcpu.arch.hpte_cache[0]
    # Somebody else's HPTE takes its place; it is not ours to invalidate.
    table.set(2 * there, 1 << 7 | 1)
    m.do(m.dontneed(0))

    assert there == secondary
    assert table.get(2 * there) == 1 << 7 | 1
    m.access(0)
    assert m.vcpu.arch.hpte_cache[0] == index
    assert not m.lost


@pytest.mark.parametrize("release", [(4, 4), (5, 12), (5, 13), (6, 9)])
def test_change_pte_finds_nothing(pr, release):
    m = pr(release)
    m.slot()
    for page in (0, 1):
        m.host.pages[m.pfn(page)].content = "same"
        m.access(page)
    m.do(ksm_scan(m.mm))

    assert m.vcpu.arch.hpte_cache == {}
    assert {e["flush"] for e in m.named("change_pte_done")} == {"none"}
    assert not m.lost


def test_pages_are_never_young(pr):
    m = pr((6, 1))
    m.slot()
    m.access(0)

    assert not m.age("clear_flush_young")
    assert not m.age("test_young")


# -- dirty logging and memslots ----------------------------------------------------


def test_the_dirty_log_unmaps_the_slot(pr):
    m = pr((6, 1))
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(2, "write")
    m.access(3)
    first = m.dirty()
    left = dict(m.vcpu.arch.hpte_cache)
    m.access(2, "write")

    # A page that is only read is logged, too: it is mapped writable.
    assert first == (0, 0xC)
    assert left == {}
    assert m.dirty() == (0, 4)
    assert m.dirty() == (0, 0)
    assert not m.lost


@pytest.mark.parametrize(
    ("plus", "reported"),
    [
        pytest.param((), 0, id="memset"),
        pytest.param(("ppc-pr-dirty-log-xchg",), 4, id="with a fix"),
    ],
)
def test_a_write_while_the_log_is_taken(pr, plus, reported):
    m = pr((6, 1), plus=plus)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(1, "write")
    vmm = m.actor("vmm", get_dirty_log(m.vm, 0)).past("kvmppc_mmu_pte_pflush")
    while m.vm.mmu_lock.writer is not None:
        vmm.step()
    m.access(2, "write")

    assert vmm.end() == (0, 2)
    assert m.dirty() == (0, reported)


@pytest.mark.parametrize("mmu", ["pr", "e500"])
@pytest.mark.parametrize(
    ("plus", "lost"),
    [
        pytest.param((), ["no-slot"], id="L1"),
        pytest.param(("ppc-flush-memslot-everywhere",), [], id="with a fix"),
    ],
)
def test_a_slot_that_goes(machine, mmu, plus, lost):
    m = machine((6, 1), mmu=mmu, plus=plus)
    m.slot()
    m.access(2)
    m.slot(pages=0)

    assert m.access(2) == ("done" if lost else "mmio")
    assert m.lost == lost


@pytest.mark.parametrize(
    ("plus", "bits"),
    [
        pytest.param((), 0, id="L1"),
        pytest.param(("ppc-flush-memslot-everywhere",), 4, id="with a fix"),
    ],
)
def test_a_page_that_was_writable_before_logging(pr, plus, bits):
    m = pr((6, 1), plus=plus)
    m.slot()
    m.access(2, "write")
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(2, "write")

    assert m.dirty() == (0, bits)


def test_teardown(pr):
    m = pr((6, 1))
    m.slot()
    m.access(2)
    m.destroy()

    assert m.vm.tables.live == {}
    assert m.k.entry.fn(m.vm, 2) == (0, 0)
    assert m.k.translate.fn(m.vcpu, 2, "read") == "missing"
    assert not m.lost


@pytest.mark.parametrize("release", [(3, 16), (5, 4), (6, 1), (7, 2)])
def test_without_memory_to_remember_an_hpte_the_guest_faults_on(pr, release):
    m = pr(release)
    m.slot()
    m.host.environment.no_tables = 1
    vcpu = m.actor("vcpu0", m.guest(2)).past("kvmppc_mmu_hpte_cache_next")
    vcpu.past("kvmppc_mmu_hpte_cache_next")
    refs = m.host.pages[m.pfn(2)].refs
    m.host.environment.no_tables = 0

    assert refs == 2  # The page itself, and the fault that is under way.
    assert vcpu.end() == "done"
    assert m.exits(2) == ["missing"] * 3
    assert m.host.pages[m.pfn(2)].refs == 1
    assert not m.lost
