"""Recordings of real kernels: the model agrees with each of them, stage by stage."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from kvmarch.plugins import load as load_plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load, shipped

FOLDER = Path(__file__).parent / "data"
DATA = sorted(FOLDER.glob("*.json"))
DATA_LAB = sorted((FOLDER / "lab").glob("*.json"))
SHIPPED = shipped(everything=True)
LAB = [path for path in SHIPPED if path.parent.name == "lab"]
SCENARIOS = {
    "change_pte",
    "dirty_log",
    "huge_page",
    "ksm_cow",
    "memslot_lifecycle",
    "mmio_generation",
    "mprotect_dontneed",
    "tour",
}
NOT_MODELLED = {"amd64-6.1-shadow.json": "kvm_amd.npt=N is not modelled"}


@pytest.fixture(scope="module")
def plugins():
    return load_plugins()


@pytest.fixture(scope="module")
def compared(plugins):
    """Compare a recording; each is compared once."""
    return cache(lambda path: conform(load(path), plugins))


def verdicts(findings):
    return Counter(finding.verdict for finding in findings)


@pytest.mark.parametrize(
    "path", [*SHIPPED, *DATA, *DATA_LAB], ids=lambda path: path.stem
)
def test_the_model_agrees(path, compared):
    findings = compared(path)

    differing = [f for f in findings if f.verdict == "differ"]
    assert differing == []
    why = NOT_MODELLED.get(path.name)
    if why:
        assert [f.detail for f in findings] == [why]
    else:
        assert verdicts(findings)["agree"] > 3 * len(load(path).stages)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_not_compared_is_named(path, compared):
    reasons = {
        re.sub(r"0x[0-9a-f]+", "PA", f.detail)
        for f in compared(path)
        if f.verdict == "not compared"
    }

    assert reasons <= {
        "458 events were cut from the recording",
        "table PA is freed in the model",
        "this kernel traces no guest faults",
        "this kernel traces no notifier events",
    }


def test_each_scenario_is_recorded_on_two_releases_of_an_architecture():
    kernels = {path.stem.split("-", 1)[1] for path in LAB}
    releases = Counter(name.split("-")[0] for name in kernels)

    assert releases == {"amd64": 2, "arm64": 2, "ppc64el": 2}
    assert {path.stem for path in LAB} == {
        f"{scenario}-{name}" for scenario in SCENARIOS for name in kernels
    }


@pytest.mark.parametrize("path", [*LAB, *DATA_LAB], ids=lambda path: path.stem)
def test_the_labs_recordings_are_whole(path):
    recording = load(path)

    assert json.loads(path.read_text("utf-8"))["complete"]
    assert recording.program is not None
    assert recording.traces
    for stage in recording.stages:
        assert not stage.kernel_log
        assert not stage.omitted
        if stage.survey is not None:
            assert None not in stage.survey.trees


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("arm64-6.1", "change-pte-removed", id="arm64 without change_pte"),
        pytest.param("amd64-6.12", "x86-nonpresent-value", id="x86 with empty zeroes"),
        pytest.param(
            "memslot_lifecycle-amd64-6.12", "x86-retry-protected-only", id="x86 retries"
        ),
    ],
)
def test_another_kernel_would_not_agree(name, change, plugins):
    (path,) = [p for p in (*SHIPPED, *DATA) if p.stem == name]
    recording = load(path)
    merged = name.endswith("amd64-6.12")
    switch = {"minus": (change,)} if merged else {"plus": (change,)}

    findings = conform(recording, plugins, **switch)

    assert verdicts(findings)["differ"] > 0


@pytest.mark.parametrize(
    ("name", "change", "stage", "what"),
    [
        ("memslot_lifecycle-amd64-6.1", "x86-retry-protected-only", "8", "faults"),
        ("change_pte-arm64-6.1", "change-pte-removed", "4", "tree"),
        ("ksm_cow-arm64-6.1", "change-pte-removed", "5", "notifier events"),
        ("ksm_everywhere-arm64-6.1", "ksm-checksum-first", "13", "notifier events"),
        ("several_mappings-amd64-6.1", "mremap-moves-several", "45", "notifier events"),
        ("ksm_huge-amd64-6.1", "splits-in-bracket", "12", "notifier events"),
        ("ksm_zero-amd64-6.1", "split-maps-zeroes", "4", "notifier events"),
        ("pt_reclaim-amd64-6.12", "x86-pt-reclaim", "6", "tree"),
        ("pt_reclaim-arm64-6.17", "pt-reclaim", "6", "tree"),
    ],
)
def test_with_another_change_the_model_differs_from_a_tree(
    name, change, stage, what, plugins
):
    (path,) = [p for p in (*LAB, *DATA_LAB) if p.stem == name]

    findings = conform(load(path), plugins, plus=(change,))

    assert (stage, what) in {
        (f.stage, f.what) for f in findings if f.verdict == "differ"
    }


@pytest.mark.parametrize("name", ["two_vms-amd64-6.1", "two_vms-ppc64el-6.12"])
def test_of_several_vms_each_tree_counts(name, plugins):
    (path,) = [path for path in DATA_LAB if path.stem == name]
    recording = load(path)
    stages = list(recording.stages)
    at = next(
        n for n, stage in enumerate(stages) if stage.survey and stage.survey.trees[1]
    )
    survey = stages[at].survey
    first, ((gfn, level, entry), *rest) = survey.trees
    altered = first, ((gfn, level, entry ^ 1 << 1), *rest)
    stages[at] = replace(stages[at], survey=replace(survey, trees=altered))

    found = conform(replace(recording, stages=tuple(stages)), plugins)

    assert [(f.stage, f.what) for f in found if f.verdict == "differ"] == [
        (stages[at].name, "tree of VM 1")
    ]
