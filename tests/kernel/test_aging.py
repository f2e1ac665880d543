"""Aging: its locks, its flush and its answers (generic facts 2.6)."""

import pytest
from brackets import counts, hvas

from kvmarch.kernel.notifier import (
    _clear_young,
    age_without_lock,
    clear_flush_young,
)
from kvmarch.kernel.notifier import test_young as ask_young
from kvmarch.machine.steps import op


@pytest.mark.parametrize(
    ("release", "with_slot", "locks"),
    [
        pytest.param((5, 12), False, 1, id="v5.12-no-slot"),
        pytest.param((5, 12), True, 1, id="v5.12"),
        pytest.param((5, 13), False, 0, id="v5.13-no-slot"),
        pytest.param((5, 13), True, 1, id="v5.13"),
        pytest.param((7, 2), True, 1, id="v7.2-with-lock"),
    ],
)
@pytest.mark.parametrize("callback", [clear_flush_young, _clear_young, ask_young])
def test_aging_locks(bench, release, with_slot, locks, callback):
    one = bench(release)
    if with_slot:
        one.slot()

    names = one.trace(callback(one.vm, *hvas(0, 1)))

    assert names.count("lock mmu_lock") == locks
    assert counts(one) == (0, 0, 0)
    assert one.lost == []


def test_aging_without_the_lock(bench):
    one = bench((6, 15), replaced={"aging_walk": age_without_lock})
    one.slot()
    one.access(0)

    names = one.trace(clear_flush_young(one.vm, *hvas(0, 1)))

    assert "lock mmu_lock" not in names
    assert "srcu_read_lock kvm->srcu" in names
    assert "flush done" in names
    assert one.do(ask_young(one.vm, *hvas(0, 1))) is False


@pytest.mark.parametrize("release", [(4, 4), (5, 13), (7, 2)])
@pytest.mark.parametrize(
    ("callback", "old_after", "flushes"),
    [
        pytest.param(clear_flush_young, True, True, id="clear_flush_young"),
        pytest.param(_clear_young, True, False, id="clear_young"),
        pytest.param(ask_young, False, False, id="test_young"),
    ],
)
def test_aging_asks_and_clears(bench, release, callback, old_after, flushes):
    one = bench(release)
    one.slot()
    never_used = one.do(callback(one.vm, *hvas(0, 1)))
    one.access(0)

    names = one.trace(callback(one.vm, *hvas(0, 1)))
    again = one.do(ask_young(one.vm, *hvas(0, 1)))

    assert never_used is False
    assert again is not old_after
    assert ("flush done" in names) == flushes
    assert one.lost == []


def test_an_architecture_may_leave_the_flush_out(bench):
    one = bench(replaced={"flush_if_young": False})
    one.slot()
    one.access(0)

    names = one.trace(clear_flush_young(one.vm, *hvas(0, 1)))

    assert "flush done" not in names


def test_aging_asks_every_slot(bench):
    asked = []

    @op
    def age(vm, slot, first, stop):
        asked.append(slot.id)
        return slot.id == 0

    one = bench(replaced={"age_gfn": age})
    one.slot(slot=0)
    one.slot(slot=1, gfn=0x100)

    assert one.do(_clear_young(one.vm, *hvas(0, 1))) is True
    assert asked == [0, 1]
