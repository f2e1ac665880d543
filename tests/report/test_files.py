"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from kvmarch.errors import KvmarchError
from kvmarch.report.files import check_target, write_whole


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    path = tmp_path / "out"
    path.write_text("before")
    path.chmod(0o600)

    write_whole(path, "after")

    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    path, real = tmp_path / "link", tmp_path / "folder" / "out"
    path.symlink_to(real)

    write_whole(path, "first")
    write_whole(path, "second")

    assert path.is_symlink()
    assert real.read_text() == "second"
    assert list(real.parent.iterdir()) == [real]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "is a directory; wanted a file"),
        ("no/out", "there is no directory "),
        ("closed/out", "Permission denied"),
        ("link", "Permission denied"),
    ],
)
def test_what_cannot_be_written_is_said_before(tmp_path, monkeypatch, name, said):
    for folder in ("folder", "closed"):
        (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "closed" / "out")
    closed = tmp_path / "closed"
    # The user who runs the tests may be one to whom nothing is closed.
    monkeypatch.setattr("os.access", lambda path, _mode: path != closed)

    with pytest.raises(KvmarchError, match=said):
        check_target(tmp_path / name)
    check_target(tmp_path / "folder" / "out")
    check_target(Path("/dev/null"))


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


def test_a_working_folder_that_is_gone_is_said(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    with pytest.raises(KvmarchError, match=r"out\.html: No such file or directory"):
        check_target(Path("out.html"))
