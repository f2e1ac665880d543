"""Radix trees: worked values of the fact sheet ppc, 3.1 to 3.4, and recorded ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_ppc.layout import Layout, decode, formats, from_memory, to_memory
from kvmarch_ppc.radix_pte import (
    LEAF_LEVELS,
    PAGE_ACCESSED,
    PAGE_DIRTY,
    PAGE_EXEC,
    PAGE_INVALID,
    PAGE_PRESENT,
    PAGE_PTE,
    PAGE_READ,
    PAGE_SOFT_DIRTY,
    PAGE_SPECIAL,
    PAGE_WRITE,
    PTE_BITS_MUST_MATCH,
    RADIX_PTE_NONE_MASK,
    Att,
    RadixWord,
    flags_built_pte,
    gpa_index,
    gpa_indexes,
    host_copied_pte,
    host_pte,
    make_radix_layout,
    pmd_leaf,
    pmd_populate,
    pmd_table,
    pte_bits_match,
    pte_dirty,
    pte_hw_valid,
    pte_mkclean,
    pte_mkold,
    pte_none,
    pte_pfn,
    pte_present,
    pte_write,
    pte_young,
    shift_to_level,
)

from kvmarch import EntryError, FormatError

K64 = make_radix_layout(65536)
K4 = make_radix_layout(4096)
OLD = make_radix_layout(65536, remains=True)
LAYOUTS = [
    pytest.param(K64, id="64K"),
    pytest.param(K4, id="4K"),
    pytest.param(OLD, id="64K, before v4.19"),
]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
any_layout = st.sampled_from([K64, K4, OLD])
R2 = 0xC000000123450187
R3 = 0xC000000123450387


def named(layout, level, kind):
    (row,) = [r for r in formats(layout) if (r.level, r.kind) == (level, kind)]
    return row.format


BUILT = [
    pytest.param(K64, 0x12345, 0, {"write": False}, 0xC000000123450105, id="R1"),
    pytest.param(K64, 0x12345, 0, {"write": True}, R2, id="R2"),
    pytest.param(K64, 0x18000, 2, {"write": False}, 0xC000000180000105, id="R6"),
    pytest.param(K4, 0x12345, 0, {"write": True}, 0xC000000012345187, id="R7"),
    pytest.param(
        K64,
        0x60000,
        0,
        {"write": True, "att": Att.NON_IDEMPOTENT},
        0xC0000006000001A7,
        id="R8",
    ),
]

COPIED = [
    pytest.param(K64, 0x12345, 0, {"write": True}, True, R3, id="R3"),
    pytest.param(
        K64, 0x12345, 0, {"write": False}, False, 0xC000000123450305, id="R4, no write"
    ),
    pytest.param(
        K64,
        0x12345,
        0,
        {"write": True, "dirty": True},
        False,
        0xC000000123450305,
        id="R4, R3 read only",
    ),
    pytest.param(K64, 0x14000, 1, {"write": True}, True, 0xC000000140000387, id="R5"),
    pytest.param(
        K64,
        0x60000,
        0,
        {"write": True, "att": Att.NON_IDEMPOTENT, "soft_dirty": False},
        True,
        0xC0000006000001A7,
        id="R8, copied",
    ),
    pytest.param(
        K64,
        0x273,
        0,
        {"write": False, "soft_dirty": False, "special": True},
        False,
        0xC000000002730505,
        id="recorded, zeropage",
    ),
]


@pytest.mark.parametrize(("layout", "pfn", "level", "flags", "value"), BUILT)
def test_leaves_built_from_flags(layout, pfn, level, flags, value):
    pte = flags_built_pte(layout, pfn, level, **flags)

    assert pte == value
    assert pte_pfn(layout, value) == pfn


@pytest.mark.parametrize(
    ("layout", "pfn", "level", "attributes", "writing", "value"), COPIED
)
def test_leaves_copied_from_the_host(layout, pfn, level, attributes, writing, value):
    host = host_pte(layout, pfn, level, **{"soft_dirty": True, **attributes})

    assert host_copied_pte(host, writing=writing) == value
    assert pte_pfn(layout, value) == pfn


LEAVES = [
    pytest.param(K64, 0, 0xC000000123450105, "RAE", 0x12345, id="R1"),
    pytest.param(K64, 0, R2, "RWCAE", 0x12345, id="R2"),
    pytest.param(K64, 0, R3, "RWCASE", 0x12345, id="R3"),
    pytest.param(K64, 0, 0xC000000123450305, "RASE", 0x12345, id="R4"),
    pytest.param(K64, 1, 0xC000000140000387, "RWCASE", 0x14000, id="R5"),
    pytest.param(K64, 2, 0xC000000180000105, "RAE", 0x18000, id="R6"),
    pytest.param(K4, 0, 0xC000000012345187, "RWCAE", 0x12345, id="R7"),
    pytest.param(K64, 0, 0xC0000006000001A7, "RWCAEI", 0x60000, id="R8"),
    pytest.param(K64, 0, 0xC000000123450087, "RWCE", 0x12345, id="R9, aged"),
    pytest.param(K64, 0, 0xC000000123450107, "RWAE", 0x12345, id="R9, clean"),
    # From the recording of 6.1: host_pfns says the frame.
    pytest.param(K64, 0, 0xC000000002D90387, "RWCASE", 0x2D9, id="fault"),
    pytest.param(K64, 0, 0xC000000002D90386, "RWCAS", 0x2D9, id="the host's own"),
    pytest.param(K64, 0, 0xC000000002D30105, "RAE", 0x2D3, id="ksm_reread, page 0"),
    pytest.param(K64, 0, 0xC000000002D30305, "RASE", 0x2D3, id="ksm_reread, page 1"),
    pytest.param(K64, 0, 0xC000000002D70307, "RWASE", 0x2D7, id="dirty_get"),
    pytest.param(K64, 0, 0xC000000002D70305, "RASE", 0x2D7, id="mprotect_ro"),
    pytest.param(K64, 0, 0xC000000002730505, "RAEZ", 0x273, id="zeropage"),
    pytest.param(K64, 1, 0xC00000002F800387, "RWCASE", 0x2F80, id="huge"),
    pytest.param(K64, 0, 0xC00000002F800387, "RWCASE", 0x2F80, id="huge_dirty_write"),
]
LETTERS = {
    "R": ("read", 1),
    "W": ("write", 1),
    "C": ("dirty", 1),
    "A": ("accessed", 1),
    "S": ("soft_dirty", 1),
    "Z": ("special", 1),
    "E": ("exec", 1),
    "I": ("att", Att.NON_IDEMPOTENT),
}


@pytest.mark.parametrize(("layout", "level", "value", "letters", "pfn"), LEAVES)
def test_leaves_decode_and_pack_again(layout, level, value, letters, pfn):
    fields = {"pfn": pfn, "present": 1, "pte": 1, **dict(map(LETTERS.get, letters))}

    kind, fmt, decoded = decode(layout, value, level)

    assert kind == "leaf"
    assert {name: v for name, v in decoded.items() if v} == fields
    assert fmt.pack(**fields) == value
    assert fmt.pack(**decoded) == value
    assert pte_hw_valid(value)
    assert pte_present(value)
    assert pmd_leaf(value)
    assert pte_pfn(layout, value) == pfn
    assert pte_young(value) == ("A" in letters)
    assert pte_dirty(value) == ("C" in letters)
    assert pte_write(value) == ("W" in letters)
    assert not pte_none(value)


@pytest.mark.parametrize(
    ("host", "writing", "leaf"),
    [
        pytest.param(0xC000000002D90386, True, 0xC000000002D90387, id="fault, page 0"),
        pytest.param(0xC000000002D30386, True, 0xC000000002D30387, id="fault, page 1"),
        pytest.param(0xC000000002D70386, True, 0xC000000002D70387, id="fault, page 2"),
        pytest.param(0xC000000002DC0386, True, 0xC000000002DC0387, id="fault, page 3"),
    ],
)
def test_recorded_leaves_follow_from_the_hosts_entries(host, writing, leaf):
    assert host_copied_pte(host, writing=writing) == leaf


def test_aging_and_cleaning_clear_one_bit_each():
    assert pte_mkold(R2) == 0xC000000123450087
    assert pte_mkclean(R2) == 0xC000000123450107


DIRECTORIES = [
    pytest.param(K64, 1, 0x2000AB00, 5, 0x800000002000AB05, id="D1"),
    pytest.param(K4, 1, 0x2000A000, 9, 0x800000002000A009, id="D2"),
    pytest.param(K64, 3, 0x2000C000, 9, 0x800000002000C009, id="D3"),
    pytest.param(K64, 2, 0x21CE000, 9, 0x80000000021CE009, id="recorded, PUD to PMD"),
    pytest.param(K64, 3, 0x24A4000, 9, 0x80000000024A4009, id="recorded, PGD to PUD"),
]


@pytest.mark.parametrize(("layout", "level", "pa", "nls", "value"), DIRECTORIES)
def test_directory_entries(layout, level, pa, nls, value):
    kind, fmt, fields = decode(layout, value, level)

    assert pmd_populate(layout, level, pa) == value
    assert pmd_table(layout, level, value) == pa
    assert kind == "table"
    assert fields == {"present": 1, "pte": 0, "pa": pa, "nls": nls}
    assert fmt.pack(pa=pa) == value
    assert not pmd_leaf(value)
    assert not pte_hw_valid(value)


GPA = 0x12345678000


@pytest.mark.parametrize(
    ("layout", "indexes", "shifts", "sizes"),
    [
        pytest.param(
            K64, (2, 141, 43, 7), (16, 21, 30, 39), (256, 4096, 4096, 65536), id="I1"
        ),
        pytest.param(
            K4, (2, 141, 43, 120), (12, 21, 30, 39), (4096, 4096, 4096, 65536), id="I2"
        ),
    ],
)
def test_geometry(layout, indexes, shifts, sizes):
    assert gpa_indexes(layout, GPA) == indexes
    assert tuple(gpa_index(layout, GPA, level) for level in (3, 2, 1, 0)) == indexes
    assert layout.level_shift == shifts
    assert layout.table_bytes == sizes
    assert layout.page_shift + sum(layout.index_bits) == 52
    assert layout.level_pages[1] << layout.page_shift == 2 << 20
    assert layout.level_pages[2] << layout.page_shift == 1 << 30


def test_the_recorded_huge_page_is_at_the_entries_that_were_found():
    assert gpa_indexes(K64, 0x40000000) == (0, 1, 0, 0)
    # The PUD's entry was at 0x24a4008, the PGD's at 0x21e0000.
    assert 0x24A4000 + 8 * gpa_index(K64, 0x40000000, RadixWord.PUD) == 0x24A4008


@pytest.mark.parametrize(
    ("layout", "levels"),
    [
        pytest.param(K64, {0: 0, 16: 0, 21: 1, 30: 2}, id="64K"),
        pytest.param(K4, {0: 0, 12: 0, 21: 1, 30: 2}, id="4K"),
    ],
)
def test_shifts_are_levels(layout, levels):
    assert {shift: shift_to_level(layout, shift) for shift in levels} == levels
    for shift in (39, 24):
        with pytest.raises(EntryError, match=f"no leaf has shift {shift}"):
            shift_to_level(layout, shift)


@pytest.mark.parametrize(
    ("pte", "none", "hw_valid", "present", "kind"),
    [
        pytest.param(0, True, False, False, "none", id="cleared"),
        pytest.param(0x180, True, False, False, "none", id="late R and C"),
        pytest.param(0x100, True, False, False, "none", id="late R"),
        pytest.param(0x102, False, False, False, "unknown", id="late R, and more"),
        pytest.param(R2, False, True, True, "leaf", id="leaf"),
        pytest.param(0x6000000123450187, False, False, True, "invalid", id="invalid"),
        pytest.param(0x4000000123450187, False, False, False, "unknown", id="remains"),
        pytest.param(0x2000000123450187, False, False, False, "unknown", id="no PTE"),
        pytest.param(0x8000000123450187, False, False, False, "unknown", id="no leaf"),
    ],
)
def test_entries_that_are_not_present(pte, none, hw_valid, present, kind):
    assert pte_none(pte) == none
    assert pte_hw_valid(pte) == hw_valid
    assert pte_present(pte) == present
    assert decode(K64, pte, RadixWord.PTE).kind == kind


def test_before_v4_19_unmapping_leaves_everything_but_present():
    left = R2 & ~PAGE_PRESENT

    kind, fmt, fields = decode(OLD, left, RadixWord.PTE)

    assert kind == "remains"
    assert fmt.pack(**fields) == left
    assert fields["pfn"] == 0x12345


def test_late_r_and_c_are_known_at_the_lowest_level_only():
    kinds = [decode(K64, RADIX_PTE_NONE_MASK, level).kind for level in range(4)]

    assert kinds == ["none", "unknown", "unknown", "unknown"]


def test_the_root_level_has_no_leaves():
    assert decode(K64, 0xC000008000000187, RadixWord.PGD).kind == "unknown"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(0, True, id="nothing"),
        pytest.param(PAGE_WRITE | PAGE_DIRTY | PAGE_ACCESSED, True, id="W, C, R"),
        pytest.param(PAGE_SOFT_DIRTY, False, id="soft dirty"),
        pytest.param(PAGE_SPECIAL, False, id="special"),
        pytest.param(PAGE_EXEC, False, id="exec"),
        pytest.param(PAGE_READ, False, id="read"),
        pytest.param(0x10000, False, id="frame"),
    ],
)
def test_two_faults_on_one_page_must_agree(change, match):
    assert pte_bits_match(R2, R2 ^ change) == match
    assert bool(PTE_BITS_MUST_MATCH & change) != match


LEAF = named(K64, 0, "leaf")
READ_ONLY = 0xC000000123450105


@pytest.mark.parametrize(
    ("fmt", "old", "new", "may"),
    [
        pytest.param(LEAF, R2, 0, True, id="unmap"),
        pytest.param(LEAF, R2, R2 & ~PAGE_PRESENT, True, id="unmap, old"),
        pytest.param(LEAF, READ_ONLY, R2, True, id="add W and C"),
        pytest.param(LEAF, R2, pte_mkold(R2), True, id="age"),
        pytest.param(LEAF, R2, pte_mkclean(R2), True, id="clean"),
        pytest.param(LEAF, R2, READ_ONLY, False, id="write-protect"),
        pytest.param(LEAF, R2, R3, False, id="soft dirty"),
        pytest.param(LEAF, R2, R2 + 0x10000, False, id="other page"),
        pytest.param(LEAF, R2, 0x800000002000AB05, False, id="leaf to table"),
        pytest.param(
            named(K64, 1, "table"), 0x800000002000AB05, 0, True, id="unlink a table"
        ),
        pytest.param(
            named(K64, 1, "table"),
            0x800000002000AB05,
            0xC000000140000387,
            False,
            id="table to leaf",
        ),
        pytest.param(named(K64, 0, "none"), 0, R2, True, id="map"),
        pytest.param(
            named(K64, 0, "invalid"),
            R2 ^ PAGE_PRESENT ^ PAGE_INVALID,
            R2,
            True,
            id="back",
        ),
    ],
)
def test_laws_for_live_entries(fmt, old, new, may):
    assert fmt.may_change(old, new) == may


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(
            lambda: flags_built_pte(K64, 0x12345, 1, write=True),
            "0x12345 is not the first of a leaf of level 1",
            id="unaligned leaf",
        ),
        pytest.param(
            lambda: host_pte(K64, 1 << 37, write=True),
            "not the first of a leaf of level 0",
            id="frame beyond 53 bits",
        ),
        pytest.param(
            lambda: pmd_populate(K4, 1, 0x2000AB00),
            "0x2000ab00 is no place for a table of 4096 bytes",
            id="unaligned table",
        ),
        pytest.param(
            lambda: LEAF.pack(pfn=1, presnt=1), "has no field presnt", id="misspelt"
        ),
        pytest.param(
            lambda: named(K64, 1, "leaf").pack(pfn=0x12345),
            "0x12345 is no multiple of 0x20",
            id="unaligned field",
        ),
        pytest.param(
            lambda: decode(K64, 0, 7), "radix has no level 7; there is 0, 1", id="level"
        ),
        pytest.param(
            lambda: decode(K64, 1 << 64, 0), "is no 64-bit value", id="too wide"
        ),
        pytest.param(lambda: decode(K64, -1, 0), "is no 64-bit value", id="negative"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(EntryError, match=message):
        make()


def test_there_are_two_page_sizes():
    with pytest.raises(FormatError, match="no page size 16384 here; there is 4096"):
        make_radix_layout(16384)


def test_the_same_configuration_is_the_same_layout():
    assert make_radix_layout(65536) is K64
    assert isinstance(K64, Layout)
    assert {row.kind for row in formats(K64) if row.maps} == {"leaf", "invalid"}


@every_layout
def test_masks_are_read_off_the_formats(layout):
    mask = (1 << 53) - 1 & -(1 << layout.page_shift)

    assert layout.rpn_mask == mask
    for level in LEAF_LEVELS:
        covered = (1 << layout.level_shift[level]) - 1
        assert layout.leaf_masks[level] == mask & ~covered
    assert (PAGE_PRESENT, PAGE_PTE, PAGE_INVALID) == (1 << 63, 1 << 62, 1 << 61)
    assert RADIX_PTE_NONE_MASK == 0x180


@given(st.data(), any_layout, st.sampled_from(LEAF_LEVELS))
def test_copied_leaves_say_what_the_host_said(data, layout, level):
    frames = 53 - layout.level_shift[level]
    pfn = data.draw(st.integers(0, (1 << frames) - 1)) * layout.level_pages[level]
    flags = data.draw(
        st.fixed_dictionaries(
            dict.fromkeys(("write", "dirty", "soft_dirty", "special"), st.booleans())
        )
    )
    att, writing = data.draw(st.sampled_from(Att)), data.draw(st.booleans())

    pte = host_copied_pte(
        host_pte(layout, pfn, level, att=att, **flags), writing=writing
    )

    kind, fmt, fields = decode(layout, pte, level)
    wrote = writing and flags["write"]
    assert kind == "leaf"
    assert fmt.pack(**fields) == pte
    assert from_memory(to_memory(pte)) == pte
    assert fields == {
        "present": 1,
        "pte": 1,
        "sw0": 0,
        "pfn": pfn,
        "sw1": 0,
        "special": flags["special"],
        "soft_dirty": flags["soft_dirty"],
        "accessed": 1,
        "dirty": wrote,
        "att": att,
        "privileged": 0,
        "read": 1,
        "write": wrote,
        "exec": 1,
    }


@given(any_layout, st.integers(0, (1 << 52) - 1))
def test_indexes_and_offset_give_the_address_back(layout, gpa):
    indexes = gpa_indexes(layout, gpa)

    parts = zip(reversed(indexes), layout.level_shift, strict=True)
    assert sum(i << s for i, s in parts) == gpa & -(1 << layout.page_shift)
