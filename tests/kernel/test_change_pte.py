"""The six forms of change_pte (generic facts 2.5)."""

import pytest
from brackets import PAGE, counts, hvas, start

from kvmarch.machine.steps import op
from kvmarch.testing.bench import HVA

CHANGE_PTE = [
    # release, bracketed; called, sequence, flushed by the generic code, lost
    pytest.param((3, 16), True, True, 1, False, [], id="form-1"),
    pytest.param((4, 20), False, True, 1, False, [], id="form-1-without-bracket"),
    pytest.param((5, 0), True, True, 1, True, [], id="form-2"),
    pytest.param((5, 12), False, True, 1, True, [], id="form-2-without-bracket"),
    pytest.param((5, 13), True, True, 0, True, [], id="form-3"),
    pytest.param((5, 14), False, True, 0, True, ["warn"], id="form-3-warns"),
    pytest.param((5, 15), True, True, 0, True, [], id="form-4"),
    pytest.param((6, 3), False, False, 0, False, ["warn"], id="form-4-returns-early"),
    pytest.param((6, 4), True, True, 0, True, [], id="form-5"),
    pytest.param((6, 9), False, False, 0, False, ["warn"], id="form-5-returns-early"),
]


@pytest.mark.parametrize(
    ("release", "bracketed", "called", "sequence", "flushed", "lost"), CHANGE_PTE
)
def test_change_pte(bench, release, bracketed, called, sequence, flushed, lost):
    calls = []

    @op
    def set_spte(vm, slot, gfn, pte):
        calls.append((slot.id, gfn, pte))
        # Form 1 flushes by itself, so nothing is entered as owed.
        return vm.ledger.owe(gfn, gfn + 1) if release >= (5, 0) else None

    one = bench(release, replaced={"set_spte_gfn": set_spte})
    one.slot(gfn=0x100)
    if bracketed:
        start(one, 2, 3)
    before = counts(one)[0]

    names = one.trace(one.k.change_pte(one.vm, HVA + 2 * PAGE, 0x77001))

    assert calls == ([(0, 0x102, 0x77001)] if called else [])
    assert counts(one)[0] - before == sequence
    assert ("flush done" in names) == flushed
    assert one.named("change_pte_done")[-1]["called"] == called
    assert one.lost == lost


@pytest.mark.parametrize(("release", "locks"), [((5, 12), 1), ((5, 13), 0)])
def test_change_pte_without_a_slot(bench, release, locks):
    one = bench(release)
    start(one)

    names = one.trace(one.k.change_pte(one.vm, HVA, 0x77001))

    assert names.count("lock mmu_lock") == locks
    assert one.lost == []


def test_since_v5_15_an_invalidation_without_a_slot_is_not_asserted(bench):
    one = bench((5, 15))
    start(one)

    one.do(one.k.change_pte(one.vm, HVA, 0x77001))

    assert counts(one) == (0, 0, 1)
    assert one.named("change_pte_done")[-1]["called"] is False
    assert one.lost == []


@pytest.mark.parametrize(("release", "touched"), [((6, 3), True), ((6, 4), False)])
def test_change_pte_and_a_slot_that_is_being_deleted(bench, release, touched):
    calls = []
    set_spte = op(lambda vm, slot, gfn, pte: calls.append(gfn))
    one = bench(release, replaced={"set_spte_gfn": set_spte})
    one.slot()
    memslots = one.vm.memslots[0]
    (slot,) = memslots.slots
    one.vm.memslots[0] = type(memslots)((type(slot)(0, 0, 0, 16, HVA, 1 << 16),))
    start(one)

    one.do(one.k.change_pte(one.vm, HVA, 0x77001))

    assert calls == [0] * touched


@pytest.mark.parametrize(("release", "told"), [((6, 9), True), ((6, 10), False)])
def test_the_host_pte_is_set_after_the_notification(bench, release, told):
    one = bench(release)
    one.slot()
    start(one)
    before = one.mm.pte(one.vpn(0))
    seen = []
    one.world.observer = lambda _task, step: seen.append(
        (step.op.name, one.mm.pte(one.vpn(0)) == before)
    )

    one.do(one.k.set_pte_at_notify(one.mm, one.vpn(0), 0x77001))

    assert (("change_pte returns", True) in seen) == told
    assert seen[-1] == ("set PTE", False)
    assert one.mm.pte(one.vpn(0)) == 0x77001


def test_before_v3_7_there_was_no_bracket(bench):
    one = bench((3, 16), minus=["bracketed-set-pte"])
    one.slot()

    names = one.trace(one.k.change_pte_start(one.mm, *hvas(0, 1)))
    names += one.trace(one.k.change_pte_end(one.mm, *hvas(0, 1)))

    assert names == []
