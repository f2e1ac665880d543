"""Looking for entries in all of an image."""

import pytest

from kvmarch.walk import scan
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.scan import Scanner, filled

BASE = 0x4000_0000


@pytest.fixture
def image(tmp_path):
    """Two pages at the front, a hole of a GiB, and three pages behind it."""
    path = tmp_path / "ram"
    with path.open("wb") as file:
        for page in (0, 1, 1 << 18, (1 << 18) + 1, (1 << 18) + 2):
            file.seek(page << 12)
            file.write(page.to_bytes(8, "big") * 512)
    with open_image(str(path), [Region(BASE, None, 0)]) as opened:
        yield opened


def column(image, index, length, size=8):
    found = list(Scanner(image, size, "big").column(index, length))
    return {
        table - BASE: entry
        for tables, entries in found
        for table, entry in zip(tables.tolist(), entries.tolist(), strict=True)
    }


def test_every_table_outside_the_hole(image):
    pages = (0, 1, 1 << 18, (1 << 18) + 1, (1 << 18) + 2)

    assert column(image, 3, 4096) == {page << 12: page for page in pages}


def test_the_hole_is_not_read(image):
    assert sum(end - start for start, end in filled(image)) < 1 << 20


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_piece_by_piece(image, monkeypatch, chunk):
    whole = column(image, 3, 4096)
    monkeypatch.setattr(scan, "CHUNK", chunk)

    assert column(image, 3, 4096) == whole


def test_tables_of_other_sizes(image):
    small = column(image, 0, 256)
    large = column(image, 512, 8192)
    half = column(image, 1, 4096, 4)

    assert len(small) == 5 * 16
    assert small[4096 + 256] == 1
    # The last page is no whole table of two.
    assert large == {0: 1, 1 << 30: (1 << 18) + 1}
    assert half[4096] == 1
