"""gfn_to_pfn_cache by release, with its bugs (generic facts 1.4, 2.13, D7 to D13)."""

from dataclasses import replace
from errno import EFAULT, EINVAL

import pytest

from kvmarch import plugins
from kvmarch.kernel.gpc import NO_PFN, Gpc, gpc_activate, gpc_check, gpc_deactivate
from kvmarch.kernel.gpc import gpc_write as write
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES
from kvmarch.kernel.mmap import madvise_dontneed, munmap
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.reclaim import migrate
from kvmarch.machine.host import Vma

HVA = 0x7F00_0000_0000
PAGE = 4096
WITH_GPC = [(5, 17), (5, 19), (6, 0), (6, 1), (6, 2), (6, 8), (6, 9), (7, 2)]
REWORKED = [r for r in WITH_GPC if r >= (6, 0)]


@pytest.fixture
def cached(bench):
    """A machine, and a cache of gpa 0x10 that is active and valid."""

    def make(release, *, gpa=0x10, activate=True, **options):
        one = bench(release, **options)
        one.slot()
        one.gpc = Gpc(one.vm)
        if activate:
            assert one.do(gpc_activate(one.gpc, gpa)) == 0
        return one

    return make


def state(one):
    return one.gpc.active, one.gpc.valid, one.gpc.pfn


def khva(one, page=0, offset=0x10):
    return one.pfn(page) * PAGE + offset


def refresh(one, gpa=0x10, uhva=-1):
    return one.k.gpc_refresh(one.gpc, gpa, uhva)


# -- life --------------------------------------------------------------------------


@pytest.mark.parametrize("release", [(3, 16), (5, 16)])
def test_before_v5_17_there_is_none(cached, release):
    one = cached(release, activate=False)

    assert one.do(gpc_activate(one.gpc, 0)) == EINVAL
    names = one.trace(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))
    assert "lock gpc_lock" not in names


def test_an_architecture_without_caches_has_none(toy):
    k = plugins.link(replace(toy, info=replace(toy.info, pfncache=False)), (6, 1))

    assert not any(name.startswith("gpc") for name in k.applied)


@pytest.mark.parametrize("release", WITH_GPC)
def test_an_active_cache_points_at_the_page(cached, release):
    one = cached(release)

    assert state(one) == (1, 1, one.pfn(0))
    assert one.gpc.khva == khva(one)
    assert one.gpc.uhva == HVA + 0x10
    assert one.vm.gpc_list == [one.gpc]
    assert one.do(gpc_check(one.gpc, 8))
    assert one.lost == []


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_store_reaches_the_page(cached, release):
    one = cached(release)

    assert one.do(write(one.gpc)) == 0
    assert one.host.pages[one.pfn(0)].content[0] == "gpc0"
    assert one.lost == []


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_store_is_logged(bench, release):
    one = bench(release)
    one.slot(flags=LOG_DIRTY_PAGES)
    gpc = Gpc(one.vm)
    one.do(gpc_activate(gpc, 5 * PAGE))
    one.do(write(gpc))

    (bitmap,) = one.vm.dirty_bitmaps.values()
    assert int.from_bytes(bitmap, "little") == 1 << 5


@pytest.mark.parametrize(
    ("release", "held"), [((5, 17), 2), ((5, 19), 2), ((6, 0), 1), ((7, 2), 1)]
)
def test_the_page_is_pinned_until_v6_0(cached, release, held):
    one = cached(release)
    pinned = one.host.pages[one.pfn(0)].refs
    one.do(gpc_deactivate(one.gpc))

    assert pinned == held
    assert one.host.pages[one.pfn(0)].refs == 1


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_deactivated_cache_is_off_the_list(cached, release):
    one = cached(release)
    one.do(gpc_deactivate(one.gpc))

    assert state(one) == (0, 0, NO_PFN)
    assert one.vm.gpc_list == []
    assert not one.do(gpc_check(one.gpc, 8))
    assert one.gpc.uhva == HVA + 0x10


@pytest.mark.parametrize("release", WITH_GPC)
@pytest.mark.parametrize(
    ("gpa", "length", "fits"),
    [(0xFF8, 8, True), (0xFF9, 8, False), (0, PAGE, True), (0, PAGE + 1, False)],
)
def test_a_use_stays_inside_the_page(cached, release, gpa, length, fits):
    one = cached(release, gpa=gpa)

    assert one.do(gpc_check(one.gpc, length)) is fits


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_gpa_without_a_slot(cached, release):
    one = cached(release, activate=False)

    assert one.do(gpc_activate(one.gpc, 0x1000 * PAGE)) == EFAULT
    assert state(one) == (1, 0, NO_PFN)
    assert one.do(write(one.gpc)) == EFAULT


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_slot_without_memory(cached, release):
    one = cached(release, activate=False)
    one.do(munmap(one.mm, HVA, one.at(16)))

    assert one.do(gpc_activate(one.gpc, 0)) == EFAULT
    assert state(one)[1:] == (0, NO_PFN)


