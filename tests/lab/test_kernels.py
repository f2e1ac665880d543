"""Kernels: what a name means, and what an image is."""

import gzip
import io
import shutil
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from kvmarch import plugins
from kvmarch.errors import LabError
from kvmarch.lab import kernels

X86 = plugins.load(only=("x86",)).get("x86").operations["lab"]()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kvmarch" / "kernels" / X86.debian


@pytest.mark.parametrize(
    ("wanted", "release", "means"),
    [
        ("6.1", "6.1.0-50-amd64", True),
        ("v6.1", "6.1.0-50-amd64", True),
        ("6.1", "6.12.96+deb13-amd64", False),
        ("6.1", "6.1.0-50-cloud-amd64", True),
        ("6.1", "6.1.0-50-rt-arm64", False),
        ("6.1.0-50-cloud-amd64", "6.1.0-50-cloud-amd64", True),
        ("6", "6.1.0-50-amd64", False),
        ("six", "6.1.0-50-amd64", False),
    ],
)
def test_what_a_name_means(wanted, release, means):
    assert kernels.means(wanted, release, X86) is means


def test_the_newest_that_is_there_is_chosen_by_number_not_by_letter(cache):
    for release in ("6.1.0-9-amd64", "6.1.0-50-amd64", "6.12.1-amd64"):
        (cache / release).mkdir(parents=True)

    assert kernels.choose(X86, "6.1").name == "6.1.0-50-amd64"
    assert kernels.choose(X86, "6.1.0-9-amd64").name == "6.1.0-9-amd64"
    assert kernels.choose(X86, "7.2") is None


def image(path, data):
    path.write_bytes(data)
    return kernels.KernelFiles(path.name, path, None)


def bzimage():
    return b"MZ".ljust(0x202, b"\0") + b"HdrS" + bytes(4096)


def test_an_image_is_booted_as_it_is(tmp_path):
    files = image(tmp_path / "vmlinuz", bzimage())

    assert kernels.boot_image(files, X86) == tmp_path / "vmlinuz"


def test_an_image_of_another_architecture_is_refused(tmp_path):
    files = image(tmp_path / "vmlinuz", b"\0" * 0x38 + b"ARMd" + bytes(1024))

    with pytest.raises(LabError, match="is no kernel image of amd64"):
        kernels.boot_image(files, X86)


def zboot(packed, kind):
    head = b"MZ\0\0zimg" + struct.pack("<II", 64, len(packed)) + bytes(8)
    return (head + kind.ljust(8, b"\0")).ljust(64, b"\0") + packed


def test_an_efi_program_is_unpacked(tmp_path):
    arm = replace(X86, magic=((0x38, b"ARMd"),))
    inner = b"\0" * 0x38 + b"ARMd" + bytes(1024)
    files = image(tmp_path / "vmlinuz", zboot(gzip.compress(inner), b"gzip"))

    assert kernels.boot_image(files, arm) == inner


@pytest.mark.parametrize(
    ("packed", "kind", "why"),
    [
        (b"torn", b"gzip", "damaged image"),
        (b"torn", b"xz", "damaged image"),
        (b"what", b"lz9", "packed with 'lz9'"),
    ],
)
def test_a_damaged_efi_program_is_refused(tmp_path, packed, kind, why):
    files = image(tmp_path / "vmlinuz", zboot(packed, kind))

    with pytest.raises(LabError, match=why):
        kernels.boot_image(files, X86)


def test_a_file_that_is_not_there():
    with pytest.raises(LabError, match="no kernel image /none/vmlinuz"):
        kernels.known(X86, "/none/vmlinuz", None)


def test_what_is_neither_a_file_nor_a_release_is_not_looked_for():
    with pytest.raises(LabError, match="no kernel image bzImage, and no release such"):
        kernels.known(X86, "bzImage", None)


def test_modules_go_with_an_image_only(tmp_path):
    with pytest.raises(LabError, match="--modules goes with an image"):
        kernels.known(X86, "6.1", str(tmp_path))


def package(path, files):
    """Make a Debian package of some files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            row = tarfile.TarInfo(f"./{name}")
            row.size = len(content)
            archive.addfile(row, io.BytesIO(content))
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": gzip.compress(bytes(10240)),
        "data.tar.gz": gzip.compress(data.getvalue()),
    }
    out = b"!<arch>\n"
    for name, content in parts.items():
        out += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{0o100644:<8o}{len(content):<10}`\n".encode()
        )
        out += content + b"\n" * (len(content) % 2)
    path.write_bytes(out)
    return path


needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="no dpkg-deb here"
)


@needs_dpkg
def test_of_a_package_the_image_and_the_modules_of_kvm_are_kept(tmp_path, cache):
    deb = package(
        tmp_path / "linux.deb",
        {
            "boot/vmlinuz-6.1": b"image",
            "lib/modules/6.1/kvm-amd.ko": b"\0depends=kvm\0",
            "lib/modules/6.1/kvm.ko": b"\0depends=\0",
            "lib/modules/6.1/other.ko": b"\0depends=\0",
            "usr/share/doc/readme": b"text",
        },
    )

    files = kernels.unpack([deb], X86, "6.1.0-1-amd64")

    names = {path.relative_to(cache) for path in cache.rglob("*") if path.is_file()}
    assert names == {
        Path("6.1.0-1-amd64", *parts)
        for parts in (("image",), ("modules", "kvm.ko"), ("modules", "kvm-amd.ko"))
    }
    assert files.image.read_bytes() == b"image"
    assert kernels.choose(X86, "6.1") == files


@needs_dpkg
@pytest.mark.parametrize("content", [b"no package at all", b""])
def test_a_torn_package_is_refused_and_nothing_is_left(tmp_path, cache, content):
    deb = tmp_path / "linux.deb"
    deb.write_bytes(content)

    with pytest.raises(LabError):
        kernels.unpack([deb], X86, "6.1.0-1-amd64")
    assert list(cache.iterdir()) == []


@needs_dpkg
def test_a_package_without_an_image_is_refused(tmp_path, cache):
    deb = package(tmp_path / "doc.deb", {"usr/share/doc/readme": b"text"})

    with pytest.raises(LabError, match=r"no kernel image in doc\.deb"):
        kernels.unpack([deb], X86, "6.1.0-1-amd64")
