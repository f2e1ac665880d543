"""The recorded tour with mmu=rmap: against the recording, and at every release."""

import pytest

from kvmarch import plugins
from kvmarch.changes import COMPARED
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load as load_recording
from kvmarch.recordings.read import shipped
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.play import play


@pytest.fixture
def tour():
    return load(find("tour"))


def test_recorded_5_10_agrees(x86):
    path = next(path for path in shipped() if path.name == "amd64-5.10.json")
    findings = conform(load_recording(path), plugins.Plugins([x86], []))

    assert [f for f in findings if f.verdict == "differ"] == []
    assert sum(f.verdict == "agree" for f in findings) > 90


@pytest.mark.parametrize("release", COMPARED)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="ept"),
        pytest.param({"paging": "npt"}, id="npt"),
        pytest.param({"ad": 0}, id="no A/D"),
        pytest.param({"pml": 1}, id="pml"),
        pytest.param({"nx_huge_pages": 1}, id="nx"),
        pytest.param({"levels": 5}, id="5 levels"),
    ],
)
def test_every_release_keeps_the_properties(x86, tour, release, options):
    have = x86.info.options
    available = {
        name: str(value)
        for name, value in options.items()
        if value in have[name].available(release)
    }
    settled = x86.info.settle(release, {"mmu": "rmap", **available})
    played = play(tour, plugins.link(x86, release), settled)

    assert played.outcome.end == "done"
    assert played.violations == []