# -- invalidation and refresh ------------------------------------------------------


@pytest.mark.parametrize("release", WITH_GPC)
def test_an_invalidation_of_the_page_is_noticed(cached, release):
    one = cached(release)
    old = one.pfn(0)

    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))

    assert state(one) == (1, 0, old)
    assert not one.do(gpc_check(one.gpc, 8))


@pytest.mark.parametrize("release", WITH_GPC)
def test_an_invalidation_elsewhere_is_not(cached, release):
    one = cached(release)
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA + PAGE, HVA + 2 * PAGE))

    assert one.gpc.valid
    assert one.named("gpc_invalidated") == []


@pytest.mark.parametrize(
    ("release", "hit", "reads", "writes"),
    [
        pytest.param((6, 8), True, 0, 1, id="v6.8-hit"),
        pytest.param((6, 8), False, 0, 1, id="v6.8-miss"),
        pytest.param((6, 9), True, 1, 1, id="v6.9-hit"),
        pytest.param((6, 9), False, 1, 0, id="v6.9-miss"),
    ],
)
def test_the_locks_of_an_invalidation(cached, release, hit, reads, writes):
    one = cached(release)
    at = HVA if hit else HVA + PAGE

    names = one.trace(mmu_notifier_invalidate_range_start(one.mm, at, at + PAGE))

    assert names.count("read-lock gpc0->lock") == reads
    assert names.count("lock gpc0->lock") == writes
    assert one.lost == []


@pytest.mark.parametrize("release", REWORKED)
def test_a_store_after_a_migration_refreshes(cached, release):
    one = cached(release)
    old = one.pfn(0)
    moved = one.do(migrate(one.mm, HVA))
    one.do(write(one.gpc))

    assert moved
    assert one.gpc.pfn == one.pfn(0) != old
    assert one.gpc.khva == khva(one)
    assert one.lost == []


@pytest.mark.parametrize("release", [(5, 17), (5, 19)])
def test_a_pinned_page_does_not_migrate(cached, release):
    one = cached(release)

    assert one.do(migrate(one.mm, HVA)) is False
    assert one.do(write(one.gpc)) == 0
    assert one.lost == []


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_new_generation_makes_the_cache_look_again(cached, release):
    one = cached(release)
    one.slot(slot=1, gfn=0x100)
    stale = one.do(gpc_check(one.gpc, 8))

    assert stale is False
    assert one.do(write(one.gpc)) == 0
    assert one.gpc.generation == one.k.generation_now.fn(one.vm, 0)
    assert one.lost == []


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_deleted_slot_makes_the_cache_fail(cached, release):
    one = cached(release)
    one.do(set_memory_region(one.vm, Region(0, 0, 0, 0, 0)))

    assert one.do(write(one.gpc)) == EFAULT
    assert one.gpc.valid == 0


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_refresh_moves_to_another_page(cached, release):
    one = cached(release)
    one.do(refresh(one, gpa=3 * PAGE + 0x20))

    assert one.gpc.pfn == one.pfn(3)
    assert one.gpc.khva == khva(one, 3, 0x20)
    assert one.lost == []


@pytest.mark.parametrize("release", REWORKED)
def test_a_refresh_goes_round_while_an_invalidation_is_active(cached, release):
    one = cached(release)
    zap = (one.mm, HVA, HVA + PAGE)
    one.do(mmu_notifier_invalidate_range_start(*zap))
    refreshing = one.actor("kernel", refresh(one))
    for _ in range(60):
        assert refreshing.step()

    assert not refreshing.task.done
    assert one.gpc.valid == 0
    one.do(mmu_notifier_invalidate_range_end(*zap))
    assert refreshing.end() == 0
    assert one.lost == []


def test_unrelated_invalidations_hold_up_a_refresh_too(cached):
    one = cached((7, 2))
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))
    one.do(mmu_notifier_invalidate_range_end(one.mm, HVA, HVA + PAGE))
    far = HVA + (1 << 40)
    one.do(mmu_notifier_invalidate_range_start(one.mm, far, far + PAGE))
    refreshing = one.actor("kernel", refresh(one))
    for _ in range(200):
        refreshing.step()

    # D13: not fixed by v7.2.
    assert not refreshing.task.done
    one.do(mmu_notifier_invalidate_range_end(one.mm, far, far + PAGE))
    refreshing.end()


