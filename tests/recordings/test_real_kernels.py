"""Recordings of real kernels: the model agrees with each of them, stage by stage."""

import re
from collections import Counter
from pathlib import Path

import pytest

from kvmarch.plugins import load as load_plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load, shipped

DATA = sorted((Path(__file__).parent / "data").glob("*.json"))
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
