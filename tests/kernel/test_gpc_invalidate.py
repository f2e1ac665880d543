"""Which caches an invalidation drops, and their hull (generic 2.13, 6)."""

import pytest

from kvmarch.kernel.gpc import Gpc, gpc_activate
from kvmarch.kernel.gpc_invalidate import RANGED, is_pending
from kvmarch.kernel.mmap import exit_mmap
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)

AT_END = ("gpc-needs-invalidation-v2", "gpc-needs-invalidation-v3-4")
RELEASE = (6, 12)


@pytest.fixture
def cached(bench):
    """A machine of v6.12 with these changes, and a valid cache of its first page."""

    def make(*plus):
        one = bench(RELEASE, plus)
        one.slot()
        one.gpc = Gpc(one.vm)
        assert one.do(gpc_activate(one.gpc, 0)) == 0
        return one

    return make


def start(one, first, last):
    one.do(mmu_notifier_invalidate_range_start(one.mm, one.at(first), one.at(last)))


def end(one, first, last):
    one.do(mmu_notifier_invalidate_range_end(one.mm, one.at(first), one.at(last)))


@pytest.mark.parametrize("change", RANGED)
def test_the_hull_only_grows_until_all_are_over(cached, change):
    one = cached(change)
    seen = []
    for step, first, last in (
        (start, 1, 2),
        (start, 10, 11),
        (end, 1, 2),
        (end, 10, 11),
        (start, 5, 6),
    ):
        step(one, first, last)
        seen.append(
            [page for page in (1, 3, 5, 10) if is_pending(one.vm, one.at(page))]
        )

    assert seen == [[1], [1, 3, 5, 10], [1, 3, 5, 10], [], [5]]


@pytest.mark.parametrize(
    ("change", "after_start", "after_end"),
    [
        *((change, 1, 0) for change in AT_END),
        ("gpc-needs-invalidation-v3-1", 0, 0),
        ("gpc-needs-invalidation-v3-3", 0, 0),
        ("gpc-range-retry", 0, 0),
        ("gpc-october", 0, 0),
    ],
)
def test_when_a_valid_cache_is_dropped(cached, change, after_start, after_end):
    one = cached(change)
    start(one, 0, 1)
    between = one.gpc.valid
    end(one, 0, 1)

    assert (between, one.gpc.valid) == (after_start, after_end)
    assert one.lost == []


def test_without_a_cache_no_lock_is_taken(bench):
    one = bench(RELEASE)
    names = one.trace(mmu_notifier_invalidate_range_start(one.mm, one.at(0), one.at(1)))

    assert "lock gpc_lock" not in names


@pytest.mark.parametrize(
    ("plus", "valid"), [((), 1), (("gpc-release-invalidates",), 0)], ids=["now", "then"]
)
def test_release_leaves_caches_alone(cached, plus, valid):
    one = cached(*plus)
    one.do(exit_mmap(one.mm))

    assert one.gpc.valid == valid
