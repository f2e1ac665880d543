"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from kvmarch.errors import KvmarchError
from kvmarch.report.files import write_whole


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "out"
    path.write_text("before")
    path.chmod(0o600)

    write_whole(path, "after")

    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left")])
def test_what_interrupts_it_leaves_the_file_as_it_was(tmp_path, monkeypatch, error):
    path = tmp_path / "out"
    path.write_text("before")

    def refuse(*_args):
        raise error

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises((KeyboardInterrupt, KvmarchError)):
        write_whole(path, "after")

    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
