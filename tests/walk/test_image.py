"""Raw images and ELF cores: what is where, and what is refused in one line."""

import re
import struct

import pytest

from kvmarch.errors import WalkError
from kvmarch.walk.image import Region, open_image


def elf(path, segments, *, order="<", bits=64, kind=4, extended=False, cut=0):
    """Write a core with some segments: address and bytes."""
    wide = bits == 64
    head, row = (64, 56) if wide else (52, 32)
    count = len(segments)
    section = 64 if wide else 40
    start = head + (section if extended else 0)
    data = start + row * count
    blob = bytearray(data)
    mark = 1 if order == "<" else 2
    blob[:7] = b"\x7fELF" + bytes([2 if wide else 1, mark, 1])
    shown = 0xFFFF if extended else count
    form = "HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"
    where = head if extended else 0
    struct.pack_into(
        order + form,
        blob,
        16,
        kind,
        0,
        1,
        0,
        start,
        where,
        0,
        head,
        row,
        shown,
        0,
        0,
        0,
    )
    if extended:
        struct.pack_into(order + "I", blob, head + (44 if wide else 28), count)
    for at, (pa, content) in enumerate(segments):
        offset = len(blob)
        fields = (
            (1, 0, offset, 0, pa, len(content), len(content), 0)
            if wide
            else (1, offset, 0, pa, len(content), len(content), 0, 0)
        )
        form = "IIQQQQQQ" if wide else "IIIIIIII"
        struct.pack_into(order + form, blob, start + at * row, *fields)
        blob += content
    path.write_bytes(bytes(blob[: len(blob) - cut]))
    return str(path)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("order", "name"), [("<", "little"), (">", "big")])
@pytest.mark.parametrize("extended", [False, True])
def test_a_core_of_any_class_and_order(tmp_path, bits, order, name, extended):
    segments = [(0x8000, b"b" * 4096), (0x1000, b"a" * 4096)]
    path = elf(tmp_path / "core", segments, order=order, bits=bits, extended=extended)

    with open_image(path) as image:
        assert image.byteorder == name
        assert image.read(0x1FF0, 16) == b"a" * 16
        assert image.read(0x8000, 16) == b"b" * 16
        assert image.offset(0x1FF8, 16) is None
        assert image.span == "0x1000 to 0x2000, 0x8000 to 0x9000"


def test_regions_of_a_raw_file(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(b"l" * 8192 + b"h" * 4096)

    with open_image(
        str(path), [Region(0, 8192, 0), Region(1 << 32, None, 8192)]
    ) as image:
        assert image.read(0x1000, 4096) == b"l" * 4096
        assert image.read(1 << 32, 4096) == b"h" * 4096
        with pytest.raises(WalkError, match="0x2000 is outside the image"):
            image.read(0x2000, 8)


def test_a_hole_reads_as_zero(tmp_path):
    path = tmp_path / "ram"
    with path.open("wb") as file:
        file.truncate(64 << 30)

    with open_image(str(path)) as image:
        assert image.read(63 << 30, 8) == bytes(8)


def test_segments_that_say_the_same_are_one(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(bytes(12288))
    same = [Region(0, 8192, 0), Region(0x1000, 8192, 4096)]

    with open_image(str(path), same) as image:
        assert image.regions == (Region(0, 12288, 0),)


def bad(tmp_path, name):
    """Return the path of a file that is no image, by what is wrong."""
    path = tmp_path / "image"
    page = b"x" * 4096
    if name == "missing":
        return str(path)
    if name == "folder":
        return str(tmp_path)
    if name == "cut":
        return elf(path, [(0, page)], cut=100)
    if name == "headers":
        return elf(path, [(0, page)], cut=4096 + 20)
    if name == "object":
        return elf(path, [(0, page)], kind=1)
    if name == "bare":
        return elf(path, [])
    if name == "overlap":
        return elf(path, [(0, page), (0x800, page)])
    contents = {
        "empty": b"",
        "torn": page + b"y",
        "class": b"\x7fELF\x05\x01" + page,
        "kdump": b"KDUMP   " + page,
    }
    path.write_bytes(contents[name])
    return str(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "No such file or directory"),
        ("folder", "Is a directory"),
        ("empty", "is empty"),
        ("torn", "is torn: 4097 bytes are no whole number of 4096 byte pages"),
        ("cut", "is torn: 0x64 bytes of the memory at 0x0 are missing"),
        ("headers", "is torn: its program headers are cut off"),
        ("object", "is an ELF file, but no core"),
        ("bare", "is an ELF core without memory"),
        ("class", "is an ELF file of no known class"),
        ("kdump", "is a kdump-compressed dump; wanted an ELF core or raw memory"),
        (
            "overlap",
            (
                "two regions hold address 0x800: is it a process's core, or are the "
                "regions wrong?"
            ),
        ),
    ],
)
def test_what_is_no_image(tmp_path, name, message):
    path = bad(tmp_path, name)

    with pytest.raises(WalkError, match=f"^{re.escape(f'{path}: {message}')}$"):
        open_image(path)


def test_a_region_that_the_file_does_not_hold(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(bytes(4096))

    with pytest.raises(WalkError, match="it ends at 0x1000, the memory from 0x0 on at"):
        open_image(str(path), [Region(0, 8192, 0)])
