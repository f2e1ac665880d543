"""The tracked range and the retry checks (generic facts 2.4, 6)."""

import pytest
from brackets import PAGE, end, hvas, start

from kvmarch.kernel.notifier import (
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    range_add,
)
from kvmarch.kernel.retry import (
    mmu_invalidate_retry,
    mmu_invalidate_retry_gfn,
    mmu_invalidate_retry_gfn_unsafe,
    mmu_invalidate_retry_hva,
)
from kvmarch.machine.steps import op
from kvmarch.testing.bench import HVA


async def locked(vm, *steps):
    """Take steps under mmu_lock; return the last one's result."""
    result = None
    async with vm.mmu_lock.write():
        for step in steps:
            result = await step
    return result


def add(one, first, stop):
    one.do(
        locked(
            one.vm,
            kvm_mmu_invalidate_begin(one.vm),
            op(range_add)(one.vm, first, stop),
        )
    )


def tracked(one):
    return one.vm.mmu_invalidate_range_start, one.vm.mmu_invalidate_range_end


def test_the_range_is_a_hull_that_never_shrinks(bench):
    one = bench()
    add(one, 0x10, 0x20)
    add(one, 0x100, 0x110)
    hull, in_progress = tracked(one), one.vm.mmu_invalidate_in_progress
    seq = one.vm.mmu_invalidate_seq
    false_positive = one.do(locked(one.vm, mmu_invalidate_retry_gfn(one.vm, seq, 0x50)))
    outside = one.do(locked(one.vm, mmu_invalidate_retry_gfn(one.vm, seq, 0x110)))
    one.do(locked(one.vm, kvm_mmu_invalidate_end(one.vm)))
    after_one = tracked(one)
    one.do(locked(one.vm, kvm_mmu_invalidate_end(one.vm)))
    add(one, 0x5, 0x6)

    assert (hull, in_progress) == ((0x10, 0x110), 2)
    assert (false_positive, outside) == (True, False)
    assert after_one == (0x10, 0x110)
    assert tracked(one) == (0x5, 0x6)


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        pytest.param((5, 11), (-1, -1), id="v5.11-none"),
        pytest.param((5, 12), hvas(2, 5), id="v5.12-hvas"),
        pytest.param((6, 7), hvas(2, 5), id="v6.7-hvas"),
        pytest.param((6, 8), (0x102, 0x105), id="v6.8-gfns"),
        pytest.param((7, 2), (0x102, 0x105), id="v7.2-gfns"),
    ],
)
def test_start_tracks_its_range(bench, release, expected):
    one = bench(release)
    one.slot(gfn=0x100)

    start(one, 2, 5)

    assert tracked(one) == expected


def test_gfns_of_several_slots_make_one_hull(bench):
    one = bench((6, 8))
    one.slot(slot=0, gfn=0x100)
    one.slot(slot=1, gfn=0x10, pages=4, page=2)

    start(one, 2, 3)

    assert tracked(one) == (0x10, 0x103)


@pytest.mark.parametrize(
    ("check", "argument", "inside", "outside"),
    [
        pytest.param(mmu_invalidate_retry_hva, "hva", HVA, HVA + PAGE, id="hva"),
        pytest.param(mmu_invalidate_retry_gfn, "gfn", 0x100, 0x101, id="gfn"),
        pytest.param(mmu_invalidate_retry_gfn_unsafe, "gfn", 0x100, 0x101, id="unsafe"),
    ],
)
def test_faults_inside_the_range_retry(bench, check, argument, inside, outside):
    one = bench((6, 7) if argument == "hva" else (6, 8))
    one.slot(gfn=0x100)
    seq = one.vm.mmu_invalidate_seq

    def ask(where):
        return one.do(locked(one.vm, check(one.vm, seq, where)))

    before = ask(inside)
    start(one)
    during = (ask(inside), ask(outside))
    end(one)
    after = (ask(inside), ask(outside))

    assert (before, during, after) == (False, (True, False), (True, True))
    assert one.lost == []


def test_without_a_range_every_fault_retries(bench):
    one = bench((5, 11))
    one.slot()
    seq = one.vm.mmu_invalidate_seq

    start(one)
    during = one.do(mmu_invalidate_retry(one.vm, seq))
    end(one)
    after = one.do(mmu_invalidate_retry(one.vm, seq))
    anew = one.do(mmu_invalidate_retry(one.vm, one.vm.mmu_invalidate_seq))

    assert (during, after, anew) == (True, True, False)


def test_a_range_that_was_not_said_warns_and_retries(bench):
    one = bench((6, 8))

    retry = one.do(
        locked(
            one.vm,
            kvm_mmu_invalidate_begin(one.vm),
            mmu_invalidate_retry_gfn(one.vm, 0, 5),
        )
    )

    assert retry is True
    assert one.lost == ["warn"]


@pytest.mark.parametrize(
    "check", [mmu_invalidate_retry_hva, mmu_invalidate_retry_gfn], ids=["hva", "gfn"]
)
def test_the_checks_need_mmu_lock(bench, check):
    one = bench()
    one.do(check(one.vm, 0, 0))

    assert one.lost == ["locks"]


def test_the_unsafe_check_needs_no_lock(bench):
    one = bench()

    assert one.do(mmu_invalidate_retry_gfn_unsafe(one.vm, 0, 5)) is False
    assert one.lost == []
