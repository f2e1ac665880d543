"""KVM's start, end and release callbacks by release (generic facts 2.3, 2.7)."""

import pytest
from brackets import PAGE, counts, end, hvas, start

from kvmarch.kernel.memslots import in_hva_range
from kvmarch.kernel.mmap import oom_reap
from kvmarch.kernel.mmu_notifier import (
    Subscription,
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_invalidate_range_start_nonblock,
)
from kvmarch.kernel.notifier import (
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
    notifier_release,
)
from kvmarch.kernel.retry import (
    mmu_invalidate_retry,
)
from kvmarch.machine.steps import op
from kvmarch.testing.bench import HVA

FAR = HVA + 0x100 * PAGE


# -- which gfns a range of hvas means ----------------------------------------------


@pytest.mark.parametrize(
    ("first", "stop", "gfns"),
    [
        pytest.param(0x1800, 0x2800, (0x101, 0x103), id="worked-example"),
        pytest.param(0x1000, 0x2000, (0x101, 0x102), id="one-page"),
        pytest.param(0x1FFF, 0x2000, (0x101, 0x102), id="last-byte"),
        pytest.param(0x1FFF, 0x2001, (0x101, 0x103), id="two-bytes"),
        pytest.param(-0x5000, 0x1000, (0x100, 0x101), id="before-and-first"),
        pytest.param(0xF800, 0x20000, (0x10F, 0x110), id="last-and-behind"),
        pytest.param(-0x5000, 0x50000, (0x100, 0x110), id="all"),
        pytest.param(-0x1000, 0, None, id="before"),
        pytest.param(0x10000, 0x11000, None, id="behind"),
    ],
)
def test_hvas_become_whole_gfns(bench, first, stop, gfns):
    one = bench()
    one.slot(gfn=0x100)

    found = in_hva_range(one.vm, HVA + first, HVA + stop)

    assert [(low, high) for _slot, low, high in found] == ([gfns] if gfns else [])


def test_each_slot_of_an_hva_is_found(bench):
    one = bench()
    one.slot(slot=0, gfn=0)
    one.slot(slot=1, gfn=0x100, pages=4, page=2)

    found = in_hva_range(one.vm, *hvas(3, 4))

    assert [(slot.id, low, high) for slot, low, high in found] == [
        (0, 3, 4),
        (1, 0x101, 0x102),
    ]


# -- start and end -----------------------------------------------------------------


@pytest.mark.parametrize("release", [(4, 4), (5, 13), (5, 15), (7, 2)])
def test_sequence_and_count_over_nested_invalidations(bench, release):
    one = bench(release)
    one.slot()
    one.vm.mmu_invalidate_seq = 10

    seen = []
    for act in (start, start, end, end):
        act(one)
        seen.append(counts(one)[:2])

    assert seen == [(10, 1), (10, 2), (11, 1), (12, 0)]
    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "during", "after", "locks"),
    [
        pytest.param((5, 11), (0, 1, 0), (1, 0, 0), 2, id="v5.11-always-locks"),
        pytest.param((5, 14), (0, 1, 0), (1, 0, 0), 2, id="v5.14-always-locks"),
        pytest.param((5, 15), (0, 0, 1), (0, 0, 0), 0, id="v5.15-elides"),
        pytest.param((7, 2), (0, 0, 1), (0, 0, 0), 0, id="v7.2-elides"),
    ],
)
def test_an_invalidation_without_a_slot(bench, release, during, after, locks):
    one = bench(release)

    names = one.trace(mmu_notifier_invalidate_range_start(one.mm, FAR, FAR + PAGE))
    seen = counts(one)
    names += one.trace(mmu_notifier_invalidate_range_end(one.mm, FAR, FAR + PAGE))

    assert seen == during
    assert counts(one) == after
    assert names.count("lock mmu_lock") == locks
    assert one.lost == []


