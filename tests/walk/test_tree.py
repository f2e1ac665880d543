"""Walks by hand and in numpy: the same answers, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmarch.errors import WalkError
from kvmarch.format.walk import WalkLayout, WalkLevel, WalkRule
from kvmarch.walk.contents import ranges_of, tally
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.path import Walker
from kvmarch.walk.tree import ROLE_CODES, Tree

IN_PLACE = ((0x000F_FFFF_FFFF_F000, 0),)
SPLIT = ((0x0003_FFFF_FFFF_F000, 0), (0x300, 42))
MOVED = ((0x003F_FFFF_FFFF_FC00, 2),)

FULL = (1 << 64) - 1


def rules(address, *, leaf, table):
    """Return rules: bit 0 is present, bit 1 a table; 4 keeps, 6 is a note."""
    made = [WalkRule("absent", FULL, 0)]
    if leaf:
        made += [WalkRule("leaf", 3, 1, address), WalkRule("kept", 7, 4, address)]
    if table:
        made.append(WalkRule("table", 3, 3, address))
    return (*made, WalkRule("note", 7, 6))


def layout_of(address=IN_PLACE, order="little", root_bits=9):
    """Return three levels; leaves in the two lower ones."""
    return WalkLayout(
        (
            WalkLevel(2, 30, root_bits, rules(address, leaf=False, table=True)),
            WalkLevel(1, 21, 9, rules(address, leaf=True, table=True)),
            WalkLevel(0, 12, 9, rules(address, leaf=True, table=False)),
        ),
        page_shift=12,
        byteorder=order,
    )


class Maker:
    """Memory by address, written to a raw file."""

    def __init__(self, layout, path, base=0, order="little"):
        self.layout, self.path, self.base = layout, path, base
        self.order = layout.byteorder if layout.byteorder != "machine" else order
        self.words = {}
        self.next = base + (1 << 20)

    def table(self, size=4096):
        """Return the address of a new, empty table."""
        at = self.next
        self.next += max(size, 4096)
        return at

    def put(self, table, index, value):
        """Store an entry."""
        self.words[table + index * 8] = value

    def value(self, level, role, address=0, extra=0):
        """Return an entry of a level."""
        rule = next(r for r in self.layout.by_level[level].rules if r.role == role)
        entry = rule.value | extra
        for mask, move in rule.address:
            entry |= (address >> move if move > 0 else address << -move) & mask
        assert not rule.address or rule.address_of(entry) == address
        return entry

    def write(self):
        """Write the file."""
        size = self.next - self.base + 4096
        with self.path.open("wb") as file:
            for at, value in self.words.items():
                file.seek(at - self.base)
                file.write(value.to_bytes(8, self.order))
            file.truncate(size)
        return str(self.path)


@pytest.fixture
def maker(tmp_path):
    """Return a maker of an image of the plain layout."""
    return Maker(layout_of(), tmp_path / "ram")


EACH = [
    pytest.param(address, order, id=f"{name}-{order}")
    for name, address in (("place", IN_PLACE), ("split", SPLIT), ("moved", MOVED))
    for order in ("little", "big")
]

entry = st.tuples(
    st.sampled_from(["absent", "leaf", "leaf", "kept", "note", "unknown"]),
    st.integers(0, 1 << 30),
    st.sampled_from([0, 1 << 58, 1 << 59]),
)
leaves = st.dictionaries(st.integers(0, 511), entry, max_size=6)
middle = st.dictionaries(st.integers(0, 511), st.one_of(entry, leaves), max_size=4)
trees = st.dictionaries(st.integers(0, 1023), middle, max_size=3)


def fill(maker, tree, level=2, length=8192):
    """Write a tree into an image; return the address of its root."""
    table = maker.table(length)
    for index, what in tree.items():
        if isinstance(what, dict):
            below = fill(maker, what, level - 1, 4096)
            value = maker.value(level, "table", below)
        else:
            role, page, extra = what
            if role == "unknown":
                value = 2 | extra
            elif role in {"absent", "note"}:
                value = maker.value(level, role) | (extra if role == "note" else 0)
            else:
                shift = maker.layout.by_level[level].shift
                value = maker.value(level, role, page << shift & (1 << 46) - 1, extra)
        maker.put(table, index, value)
    return table


@pytest.mark.parametrize(("address", "order"), EACH)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees, gpas=st.lists(st.integers(0, (1 << 40) - 1), max_size=20))
def test_both_ways_agree(tmp_path, address, order, tree, gpas):
    maker = Maker(layout_of(address, order, 10), tmp_path / "ram", 0x4000_0000)
    root = fill(maker, tree)
    path = maker.write()

    with open_image(path, [Region(0x4000_0000, None, 0)]) as image:
        walker, whole = (
            Walker(image, maker.layout, root),
            Tree(image, maker.layout, root),
        )
        found = list(whole.find())
        asked = np.array(
            gpas + [int(g) + 5 for f in found for g in f.gpa.tolist()], np.uint64
        )
        answer = whole.translate(asked)

        there = set()
        for at, gpa in enumerate(asked.tolist()):
            visit = walker.follow(gpa)[-1]
            assert ROLE_CODES[answer.role[at]] == visit.role
            assert answer.level[at] == visit.level
            if visit.role in {"leaf", "kept"}:
                shift = maker.layout.by_level[visit.level].shift
                inside = gpa & (1 << shift) - 1
                assert answer.pa[at] == visit.rule.address_of(visit.entry) | inside
            else:
                assert answer.pa[at] == 0
            if visit.role not in {"absent", "table"}:
                there.add((visit.table + visit.at * 8, visit.entry))
        listed = {
            pair
            for f in found
            for pair in zip(f.at.tolist(), f.entry.tolist(), strict=True)
        }
        assert listed == there
        assert sum(tally(whole).values()) == len(there)
        assert sum(r.leaves for r in ranges_of(whole)) == len(there)


def test_ranges_join_what_differs_in_the_address_only(maker):
    root, middle, first, second = (maker.table() for _ in range(4))
    maker.put(root, 0, maker.value(2, "table", middle))
    maker.put(middle, 0, maker.value(1, "table", first))
    maker.put(middle, 1, maker.value(1, "table", second))
    for at in range(510, 512):
        maker.put(first, at, maker.value(0, "leaf", 0x1000 * at))
    maker.put(second, 0, maker.value(0, "leaf", 0x1000 * 512))
    maker.put(second, 1, maker.value(0, "leaf", 0x1000 * 1000))
    maker.put(second, 2, maker.value(0, "leaf", 0x1000 * 1001, 1 << 60))

    with open_image(maker.write()) as image:
        tree = Tree(image, maker.layout, root)
        ranges = ranges_of(tree)

    assert [(r.gpa, r.bytes, r.leaves, r.pa, r.pieces) for r in ranges] == [
        (510 << 12, 4 << 12, 4, 510 << 12, 2),
        (514 << 12, 1 << 12, 1, 1001 << 12, 1),
    ]
    assert tree.tables == {2: 1, 1: 1, 0: 2}


def test_several_regions(maker):
    """A tree whose tables lie in both halves of a machine's memory."""
    high = 0x1_0000_0000
    root = maker.table()
    leaf = maker.table()
    maker.put(root, 0, maker.value(2, "table", high + 0x2000))
    maker.put(leaf, 3, maker.value(1, "leaf", 0x20_0000))
    path = maker.write()
    regions = [Region(0, leaf, 0), Region(high + 0x2000, None, leaf)]

    with open_image(path, regions) as image:
        answer = Tree(image, maker.layout, root).translate([0x60_0001, 0, 1 << 30])
        assert answer.pa.tolist() == [0x20_0001, 0, 0]
        assert [ROLE_CODES[r] for r in answer.role] == ["leaf", "absent", "absent"]
        assert Walker(image, maker.layout, root).follow(0x60_0001)[-1].at == 3


