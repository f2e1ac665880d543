"""The probe is compiled once, for each architecture and each version of its sources."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvmarch import plugins
from kvmarch.errors import LabError
from kvmarch.lab.build import probe

X86 = plugins.load(only=("x86",)).get("x86").operations["lab"]()
COMPILER = """\
#!/bin/sh
echo run >> "{folder}/log"
while test "$1" != -o; do shift; done
echo program > "$2"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The only folder of programs, with a stand-in for the compiler."""
    compiler = tmp_path / "cc-none"
    compiler.write_text(COMPILER.format(folder=tmp_path))
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def runs(folder):
    log = folder / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_it_is_compiled_once(folder):
    machine = replace(X86, compiler="cc-none")

    assert probe(machine) == b"program\n" == probe(machine)
    assert runs(folder) == 1


def test_another_guest_is_another_probe(folder):
    guest = folder / "guest.c"
    guest.write_text("int guest;")
    machine = replace(X86, compiler="cc-none")

    probe(machine)
    probe(replace(machine, guest=str(guest)))

    assert runs(folder) == 2


def test_a_compiler_that_fails_shows_what_it_said_and_leaves_nothing(folder):
    (folder / "cc-none").write_text("#!/bin/sh\necho no libc >&2\nexit 1\n")

    with pytest.raises(LabError, match="cannot compile the probe") as caught:
        probe(replace(X86, compiler="cc-none"))
    assert caught.value.console == "no libc\n"
    assert list((folder / "cache" / "kvmarch" / "probes").iterdir()) == []


def test_without_a_compiler_the_error_says_what_to_install(folder):
    with pytest.raises(LabError, match="apt install gcc-x86-64-linux-gnu libc6-dev"):
        probe(replace(X86, compiler="cc-that-is-not-there"))


def test_a_guest_that_is_not_there_is_named(folder):
    with pytest.raises(LabError, match=r"/none/guest\.c: No such file"):
        probe(replace(X86, guest="/none/guest.c"))


@pytest.mark.parametrize(
    "arch",
    [a for a in plugins.load().loaded.values() if "lab" in a.operations],
    ids=lambda arch: arch.name,
)
def test_every_machine_names_a_guest_that_is_there(arch):
    machine = arch.operations["lab"]()
    text = Path(machine.guest).read_text("utf-8")

    for name in ("guest_code", "guest_leave", "guest_vm", "guest_vcpu", "guest_regs"):
        assert f" {name}(" in text
