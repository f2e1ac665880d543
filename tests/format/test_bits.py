"""Fields and entry formats, on formats made up here."""

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarch.errors import EntryError, FormatError
from kvmarch.format.bits import EntryFormat, Field

ALL_ONES = (1 << 64) - 1


class Access(IntEnum):
    NONE, READ, WRITE, READ_WRITE = range(4)


class Leaf(EntryFormat):
    """Fields shared by pages and blocks."""

    live_changes = 1 << 10
    valid = Field(0)
    memattr = Field(5, 2, doc="memory type")
    access = Field(7, 6, enum=Access, doc="permission")
    sh = Field(9, 8)
    young = Field(10, doc="accessed")
    xn = Field(54)


class Page(Leaf):
    """A page."""

    kind = Field(1, fixed=1)
    pfn = Field(47, 12)


class Block(Leaf):
    """A block: wider pages, and it may always be executed."""

    kind = Field(1, fixed=0, doc="a block")
    pfn = Field(47, 21)
    xn = None


class Split(EntryFormat):
    """A generation in two runs of bits, as MMIO entries have it."""

    generation = Field(10, 3, parts=((62, 52),))
    mark = Field(11)


class Huge(EntryFormat):
    """A page of 2 MiB: its frame number is a multiple of 512."""

    access = Field(7, 6, enum=Access)
    pfn = Field(47, 21, shift=9)
    kind = Field(63, 60, enum=IntEnum("Kind", {"RAM": 1, "MMIO": 4}))


class Word(EntryFormat):
    """An entry of 32 bits."""

    width = 32
    pfn = Field(31, 6)
    valid = Field(0)


@pytest.mark.parametrize(
    ("kind", "fields", "entry"),
    [
        pytest.param(Page, {}, 0b10, id="only-fixed"),
        pytest.param(
            Page,
            {
                "valid": 1,
                "pfn": 0x12345,
                "access": 3,
                "memattr": 0xF,
                "sh": 3,
                "young": 1,
            },
            0x123457FF,
            id="page",
        ),
        pytest.param(Page, {"kind": 1, "valid": 1}, 0b11, id="fixed-given"),
        pytest.param(Page, {"xn": 1}, 1 << 54 | 0b10, id="high-bit"),
        pytest.param(Block, {"valid": 1, "pfn": 1}, 0x200001, id="block"),
        pytest.param(Split, {"generation": 1}, 1 << 3, id="split-low"),
        pytest.param(Split, {"generation": 1 << 8}, 1 << 52, id="split-high"),
        pytest.param(
            Split,
            {"generation": 0x12346 & 0x7FFFF},
            0x1230000000000230,
            id="generation-0x12346",
        ),
        pytest.param(Huge, {"pfn": 0x200, "kind": 1}, 1 << 60 | 1 << 21, id="shifted"),
        pytest.param(Huge, {"kind": 4, "access": 0}, 4 << 60, id="named"),
        pytest.param(Word, {"pfn": 0x3FFFFFF, "valid": 1}, 0xFFFFFFC1, id="32-bits"),
    ],
)
def test_pack_and_unpack_agree(kind, fields, entry):
    packed = kind.pack(**fields)
    unpacked = kind.unpack(entry)

    assert packed == entry
    assert {n: v for n, v in unpacked.items() if n in fields} == fields
    assert kind.pack(**unpacked) == entry
    assert kind.accepts(entry)


@given(st.integers(0, ALL_ONES).map(lambda bits: bits & Page.known | Page.kind_value))
def test_every_page_survives_the_round_trip(entry):
    assert Page.pack(**Page.unpack(entry)) == entry


@given(st.integers(0, ALL_ONES), st.integers(0, (1 << 19) - 1))
def test_a_split_field_holds_what_was_put_in(entry, value):
    field = Split.generation

    changed = field.set(entry, value)

    assert field.get(changed) == value
    assert changed & ~field.mask == entry & ~field.mask


@given(st.integers(0, ALL_ONES))
def test_accepts_is_check_without_an_error(entry):
    try:
        Block.check(entry)
        fine = True
    except EntryError:
        fine = False

    assert Block.accepts(entry) == fine


