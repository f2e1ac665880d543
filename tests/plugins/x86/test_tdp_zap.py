"""Zaps of the TDP MMU that give way: between tables, between entries of a root."""

import pytest

from kvmarch import kvm_flush_remote_tlbs
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.mmap import madvise_dontneed

FAR = 0x8000000
"""A gfn below the second entry of a root."""


@pytest.fixture
def spread(machine):
    """Boot a machine whose guest has written gfns in three tables and two GiBs."""

    def make(release, **kernel):
        m = machine(release, mmu="tdp", pages=3, vcpus=2, **kernel)
        m.slot(gfn=511, pages=2)
        m.slot(slot=1, gfn=FAR, pages=1, page=2)
        for gfn in (511, 512, FAR):
            m.access(gfn, "write")
        m.access(511, vcpu=1)
        return m

    return make


def locked(m, path):
    """Return a task that runs a path with mmu_lock held for write, and flushes."""

    async def run():
        async with m.vm.mmu_lock.write():
            await path
            await kvm_flush_remote_tlbs(m.vm)

    return m.task("notifier", run())


def unmap(m, may_block=True):
    slot = m.vm.memslots[0].by_id(0)
    return locked(m, m.k.unmap_gfn_range(m.vm, slot, 511, 513, may_block))


@pytest.mark.parametrize(
    ("release", "may_block", "yields"),
    [
        pytest.param((5, 10), True, False, id="5.10: one spinlock"),
        pytest.param((5, 12), True, False, id="5.12"),
        pytest.param((5, 13), True, True, id="5.13: between tables"),
        pytest.param((5, 13), False, False, id="5.13: not if it must not block"),
        pytest.param((7, 2), True, True, id="7.2"),
    ],
)
def test_an_unmap_gives_way_and_flushes_before(spread, release, may_block, yields):
    m = spread(release)
    task = unmap(m, may_block)
    m.reaches(task, "unlock mmu_lock")
    half = m.mapped(511, 512)
    flushes = len(m.named("kvm_make_all_cpus_request"))
    m.finish(task)

    assert half == ([512] if yields else [])
    assert flushes == 1
    assert len(m.named("kvm_make_all_cpus_request")) == 1 + yields
    assert m.mapped(511, 512) == []
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "held"),
    [pytest.param((5, 15), 0, id="5.15 (D5)"), pytest.param((5, 16), 1, id="5.16")],
)
def test_whether_the_root_is_held_meanwhile(spread, release, held):
    m = spread(release)
    root = m.vm.tables.at(m.vcpu.arch.root_pa)
    before = root.refs
    task = unmap(m)
    m.reaches(task, "unlock mmu_lock")
    during = root.refs
    m.finish(task)

    assert during == before + held
    assert root.refs == before


@pytest.mark.parametrize(
    ("release", "minus", "left"),
    [
        pytest.param((5, 10), (), [FAR], id="5.10: the second entry is skipped (D7)"),
        pytest.param((5, 16), (), [], id="5.16"),
        pytest.param((6, 1), (), [], id="6.1"),
    ],
)
def test_a_deletion_zaps_every_entry_of_a_root(spread, release, minus, left):
    m = spread(release, minus=minus)
    m.do(set_memory_region(m.vm, Region(1, 0, 0, 0, 0)))

    assert m.mapped(511, 512, FAR) == left


def test_an_unmap_with_the_lock_shared_keeps_the_others_out(spread):
    m = spread((6, 1), plus=["x86-unmap-shared"])
    dropping = madvise_dontneed(m.mm, m.hva(0), m.hva(2))
    m.do(dropping)

    assert m.mapped(511, 512) == []
    assert not m.world.violations


# -- a range that is zapped for other reasons ------------------------------------------


@pytest.mark.parametrize("mmu", ["rmap", "tdp"])
@pytest.mark.parametrize(
    ("release", "tracked"),
    [
        pytest.param((5, 12), None, id="5.12: no count"),
        pytest.param((5, 13), None, id="5.13: no count, lock shared"),
        pytest.param((5, 15), (511, 513), id="5.15: gfns, for faults on hvas (D11)"),
        pytest.param((6, 1), (0, 1 << 64), id="6.1: everything"),
        pytest.param((6, 9), (511, 513), id="6.9: gfns"),
    ],
)
def test_what_a_range_zap_tells_faults(machine, release, tracked, mmu):
    m = machine(release, mmu=mmu, pages=2)
    m.slot(gfn=511)
    m.access(511, "write")
    m.access(512, "write")
    vm = m.vm
    before = vm.mmu_invalidate_seq
    m.do(m.k.inhibit_apicv(vm, 511, 513))

    assert m.mapped(511, 512) == []
    assert vm.mmu_invalidate_seq - before == (tracked is not None)
    assert vm.mmu_invalidate_in_progress == 0
    if tracked:
        range_ = vm.mmu_invalidate_range_start, vm.mmu_invalidate_range_end
        assert range_ == tracked
    assert m.access(511) == "error"
    assert m.mapped(511) == []
    assert not m.world.violations


def test_a_range_zap_widens_what_a_notifier_tracks(machine):
    m = machine((6, 9), pages=2)
    m.slot(gfn=511)
    m.access(512, "write")
    notifier = m.task("host", madvise_dontneed(m.mm, m.hva(1), m.hva(2)))
    m.reaches(notifier, "start has returned")
    m.do(m.k.inhibit_apicv(m.vm, 100, 101), "kvm")

    tracked = m.vm.mmu_invalidate_range_start, m.vm.mmu_invalidate_range_end
    assert tracked == (100, 513)
    m.finish(notifier)


# -- tables wait for readers -----------------------------------------------------------


@pytest.mark.parametrize(
    ("minus", "lost"),
    [pytest.param((), [], id="7.2"), (("x86-rcu-tables",), ["table-memory"])],
)
def test_lockless_ageing_and_a_table_that_goes(spread, minus, lost):
    m = spread((7, 2), minus=minus)
    slot = m.vm.memslots[0].by_id(0)
    ageing = m.task("reclaim", m.k.age_gfn(m.vm, slot, 511, 513))
    m.reaches(ageing, "cmpxchg A from leafs, rcu_read_unlock")
    m.do(set_memory_region(m.vm, Region(1, 0, 0, 0, 0)), "vmm")
    m.finish(ageing)

    assert sorted(set(m.lost)) == lost
