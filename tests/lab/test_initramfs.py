"""The archive that the lab boots."""

import shutil
import stat
import subprocess

import pytest

from kvmarch.lab.initramfs import initramfs


def files_of(archive):
    """Read a newc archive by its specification: name to mode and contents."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        start = at + -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            return found
        found[name] = mode, archive[start : start + size], fields[9:11]
        at = start + -(-size // 4) * 4


def made():
    return initramfs(
        b"program",
        {"irqbypass": (b"one", ""), "kvm": (b"three", "tdp_mmu=0")},
        ("kvm.tdp_mmu",),
        {"kvmmmu/x": "old != 0"},
    )


def test_every_file_is_where_the_program_looks_for_it():
    files = files_of(made())

    assert files["init"][:2] == (stat.S_IFREG | 0o755, b"program")
    assert files["modules/kvm.ko"][1] == b"three"
    assert files["modules/order"][1] == b"irqbypass.ko\nkvm.ko tdp_mmu=0\n"
    assert files["modules/parameters"][1] == b"kvm.tdp_mmu\n"
    assert files["modules/filters"][1] == b"kvmmmu/x old != 0\n"
    assert files["dev/console"][0] == stat.S_IFCHR | 0o600
    assert files["dev/console"][2] == [5, 1]


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio here")
def test_cpio_reads_it():
    done = subprocess.run(
        ["cpio", "-t", "--quiet"], input=made(), capture_output=True, check=True
    )

    assert b"modules/irqbypass.ko" in done.stdout.split()
