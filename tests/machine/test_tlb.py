"""TLBs and the ledger of flushes that are owed."""

import pytest

from kvmarch.machine.run import Task
from kvmarch.machine.tlb import Flush, Ledger, Tlb, Translation


def page(gfn, pages=1, **rights):
    allowed = {"read": True, "write": False, "exec": False, **rights}
    return Translation(gfn, pages, 0x1000 + gfn, **allowed)


@pytest.mark.parametrize(
    ("rights", "allowed"),
    [
        pytest.param({}, {"read"}, id="read-only"),
        pytest.param({"write": True}, {"read", "write"}, id="writable"),
        pytest.param({"write": True, "dirty": False}, {"read"}, id="clean"),
        pytest.param({"read": False, "exec": True}, {"exec"}, id="execute-only"),
    ],
)
def test_a_translation_allows(rights, allowed):
    translation = page(0, **rights)

    assert {a for a in ("read", "write", "exec") if translation.allows(a)} == allowed


def test_a_translation_is_found_under_its_tag_only():
    tlb = Tlb()
    tlb.insert("guest", page(5))

    assert tlb.lookup("guest", 5) == page(5)
    assert tlb.lookup("other", 5) is None
    assert tlb.lookup("guest", 6) is None


def test_a_wide_translation_covers_its_span():
    tlb = Tlb()
    tlb.insert(1, page(0x200, 512))

    assert tlb.lookup(1, 0x200) == tlb.lookup(1, 0x3FF) == page(0x200, 512)
    assert tlb.lookup(1, 0x1FF) is tlb.lookup(1, 0x400) is None


def test_a_newer_translation_takes_the_place_of_the_older():
    tlb = Tlb()
    tlb.insert(1, page(5))
    tlb.insert(1, page(5, write=True))

    assert tlb.lookup(1, 5).write
    assert len(tlb.entries) == 1


def test_the_oldest_translation_gives_way():
    tlb = Tlb(size=2)
    for gfn in (1, 2, 3):
        tlb.insert(0, page(gfn))

    assert [tlb.lookup(0, gfn) is not None for gfn in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        pytest.param(0, 0x1000, set(), id="all"),
        pytest.param(5, 6, {6, 0x200}, id="one-page"),
        pytest.param(5, 7, {0x200}, id="pages"),
        pytest.param(0x3FF, 0x400, {5, 6}, id="last-page-of-a-wide-one"),
        pytest.param(0x3FE, 0x500, {5, 6}, id="end-of-a-wide-one"),
        pytest.param(0x400, 0x500, {5, 6, 0x200}, id="behind-a-wide-one"),
    ],
)
def test_drop_forgets_what_overlaps(start, end, left):
    tlb = Tlb()
    for translation in (page(5), page(6), page(0x200, 512)):
        tlb.insert(1, translation)
        tlb.insert(2, translation)

    tlb.drop(1, start, end)

    assert {gfn for tag, gfn, _ in tlb.entries if tag == 1} == left
    assert {gfn for tag, gfn, _ in tlb.entries if tag == 2} == {5, 6, 0x200}


def test_drop_all_forgets_a_tag_or_everything():
    tlb = Tlb()
    tlb.insert(1, page(5))
    tlb.insert(2, page(5))

    tlb.drop_all(1)
    assert [tag for tag, _, _ in tlb.entries] == [2]
    tlb.drop_all()
    assert tlb.entries == {}


def test_dropping_from_an_empty_tlb():
    tlb = Tlb()
    tlb.drop(1, 0, 100)

    assert tlb.entries == {}


# -- what is owed ------------------------------------------------------------------


def test_two_flushes_make_one_that_covers_both():
    one, other = Flush(5, 7, "return"), Flush(1, 6)

    assert one | other == other | one == Flush(1, 7, "unlock")
    assert one | Flush(6, 9, "return") == Flush(5, 9, "return")
    assert one | None == one
    assert None | one == one


@pytest.fixture
def ledger(driver):
    driver.world.current = Task("a", None)
    return Ledger(driver.world)


def test_what_is_owed_and_not_paid_is_reported_once(driver, ledger):
    flush = ledger.owe(0x10, 0x12)
    ledger.settle("unlock of mmu_lock", due="unlock")
    ledger.settle("unlock of mmu_lock", due="unlock")

    assert flush == Flush(0x10, 0x12, "unlock")
    assert [(v.property, v.sentence) for v in driver.world.violations] == [
        ("flush-owed", "unlock of mmu_lock: a flush of gfn 0x10-0x11 is still owed")
    ]


def test_what_is_due_at_return_may_be_owed_over_an_unlock(driver, ledger):
    ledger.owe(0, 1, due="return")
    ledger.settle("unlock of mmu_lock", due="unlock")

    assert driver.lost == []
    ledger.settle("return")
    assert driver.lost == ["flush-owed"]


def test_a_flush_that_is_paid_is_forgotten(driver, ledger):
    ledger.owe(5, 7)
    ledger.pay(0, 100, "kvm_flush_remote_tlbs")
    ledger.settle("unlock of mmu_lock")

    assert driver.lost == []
    assert ledger.owed == {}


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(5, 6, id="first-half"),
        pytest.param(6, 8, id="second-half"),
        pytest.param(0, 5, id="elsewhere"),
    ],
)
def test_paying_a_part_does_not_pay_the_flush(driver, ledger, start, end):
    ledger.owe(5, 7)
    ledger.pay(start, end, "range")
    ledger.settle("unlock of mmu_lock")

    assert driver.lost == ["flush-owed"]


def test_paying_one_of_two_leaves_the_other(driver, ledger):
    ledger.owe(5, 7)
    ledger.owe(20, 21)
    ledger.pay(0, 10, "range")

    assert ledger.owed == {"a": [Flush(20, 21)]}


def test_a_flush_is_forgiven_for_a_reason(driver, ledger):
    ledger.owe(5, 7)
    ledger.forgive("young pages are not worth it")
    ledger.forgive("nothing is left")
    ledger.settle("unlock of mmu_lock")

    assert driver.lost == []
    assert driver.named("flush_forgiven") == [{"why": "young pages are not worth it"}]


def test_each_task_owes_for_itself(driver, ledger):
    ledger.owe(5, 7)
    driver.world.current = Task("b", None)
    ledger.pay(0, 100, "somebody else's flush")
    ledger.settle("return of b")

    assert driver.lost == []
    assert list(ledger.owed) == ["a"]


def test_outside_of_tasks_flushes_have_no_owner(driver, ledger):
    driver.world.current = None
    ledger.owe(0, 1)

    assert ledger.owed == {"": [Flush(0, 1)]}
    assert ledger.freeze() == ((("", (Flush(0, 1),)),),)


def test_payment_is_an_event(driver, ledger):
    ledger.owe(1, 2, due="return")
    ledger.pay(0, 4, "kvm_flush_remote_tlbs_range")

    assert driver.named("flush_owed") == [{"start": 1, "end": 2, "due": "return"}]
    assert driver.named("flush") == [
        {"how": "kvm_flush_remote_tlbs_range", "start": 0, "end": 4}
    ]
