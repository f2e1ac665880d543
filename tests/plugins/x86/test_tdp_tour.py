"""The recorded tour with mmu=tdp: against the recording, and at every release."""

import pytest

from kvmarch import plugins
from kvmarch.changes import COMPARED
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load as load_recording
from kvmarch.recordings.read import shipped
from kvmarch.scenarios.columns import Seen, value_of
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.play import play

TDP = [release for release in COMPARED if release >= (5, 10)]


def cell(x86, name, release, minus=(), **options):
    """Play a scenario at a release."""
    given = {key: str(value) for key, value in options.items()}
    k = plugins.link(x86, release, (), minus)
    return play(load(find(name)), k, x86.info.settle(release, given))


def columns(played):
    """Return what a comparison shows of a run."""
    seen = Seen(played, played.machine.vm.options)
    return {c.name: value_of(c, seen) for c in played.scenario.columns}


def test_recorded_6_1_agrees(x86):
    path = next(path for path in shipped() if path.name == "amd64-6.1.json")
    findings = conform(load_recording(path), plugins.Plugins([x86], []))

    assert [f for f in findings if f.verdict == "differ"] == []
    # What cannot be compared: a freed table, and faults that were cut off.
    assert [f.stage for f in findings if f.verdict != "agree"] == [
        "slot_del",
        "huge_dirty",
    ]


@pytest.mark.parametrize("release", TDP)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="ept"),
        pytest.param({"paging": "npt"}, id="npt"),
        pytest.param({"ad": 0}, id="no A/D"),
        pytest.param({"pml": 1}, id="pml"),
        pytest.param({"nx_huge_pages": 1}, id="nx"),
        pytest.param({"levels": 5}, id="5 levels"),
        pytest.param({"eager_page_split": 0}, id="no eager split"),
        pytest.param({"exec_only": 0}, id="no execute-only"),
        pytest.param({"mmio_caching": 0}, id="no MMIO entries"),
        pytest.param({"l1tf": 1}, id="L1TF"),
        pytest.param({"paging": "npt", "maxphyaddr": 52}, id="npt, 52 bits"),
    ],
)
def test_every_release_keeps_the_properties(x86, release, options):
    played = cell(x86, "tour", release, mmu="tdp", **options)

    assert played.outcome.end == "done"
    assert played.violations == []


@pytest.mark.parametrize("release", COMPARED)
@pytest.mark.parametrize("options", [{}, {"paging": "npt"}, {"ad": 0}], ids=str)
def test_change_pte_changes_nothing(x86, release, options):
    played = cell(x86, "change_pte", release, **options)
    seen = columns(played)

    assert seen["effect"] == ("none" if release < (6, 10) else "absent")
    assert seen["flush"] == ("none" if release < (6, 10) else "")
    assert seen["exits_on_reread"] == 1
    assert played.violations == []


@pytest.mark.parametrize(
    ("release", "mmu", "flush", "warnings"),
    [
        pytest.param((3, 16), "rmap", "inside", 0, id="3.16"),
        pytest.param((4, 15), "rmap", "inside", 0, id="4.15"),
        pytest.param((5, 4), "rmap", "owed", 0, id="5.4"),
        pytest.param((5, 10), "rmap", "owed", 0, id="5.10"),
        # Two pages are merged: two replaced entries, and in v5.13 as many callbacks
        # without a bracket as there are brackets.
        pytest.param((5, 10), "tdp", "inside", 1, id="5.10: BUG"),
        pytest.param((5, 13), "rmap", "owed", 1, id="5.13: no bracket, WARN"),
        pytest.param((5, 13), "tdp", "inside", 2, id="5.13: both"),
    ],
)
def test_change_pte_without_its_bracket(x86, release, mmu, flush, warnings):
    played = cell(x86, "change_pte", release, ("bracketed-set-pte",), mmu=mmu)
    seen = columns(played)

    assert (seen["effect"], seen["flush"]) == ("replaced", flush)
    assert seen["exits_on_reread"] == 0
    assert {v.property for v in played.violations} == ({"warn"} if warnings else set())
    assert len({v.sentence for v in played.violations}) == warnings
