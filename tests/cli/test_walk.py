"""``kvmarch walk``: what it prints of an image, and one line for what is none."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmarch import plugins
from kvmarch.cli import command_line
from kvmarch.testing.bench import Bench
from kvmarch.walk.write import write_tables

BASE = 0x1000_0000
ROOT = f"{BASE:#x}"


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The tables of an x86 VM with gfn 1 and 2 mapped, and 257 of a read-only slot."""
    arch = plugins.load(only=("x86",)).get("x86")
    k = plugins.link(arch, (6, 1))
    one = Bench(k, arch.info.settle((6, 1), {}), 16)
    assert one.slot(flags=0) == 0
    assert one.slot(1, flags=2, gfn=256, pages=4) == 0
    for gfn, how in ((1, "write"), (2, "write"), (257, "read")):
        one.access(gfn, how)
    path = tmp_path_factory.mktemp("walk") / "ram"
    write_tables(path, one.vm.tables.live.values(), "little", BASE)
    return str(path)


def walk(*args):
    """Run the command; return its status and its output."""
    words = ["walk", "--arch", "x86", "--kernel", "v6.1", *map(str, args)]
    result = CliRunner().invoke(command_line(), words, prog_name="kvmarch")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def rows(*args):
    status, output = walk("--ram", ROOT, "--root", ROOT, "--format", "json", *args)
    assert status == 0, output
    return json.loads(output)


def test_one_address(image):
    found = rows(image, "0x1234")

    assert [row["level"] for row in found["rows"]] == [4, 3, 2, 1]
    assert [row["kind"] for row in found["rows"]] == ["table"] * 3 + ["leaf"]
    assert "w=1" in found["rows"][-1]["fields"]
    (note,) = found["notes"]
    assert note.startswith("0x1234 is mapped to 0x")
    assert note.endswith("234 by a leaf of 4K")


def test_an_address_that_is_not_mapped(image):
    assert rows(image, "0x3000")["notes"] == ["0x3000: nothing is mapped at level 1"]
    assert rows(image, "4G")["notes"] == ["0x100000000: nothing is mapped at level 3"]


def test_all_leaves(image):
    found = rows(image)

    assert [(row["gpa"], row["end"], row["leaves"]) for row in found["rows"]] == [
        ("0x1000", "0x3000", 2),
        ("0x101000", "0x102000", 1),
    ]
    first, last = found["rows"]
    assert "w=1" in first["fields"]
    assert "w=1" not in last["fields"]
    (note,) = found["notes"]
    assert note.startswith("tables: 1 at level 4, 1 at level 3, 1 at level 2")


def test_summary(image):
    found = rows(image, "--summary")

    assert [
        (row["size"], row["permissions"], row["memory_type"], row["entries"])
        for row in found["rows"]
    ] == [("4K", "r w x", "WB(0x6)", 2), ("4K", "r x", "WB(0x6)", 1)]
    assert sum(row["bytes"] for row in found["rows"]) == 3 << 12


def test_text_is_for_people(image):
    status, output = walk("--ram", ROOT, "--root", ROOT, "--summary", image)

    assert status == 0
    assert "4K    1      leaf  r w x        WB(0x6)  2        8192\n" in output


def test_sizes_and_several_regions(image):
    args = ("--ram", "0:8K", "--ram", f"{BASE + 0x2000:#x}", "--root", ROOT)
    status, output = walk(*args, image)

    assert (status, output) == (
        2,
        (
            f"kvmarch: root {ROOT} is outside the image (0x0 to 0x2000, 0x10002000 to "
            f"0x10004000)\n"
        ),
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--root", "0x10000800"), "root 0x10000800 is no multiple of 0x1000, which"),
        (("--root", "0x90000000"), "root 0x90000000 is outside the image"),
        (("--root", "here"), "'here' is no address or size; wanted such as 0x40000000"),
        (("--root", ROOT, "--set", "mmu=foo"), "unknown value of x86 option mmu"),
        (("--root", ROOT, "--summary", "5"), "--summary is of the whole tree; leave"),
        (("--root", ROOT, "0x1000000000000"), "address 0x1000000000000 is beyond the"),
        (("--root", ROOT, "x"), "'x' is no address or size"),
        (("--root", ROOT, "--ram", "0"), "--ram: only the last region may go without"),
        (("--root", ROOT, "--arch", "x86,arm64"), "tables are of one architecture and"),
        (("--root", ROOT, "-k", "v6.1,v6.2"), "tables are of one architecture and"),
    ],
)
def test_bad_input_is_one_line(image, args, message):
    status, output = walk("--ram", ROOT, image, *args)

    assert status == 2
    assert output.startswith(f"kvmarch: {message}")
    assert output.count("\n") == 1


def test_a_page_that_is_no_root(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(b"text" * 1024)

    assert walk("--root", "0", str(path), "--summary") == (
        2,
        (
            "kvmarch: the root holds 0x7478657474786574, which is no entry of x86: are "
            "root, release and options right?\n"
        ),
    )


def test_an_mmu_without_a_tree(image):
    words = ["walk", "-a", "ppc", "--set", "mmu=hash", "--root", "0", image]
    result = CliRunner().invoke(command_line(), words)

    assert result.exit_code == 2
    assert result.output == (
        "kvmarch: ppc mmu=hash keeps no tree of tables that can be walked\n"
    )


def test_without_numpy(image, monkeypatch):
    """One address needs none; the whole tree says what to install."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    monkeypatch.delitem(sys.modules, "kvmarch.walk.tree", raising=False)
    monkeypatch.delitem(sys.modules, "kvmarch.walk.contents", raising=False)
    monkeypatch.delitem(sys.modules, "kvmarch.walk.words", raising=False)

    assert walk("--ram", ROOT, "--root", ROOT, image, "0x1000")[0] == 0
    assert walk("--ram", ROOT, "--root", ROOT, image) == (
        2,
        "kvmarch: walking a whole tree needs numpy: install kvmarch[lab]\n",
    )


def test_other_options_than_the_machines(image):
    """The layout of a release that keeps its bits elsewhere knows none of these."""
    status, output = walk("--ram", ROOT, "--root", ROOT, image, "-k", "v7.2")

    assert status == 2
    assert "are root, release and options right?" in output
    assert output.count("\n") == 1


def test_one_entry_that_is_unknown(image, tmp_path):
    memory = bytearray(Path(image).read_bytes())
    leaf = next(
        at
        for at in range(0, len(memory), 8)
        if int.from_bytes(memory[at : at + 8], "little") & 0xFFF == 0xB77
    )
    memory[leaf + 7] |= 0x40
    path = tmp_path / "ram"
    path.write_bytes(bytes(memory))

    found = rows(str(path))

    kinds = [row["kind"] for row in found["rows"]]
    assert sorted(kinds) == ["leaf", "leaf", "unknown (leaf)"]
    assert found["notes"][1:] == [
        "some entries are unknown: are release and options right?"
    ]
