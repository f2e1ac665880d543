"""Kernels from Debian's archive, with stand-ins for apt's programs."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvmarch import plugins
from kvmarch.errors import LabError
from kvmarch.lab import fetch as fetching
from kvmarch.lab.fetch import fetch, system_mirrors

X86 = plugins.load(only=("x86",)).get("x86").operations["lab"]()
IMAGES = {
    "bookworm": "6.1.0-9-amd64 6.1.0-50-amd64 6.1.0-50-cloud-amd64 6.1.0-51-rt-amd64",
    "trixie": "6.12.96+deb13-amd64 6.12.96+deb13-amd64-unsigned",
    "sid": "7.2.13+deb14-amd64",
}
APT = """\
#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
for word; do
    case $word in
    Dir::Etc::sourceparts=*) suite=$(basename "$(dirname "${{word#*=}}")") ;;
    esac
done
case "$*" in
*indextargets*) cat "{folder}/targets" ;;
*update*)
    if test -e "{folder}/broken-${{suite%-*}}"; then
        echo "E: no $suite" >&2
        exit 100
    fi ;;
*search*) cat "{folder}/images-${{suite%-*}}" 2>/dev/null || true ;;
*depends*) cat "{folder}/depends" ;;
*download*) touch linux.deb ;;
esac
"""


@pytest.fixture(autouse=True)
def apt(tmp_path, monkeypatch):
    """Put stand-ins in the path; returns their folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("apt-get", "apt-cache"):
        program = folder / name
        program.write_text(APT.format(folder=folder, log=folder / "log"))
        program.chmod(0o755)
    for suite, releases in IMAGES.items():
        lines = [f"linux-image-{release} - Linux\n" for release in releases.split()]
        (folder / f"images-{suite}").write_text("".join(lines))
    (folder / "targets").write_text(
        "http://here.example/debian bookworm\n"
        "http://here.example/debian-security bookworm-security\n"
        "http://other.example/apt stable\n"
    )
    (folder / "depends").write_text("linux\n  Depends: kmod\n")
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(fetching, "KEYRING", keyring)
    monkeypatch.setattr(fetching, "ROOM", 0)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def unpacked(monkeypatch):
    """What would be unpacked."""
    seen = []

    def note(files, machine, release):
        seen.append(([path.name for path in files], machine.debian, release))
        return release

    monkeypatch.setattr(fetching, "unpack", note)
    return seen


@pytest.mark.parametrize(
    ("wanted", "release"),
    [
        ("6.1", "6.1.0-50-amd64"),
        ("v6.12", "6.12.96+deb13-amd64"),
        ("7.2", "7.2.13+deb14-amd64"),
        ("6.1.0-9-amd64", "6.1.0-9-amd64"),
    ],
)
def test_the_newest_of_the_usual_flavour_is_fetched(unpacked, wanted, release):
    assert fetch(X86, wanted, None, print) == release
    assert unpacked == [(["linux.deb"], "amd64", release)]


def test_what_a_mirror_lists_and_has_not_is_passed_over(apt, unpacked):
    text = (apt / "apt-get").read_text()
    gone = "*download*50-amd64*) echo E: 404 >&2; exit 100 ;;\n*download*)"
    (apt / "apt-get").write_text(text.replace("*download*)", gone))
    told = []

    assert fetch(X86, "6.1", None, told.append) == "6.1.0-9-amd64"
    assert "apt-get: E: 404; looking for an older one" in told
    with pytest.raises(LabError, match="E: 404"):
        fetch(X86, "6.1.0-50-amd64", None, told.append)


def test_packages_of_which_an_image_consists_come_along(apt, unpacked):
    (apt / "depends").write_text(
        "linux\n  Depends: linux-binary-7.2.13+deb14-amd64\n"
        "  Depends: linux-modules-7.2.13+deb14-amd64\n  Depends: kmod\n"
    )

    fetch(X86, "7.2", None, print)

    asked = (apt / "log").read_text().splitlines()[-1]
    assert asked.endswith(
        "download linux-image-7.2.13+deb14-amd64 linux-binary-7.2.13+deb14-amd64 "
        "linux-modules-7.2.13+deb14-amd64"
    )


