"""Recordings of real kernels: the model agrees with each of them, stage by stage."""

import re
from collections import Counter
from pathlib import Path

import pytest

from kvmarch.plugins import load as load_plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load, shipped

DATA = sorted((Path(__file__).parent / "data").glob("*.json"))
LAB = [path for path in shipped(everything=True) if path not in shipped()]
NOT_MODELLED = {"amd64-6.1-shadow.json": "kvm_amd.npt=N is not modelled"}


@pytest.fixture(scope="module")
def plugins():
    return load_plugins()


def verdicts(findings):
    return Counter(finding.verdict for finding in findings)


@pytest.mark.parametrize("path", [*shipped(), *DATA], ids=lambda path: path.stem)
def test_the_model_agrees(path, plugins):
    findings = conform(load(path), plugins)

    differing = [f for f in findings if f.verdict == "differ"]
    assert differing == []
    why = NOT_MODELLED.get(path.name)
    if why:
        assert [f.detail for f in findings] == [why]
    else:
        assert verdicts(findings)["agree"] > 90


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_what_is_not_compared_is_named(path, plugins):
    reasons = {
        re.sub(r"0x[0-9a-f]+", "PA", f.detail)
        for f in conform(load(path), plugins)
        if f.verdict == "not compared"
    }

    assert reasons <= {
        "458 events were cut from the recording",
        "table PA is freed in the model",
        "this kernel traces no guest faults",
        "this kernel traces no notifier events",
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("arm64-6.1", "change-pte-removed", id="arm64 without change_pte"),
        pytest.param("amd64-6.12", "x86-nonpresent-value", id="x86 with empty zeroes"),
    ],
)
def test_another_kernel_would_not_agree(name, change, plugins):
    (path,) = [p for p in (*shipped(), *DATA) if p.stem == name]
    recording = load(path)
    merged = name == "amd64-6.12"
    switch = {"minus": (change,)} if merged else {"plus": (change,)}

    findings = conform(recording, plugins, **switch)

    assert verdicts(findings)["differ"] > 0


@pytest.mark.parametrize("path", LAB, ids=lambda path: path.stem)
def test_the_model_agrees_with_the_labs_recordings(path, plugins):
    recording = load(path)
    findings = conform(recording, plugins)

    assert recording.program is not None
    assert [f for f in findings if f.verdict == "differ"] == []
    assert verdicts(findings)["agree"] > 15
    assert {f.detail for f in findings if f.verdict == "not compared"} <= {
        "this kernel traces no guest faults"
    }


def test_the_lab_recorded_each_scenario_on_two_releases_of_each_architecture():
    found = {tuple(path.stem.split("-")) for path in LAB}

    scenarios = {name for name, _arch, _release in found}
    assert len(scenarios) == 8
    assert found == {
        (name, arch, release)
        for name in scenarios
        for arch in ("amd64", "arm64", "ppc64el")
        for release in ("6.1", "6.12")
    }


@pytest.mark.parametrize(
    ("name", "change", "stage", "what"),
    [
        ("memslot_lifecycle-amd64-6.1", "x86-retry-protected-only", "8", "faults"),
        ("change_pte-arm64-6.1", "change-pte-removed", "4", "tree"),
        ("ksm_cow-arm64-6.1", "change-pte-removed", "5", "notifier events"),
    ],
)
def test_with_another_change_the_model_differs_from_a_tree(
    name, change, stage, what, plugins
):
    (path,) = [p for p in LAB if p.stem == name]

    findings = conform(load(path), plugins, plus=(change,))

    assert (stage, what) in {
        (f.stage, f.what) for f in findings if f.verdict == "differ"
    }