@pytest.mark.parametrize("bit", range(64))
def test_every_bit_is_known_or_refused(bit):
    entry = Page.kind_value ^ 1 << bit

    if Page.known & ~Page.kind_mask & 1 << bit:
        assert Page.accepts(entry)
        assert Page.pack(**Page.unpack(entry)) == entry
    else:
        with pytest.raises(EntryError, match=rf"does not know bit {bit}$|kind is"):
            Page.unpack(entry)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        pytest.param(
            Page,
            {"vaild": 1},
            r"Page has no field vaild; there is xn, pfn, young, sh, access, memattr, "
            r"kind, valid",
            id="unknown-field",
        ),
        pytest.param(
            Page, {"sh": 4}, r"sh: 0x4 does not fit into 2 bits", id="too-large"
        ),
        pytest.param(
            Page, {"sh": -1}, r"sh: -0x1 does not fit into 2 bits", id="negative"
        ),
        pytest.param(
            Page, {"kind": 0}, r"Page.kind is always 0x1, not 0x0", id="fixed"
        ),
        pytest.param(Block, {"xn": 1}, r"Block has no field xn", id="dropped"),
        pytest.param(
            Huge, {"pfn": 0x201}, r"pfn: 0x201 is no multiple of 0x200", id="not-stored"
        ),
        pytest.param(
            Huge, {"pfn": 1 << 36}, r"pfn: .* does not fit into 27 bits", id="shifted"
        ),
        pytest.param(
            Huge,
            {"kind": 2},
            r"Huge.kind: 0x2 has no name; there is RAM\(0x1\), MMIO\(0x4\)",
            id="unnamed",
        ),
        pytest.param(
            Split,
            {"generation": 1 << 19},
            r"generation: 0x80000 does not fit into 19 bits",
            id="split-too-large",
        ),
    ],
)
def test_pack_refuses(kind, fields, message):
    with pytest.raises(EntryError, match=message):
        kind.pack(**fields)


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        pytest.param(Page, 1 << 64, r"is no 64-bit value", id="65-bits"),
        pytest.param(Page, -1, r"is no 64-bit value", id="negative"),
        pytest.param(Word, 1 << 32, r"is no 32-bit value", id="33-bits-of-32"),
        pytest.param(Page, 1 << 63 | 2, r"does not know bit 63", id="stray-bit"),
        pytest.param(Page, 2 | 0b11 << 48, r"bit 48, 49", id="stray-bits"),
        pytest.param(Page, 1, r"Page.kind is always 0x1", id="other-kind"),
        pytest.param(Block, 1 << 54, r"does not know bit 54", id="dropped-field"),
        pytest.param(
            Huge, 2 << 60, r"Huge.kind is 0x2; there is RAM\(0x1\), MMIO", id="unnamed"
        ),
    ],
)
def test_unpack_refuses(kind, entry, message):
    with pytest.raises(EntryError, match=message):
        kind.unpack(entry)
    assert not kind.accepts(entry)


@pytest.mark.parametrize(
    ("arguments", "parts", "message"),
    [
        pytest.param((3, 5), (), r"bits 3:5 are no run of bits", id="upside-down"),
        pytest.param((-1,), (), r"bits -1:-1 are no run of bits", id="negative"),
        pytest.param(
            (7, 4), ((5, 5),), r"bits 5:5 are claimed twice in a field", id="twice"
        ),
        pytest.param((3,), ((1, 2),), r"bits 1:2 are no run", id="part-upside-down"),
    ],
)
def test_a_field_refuses(arguments, parts, message):
    with pytest.raises(FormatError, match=message):
        Field(*arguments, parts=parts)


@pytest.mark.parametrize(
    ("base", "fields", "message"),
    [
        pytest.param(
            EntryFormat,
            {"one": Field(7, 4), "two": Field(5)},
            r"Broken\.(one|two): bits .* overlap (two|one)",
            id="overlap",
        ),
        pytest.param(
            Page, {"extra": Field(12)}, r"Broken.* overlap", id="overlap-inherited"
        ),
        pytest.param(
            EntryFormat,
            {"far": Field(64)},
            r"Broken.far: bits 64 are beyond the 64 bits of an entry",
            id="beyond",
        ),
        pytest.param(
            Word,
            {"far": Field(32)},
            r"Broken.far: bits 32 are beyond the 32 bits",
            id="beyond-32",
        ),
    ],
)
def test_a_format_refuses(base, fields, message):
    with pytest.raises(FormatError, match=message):
        type("Broken", (base,), fields)


def test_a_fixed_value_must_fit():
    with pytest.raises(EntryError, match="does not fit into 1 bits"):
        type("Broken", (EntryFormat,), {"kind": Field(0, fixed=2)})


def test_fields_are_listed_highest_bit_first():
    assert list(Page.fields) == [
        "xn",
        "pfn",
        "young",
        "sh",
        "access",
        "memattr",
        "kind",
        "valid",
    ]
    assert "xn" not in Block.fields
    assert list(Leaf.fields) == ["xn", "young", "sh", "access", "memattr", "valid"]


def test_a_subclass_moves_a_field():
    moved = type("Moved", (Page,), {"xn": Field(63)})

    assert moved.pack(xn=1) == 1 << 63 | 2
    assert Page.pack(xn=1) == 1 << 54 | 2


def test_bits_are_printed_as_documents_do():
    assert Page.pfn.bits == "47:12"
    assert Page.young.bits == "10"
    assert Split.generation.bits == "62:52+10:3"
    assert repr(Page.pfn) == "Field(pfn 47:12)"


def test_show_names_values_and_leaves_out_zero_and_fixed():
    entry = Page.pack(valid=1, access=3, pfn=0x10)

    assert Page.show(entry) == "pfn=0x10 access=READ_WRITE(0x3) valid=1"
    assert Page.show(Page.kind_value) == ""


def test_show_prints_a_value_without_a_name_as_a_number():
    field = Field(7, 4, enum=Access)

    assert field.show(9) == "0x9"


def test_a_shifted_field_speaks_the_number():
    entry = Huge.pfn.set(Huge.pack(kind=1), 0x12200)

    assert Huge.pfn.get(entry) == 0x12200
    assert Huge.unpack(entry)["pfn"] == 0x12200
    assert Huge.show(entry) == "kind=RAM(0x1) pfn=0x12200"


def test_rows_print_doc_and_fixed_value():
    rows = {name: (bits, text) for bits, name, text in Block.rows()}

    assert rows["kind"] == ("1", "a block; always 0x0")
    assert rows["memattr"] == ("5:2", "memory type")
    assert rows["sh"] == ("9:8", "")


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        pytest.param(0x3, 0x3, True, id="same"),
        pytest.param(0x3, 0x403, True, id="live-bit"),
        pytest.param(0x3, 0x43, False, id="other-bit"),
        pytest.param(0x3, 0x443, False, id="both"),
    ],
)
def test_a_live_entry_changes_only_as_its_format_allows(old, new, allowed):
    assert Page.may_change(old, new) is allowed
