"""How a refresh finds the page, change by change (generic facts D7 to D9)."""

import pytest

from kvmarch.kernel.gpc import Gpc, gpc_activate, gpc_write_atomic
from kvmarch.kernel.gpc_refresh import MANY
from kvmarch.kernel.mmu_notifier import mmu_notifier_invalidate_range_start

BASE = "gpc-invalid-while-refreshing"
TOGETHER = ["gpc-refresh-lock", BASE, "gpc-unpinned"]


@pytest.mark.parametrize(
    "minus",
    [
        tuple(c for i, c in enumerate(TOGETHER) if bits >> i & 1)
        for bits in range(2 ** len(TOGETHER))
    ],
    ids=lambda minus: "-".join(minus) or "all",
)
def test_the_changes_of_v6_0_go_apart(bench, minus):
    one = bench((6, 0), (), minus)
    one.slot()
    gpc = Gpc(one.vm)
    locks = one.trace(gpc_activate(gpc, 0x10))

    assert ("lock gpc0->refresh_lock" in locks) is ("gpc-refresh-lock" not in minus)
    assert (gpc.valid, gpc.pfn) == (1, one.pfn(0))
    assert one.host.pages[gpc.pfn].refs == 1 + ("gpc-unpinned" in minus)
    assert one.lost == []


@pytest.mark.parametrize(
    ("plus", "goes_round"),
    [
        pytest.param((), True, id="count"),
        pytest.param(("gpc-retry-in-progress",), False, id="in-progress"),
    ],
)
def test_which_count_is_tested(bench, plus, goes_round):
    one = bench((6, 0), plus)
    one.slot()
    gpc = Gpc(one.vm)
    zapping = one.actor(
        "zap", mmu_notifier_invalidate_range_start(one.mm, one.at(0), one.at(1))
    )
    zapping.past("mn_active_invalidate_count++").past("unlock mn_invalidate_lock")
    activating = one.actor("kernel", gpc_activate(gpc, 0))
    for _ in range(60):
        activating.step()

    assert activating.task.done is not goes_round
    assert gpc.turns == (MANY if goes_round else 0)
    zapping.end()


def test_whoever_may_not_sleep_gives_up(bench):
    one = bench((6, 12))
    one.slot()
    gpc = Gpc(one.vm)
    one.do(gpc_activate(gpc, 0))

    assert one.do(gpc_write_atomic(gpc)) == 0
    one.do(mmu_notifier_invalidate_range_start(one.mm, one.at(0), one.at(1)))
    assert one.do(gpc_write_atomic(gpc)) != 0
    assert one.lost == []
