"""A plugin's recordings as tests: what differs is named, stage by stage."""

from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvmarch.plugins import load
from kvmarch.testing.meet import NotMetError
from kvmarch.testing.own import own_recordings
from kvmarch.testing.recordings import _agrees

PLUGINS = load()
FOLDER = Path(str(resources.files("kvmarch.recordings")))
ARM64 = FOLDER / "arm64-6.1.json"


@pytest.fixture
def changed(tmp_path):
    """Write a recording that is a little otherwise."""

    def make(old, new):
        text = ARM64.read_text("utf-8")
        assert old in text
        path = tmp_path / ARM64.name
        path.write_text(text.replace(old, new), "utf-8")
        return path

    return make


def test_what_was_recorded_is_done():
    _agrees(ARM64, PLUGINS)


def test_what_differs_is_told_with_its_stage(changed):
    path = changed('"0x40000041ea37ff"', '"0x40000041ea377f"')

    with pytest.raises(NotMetError, match=r"arm64-6\.1\.json: \w+ .*: differ, "):
        _agrees(path, PLUGINS)


def test_what_cannot_be_compared_at_all_is_no_success(changed):
    path = changed('"arch": "arm64"', '"arch": "ppc"')
    others = SimpleNamespace(
        loaded={n: a for n, a in PLUGINS.loaded.items() if n != "ppc"},
        recording_folders=PLUGINS.recording_folders,
    )

    with pytest.raises(NotMetError, match=r"nothing could be compared: architecture"):
        _agrees(path, others)


def test_the_labs_are_in_a_folder_of_their_own(tmp_path):
    for name in ("b.json", "a.json", "lab/c.json", "lab/deeper/d.json", "e.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", "utf-8")
    arch = SimpleNamespace(operations={"recordings": lambda: [str(tmp_path)]})

    names = [str(path.relative_to(tmp_path)) for path in own_recordings(arch)]
    assert names == ["a.json", "b.json", "lab/c.json"]
    assert own_recordings(SimpleNamespace(operations={})) == []
