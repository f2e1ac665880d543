"""Kernels from Debian's archive, through an apt configuration of its own.

Nothing of the system's apt is changed: lists, cache and status are in the cache folder.
Mirrors are those that the system's apt has, or one that the user gives.
"""

__all__ = ["fetch"]

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmarch.arch import LabMachine
from kvmarch.errors import LabError
from kvmarch.lab.kernels import KernelFiles, cache_folder, means, numbers_of, unpack

SUITES = ("bookworm", "trixie", "bullseye", "forky", "sid")
"""Where kernels are looked for, in this order; those with ``-security``, too."""
SECURED = ("bullseye", "bookworm", "trixie")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ROOM = 800 << 20
"""Bytes that lists, packages and what is in them need at most."""
LEAST = 1 << 20
"""Bytes without which nothing goes on."""
LOOK = 1.0
"""Seconds between looks at how much is free."""
FRESH = 24 * 3600
"""Seconds for which package lists are not asked for again."""
_IMAGE = re.compile(r"linux-image-(\d[\d.]*(?:-\d+|\+deb\d+)?(-[\w-]+))$")
_PARTS = ("linux-binary-", "linux-modules-", "linux-image-")
Tell = Callable[[str], None]


class _Apt:
    """One suite of one architecture, as a private apt sees it."""

    def __init__(self, suite: str, machine: LabMachine, mirrors: Sequence[str]) -> None:
        self.suite = suite
        self._folder = cache_folder() / "apt" / f"{suite}-{machine.debian}"
        self._debian = machine.debian
        for name in ("state/lists/partial", "cache/archives/partial", "etc"):
            (self._folder / name).mkdir(parents=True, exist_ok=True)
        (self._folder / "status").touch()
        stanzas = []
        for mirror in mirrors:
            secure = mirror.rstrip("/").endswith("-security")
            if secure and suite not in SECURED:
                continue
            stanzas.append(
                f"Types: deb\nURIs: {mirror}\n"
                f"Suites: {suite}{'-security' if secure else ''}\nComponents: main\n"
                f"Architectures: {machine.debian}\nSigned-By: {KEYRING}\n"
            )
        self._sources = "\n".join(stanzas)

    def run(self, program: str, *words: str, cwd: Path | None = None) -> str:
        """Return what an apt program prints.

        :raises LabError: it fails, with its last line.
        """
        folder, options = self._folder, []
        for name, value in {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": folder / "etc",
            "Dir::State": folder / "state",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "APT::Architecture": self._debian,
            "APT::Architectures": self._debian,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }.items():
            options += ["-o", f"{name}={value}"]
        return _run([program, *options, *words], cwd)

    def update(self, tell: Tell) -> None:
        """Get the package lists, if they are not fresh."""
        stamp = self._folder / "updated"
        sources = self._folder / "etc" / "debian.sources"
        same = sources.exists() and sources.read_text() == self._sources
        fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < FRESH
        if same and fresh:
            return
        stamp.unlink(missing_ok=True)
        if not same:
            # Lists of another mirror are none of this one's.
            lists = self._folder / "state" / "lists"
            shutil.rmtree(lists)
            (lists / "partial").mkdir(parents=True)
            sources.write_text(self._sources)
        tell(f"asking for the packages of Debian {self.suite}, {self._debian}")
        try:
            self.run("apt-get", "-q", "update", "-o", "APT::Update::Error-Mode=any")
        except LabError as error:
            # Of several mirrors one may be in the middle of being made.
            if not any((self._folder / "state" / "lists").glob("*_Packages*")):
                raise
            tell(f"{error}; going on with the lists that could be had")
            return
        stamp.touch()

    def images(self) -> list[str]:
        """Return the names of all kernel images."""
        text = self.run("apt-cache", "search", "--names-only", "^linux-image-[0-9]")
        return [line.split()[0] for line in text.splitlines() if line.strip()]

    def packages(self, image: str) -> list[str]:
        """Return the packages that an image consists of."""
        text = self.run("apt-cache", "depends", "--important", image)
        needed = re.findall(r"^\s*Depends: (\S+)", text, re.MULTILINE)
        return [image, *(name for name in needed if name.startswith(_PARTS[:2]))]

    def download(self, packages: Sequence[str], folder: Path) -> list[Path]:
        """Download packages into a folder."""
        self.run("apt-get", "-q", "download", *packages, cwd=folder)
        return sorted(folder.glob("*.deb"))


