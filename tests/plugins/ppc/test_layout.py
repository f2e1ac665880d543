"""Layouts: every value of every word has one meaning, or none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_ppc.e500_tlbe import make_e500_layout
from kvmarch_ppc.hpt import make_hash_layout, make_pr_layout
from kvmarch_ppc.layout import Layout, decode, formats, from_memory, to_memory
from kvmarch_ppc.radix_pte import make_radix_layout

from kvmarch import EntryError, EntryKind, FormatError

LAYOUTS = {
    "radix 64K": make_radix_layout(65536),
    "radix 4K": make_radix_layout(4096),
    "radix before v4.19": make_radix_layout(remains=True),
    "hash": make_hash_layout(),
    "hash 4K": make_hash_layout(4096),
    "hash ISA 3.0": make_hash_layout(isa300=True),
    "pr": make_pr_layout(),
    "pr ISA 3.0": make_pr_layout(isa300=True),
    "e500": make_e500_layout(),
    "e500 before v6.13": make_e500_layout(writable=False),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
any_layout = st.sampled_from(list(LAYOUTS.values()))


def bits_of(field):
    return {b for top, low in field.parts for b in range(low, top + 1)}


@every_layout
def test_every_flipped_bit_is_known_or_refused(layout):
    for row in formats(layout):
        fields = row.format.fields.values()
        known = {b for f in fields for b in bits_of(f)}
        fixed = {b for f in fields if f.fixed is not None for b in bits_of(f)}
        for number in range(row.format.width):
            value = row.format.kind_value ^ 1 << number
            accepted = number in known - fixed

            assert row.format.accepts(value) == accepted
            if accepted:
                assert row.format.pack(**row.format.unpack(value)) == value
            else:
                with pytest.raises(EntryError):
                    row.format.unpack(value)


@every_layout
def test_words_of_one_level_are_equally_wide(layout):
    for level, rows in layout.by_level.items():
        assert len({row.format.width for row in rows}) == 1
        assert {row.level for row in rows} == {level}
        assert len({row.kind for row in rows}) == len(rows)


@given(st.data(), any_layout)
def test_no_value_has_two_meanings(data, layout):
    level = data.draw(st.sampled_from(sorted(layout.by_level)))
    rows = layout.by_level[level]
    width = rows[0].format.width
    value = data.draw(st.integers(0, (1 << width) - 1))
    likely = [r.format.kind_value | value & ~r.format.kind_mask for r in rows]
    closer = [entry & r.format.known for entry, r in zip(likely, rows, strict=True)]
    for entry in (value, *likely, *closer):
        accepting = [r for r in rows if r.format.accepts(entry)]

        assert len(accepting) <= 1
        kind, fmt, fields = decode(layout, entry, level)
        if not accepting:
            assert (kind, fmt, fields) == ("unknown", None, {})
        else:
            assert (kind, fmt) == (accepting[0].kind, accepting[0].format)
            assert fmt.pack(**fields) == entry
        assert from_memory(to_memory(entry, width)) == entry


@every_layout
def test_formats_exclude_each_other(layout):
    for rows in layout.by_level.values():
        for one in rows:
            for other in rows:
                if one is other or {one.kind, other.kind} == {"absent", "mmio"}:
                    continue
                a, b = one.format, other.format
                differ = (a.kind_value ^ b.kind_value) & a.kind_mask & b.kind_mask
                beyond = a.kind_value & ~b.known | b.kind_value & ~a.known

                assert differ or beyond, f"{one.kind} and {other.kind}"


@every_layout
def test_every_field_is_documented(layout):
    for row in formats(layout):
        assert isinstance(row, EntryKind)
        assert row.format.__doc__
        for bits, name, meaning in row.format.rows():
            assert meaning, f"{row.format.__name__} {bits} {name}"


@every_layout
@pytest.mark.parametrize(
    ("entry", "level", "message"),
    [
        pytest.param(0, 9, "has no level 9; there is 0, 1", id="level"),
        pytest.param(1 << 128, 0, "is no (32|64|128)-bit value", id="too wide"),
        pytest.param(-1, 0, "is no (32|64|128)-bit value", id="negative"),
    ],
)
def test_what_is_no_value_is_refused(layout, entry, level, message):
    with pytest.raises(EntryError, match=message):
        decode(layout, entry, level)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        pytest.param(make_radix_layout, "4096, 65536", id="radix"),
        pytest.param(make_hash_layout, "4096, 65536", id="hash"),
        pytest.param(make_pr_layout, "4096, 65536", id="pr"),
        pytest.param(make_e500_layout, "4096", id="e500"),
    ],
)
def test_page_sizes_are_the_mmus(make, sizes):
    with pytest.raises(FormatError, match=f"no page size 16384 here; there is {sizes}"):
        make(16384)
    assert make(4096) is make(4096)
    assert isinstance(make(4096), Layout)
    assert make(4096).page_shift == 12


@pytest.mark.parametrize(
    ("entry", "width", "raw"),
    [
        pytest.param(0xC000000123450187, 64, "c000000123450187", id="R2"),
        pytest.param(0x800000002000AB05, 64, "800000002000ab05", id="D1"),
        pytest.param(
            0x00000001234560810000000005ABC192,
            128,
            "00000001234560810000000005abc192",
            id="HPTE",
        ),
    ],
)
def test_entries_are_big_endian_in_memory(entry, width, raw):
    assert to_memory(entry, width) == bytes.fromhex(raw)
    assert from_memory(bytes.fromhex(raw)) == entry