@pytest.mark.parametrize("skew", [8, 4, 1])
def test_entries_that_are_not_aligned_in_the_file(maker, tmp_path, skew):
    """As in a core whose headers and notes end anywhere."""
    root, middle, leaf = maker.table(), maker.table(), maker.table()
    maker.put(root, 0, maker.value(2, "table", middle))
    maker.put(middle, 0, maker.value(1, "table", leaf))
    maker.put(leaf, 5, maker.value(0, "leaf", 0x7000))
    memory = Path(maker.write()).read_bytes()
    path = tmp_path / "skewed"
    path.write_bytes(bytes(skew) + memory + bytes(4096 - skew))

    with open_image(str(path), [Region(0, len(memory), skew)]) as image:
        tree = Tree(image, maker.layout, root)
        assert tree.translate([0x5123, 0x4000]).pa.tolist() == [0x7123, 0]
        assert [f.entry.tolist() for f in tree.find()] == [[0x7001]]
        assert Walker(image, maker.layout, root).follow(0x5123)[-1].entry == 0x7001


def test_regions_that_lie_differently_in_the_file(maker, tmp_path):
    root, leaf = maker.table(), maker.table()
    maker.put(root, 0, maker.value(2, "table", leaf))
    maker.put(leaf, 5, maker.value(1, "leaf", 0x20_0000))
    memory = Path(maker.write()).read_bytes()
    path = tmp_path / "skewed"
    path.write_bytes(memory[:leaf] + bytes(4) + memory[leaf:] + bytes(4092))
    regions = [Region(0, leaf, 0), Region(leaf, 4096, leaf + 4)]

    with open_image(str(path), regions) as image:
        answer = Tree(image, maker.layout, root).translate([0xA0_0001, 0])
        assert answer.pa.tolist() == [0x20_0001, 0]


