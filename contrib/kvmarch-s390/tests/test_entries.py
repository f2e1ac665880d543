"""Entries, by the fact sheet's worked values and by properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch import EntryError, HostPte

from kvmarch_s390 import dat
from kvmarch_s390.geometry import LEVELS, PAGE, REGION3, SEGMENT, entries, index, pages
from kvmarch_s390.host_pte import (
    GmapLarge,
    HostPage,
    gmap_segment,
    host_page,
    invalid_region,
)
from kvmarch_s390.region import (
    Asce,
    Pgste,
    PgsteEarly,
    PgsteMoved,
    asce_of,
    table_entry,
    table_entry_format,
)

pytestmark = pytest.mark.kvmarch(arch="s390")

PFN = 0x12345
EMPTY = dat.token(PAGE, hole=False)
HOST = {"present": 1, "young": 1, "write": 1, "dirty": 1, "soft_dirty": 1, "exec": 1}


@pytest.mark.parametrize(
    ("what", "value"),
    [
        pytest.param({"writable": True, "dirty": True}, 0x1234502D, id="first write"),
        pytest.param({"writable": True, "dirty": False}, 0x12345225, id="read"),
        pytest.param({"writable": False, "dirty": False}, 0x12345205, id="read-only"),
    ],
)
def test_what_a_fault_links(what, value):
    assert dat.link(PAGE, PFN, EMPTY, **what) == value


def test_d_and_sd_stay_when_the_same_page_is_linked_again():
    old = 0x1234502F

    again = dat.link(PAGE, PFN, old, writable=True, dirty=False, special=True)

    assert again == 0x1234506F


@pytest.mark.parametrize(
    ("entry", "change", "value"),
    [
        pytest.param(
            0x12345225,
            lambda e: dat.minor_fault(PAGE, e, write=True),
            0x1234502F,
            id="minor write",
        ),
        pytest.param(0x1234502F, lambda e: dat.age(PAGE, e), 0x12345623, id="age"),
        pytest.param(0x1234502D, lambda e: dat.age(PAGE, e), 0x12345621, id="age, sd"),
        pytest.param(0x1234502F, dat.sync, 0x1234522D, id="sync"),
        pytest.param(0x12345623, dat.sync, 0x12345621, id="sync, old"),
    ],
)
def test_what_becomes_of_an_entry(entry, change, value):
    assert change(entry) == value


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ({"writable": True, "dirty": True}, 0x12305C01),
        ({"writable": True, "dirty": False}, 0x12304E01),
        ({"writable": False, "dirty": False}, 0x12300E01),
    ],
)
def test_large_segments(what, value):
    empty = dat.token(SEGMENT, hole=False)

    assert dat.link(SEGMENT, 0x12300, empty, **what) == value


def test_two_gigabytes():
    fmt = dat.large_format(REGION3)

    assert fmt.pack(pfra=0x80000, w=1, d=1, y=1, sd=1) == 0x80005C07
    assert dat.minor_fault(SEGMENT, 0x12304E01, write=True) == 0x12305C03


def test_a_split():
    below = dat.children(0x12305C03, SEGMENT)

    assert (below[0], below[7], len(below)) == (0x1230002F, 0x1230702F, 256)
    assert len(dat.children(0x80005C07, REGION3)) == 2048


def test_tokens():
    hole = 0x0001_0005 << 32

    assert [dat.token(level, hole=False) for level in range(5)] == [
        *(0x400, 0x20, 0x24, 0x28, 0x2C)
    ]
    assert [dat.token(level, hole=True) for level in range(5)] == [
        *(hole | 0x400, hole | 0x20, hole | 0x24, hole | 0x28, hole | 0x2C)
    ]
    assert [invalid_region(level) for level in range(1, 5)] == [
        *(0x20, 0x24, 0x28, 0x2C)
    ]


@pytest.mark.parametrize(
    ("level", "pa", "value"),
    [
        (REGION3, 0x45678000, 0x45678007),
        (3, 0x45678000, 0x4567800B),
        (4, 0x45678000, 0x4567800F),
        (SEGMENT, 0x56789000, 0x56789000),
    ],
)
def test_tables(level, pa, value):
    assert table_entry(level, pa) == value
    assert table_entry_format(level).accepts(value)


@pytest.mark.parametrize(
    ("level", "value"),
    [(1, 0x345601C3), (2, 0x345601C7), (3, 0x345601CB), (4, 0x345601CF)],
)
def test_roots(level, value):
    assert asce_of(level, 0x34560000) == value
    assert Asce.accepts(value)


def test_pgstes():
    value = Pgste.pack(acc=3, fp=1, gr=1, gc=1, usage=1, cmma_d=1, prefix_notif=1)

    assert value == 0x380600000100C000
    early = (PgsteEarly.uc.low, PgsteEarly.notify.low, PgsteEarly.vsie.low)
    moved = (PgsteMoved.uc.low, PgsteMoved.notify.low, PgsteMoved.vsie.low)
    assert (early, moved) == ((47, 46, 45), (15, 14, 13))
    with pytest.raises(EntryError):
        PgsteMoved.pack(vsie_gmem=1)


@pytest.mark.parametrize(
    ("pmd", "value"), [(0x1230F401, 0x12304400), (0x56789001, 0x56789000)]
)
def test_gmap_copies_the_host_s_segment(pmd, value):
    assert gmap_segment(pmd) == value


def test_a_large_copy_is_of_its_kind():
    assert GmapLarge.accepts(gmap_segment(0x1230F401))


@pytest.mark.parametrize(
    ("host", "protected", "value"),
    [
        pytest.param(HOST, False, 0x1234503F, id="dirty"),
        pytest.param(HOST, True, 0x1234523F, id="logged"),
        pytest.param({**HOST, "young": 0}, False, 0x1234543B, id="old"),
        pytest.param({**HOST, "dirty": 0}, False, 0x12345237, id="clean"),
        pytest.param({**HOST, "write": 0}, False, 0x1234521F, id="read-only"),
        pytest.param({**HOST, "exec": 0}, False, 0x1234513F, id="no code"),
        pytest.param({**HOST, "present": 0}, False, 0x400, id="none"),
    ],
)
def test_the_host_s_entry(host, protected, value):
    entry = HostPte.pack(pfn=PFN, **host)

    assert host_page(entry, protected=protected) == value


def test_indexes():
    gfn = 0x123456000 >> 12

    assert [index(gfn, level) for level in (REGION3, SEGMENT, PAGE)] == [2, 564, 86]


@pytest.mark.parametrize("level", range(1, 5), ids=LEVELS[1:])
def test_a_table_covers_what_its_entry_covers(level):
    assert pages(level) == pages(level - 1) * entries(level - 1)


# -- properties --------------------------------------------------------------------

PFNS = st.integers(0, (1 << 52) - 1)


@given(pfn=PFNS, writable=st.booleans(), write=st.booleans(), data=st.data())
def test_what_is_not_protected_is_dirty_and_writable(pfn, writable, write, data):
    entry = dat.link(PAGE, pfn, EMPTY, writable=writable, dirty=write and writable)
    steps = st.sampled_from(["age", "sync", "read", "write", "link"])
    for step in data.draw(st.lists(steps)):
        if step == "age":
            entry = dat.age(PAGE, entry)
        elif step == "sync":
            entry = dat.sync(entry)
        elif step == "link":
            entry = dat.link(PAGE, pfn, entry, writable=writable, dirty=False)
        elif step == "read" or writable:
            entry = dat.minor_fault(PAGE, entry, write=step == "write")
        fields = dat.OwnPte.unpack(entry)

        assert fields["p"] or (fields["d"] and fields["w"]), step
        assert fields["i"] or fields["pr"]
        assert fields["pfra"] == pfn


@given(entry=st.integers(0, (1 << 64) - 1), level=st.integers(0, 4))
def test_a_value_is_of_one_kind_at_most(entry, level):
    formats = [dat.token_format(level, hole) for hole in (False, True)]
    formats += [table_entry_format(level)] if level else []
    if level <= REGION3:
        formats.append(dat.large_format(level) if level else dat.OwnPte)

    assert sum(fmt.accepts(entry) for fmt in formats) <= 1


@pytest.mark.parametrize(
    "fmt",
    [HostPage, dat.OwnPte, dat.large_format(1), dat.large_format(2), Asce, Pgste],
    ids=lambda fmt: fmt.__name__,
)
@given(data=st.data())
def test_fields_go_in_and_out(fmt, data):
    values = {
        name: data.draw(st.integers(0, (1 << field.width) - 1)) << field.shift
        for name, field in fmt.fields.items()
        if field.fixed is None
    }

    entry = fmt.pack(**values)

    assert fmt.accepts(entry)
    assert {name: fmt.unpack(entry)[name] for name in values} == values


@given(pfn=st.integers(0, (1 << 44) - 1), bits=st.integers(0, 63))
def test_children_map_what_the_large_leaf_maps(pfn, bits):
    names = ("w", "d", "y", "sd", "p", "i")
    flags = {name: bits >> at & 1 for at, name in enumerate(names)}
    large = dat.large_format(SEGMENT).pack(pfra=pfn << 8, **flags)

    below = [dat.OwnPte.unpack(entry) for entry in dat.children(large, SEGMENT)]

    assert [row["pfra"] for row in below] == list(range(pfn << 8, pfn + 1 << 8))
    assert all(row[name] == flag for row in below for name, flag in flags.items())
