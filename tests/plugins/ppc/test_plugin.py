"""The architecture as a whole: what it says of itself, scenarios, the recording."""

import importlib.resources

import pytest
from kvmarch_ppc.changes import CHANGES

from kvmarch import plugins
from kvmarch.changes import RELEASES
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load as load_recording
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.play import play

SCENARIOS = [
    path.name.removesuffix(".toml")
    for path in importlib.resources.files("kvmarch.scenarios").iterdir()
    if path.name.endswith(".toml")
]
TURNS = [(3, 16), (4, 11), (4, 19), (5, 0), (5, 7), (5, 8), (5, 13), (6, 1), (7, 2)]
HAZARDS = {("memslot_lifecycle", "pr"), ("memslot_lifecycle", "e500")}
"""Scenario and MMU that show L1 of the fact sheet, which no release has fixed."""


def test_tier_and_defaults(ppc):
    settle = ppc.info.settle

    assert ppc.tier == 5
    assert settle((4, 10), {})["mmu"] == "hash"
    assert settle((4, 11), {})["mmu"] == "radix"
    assert settle((6, 1), {"page_size": "4K", "mmu": "pr"})["page_size"] == 4096


def test_every_kernel_links(ppc):
    for release in RELEASES:
        k = plugins.link(ppc, release)
        assert k.user_slots_before == (32 if release < (4, 5) else 512)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_every_change_decides_something(ppc, change):
    needs = {
        name
        for choice in ppc.choices
        for variant in choice.variants
        for name in variant.needs
    }

    assert change.name in needs
    assert change.source


@pytest.mark.parametrize("mmu", ["radix", "hash", "pr", "e500"])
def test_formats_decode_what_they_list(ppc, mmu):
    k = plugins.link(ppc, (6, 1))
    options = ppc.info.settle((6, 1), {"mmu": mmu})
    kinds = list(k.formats.fn(k, options))

    for level in {kind.level for kind in kinds}:
        name, _fields = k.decode.fn(k, options, 0, level)
        assert name == "unknown" or name in {k.kind for k in kinds if k.level == level}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("mmu", ["radix", "hash", "pr", "e500"])
def test_scenarios_keep_every_property(ppc, name, mmu):
    scenario = load(find(name))
    fix = ["ppc-flush-memslot-everywhere"] if (name, mmu) in HAZARDS else []
    lost = {}
    for release in TURNS:
        if mmu == "radix" and release < (4, 11):
            continue
        k = plugins.link(ppc, release, fix)
        for page_size in ("65536", "4096"):
            given = {"mmu": mmu, "page_size": page_size}
            played = play(scenario, k, ppc.info.settle(release, given))
            if played.violations:
                lost[release, page_size] = played.violations

    assert not lost


@pytest.mark.parametrize(("name", "mmu"), sorted(HAZARDS))
def test_hazards_are_there_without_the_fix(ppc, name, mmu):
    k = plugins.link(ppc, (6, 1))
    played = play(load(find(name)), k, ppc.info.settle((6, 1), {"mmu": mmu}))

    assert {violation.property for violation in played.violations} == {"no-slot"}


def test_the_recording_agrees(ppc):
    path = importlib.resources.files("kvmarch.recordings") / "ppc64el-6.1.json"
    findings = conform(load_recording(path), plugins.Plugins([ppc], []))
    reasons = {f.detail for f in findings if f.verdict == "not compared"}

    assert [f for f in findings if f.verdict == "differ"] == []
    assert sum(f.verdict == "agree" for f in findings) > 90
    assert reasons == {"this kernel traces no guest faults"}
