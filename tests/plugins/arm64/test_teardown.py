"""Teardown: at release, at destruction, twice, and at once."""

import pytest

from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.mmap import exit_mmap

EVERY = (
    pytest.param((3, 16), id="v3.16"),
    pytest.param((4, 8), id="v4.8"),
    pytest.param((4, 9), id="v4.9"),
    pytest.param((4, 11), id="v4.11"),
    pytest.param((4, 12), id="v4.12"),
    pytest.param((5, 9), id="v5.9"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((6, 5), id="v6.5"),
    pytest.param((6, 12), id="v6.12"),
    pytest.param((6, 19), id="v6.19"),
    pytest.param((7, 2), id="v7.2"),
)


@pytest.mark.parametrize("release", EVERY)
def test_everything_is_freed(machine, release):
    m = machine(release, pages=1024, huge=True)
    m.slot(gfn=512)
    m.access(512, 1024)

    m.do(exit_mmap(m.mm))
    assert (len(m.vm.tables.live) > 0) is (release < (4, 9))
    m.do(destroy_vm(m.vm, m.machine.subscriptions["vm"]))
    assert m.vm.tables.live == m.vm.tables.retired == {}
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_destruction_without_release(machine, release):
    m = machine(release)
    m.slot()
    m.access(0)

    m.do(destroy_vm(m.vm, m.machine.subscriptions["vm"]))
    assert m.vm.tables.live == {}
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "flushes"),
    [
        pytest.param((4, 12), True, id="v4.12 unmaps all first"),
        pytest.param((5, 9), True, id="v5.9 unmaps all first"),
        pytest.param((5, 10), False, id="v5.10 frees without a TLBI"),
        pytest.param((7, 2), False, id="v7.2 frees without a TLBI"),
    ],
)
def test_invalidation_at_release(machine, release, flushes):
    m = machine(release)
    m.slot()
    m.access(0)

    m.do(m.k.flush_shadow_all(m.vm))
    assert bool(m.named("tlb_invalidate")) is flushes
    assert bool(m.vcpu.tlb.entries) is not flushes


@pytest.mark.parametrize("release", EVERY)
def test_callbacks_after_the_end_find_nothing(machine, release):
    m = machine(release)
    slot = m.slot()
    m.access(0)
    m.do(m.k.arm64_free_stage2_pgd(m.vm))

    assert m.locked(m.k.unmap_gfn_range(m.vm, slot, 0, 16, True)) is None
    assert m.locked(m.k.dirty_log_masked(m.vm, slot, 0, 1)) is None
    assert m.entry(0) == 0
    assert m.k.leaf_table.fn(m.vm, 0, 3) is None
    assert m.k.translate.fn(m.vcpu, 0, "read") == "missing"
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param((4, 11), ["table-memory"], id="v4.11 frees the root twice"),
        pytest.param((4, 12), [], id="v4.12"),
        pytest.param((5, 10), [], id="v5.10"),
        pytest.param((7, 2), [], id="v7.2"),
    ],
)
def test_two_releases_at_once(machine, release, lost):
    """Fact sheet 6 row 2: before v4.12 the root was reset outside of the lock."""
    m = machine(release)
    m.slot()
    m.access(0)
    first = m.task("first", m.k.flush_shadow_all(m.vm))
    until = "free a chunk of the tables" if release >= (6, 19) else "free the tables"
    m.advance(first, until)

    m.do(m.k.flush_shadow_all(m.vm), "second")
    m.finish(first)
    assert m.lost[:1] == lost
    assert m.vm.tables.live == {}


def test_split_cache_is_freed_by_two_releases(machine):
    """Fact sheet 6 row 22, open in v7.1."""
    m = machine((6, 12), eager_split=2 << 20)
    m.slot()
    m.mmu.split_page_cache = 2
    first = m.task("first", m.k.flush_shadow_all(m.vm))
    m.advance(first, "free split_page_cache")

    m.do(m.k.flush_shadow_all(m.vm), "second")
    m.finish(first)
    assert m.lost == ["table-memory"]


@pytest.mark.parametrize("release", EVERY)
def test_fault_without_a_root_fails(machine, release):
    m = machine(release)
    m.slot()
    m.do(m.k.arm64_free_stage2_pgd(m.vm))

    assert m.access(0) in {"error", "livelock"}
    assert m.vm.tables.live == {}