def test_apt_is_asked_with_a_configuration_of_its_own(apt, unpacked, tmp_path):
    fetch(X86, "6.1", None, print)

    asked = (apt / "log").read_text().splitlines()
    own = str(tmp_path / "cache" / "kvmarch" / "apt")
    for line in asked[1:]:
        assert "Dir::Etc::sourcelist=/dev/null" in line
        assert f"Dir::State={own}" in line
        assert "APT::Architecture=amd64" in line
    (sources,) = Path(own).rglob("debian.sources")
    text = sources.read_text()
    assert "URIs: http://here.example/debian\nSuites: bookworm\n" in text
    assert "Suites: bookworm-security\n" in text
    assert "other.example" not in text


def test_a_mirror_may_be_given(unpacked, tmp_path):
    fetch(X86, "6.1", "http://mine.example/debian", print)

    (sources,) = (tmp_path / "cache").rglob("debian.sources")
    assert "URIs: http://mine.example/debian\n" in sources.read_text()
    assert "here.example" not in sources.read_text()


def test_lists_are_asked_for_once(apt, unpacked):
    fetch(X86, "6.1", None, print)
    fetch(X86, "6.1", None, print)

    assert (apt / "log").read_text().count(" update ") == 1


def test_another_mirror_is_asked_for_its_own_lists(apt, unpacked, tmp_path):
    fetch(X86, "6.1", None, print)
    lists = tmp_path / "cache/kvmarch/apt/bookworm-amd64/state/lists"
    (lists / "here.example_debian_dists_bookworm_main_binary-amd64_Packages").touch()
    for suite in ("bookworm", "trixie", "bullseye", "forky", "sid"):
        (apt / f"broken-{suite}").touch()

    with pytest.raises(LabError, match="E: no sid"):
        fetch(X86, "6.1", "http://other.example/debian", print)


def test_a_release_that_nobody_has(unpacked):
    with pytest.raises(LabError, match=r"no kernel '6\.2' for amd64; there is 6\.1, 6"):
        fetch(X86, "6.2", None, print)


def test_a_suite_that_cannot_be_asked_is_told_and_passed_over(apt, unpacked):
    (apt / "broken-bookworm").touch()
    told = []

    assert fetch(X86, "6.12", None, told.append) == "6.12.96+deb13-amd64"
    assert any("E: no bookworm" in text for text in told)
    with pytest.raises(LabError, match="E: no bookworm"):
        fetch(X86, "6.1", None, told.append)


def test_of_a_suite_what_could_be_had_is_enough(apt, unpacked, tmp_path):
    fetch(X86, "6.1", None, print)
    own = tmp_path / "cache/kvmarch/apt/bookworm-amd64"
    (own / "updated").unlink()
    (apt / "broken-bookworm").touch()
    lists = own / "state/lists"
    (lists / "here.example_debian_dists_bookworm_main_binary-amd64_Packages").touch()
    told = []

    assert fetch(X86, "6.1", None, told.append) == "6.1.0-50-amd64"
    assert any("going on with the lists" in text for text in told)


def test_an_apt_without_debian(apt):
    (apt / "targets").write_text("http://archive.example/ubuntu noble\n")

    with pytest.raises(LabError, match="--mirror"):
        system_mirrors()


def test_without_debians_keys(monkeypatch):
    monkeypatch.setattr(fetching, "KEYRING", Path("/none/keyring.gpg"))

    with pytest.raises(LabError, match="apt install debian-archive-keyring"):
        fetch(X86, "6.1", None, print)


def test_a_disk_without_room_is_said_before_anything_is_asked(apt, monkeypatch):
    monkeypatch.setattr(fetching, "ROOM", 1 << 62)

    with pytest.raises(LabError, match="kvmarch: no space left on the device: "):
        fetch(X86, "6.1", None, print)

    assert not (apt / "log").exists()


def test_a_disk_that_fills_up_ends_an_apt_that_waits(apt, monkeypatch):
    """As Debian's apt-get update does, for ever."""
    text = (apt / "apt-get").read_text()
    (apt / "apt-get").write_text(text.replace("*update*)", "*update*) exec sleep 600"))
    monkeypatch.setattr(fetching, "LOOK", 0.01)

    def room(_folder):
        log = apt / "log"
        waits = log.exists() and " update " in log.read_text()
        return SimpleNamespace(free=0 if waits else 1 << 40)

    monkeypatch.setattr(fetching.shutil, "disk_usage", room)
    with pytest.raises(LabError, match="no space left on the device: 0 MiB are free"):
        fetch(X86, "6.1", None, print)