def fetch(
    machine: LabMachine, wanted: str, mirror: str | None, tell: Tell
) -> KernelFiles:
    """Download the newest kernel that a name means, and unpack it.

    :param wanted: a whole release, or its first numbers.
    :param mirror: the address of a mirror; the system's if it is None.
    :raises LabError: there is none, or it cannot be had.
    """
    if not KEYRING.exists():
        raise LabError(f"no {KEYRING}; apt install debian-archive-keyring")
    cache_folder().mkdir(parents=True, exist_ok=True)
    _need_room(ROOM)
    mirrors = [mirror] if mirror else system_mirrors()
    seen: list[str] = []
    failed: LabError | None = None
    for suite in SUITES:
        apt = _Apt(suite, machine, mirrors)
        try:
            apt.update(tell)
        except LabError as error:
            tell(f"{error}; looking elsewhere")
            failed = error
            continue
        releases = {
            found[1]: name
            for name in apt.images()
            if (found := _IMAGE.match(name))
            and (found[2] == machine.flavour or found[1] == wanted)
        }
        seen.extend(releases)
        fitting = [name for name in releases if means(wanted, name, machine)]
        for release in sorted(fitting, key=numbers_of, reverse=True):
            try:
                return _download(apt, machine, release, releases[release], tell)
            except LabError as error:
                # A mirror may list what it does not have any more.
                _need_room(ROOM)
                tell(f"{error}; looking for an older one")
                failed = error
    if failed is not None:
        raise failed
    known = sorted({".".join(map(str, numbers_of(name)[:2])) for name in seen})
    raise LabError(
        f"Debian has no kernel {wanted!r} for {machine.debian}; "
        f"there is {', '.join(known) or 'none'}"
    )


def _download(
    apt: _Apt, machine: LabMachine, release: str, image: str, tell: Tell
) -> KernelFiles:
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".deb-") as folder:
        packages = apt.packages(image)
        tell(f"downloading {' '.join(packages)}")
        files = apt.download(packages, Path(folder))
        return unpack(files, machine, release)


def system_mirrors() -> list[str]:
    """Return the mirrors of Debian that the system's apt has.

    :raises LabError: it has none, or there is no apt.
    """
    text = _run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(SITE) $(RELEASE)",
            "Created-By: Packages",
        ],
        None,
    )
    sites = [line.split()[0] for line in text.splitlines() if line.split()]
    known = [
        site
        for site in dict.fromkeys(sites)
        if re.search(r"/debian(-security)?/?$", site)
    ]
    if not known:
        raise LabError("apt has no mirror of Debian here; give one with --mirror")
    return known


def _run(command: Sequence[str], cwd: Path | None) -> str:
    """Return what a program prints.

    :raises LabError: it is not there or fails, with its last line; or the disk fills
        up, for which apt may wait for ever.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        raise LabError(
            f"no {command[0]} here, so no kernels to fetch; give an image"
        ) from None
    with process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=LOOK)
                    break
                except subprocess.TimeoutExpired:
                    _need_room(LEAST)
        finally:
            process.kill()
    if process.returncode:
        lines = err.strip().splitlines() or [f"status {process.returncode}"]
        raise LabError(f"{command[0]}: {lines[-1]}", err if lines[1:] else "")
    return out


def _need_room(least: int) -> None:
    """Refuse to fill a disk up.

    :param least: bytes that must be free where kernels are kept.
    :raises LabError: there is less.
    """
    folder = cache_folder()
    free = shutil.disk_usage(folder).free
    if free < least:
        raise LabError(
            f"{folder}: no space left on the device: {free >> 20} MiB are free, and a "
            f"kernel needs {ROOM >> 20} while it is unpacked"
        )
