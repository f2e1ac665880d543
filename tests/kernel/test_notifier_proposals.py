"""What was proposed or left out: each rule is gone, and nothing else."""

import pytest

from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)

HVA = 0x7F00_0000_0000
PAGE = 4096
DELETE = Region(0, 0, 0, 0, 0)


def start(one, first=0, stop=1):
    return mmu_notifier_invalidate_range_start(one.mm, one.at(first), one.at(stop))


def end(one, first=0, stop=1):
    return mmu_notifier_invalidate_range_end(one.mm, one.at(first), one.at(stop))


def tracked(one):
    vm = one.vm
    return vm.mmu_invalidate_range_start, vm.mmu_invalidate_range_end


@pytest.mark.parametrize(("plus", "left"), [([], 0), (["memslots-do-not-wait"], 1)])
def test_an_update_that_does_not_wait(bench, plus, left):
    one = bench(plus=plus)
    one.slot()
    one.do(start(one))
    updating = one.actor("vmm", set_memory_region(one.vm, DELETE))
    updating.waits()
    one.do(end(one))
    updating.end()

    assert one.vm.mmu_invalidate_in_progress == left


def test_an_end_that_takes_slots_lock_waits_for_the_updater(bench):
    one = bench(plus=["end-takes-slots-lock"])
    one.slot()
    one.do(start(one))
    updating = one.actor("vmm", set_memory_region(one.vm, DELETE))
    updating.waits()
    ending = one.actor("zap", end(one))

    assert ending.waits() == "lock slots_lock"
    assert updating.waits() == "mn_active_invalidate_count == 0?"


@pytest.mark.parametrize(("plus", "mapped"), [([], 0), (["notifiers-skip-invalid"], 1)])
def test_notifiers_that_skip_invalid_slots(bench, plus, mapped):
    one = bench(plus=plus)
    one.slot()
    one.access(0)
    updating = one.actor("vmm", set_memory_region(one.vm, DELETE))
    updating.to("next generation")
    one.do(start(one))

    assert (one.entry(0) != 0) == mapped


@pytest.mark.parametrize(
    ("release", "plus", "pages"),
    [
        pytest.param((5, 12), [], (0, 4), id="hull-of-hvas"),
        pytest.param((5, 12), ["range-without-hull"], (3, 4), id="latest-hvas"),
        pytest.param((6, 8), [], (0, 4), id="hull-of-gfns"),
        pytest.param((6, 8), ["range-without-hull"], (3, 4), id="latest-gfns"),
    ],
)
def test_the_range_of_two_invalidations(bench, release, plus, pages):
    one = bench(release, plus=plus)
    one.slot()
    one.do(start(one, 0, 1))
    one.do(start(one, 3, 4))

    gfns = release >= (6, 8)
    assert tracked(one) == (pages if gfns else tuple(one.at(p) for p in pages))


@pytest.mark.parametrize(
    ("plus", "order"),
    [
        ([], ["xchg bitmap word", "kvmarch_dirty_log_masked"]),
        (["log-protects-first"], ["kvmarch_dirty_log_masked", "xchg bitmap word"]),
    ],
)
def test_the_order_of_snapshot_and_protection(bench, plus, order):
    one = bench(plus=plus)
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(1, "write")
    one.access(2, "write")

    names = one.trace(get_dirty_log(one.vm, 0))

    assert sorted(order, key=names.index) == order
    assert one.do(get_dirty_log(one.vm, 0)) == (0, 0)
    assert one.lost == []
