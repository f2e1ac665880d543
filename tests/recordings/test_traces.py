"""Trace events of both sides in one form, and what of them is let pass."""

import pytest

from kvmarch.machine.world import Event
from kvmarch.recordings.traces import EVERY, Traced, Tracer, compare_traced

RANGES = [range(0x1000_0000, 0x1000_8000), range(0x2000_0000, 0x2000_4000)]


@pytest.fixture
def tracer():
    return Tracer(12, RANGES)


def event(name, **data):
    return Event(0, "vmm", name, data)


def verdicts(real, model):
    return {row.what: row.verdict for row in compare_traced(real, model)}


def notified(*texts, kinds=EVERY, **more):
    return Traced(kinds, texts, **more)


def test_a_kernels_events_and_the_models_become_the_same(tracer):
    real = tracer.of_kernel(
        EVERY,
        [
            ("kvm_unmap_hva_range", "mmu notifier unmap range: hva0+0x2p -- hva0+0x4p"),
            ("kvm_set_spte_hva", "mmu notifier set pte hva: hva1+0x3p"),
            ("kvm_page_fault", "vcpu 0 rip 0xfff address 0x000000000002010 error 4"),
            ("mark_mmio_spte", "sptep:00000000 gfn 40 access 3 gen 1f"),
            ("kvm_mmio", "of no account"),
        ],
    )
    model = tracer.of_model(
        [
            event("kvm_unmap_hva_range", start=0x1000_2000, end=0x1000_4000),
            event("kvm_set_spte_hva", hva=0x2000_3000),
            event("guest_fault", gfn=2),
            event("mark_mmio_spte", gfn=0x40, access=3, gen=0x1F),
        ]
    )

    assert real == model
    assert model.notifiers == ("kvm_unmap_hva_range 2-4", "kvm_set_spte_hva 1:3")


def test_foreign_memory_does_not_count(tracer):
    real = tracer.of_kernel(EVERY, [("kvm_set_spte_hva", "hva: hva2+0x0p")])

    assert real == Traced(EVERY)
    assert tracer.of_model([event("kvm_set_spte_hva", hva=0x10)]) == Traced(EVERY)


def test_order_and_number_count():
    one, two = "kvm_set_spte_hva 1", "kvm_set_spte_hva 2"

    assert verdicts(notified(one, two), notified(one, two)) == {
        "notifier events": "agree",
        "faults": "agree",
    }
    assert verdicts(notified(one, two), notified(two, one))["notifier events"] == (
        "differ"
    )
    assert verdicts(notified(one, one), notified(one))["notifier events"] == "differ"
    assert verdicts(Traced(EVERY, faults=("1",)), Traced(EVERY))["faults"] == "differ"
    assert verdicts(Traced(EVERY, mmio=("a",)), Traced(EVERY))["mmio entries"] == (
        "differ"
    )


def test_what_a_kernel_does_not_trace_is_not_compared():
    kinds = {"kvm_unmap_hva_range"}
    unmap, other = "kvm_unmap_hva_range 1-2", "kvm_set_spte_hva 1"

    assert verdicts(notified(unmap, kinds=kinds), notified(unmap, other)) == {
        "notifier events": "agree",
        "faults": "not compared",
    }
    assert verdicts(notified(kinds=()), notified(unmap)) == {
        "notifier events": "not compared",
        "faults": "not compared",
    }


@pytest.mark.parametrize(
    ("real", "verdict"),
    [
        pytest.param(("a", "b", "a", "b"), "agree", id="all of it once more"),
        pytest.param(("b", "a", "b"), "agree", id="a part of it"),
        pytest.param(("c", "a", "b"), "differ", id="something else"),
        pytest.param(("a", "b", "c"), "differ", id="afterwards"),
    ],
)
def test_what_ksm_tried_in_vain_is_let_pass(real, verdict):
    texts = {name: f"kvm_unmap_hva_range {name}" for name in "abc"}
    theirs = notified(*(texts[name] for name in real))
    ours = texts["a"], texts["b"]

    assert verdicts(theirs, notified(*ours, merges=True))["notifier events"] == verdict
    assert verdicts(theirs, notified(*ours))["notifier events"] == "differ"


@pytest.mark.parametrize(
    ("model", "verdict"),
    [
        pytest.param((1, 2), "agree", id="the same"),
        pytest.param((1, 2, 3), "not compared", id="more"),
        pytest.param((1, 3, 2), "differ", id="others"),
    ],
)
def test_an_end_that_was_cut_off_is_not_compared(model, verdict):
    real = notified("kvm_set_spte_hva 1", "kvm_set_spte_hva 2", omitted=1)
    ours = notified(*(f"kvm_set_spte_hva {page}" for page in model))

    assert verdicts(real, ours)["notifier events"] == verdict
