"""``kvmarch lab run`` and ``lab fetch``: what is refused before anything is booted."""

import sys

import pytest
from click.testing import CliRunner

from kvmarch.cli import command_line

pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    """No programs, and an empty cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def lab(*words):
    """Run the command; return its status and its output."""
    given = ["lab", *map(str, words)]
    result = CliRunner().invoke(command_line(), given, prog_name="kvmarch")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.fixture
def image(tmp_path):
    """A file that looks like a kernel of x86."""
    path = tmp_path / "bzImage"
    path.write_bytes(b"MZ".ljust(0x202, b"\0") + b"HdrS" + bytes(4096))
    return path


def test_alone_it_shows_its_commands():
    status, output = lab()

    assert status == 0
    assert all(f"\n  {name} " in output for name in ("fetch", "fuzz", "run"))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-a", "x86", "-k", "/none"), "no kernel image /none"),
        (("-a", "mips", "-k", "6.1"), "the plugin of mips does not say how"),
        (("-a", "none", "-k", "6.1"), "unknown architecture 'none'"),
        (("-a", "x86", "-k", "6.1"), "no /usr/share/keyrings|no apt-get here"),
        (("-a", "x86", "-k", "6.1", "--modules", "/"), "--modules goes with an image"),
        (
            ("-a", "x86", "-k", "IMAGE", "--module-arg", "tdp_mmu"),
            "--module-arg 'tdp_mmu' is none such as kvm.tdp_mmu=0",
        ),
        (("-a", "x86", "-k", "IMAGE", "--modules", "/none"), "no folder of modules"),
        (("-a", "x86", "-k", "IMAGE"), "no compiler x86_64-linux-gnu-gcc"),
        (("-a", "arm64", "-k", "IMAGE"), "no compiler|no kernel image of arm64"),
    ],
)
def test_what_is_missing_is_one_line(image, words, why):
    given = [str(image) if word == "IMAGE" else word for word in words]

    status, output = lab("run", "change_pte", *given)

    assert status == 2
    assert output.startswith("kvmarch: ")
    assert output.count("\n") == 1
    assert any(part in output for part in why.split("|"))


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        ("nope", "unknown scenario 'nope'"),
        ("aging", "nothing makes a real kernel do that from outside"),
        ("change_pte_dontneed", "has 2 tasks"),
    ],
)
def test_a_scenario_that_the_lab_cannot_do_is_one_line(image, scenario, why):
    status, output = lab("run", scenario, "-a", "x86", "-k", image)

    assert status == 2
    assert why in output


def test_several_recordings_need_a_folder(image):
    words = ("-a", "x86", "-k", image, "-o", "one.json")

    status, output = lab("run", "tour", "ksm_cow", *words)

    assert status == 2
    assert "one.json: several recordings need a folder" in output


def test_without_apt_there_is_nothing_to_fetch(tmp_path):
    status, output = lab("fetch", "6.1", "-a", "x86")

    assert status == 2
    assert output.startswith("kvmarch: no ")


def test_without_numpy_the_error_says_what_to_install(image, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    for name in [name for name in sys.modules if name.startswith("kvmarch.lab.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("words", "tree", "scan"):
        monkeypatch.delitem(sys.modules, f"kvmarch.walk.{name}", raising=False)

    status, output = lab("run", "change_pte", "-a", "x86", "-k", image)

    assert status == 2
    assert "the lab needs numpy: install kvmarch[lab]" in output
