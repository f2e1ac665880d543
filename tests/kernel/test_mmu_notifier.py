"""The notifier chain: registration, release and unregistration (generic facts 2.1)."""

import pytest

from kvmarch.kernel.mmu_notifier import (
    Subscription,
    mmu_notifier_clear_flush_young,
    mmu_notifier_clear_young,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_invalidate_range_start_nonblock,
    mmu_notifier_register,
    mmu_notifier_release,
    mmu_notifier_test_young,
    mmu_notifier_unregister,
)
from kvmarch.machine.host import Mm
from kvmarch.machine.steps import op

HVA = 0x7F00_0000_0000
PAGE = 4096
SRCU_WAIT = "wait for readers of mm notifier srcu"


@op
def _pause(vm):
    """Let others go on."""


@pytest.fixture
def one(bench):
    made = bench()
    made.slot()
    made.access(0, "write")
    return made


def start(one):
    return mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE)


def end(one):
    return mmu_notifier_invalidate_range_end(one.mm, HVA, HVA + PAGE)


def test_nobody_registers_while_a_range_is_open(one):
    one.do(start(one))
    late = one.actor("late", mmu_notifier_register(one.mm, Subscription("driver")))

    assert late.waits() == "add to notifier list"
    one.do(end(one))
    late.end()
    assert [s.name for s in one.mm.subscriptions.list] == ["driver", "vm"]


def test_registration_holds_mmap_lock(one):
    names = one.trace(mmu_notifier_register(one.mm, Subscription("driver")))

    assert names[0] == "lock mm mmap_lock"


def test_a_subscriber_of_another_kind_is_not_called(one):
    one.mm.subscriptions.list.insert(0, Subscription("driver"))

    one.do(start(one))
    one.do(end(one))

    assert one.entry(0) == 0
    assert one.lost == []


def test_release_calls_everybody_while_still_on_the_list(one):
    releasing = one.actor("exit", mmu_notifier_release(one.mm))
    releasing.to("hlist_del_init_rcu")

    listed = [s.name for s in one.mm.subscriptions.list]

    assert listed == ["vm"]
    assert one.entry(0) == 0
    releasing.end()
    assert one.mm.subscriptions.list == []
    assert one.lost == []


def test_callbacks_run_during_release_until_the_entry_is_unlinked(one):
    releasing = one.actor("exit", mmu_notifier_release(one.mm))
    releasing.to("hlist_del_init_rcu")
    before = len(one.named("kvm_age_hva"))
    one.do(mmu_notifier_clear_young(one.mm, HVA, HVA + PAGE), "reclaim")
    during = len(one.named("kvm_age_hva"))
    releasing.end()
    one.do(mmu_notifier_clear_young(one.mm, HVA, HVA + PAGE), "reclaim")

    assert (before, during) == (0, 1)
    assert len(one.named("kvm_age_hva")) == 1


def test_unregister_calls_release_if_the_mm_has_not(one):
    one.do(mmu_notifier_unregister(one.mm, one.machine.subscriptions["vm"]))

    assert one.entry(0) == 0
    assert one.mm.subscriptions.list == []
    assert one.lost == []


def test_unregister_after_release_only_waits(one):
    one.do(mmu_notifier_release(one.mm))

    names = one.trace(mmu_notifier_unregister(one.mm, one.machine.subscriptions["vm"]))

    assert names == [
        "is it hashed?",
        "synchronize_srcu mm notifier srcu",
        SRCU_WAIT,
        "flip mm notifier srcu",
        SRCU_WAIT,
    ]


def test_unregistering_twice_is_harmless(one):
    subscription = one.machine.subscriptions["vm"]
    one.do(mmu_notifier_unregister(one.mm, subscription))
    one.do(mmu_notifier_unregister(one.mm, subscription))

    assert one.mm.subscriptions.list == []
    assert one.lost == []


@pytest.mark.parametrize("steps", range(0, 24, 3))
def test_release_and_unregister_at_once(one, steps):
    subscription = one.machine.subscriptions["vm"]
    exiting = one.actor("exit", mmu_notifier_release(one.mm))
    closing = one.actor("close", mmu_notifier_unregister(one.mm, subscription))
    for _ in range(steps):
        exiting.step()
    for actor in (closing, exiting) * 3:
        actor.waits()

    assert closing.task.done
    assert exiting.task.done
    assert one.mm.subscriptions.list == []
    assert one.lost == []


