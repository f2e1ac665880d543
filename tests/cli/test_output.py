"""Where results go, and the options that commands share."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvmarch import cli
from kvmarch.cli.shared import settings_of, words
from kvmarch.errors import KvmarchError
from kvmarch.report.files import write_whole


def test_output_goes_to_a_file(kvmarch, tmp_path):
    result = kvmarch("scenarios", "--output", "out.txt")

    written = (tmp_path / "out.txt").read_text("utf-8")
    assert (result.exit_code, result.stdout) == (0, "")
    assert written == kvmarch("scenarios").stdout


def test_a_failing_comparison_still_writes_its_table(kvmarch, own, tmp_path):
    later = own("v6.10", "v6.13")

    result = kvmarch("compare", later, "-k", "v6.12", "-o", "out.txt")

    assert result.exit_code == 1
    assert "FAILED" in (tmp_path / "out.txt").read_text("utf-8")


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old", "utf-8")
    path.chmod(0o640)

    write_whole(path, "new")

    assert path.read_text("utf-8") == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


class Full:
    """A file on a disk that is full after the first byte."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, text):
        self.file.write(text[:1])
        raise OSError(28, "No space left on device")


def test_a_file_is_never_left_half_written(tmp_path, monkeypatch):
    path = tmp_path / "out.txt"
    path.write_text("old", "utf-8")
    real = open
    monkeypatch.setattr(
        "kvmarch.cli.shared.os.fdopen",
        lambda handle, mode, encoding: Full(real(handle, mode, encoding=encoding)),
    )

    with pytest.raises(KvmarchError, match=r"out\.txt: No space left on device"):
        write_whole(path, "new")
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_written_to(capfd):
    write_whole(Path("/dev/null"), "text")

    assert capfd.readouterr().out == ""


def test_a_reader_that_goes_away_is_no_error():
    script = "from kvmarch.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "kernels", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
        status = process.wait()

    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors
    assert status == 0


# -- options -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("sweep", "--show"),
        ("sweep", "tour", "--results"),
        ("report", "tour", "--output"),
        ("conform",),
        ("lab", "fuzz", "-a", "toy", "-k", "6.1", "--seed", "1", "--save"),
    ],
)
def test_a_name_that_no_file_can_have_is_one_line(kvmarch, args):
    name = "x" * 300

    result = kvmarch(*args, name)

    # From which question on it fails differs between releases of Python.
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("kvmarch: ")
    assert name in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "args", [(), ("scenarios",), ("--help",), ("completion", "zsh"), ("lab",)]
)
def test_a_standard_output_that_is_full_is_one_line(args):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full")
    with full.open("w") as device:
        done = subprocess.run(
            [sys.executable, "-m", "kvmarch", *args],
            check=False,
            stdout=device,
            stderr=subprocess.PIPE,
            text=True,
        )

    said = "kvmarch: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_words_may_be_given_several_times_or_with_commas():
    assert words(("a,b", "c", "d,")) == ("a", "b", "c", "d")


def test_settings_are_pairs():
    assert settings_of(("mmu=tdp", "a=b=c")) == {"mmu": "tdp", "a": "b=c"}


@pytest.mark.parametrize("text", ["mmu", "=tdp", "mmu=", ""])
def test_settings_that_are_no_pairs(text):
    with pytest.raises(KvmarchError, match="wanted OPTION=VALUE"):
        settings_of((text,))


def test_ctrl_c_before_there_is_a_command_is_no_traceback(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "command_line", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main()

    assert caught.value.code == 130
