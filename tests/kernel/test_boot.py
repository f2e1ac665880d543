"""Machines are booted, and VMs are destroyed (generic facts 2.7)."""

import pytest

from kvmarch.kernel.boot import boot, destroy_vm
from kvmarch.kernel.mmap import exit_mmap
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_clear_flush_young,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.reclaim import reclaim

HVA = 0x7F00_0000_0000
PAGE = 4096


def close(one):
    return destroy_vm(one.vm, one.machine.subscriptions["vm"])


def test_a_machine_has_a_vm_with_its_vcpus(bench):
    one = bench(vcpus=3)

    assert [vcpu.name for vcpu in one.vm.vcpus] == ["vcpu0", "vcpu1", "vcpu2"]
    assert [s.name for s in one.mm.subscriptions.list] == ["vm"]
    assert set(one.world.parts) == {"host", "mm", "vm"}
    assert hash(one.world.freeze())
    assert one.lost == []


def test_tables_may_be_dense(link, toy):
    options = toy.info.settle((6, 1), {})
    machines = [boot(link(), options, dense=dense) for dense in (False, True)]

    kinds = [type(m.vm.tables.at(m.vm.arch.root)).__name__ for m in machines]
    assert kinds == ["SparseTable", "DenseTable"]


@pytest.mark.parametrize("release", [(3, 16), (5, 10), (6, 1), (7, 2)])
def test_exit_and_destruction_leave_nothing(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")

    one.do(exit_mmap(one.mm))
    one.do(close(one))

    assert one.vm.users_count == 0
    assert one.vm.tables.live == {}
    assert one.lost == []


def test_the_vm_may_go_before_the_process(bench):
    one = bench()
    one.slot()
    one.access(0, "write")

    one.do(close(one))
    one.do(reclaim(one.mm, HVA))
    one.do(exit_mmap(one.mm))

    assert one.vm.tables.live == {}
    assert one.lost == []


def test_the_notifier_goes_before_the_architecture(bench):
    one = bench()

    names = one.trace(close(one))

    order = ["users_count--", "is it hashed?", "hlist_del_init_rcu", "forget_starts"]
    assert sorted(order, key=names.index) == order
    assert names[-1] == "free_tables"


def test_an_invalidation_that_lost_its_end_is_forgiven(bench):
    one = bench()
    one.slot()
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))
    one.do(close(one))
    one.do(mmu_notifier_invalidate_range_end(one.mm, HVA, HVA + PAGE))

    assert one.vm.mn_active_invalidate_count == 0
    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "active", "left", "lost"),
    [
        pytest.param((5, 14), 1, 1, [], id="v5.14-looks-at-nothing"),
        pytest.param((5, 15), 1, 0, [], id="v5.15-forgets"),
        pytest.param((6, 7), 0, 0, [], id="v6.7-does-not-check"),
        pytest.param((6, 8), 0, 0, ["warn"], id="v6.8-checks"),
        pytest.param((6, 8), 1, 0, [], id="v6.8-forgives-an-open-start"),
    ],
)
def test_an_invalidation_in_progress_at_the_end(bench, release, active, left, lost):
    one = bench(release)
    one.vm.mmu_invalidate_in_progress = 1
    one.vm.mn_active_invalidate_count = active
    one.do(close(one))

    assert one.vm.mn_active_invalidate_count == left
    assert one.lost == lost


def test_an_open_start_is_warned_of_where_nothing_is_forgiven(bench):
    one = bench((6, 8), plus=["destroy-forgives-nothing"])
    one.slot()
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))
    one.do(close(one))

    assert one.vm.mn_active_invalidate_count == 0
    assert one.lost == ["warn"]


@pytest.mark.parametrize("steps", range(0, 30, 2))
def test_aging_while_the_process_exits(bench, steps):
    one = bench()
    one.slot()
    one.access(0)
    exiting = one.actor("exit", exit_mmap(one.mm))
    for _ in range(steps):
        exiting.step()
    aging = one.actor("kswapd", mmu_notifier_clear_flush_young(one.mm, HVA, HVA + PAGE))

    one.interleave(aging, exiting, turn=3)

    assert one.lost == []