@pytest.mark.parametrize(
    ("plus", "minus", "released", "lost"),
    [
        pytest.param([], ["notifier-del-init"], 2, ["warn"], id="v3.8-del-twice"),
        pytest.param(["notifier-unlink-first"], [], 1, [], id="v3.9-unlink-first"),
        pytest.param([], [], 2, [], id="v3.10-del-init"),
        pytest.param(["release-mutex"], [], 1, [], id="mutex"),
    ],
)
def test_orders_of_release_and_unregister(bench, plus, minus, released, lost):
    calls = []

    async def release(vm):
        calls.append(vm.name)
        await _pause(vm)

    one = bench(plus=plus, minus=minus, replaced={"notifier_release": release})
    subscription = one.mm.subscriptions.list[0]
    one.interleave(
        one.actor("exit", mmu_notifier_release(one.mm)),
        one.actor("close", mmu_notifier_unregister(one.mm, subscription)),
        turn=1,
    )

    assert len(calls) == released
    assert one.mm.subscriptions.list == []
    assert one.lost == lost


def test_what_is_unlinked_first_is_not_told_while_it_is_released(bench):
    one = bench(plus=["notifier-unlink-first"])
    releasing = one.actor("exit", mmu_notifier_release(one.mm))
    releasing.past("hlist_del_init_rcu")

    assert one.mm.subscriptions.list == []
    assert releasing.next != ""
    releasing.end()


def test_unregister_waits_for_a_callback_that_runs(one):
    invalidating = one.actor("zap", start(one)).to("mn_active_invalidate_count++")
    closing = one.actor(
        "close", mmu_notifier_unregister(one.mm, one.machine.subscriptions["vm"])
    )

    assert closing.waits() == SRCU_WAIT
    invalidating.end()
    closing.end()
    assert one.lost == []


def test_a_start_may_be_seen_without_its_end(one):
    one.do(start(one))
    one.do(mmu_notifier_unregister(one.mm, one.machine.subscriptions["vm"]))
    one.do(end(one))

    assert one.vm.mn_active_invalidate_count == 1
    assert one.mm.subscriptions.open_ranges == []


@pytest.mark.parametrize(
    "callback",
    [
        mmu_notifier_clear_flush_young,
        mmu_notifier_clear_young,
        mmu_notifier_test_young,
        mmu_notifier_invalidate_range_start,
        mmu_notifier_invalidate_range_end,
    ],
)
def test_an_mm_without_subscribers_has_nobody_to_tell(one, callback):
    lonely = Mm(one.world, one.host, "other", page_shift=12, pmd_order=9)

    assert not one.do(callback(lonely, HVA, HVA + PAGE))
    assert lonely.subscriptions is None


def test_an_mm_without_subscribers_agrees_and_releases_at_once(one):
    lonely = Mm(one.world, one.host, "other", page_shift=12, pmd_order=9)

    agreed = one.do(
        mmu_notifier_invalidate_range_start_nonblock(lonely, HVA, HVA + PAGE)
    )
    one.do(mmu_notifier_release(lonely))

    assert agreed is True


def test_an_end_without_a_start_is_reported(one):
    one.vm.mn_active_invalidate_count = one.vm.mmu_invalidate_in_progress = 1
    one.do(end(one))

    assert one.lost == ["balanced"]


def test_every_vm_of_a_process_is_told_the_newest_first(bench, toy):
    one = bench()
    second = one.machine.create_vm(toy.info.settle((6, 1), {}))

    one.do(start(one))

    told = [data["vm"] for data in one.named("kvm_unmap_hva_range")]
    assert told == ["vm1", "vm"]
    assert (one.vm, second) == tuple(one.machine.vms)


def test_young_is_asked_of_everybody_without_an_early_exit(bench, toy):
    one = bench()
    one.slot()
    one.access(0)
    one.machine.create_vm(toy.info.settle((6, 1), {}))

    young = one.do(mmu_notifier_clear_young(one.mm, HVA, HVA + PAGE))

    assert young is True
    assert [d["vm"] for d in one.named("kvm_age_hva")] == ["vm1", "vm"]