@pytest.mark.parametrize("release", [(4, 4), (5, 14), (5, 15), (7, 2)])
def test_start_unmaps_and_flushes_under_the_lock(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")
    one.access(1, "write")

    names = one.trace(mmu_notifier_invalidate_range_start(one.mm, *hvas(0, 1)))

    unlock = names.index("unlock mmu_lock")
    assert names.index("flush done") < unlock
    assert (one.entry(0), bool(one.entry(1))) == (0, True)
    assert "tlb_flush" in one.vcpu.requests
    assert one.named("flush")[-1]["how"] == "kvm_flush_remote_tlbs"
    assert one.lost == []


def test_start_does_not_flush_what_was_not_mapped(bench):
    one = bench()
    one.slot()

    names = one.trace(mmu_notifier_invalidate_range_start(one.mm, *hvas(0, 1)))

    assert "flush done" not in names
    assert one.lost == []


def test_a_flush_that_is_forgotten_is_reported(bench):
    @op
    def careless(vm, slot, first, stop, may_block):
        vm.ledger.owe(first, stop)

    one = bench(replaced={"unmap_gfn_range": careless})
    one.slot()
    start(one)

    assert one.lost == ["flush-owed"]
    assert one.world.violations[0].sentence == (
        "unlock of mmu_lock: a flush of gfn 0x0-0x0 is still owed"
    )


def test_invalid_slots_are_walked_by_start(bench):
    seen = []

    @op
    def watch(vm, slot, first, stop, may_block):
        seen.append((slot.invalid, first, stop, may_block))

    one = bench((5, 14), replaced={"unmap_gfn_range": watch})
    one.slot()
    (slot,) = one.vm.memslots[0].slots
    one.vm.memslots[0] = type(one.vm.memslots[0])(
        (type(slot)(0, 0, 0, 16, HVA, flags=1 << 16),)
    )

    start(one, 2, 4)

    assert seen == [(True, 2, 4, True)]


@pytest.mark.parametrize("release", [(5, 14), (5, 15)])
def test_an_end_without_a_start_is_reported(bench, release):
    one = bench(release)
    one.slot()

    end(one)

    assert set(one.lost) == {"balanced"}


def test_the_counters_need_mmu_lock(bench):
    one = bench()

    one.do(kvm_mmu_invalidate_begin(one.vm))
    one.do(kvm_mmu_invalidate_end(one.vm))

    assert [v.sentence for v in one.world.violations] == [
        "kvm_mmu_invalidate_begin needs mmu_lock for write; it is held not at all",
        "kvm_mmu_invalidate_end needs mmu_lock for write; it is held not at all",
    ]


# -- a non-blocking start that somebody refuses (D5) -------------------------------


@pytest.mark.parametrize(
    ("release", "stuck"), [((5, 11), True), ((5, 12), False), ((6, 1), False)]
)
def test_a_refused_start_gets_its_end_since_v5_12(bench, release, stuck):
    one = bench(release)
    one.slot()
    one.mm.subscriptions.list.append(Subscription("driver", refuses=True))

    agreed = one.do(oom_reap(one.mm, *hvas(0, 2)))

    assert agreed is False
    assert one.pfn(0)
    assert one.vm.mmu_invalidate_in_progress == int(stuck)
    assert one.do(mmu_invalidate_retry(one.vm, one.vm.mmu_invalidate_seq)) is stuck
    assert one.mm.subscriptions.open_ranges == []


def test_all_are_told_even_after_one_has_refused(bench):
    one = bench()
    one.slot()
    one.mm.subscriptions.list.insert(0, Subscription("driver", refuses=True))

    agreed = one.do(mmu_notifier_invalidate_range_start_nonblock(one.mm, *hvas(0, 1)))

    assert agreed is False
    assert len(one.named("kvm_unmap_hva_range")) == 1
    assert counts(one)[1:] == (0, 0)


def test_a_start_that_all_accept_is_ended_by_the_caller(bench):
    one = bench()
    one.slot()

    agreed = one.do(oom_reap(one.mm, *hvas(0, 2)))

    assert agreed is True
    assert [one.pfn(n) for n in (0, 1)] == [0, 0]
    assert one.pfn(2)
    assert counts(one)[1:] == (0, 0)
    assert one.lost == []


# -- release -----------------------------------------------------------------------


def test_release_drops_everything_inside_srcu(bench):
    one = bench()
    one.slot()
    for gfn in range(3):
        one.access(gfn, "write")

    names = one.trace(notifier_release(one.vm))

    assert names[0] == "srcu_read_lock kvm->srcu"
    assert names[-1] == "srcu_read_unlock kvm->srcu"
    assert [one.entry(gfn) for gfn in range(3)] == [0, 0, 0]
    assert one.lost == []


def test_release_may_run_twice_and_at_once(bench):
    one = bench()
    one.slot()
    one.access(0, "write")

    outcome = one.race(a=notifier_release(one.vm), b=notifier_release(one.vm))

    assert outcome.end == "done"
    assert one.lost == []