def test_a_leaf_that_is_repeated_in_several_entries(maker):
    """As Svnapot's 64 KiB: every entry has the address of the whole."""
    layout = WalkLayout(
        (
            WalkLevel(1, 21, 9, rules(IN_PLACE, leaf=False, table=True)),
            WalkLevel(
                0,
                12,
                9,
                (
                    WalkRule("absent", FULL, 0),
                    WalkRule("leaf", 9, 9, ((0xFFFF_FFFF_0000, 0),), 16),
                    WalkRule("leaf", 1, 1, IN_PLACE),
                ),
            ),
        ),
        page_shift=12,
    )
    maker.layout = layout
    root, leaf = maker.table(), maker.table()
    maker.put(root, 0, maker.value(1, "table", leaf))
    for at in range(16, 32):
        maker.put(leaf, at, 0x12_8009)
    maker.put(leaf, 32, 0x13_0001)

    with open_image(maker.write()) as image:
        tree = Tree(image, layout, root)
        answer = tree.translate([0x1_0123, 0x1_F456, 0x2_0000])
        assert answer.pa.tolist() == [0x12_0123, 0x12_F456, 0x13_0000]
        (whole, page) = ranges_of(tree)
    assert (whole.gpa, whole.bytes, whole.leaves, whole.pa, whole.pieces) == (
        *(0x1_0000, 0x1_0000, 16),
        *(0x12_0000, 1),
    )
    assert (whole.tally.shift, page.tally.shift) == (16, 12)
    assert (page.gpa, page.pa) == (0x2_0000, 0x13_0000)


@pytest.mark.parametrize("order", ["little", "big"])
def test_entries_of_four_bytes(tmp_path, order):
    mask = ((0xFFFF_F000, 0),)
    both = (WalkRule("absent", 3, 0), WalkRule("table", 3, 3, mask))
    layout = WalkLayout(
        (
            WalkLevel(1, 22, 10, both),
            WalkLevel(0, 12, 10, (WalkRule("leaf", 3, 1, mask),)),
        ),
        page_shift=12,
        entry_bytes=4,
        byteorder=order,
    )
    memory = bytearray(0x3000)
    for at, value in ((0x1004, 0x2003), (0x200C, 0x9001)):
        memory[at : at + 4] = value.to_bytes(4, order)
    path = tmp_path / "ram"
    path.write_bytes(bytes(memory))

    with open_image(str(path)) as image:
        gpa = 1 << 22 | 3 << 12 | 5
        assert Tree(image, layout, 0x1000).translate([gpa]).pa.tolist() == [0x9005]
        assert Walker(image, layout, 0x1000).follow(gpa)[-1].entry == 0x9001


def test_a_table_outside(maker):
    root = maker.table()
    maker.put(root, 1, maker.value(2, "table", 0x7000_0000))

    with open_image(maker.write()) as image:
        tree = Tree(image, maker.layout, root)
        assert ROLE_CODES[tree.translate([1 << 30]).role[0]] == "outside"
        with pytest.raises(WalkError, match="level 1 for 0x40000000 is at 0x70000000"):
            list(tree.find())
        with pytest.raises(WalkError, match=r"to which entry 0x1 at .* is outside the"):
            Walker(image, maker.layout, root).follow(1 << 30)


def test_a_loop(maker):
    root, below = maker.table(), maker.table()
    maker.put(root, 2, maker.value(2, "table", below))
    maker.put(below, 0, maker.value(1, "table", root))

    with open_image(maker.write()) as image:
        with pytest.raises(WalkError, match="a loop: the entry for 0x80000000"):
            list(Tree(image, maker.layout, root).find())
        with pytest.raises(WalkError, match=r"a loop: entry 0x0 of level 1 at 0x\w+"):
            Walker(image, maker.layout, root).follow(2 << 30)


def test_a_table_of_two_parents(maker):
    root, below = maker.table(), maker.table()
    for at in (2, 3):
        maker.put(root, at, maker.value(2, "table", below))

    with open_image(maker.write()) as image, pytest.raises(WalkError, match="two entr"):
        list(Tree(image, maker.layout, root).find())


@pytest.mark.parametrize("make", [Tree, Walker])
@pytest.mark.parametrize(
    ("root", "message"),
    [
        (0x100800, "root 0x100800 is no multiple of 0x1000"),
        (0x9000_0000, "root 0x90000000 is outside the image (0x0 to 0x101000)"),
    ],
)
def test_no_root_there(maker, make, root, message):
    with (
        open_image(maker.write()) as image,
        pytest.raises(WalkError, match=re.escape(message)),
    ):
        make(image, maker.layout, root)


def test_an_address_beyond(maker):
    root = maker.table()
    with open_image(maker.write()) as image:
        for call in (
            Walker(image, maker.layout, root).follow,
            lambda gpa: Tree(image, maker.layout, root).translate([gpa]),
        ):
            with pytest.raises(WalkError, match="0x8000000000 is beyond the tree"):
                call(1 << 39)
