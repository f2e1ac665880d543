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
        (("-a", "x86", "-k", "6.1", "--modules", "/"), "--modules goes with an image"),
        (
            ("-a", "x86", "-k", "IMAGE", "--module-arg", "tdp_mmu"),
            "--module-arg 'tdp_mmu' is none such as kvm.tdp_mmu=0",
        ),
        (("-a", "x86", "-k", "IMAGE", "--modules", "/none"), "no folder of modules"),
        (("-a", "x86", "-k", "image"), "no kernel image image, and no release such"),
        (("-a", "x86", "-k", "6.1", "-o", "/none/out"), "there is no folder /none"),
    ],
)
def test_what_is_missing_is_one_line(image, words, why):
    given = [str(image) if word == "IMAGE" else word for word in words]

    status, output = lab("run", "change_pte", *given)

    assert status == 2
    assert output.startswith("kvmarch: ")
    assert output.count("\n") == 1
    assert why in output


QEMU, COMPILER = "qemu-system-x86_64", "x86_64-linux-gnu-gcc"
PACKAGES = "gcc-x86-64-linux-gnu libc6-dev-amd64-cross"
CANNOT = f"{COMPILER} cannot compile the probe (is all of {PACKAGES} installed?)"
MAKES = '#!/bin/sh\nfor word; do last=$word; done\necho program > "$last"\n'


@pytest.mark.parametrize("kernel", ["IMAGE", "6.1"])
@pytest.mark.parametrize(
    ("programs", "why"),
    [
        ({}, f"no {QEMU}; apt install qemu-system-x86"),
        (
            {QEMU: ""},
            f"no compiler {COMPILER} for the probe; apt install {PACKAGES}",
        ),
        (
            {QEMU: "", COMPILER: "#!/bin/sh\necho no stdio.h >&2\nexit 1\n"},
            f"no stdio.h\n\nkvmarch: {CANNOT}",
        ),
    ],
)
def test_a_program_that_is_missing_is_named_before_anything_is_downloaded(
    image, tmp_path, programs, kernel, why
):
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    words = ("-a", "x86", "-k", image if kernel == "IMAGE" else kernel)

    status, output = lab("run", "change_pte", *words)

    assert status == 2
    assert output.endswith(f"{why}\n")
    assert "Traceback" not in output
    assert {path.name for path in tmp_path.iterdir()} <= {
        image.name,
        "cache",
        *programs,
    }


def test_without_apt_no_release_is_to_be_had(tmp_path):
    for name, text in {QEMU: "", COMPILER: MAKES}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    status, output = lab("run", "change_pte", "-a", "x86", "-k", "6.1")

    assert status == 2
    assert "no /usr/share/keyrings" in output or "no apt-get here" in output
    assert output.count("\n") == 1


def test_an_image_of_another_architecture_is_refused(image, tmp_path):
    # The compiler makes the same program for each architecture.
    for name in ("qemu-system-aarch64", "aarch64-linux-gnu-gcc"):
        (tmp_path / name).write_text(MAKES)
        (tmp_path / name).chmod(0o755)

    status, output = lab("run", "change_pte", "-a", "arm64", "-k", image)

    assert status == 2
    assert f"{image}: is no kernel image of arm64" in output


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        ("nope", "unknown scenario 'nope'"),
        (
            "aging",
            "aging, step 5, 'age memory=ram page=0 pages=1 how=clear_flush_young': n",
        ),
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


@pytest.mark.parametrize("words", [("fetch", "6.1"), ("run", "tour", "-k", "6.1")])
def test_a_cache_that_cannot_be_is_one_line(tmp_path, monkeypatch, words):
    for name, text in {QEMU: "", COMPILER: MAKES}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    status, output = lab(*words, "-a", "x86")

    assert status == 2
    assert "file/kvmarch" in output or "no /usr/share/keyrings" in output
    assert output.count("\n") == 1
