"""The refreshes that were proposed in 2024 (generic facts 5)."""

import pytest

from kvmarch.kernel.gpc import Gpc, gpc_activate, gpc_write
from kvmarch.kernel.gpc_proposals import CHANGES
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)

V3_2, V3_3 = "gpc-needs-invalidation-v3-2", "gpc-needs-invalidation-v3-3"
LOOPS = [
    ("gpc-range-retry",),
    ("gpc-range-retry", "gpc-wait"),
    ("gpc-needs-invalidation-v2",),
    ("gpc-needs-invalidation-v3-1",),
    ("gpc-needs-invalidation-v3-2-meant",),
    ("gpc-needs-invalidation-v3-4",),
    ("gpc-october",),
]


@pytest.fixture
def activating(bench):
    """A machine with these changes on which page 0 is invalidated, and a task."""

    def make(plus, first=0):
        one = bench((6, 12), plus)
        one.slot()
        one.gpc = Gpc(one.vm)
        one.range = one.mm, one.at(first), one.at(first + 1)
        one.do(mmu_notifier_invalidate_range_start(*one.range))
        one.task = one.actor("kernel", gpc_activate(one.gpc, 0))
        return one

    return make


def named(plus):
    return "+".join(plus)


def test_none_was_merged():
    assert all(change.since is None for change in CHANGES)


@pytest.mark.parametrize("plus", [*LOOPS, (V3_2,), (V3_3,)], ids=named)
def test_undisturbed_a_cache_becomes_valid(bench, plus):
    one = bench((6, 12), plus)
    one.slot()
    gpc = Gpc(one.vm)

    assert one.do(gpc_activate(gpc, 0x10)) == 0
    assert one.do(gpc_write(gpc)) == 0
    assert (gpc.valid, gpc.pfn) == (1, one.pfn(0))
    assert one.host.pages[one.pfn(0)].refs == 1
    assert one.lost == []


@pytest.mark.parametrize("plus", LOOPS, ids=named)
def test_a_cache_waits_for_an_invalidation_of_its_page(activating, plus):
    one = activating(plus)
    for _ in range(60):
        one.task.step()

    assert not one.task.task.done
    assert one.gpc.valid == 0
    one.do(mmu_notifier_invalidate_range_end(*one.range))
    assert one.task.end() == 0
    assert one.gpc.pfn == one.pfn(0)
    assert one.lost == []


@pytest.mark.parametrize("plus", LOOPS, ids=named)
def test_an_invalidation_elsewhere_holds_nobody_up(activating, plus):
    one = activating(plus, first=5)
    if plus == ("gpc-needs-invalidation-v3-1",):
        # 1/5 alone still tests the count.
        assert all(one.task.step() for _ in range(200))
        one.do(mmu_notifier_invalidate_range_end(*one.range))

    assert one.task.end() == 0
    assert one.gpc.valid == 1


def test_v3_2_takes_its_lock_twice(activating):
    one = activating((V3_2,))

    assert one.task.waits() == "lock gpc0->lock"
    one.do(mmu_notifier_invalidate_range_end(*one.range), "other")
    assert one.task.waits() == "lock gpc0->lock"


def test_v3_3_leaves_without_a_page(activating):
    one = activating((V3_3,))
    one.task.waits()
    one.do(mmu_notifier_invalidate_range_end(*one.range), "other")

    assert one.task.end() == 0
    assert (one.gpc.valid, one.gpc.khva) == (1, -1)
    one.do(gpc_write(one.gpc))
    assert one.lost == ["warn"]
