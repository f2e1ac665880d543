"""Kernels to boot: an image and its modules, given or unpacked from packages."""

__all__ = [
    "KernelFiles",
    "boot_image",
    "cache_folder",
    "choose",
    "given",
    "known",
    "unpack",
]

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kvmarch.arch import LabMachine
from kvmarch.errors import LabError
from kvmarch.lab.modules import read_module, wanted_modules

_HEAD = 1024
"""Bytes of an image in which everything is that tells what it is."""
_NUMBERS = re.compile(r"v?(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class KernelFiles:
    """A kernel to boot.

    :param name: its release, or the name of its image if nobody knows.
    :param modules: a folder with modules anywhere in it; None if there is none.
    """

    name: str
    image: Path
    modules: Path | None


def cache_folder() -> Path:
    """Return the folder of what is kept between runs: kernels and probes."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "kvmarch"


def given(image: Path, modules: Path | None) -> KernelFiles:
    """Return a kernel that the user has.

    :raises LabError: a file is not there.
    """
    if not image.is_file():
        raise LabError(f"no kernel image {image}")
    if modules is not None and not modules.is_dir():
        raise LabError(f"no folder of modules {modules}")
    return KernelFiles(image.name, image, modules)


def choose(machine: LabMachine, wanted: str) -> KernelFiles | None:
    """Return the newest unpacked kernel that a name means, or None.

    :param wanted: a whole release (``6.1.0-56-amd64``) or its first numbers
        (``v6.1``).
    """
    folder = cache_folder() / "kernels" / machine.debian
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if means(wanted, path.name, machine)]
    if not found:
        return None
    best = max(found, key=lambda path: numbers_of(path.name))
    return KernelFiles(best.name, best / "image", best / "modules")


def means(wanted: str, release: str, machine: LabMachine) -> bool:
    """Return whether a name means a release: it is that, or its first numbers are."""
    if wanted == release:
        return True
    asked, has = _NUMBERS.fullmatch(wanted), _NUMBERS.match(release)
    usual = release.endswith(machine.flavour)
    return bool(asked and has and usual and asked.groups() == has.groups())


def numbers_of(name: str) -> tuple[int, ...]:
    """Return the numbers in a name, by which releases are ordered."""
    return tuple(int(number) for number in re.findall(r"\d+", name))


def unpack(packages: list[Path], machine: LabMachine, release: str) -> KernelFiles:
    """Unpack a kernel from Debian packages into the cache folder.

    Only the image and the modules that the lab loads are kept.

    :raises LabError: a package cannot be read, or there is no image in them.
    """
    folder = cache_folder() / "kernels" / machine.debian
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as temporary:
        top = Path(temporary)
        for package in packages:
            _extract(package, top)
        images = sorted(path for path in top.rglob("vmlinu*") if path.is_file())
        if not images:
            names = ", ".join(package.name for package in packages)
            raise LabError(f"no kernel image in {names}")
        done = top / "done"
        (done / "modules").mkdir(parents=True)
        images[0].rename(done / "image")
        for path in wanted_modules(top, machine.modules):
            shutil.copy(path, done / "modules" / path.name)
        place = folder / release
        if place.exists():
            shutil.rmtree(place)
        done.rename(place)
    return KernelFiles(release, place / "image", place / "modules")


def _extract(package: Path, top: Path) -> None:
    """Take images and modules out of one package."""
    try:
        process = subprocess.Popen(  # noqa: S603 - our own command
            ["dpkg-deb", "--fsys-tarfile", str(package)],  # noqa: S607 - as above
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise LabError("dpkg-deb is missing; install dpkg") from None
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = Path(member.name).name
                    if member.isfile() and (name.startswith("vmlinu") or ".ko" in name):
                        archive.extract(member, top, filter="data")
        except tarfile.TarError as error:
            raise LabError(f"{package}: not a package: {error}") from None
        except OSError as error:
            raise LabError(f"{package}: {error.strerror}") from None
        finally:
            process.kill()


def boot_image(files: KernelFiles, machine: LabMachine) -> Path | bytes:
    """Return an image that QEMU boots: as it is, or what is in its EFI wrapper.

    :raises LabError: it is damaged, or of another architecture.
    """
    try:
        unpacked = _inside(files.image)
        with files.image.open("rb") as source:
            head = unpacked[:_HEAD] if unpacked else source.read(_HEAD)
    except OSError as error:
        raise LabError(f"{files.image}: {error.strerror}") from None
    fits = [head[at : at + len(text)] == text for at, text in machine.magic]
    if fits and not any(fits):
        raise LabError(
            f"{files.image}: is no kernel image of {machine.debian}, or not one that "
            f"{machine.qemu} boots"
        )
    return unpacked or files.image


def _inside(path: Path) -> bytes:
    """Return the image that an EFI program has packed inside; nothing if it is none."""
    with path.open("rb") as source:
        head = source.read(64)
        if head[4:8] != b"zimg":
            return b""
        offset, size = struct.unpack_from("<II", head, 8)
        kind = head[24:32].split(b"\0")[0].decode("ascii", "replace")
        source.seek(offset)
        return _unpacked(source.read(size), kind, path)


def _unpacked(packed: bytes, kind: str, path: Path) -> bytes:
    try:
        if kind == "gzip":
            return gzip.decompress(packed)
        if kind in {"xz", "lzma"}:
            return lzma.decompress(packed)
    except (OSError, lzma.LZMAError) as error:
        raise LabError(f"{path}: damaged image: {error}") from None
    if kind.startswith("zstd"):
        return read_module(packed, ".zst", str(path))
    raise LabError(f"{path}: an image packed with {kind!r}, which nobody here unpacks")


def known(machine: LabMachine, wanted: str, modules: str | None) -> KernelFiles | None:
    """Return the kernel that a user means; None if it is one to be downloaded.

    :param wanted: a file, a release, or the first numbers of one.
    :raises LabError: it cannot be any kernel.
    """
    path = Path(wanted)
    if path.is_file() or "/" in wanted:
        return given(path, None if modules is None else Path(modules))
    if modules is not None:
        raise LabError("--modules goes with an image, not with a release")
    if not _NUMBERS.match(wanted):
        raise LabError(f"no kernel image {wanted}, and no release such as 6.1")
    return choose(machine, wanted)