# -- the bugs, before and after their fix ------------------------------------------


@pytest.mark.parametrize(
    ("release", "stale"), [((5, 17), True), ((5, 19), True), ((6, 0), False)]
)
def test_an_invalidation_during_a_refresh(cached, release, stale):
    """D7: the placeholder has no page, so start() leaves it alone."""
    one = cached(release, activate=False)
    activating = one.actor("kernel", gpc_activate(one.gpc, 0x10))
    activating.past("fast gup").to("lock gpc0->lock")
    zapping = one.actor("zap", madvise_dontneed(one.mm, HVA, HVA + PAGE))
    while zapping.step() or activating.step():
        pass

    assert activating.end() == 0
    assert (one.gpc.valid == 1 and one.gpc.pfn != one.pfn(0)) is stale


@pytest.mark.parametrize(
    ("release", "lost"),
    [((5, 17), ["warn"]), ((5, 19), ["warn"]), ((6, 0), []), ((7, 2), [])],
)
def test_a_consumer_during_a_refresh(cached, release, lost):
    """D8: check() succeeds on the placeholder, whose khva is NULL."""
    one = cached(release, activate=False)
    activating = one.actor("kernel", gpc_activate(one.gpc, 0x10))
    activating.past("fast gup")
    consuming = one.actor("vcpu0", write(one.gpc))
    consuming.waits()
    one.interleave(activating, consuming)

    assert one.lost == lost


@pytest.mark.parametrize(
    ("release", "mixed"), [((5, 17), True), ((6, 0), False), ((7, 2), False)]
)
def test_two_refreshes_at_once(cached, release, mixed):
    """D9: the later store of the page belongs to the earlier gpa."""
    one = cached(release, activate=False)
    one.gpc.active = 1
    first = one.actor("first", refresh(one, gpa=1 * PAGE)).past("fast gup")
    second = one.actor("second", refresh(one, gpa=2 * PAGE))
    second.waits()
    one.interleave(first, second)

    assert one.gpc.gpa == 2 * PAGE
    assert (one.gpc.pfn != one.pfn(2)) is mixed


@pytest.mark.parametrize("release", WITH_GPC)
def test_an_inactive_cache_is_refused_since_v6_1(cached, release):
    """D11: it would become valid though no notifier can reach it."""
    one = cached(release)
    one.do(gpc_deactivate(one.gpc))

    errno = one.do(refresh(one))
    one.do(munmap(one.mm, HVA, HVA + PAGE))

    fixed = release >= (6, 1)
    assert errno == (EINVAL if fixed else 0)
    assert bool(one.gpc.valid) is not fixed


@pytest.mark.parametrize("release", WITH_GPC)
def test_a_move_within_the_page_moves_the_mapping_since_v6_1(cached, release):
    """D12: the mapping keeps its old offset."""
    one = cached(release)
    one.do(refresh(one, gpa=0x80))

    offset = 0x80 if release >= (6, 1) else 0x10
    assert one.gpc.khva == khva(one, offset=offset)


@pytest.mark.parametrize(
    ("in_slot", "lost"),
    [(True, []), (False, ["freed-page", "stale-permission"])],
    ids=["slot", "no-slot"],
)
def test_a_cache_of_a_host_address(cached, in_slot, lost):
    """H1: without a slot neither count nor sequence tells of the invalidation."""
    one = cached((7, 2), activate=False)
    uhva = HVA if in_slot else HVA + (1 << 32)
    if not in_slot:
        one.mm.add_vma(Vma(uhva, uhva + PAGE))
    activating = one.actor("kernel", gpc_activate(one.gpc, uhva=uhva))
    activating.past("fast gup")
    if not in_slot:
        activating.past("fast gup")
    one.do(munmap(one.mm, uhva, uhva + PAGE), "unmap")
    activating.end()
    if one.gpc.valid:
        one.do(write(one.gpc))

    assert one.lost == lost
    assert bool(one.gpc.valid) is not in_slot


def test_a_write_beyond_the_page_is_refused(bench):
    one = bench((6, 12))
    one.slot()
    gpc = Gpc(one.vm)
    one.do(gpc_activate(gpc, 0x1FFC))

    assert one.do(write(gpc, 8)) == EINVAL
    assert one.lost == []


@pytest.mark.parametrize(("release", "errno"), [((6, 8), EINVAL), ((6, 9), 0)])
def test_a_cache_of_a_host_address_comes_with_v6_9(bench, release, errno):
    one = bench(release)
    one.slot()

    assert one.do(gpc_activate(Gpc(one.vm), uhva=one.at(0))) == errno
