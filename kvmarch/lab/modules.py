"""Kernel modules: find them, those that they need, and their plain contents."""

__all__ = ["load_order", "module_name", "read_module", "wanted_modules"]

import gzip
import lzma
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from kvmarch.errors import LabError

_SUFFIX = re.compile(r"\.ko(\.xz|\.gz|\.zst)?$")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


def module_name(path: Path) -> str:
    """Return a module's name, as ``kvm-amd``, by its file's."""
    return _SUFFIX.sub("", path.name).replace("_", "-")


def read_module(data: bytes, suffix: str, name: str) -> bytes:
    """Return plain contents.

    :param suffix: how it is packed: ``.xz``, ``.gz``, ``.zst`` or nothing.
    :raises LabError: it cannot be unpacked.
    """
    try:
        if suffix == ".xz":
            return lzma.decompress(data)
        if suffix == ".gz":
            return gzip.decompress(data)
    except (OSError, lzma.LZMAError) as error:
        raise LabError(f"{name}: cannot be unpacked: {error}") from None
    if suffix != ".zst":
        return data
    try:
        done = subprocess.run(
            ["zstd", "-dcq"],  # noqa: S607 - wherever it is installed
            input=data,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"{name}: needs zstd to be unpacked; install zstd") from None
    if done.returncode:
        raise LabError(f"{name}: zstd: {done.stderr.decode('utf-8', 'replace')}")
    return done.stdout


def contents(path: Path) -> bytes:
    """Return the plain contents of a module's file."""
    found = _SUFFIX.search(path.name)
    assert found is not None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}") from None
    return read_module(data, found[1] or "", str(path))


def load_order(folder: Path | None, names: Iterable[str]) -> dict[str, bytes]:
    """Return modules and what they need, each after those that it needs.

    One that is no file is taken to be part of the kernel.

    :param folder: with modules anywhere in it.
    :returns: plain contents by name.
    """
    have = {} if folder is None else _files(folder)
    order: dict[str, bytes] = {}
    open_names: set[str] = set()

    def need(name: str) -> None:
        if name in order or name in open_names or name not in have:
            return
        open_names.add(name)
        data = contents(have[name])
        found = _DEPENDS.search(data)
        for other in found[1].decode("ascii", "replace").split(",") if found else ():
            need(other.replace("_", "-"))
        order[name] = data

    for name in names:
        need(name.replace("_", "-"))
    return order


def wanted_modules(folder: Path, names: Iterable[str]) -> list[Path]:
    """Return the files of modules and of what they need."""
    have = _files(folder)
    return [have[name] for name in load_order(folder, names)]


def _files(folder: Path) -> dict[str, Path]:
    return {
        module_name(path): path
        for path in sorted(folder.rglob("*.ko*"))
        if _SUFFIX.search(path.name)
    }
