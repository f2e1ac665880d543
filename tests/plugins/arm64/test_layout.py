import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_arm64.formats import (
    INVALID_ENCODINGS,
    SOFTWARE_BITS,
    InvalidType,
    PkvmPageState,
)
from kvmarch_arm64.layout import decode, formats, make_layout
from kvmarch_arm64.pte import kvm_pte_table, kvm_pte_valid, may_change

from kvmarch import EntryError, FormatError

SHAPES = [
    pytest.param(4096, False, id="4K"),
    pytest.param(4096, True, id="4K-LPA2"),
    pytest.param(16384, False, id="16K"),
    pytest.param(16384, True, id="16K-LPA2"),
    pytest.param(65536, False, id="64K"),
]

# Words of the host's own (stage 1) tables that the recording shows beside.
STAGE_1 = [
    0xE8000043800F07,
    0xE8000043801F07,
    0xE8000043802F07,
    0xE8000043803F07,
    0xE800007FFE4F07,
    0xE8000043431F07,
    0x180000007FFE4003,
    0x180000007FE01003,
]


def all_layouts():
    return [
        make_layout(size, lpa2=lpa2, fwb=fwb, xnx=xnx, invalid=invalid, software=sw)
        for size, lpa2 in (param.values for param in SHAPES)
        for fwb in (False, True)
        for xnx in (False, True)
        for invalid in INVALID_ENCODINGS
        for sw in SOFTWARE_BITS
    ]


layouts = st.sampled_from(all_layouts())
PAGE = 0x00400000800007FF


def formats_of(layout, level=3):
    return [(kind, fmt) for at, kind, fmt in formats(layout) if at == level]


def test_same_bits_mean_another_page_with_lpa2():
    plain = decode(make_layout(), 0x00400000800007FF, 3).fields
    lpa2 = decode(make_layout(lpa2=True), 0x00400000800007FF, 3).fields

    assert plain["pfn"] == 0x80000
    assert plain["sh"] == 3
    assert lpa2["pfn"] == 0xC_0000_8000_0
    assert "sh" not in lpa2


@pytest.mark.parametrize("entry", STAGE_1, ids=hex)
def test_stage_1_entries_are_refused_by_every_layout(entry):
    found = {
        decode(layout, entry, level).kind
        for layout in all_layouts()
        for level in range(4)
    }

    assert found == {"unknown"}


@pytest.mark.parametrize(
    ("invalid", "entry", "kind", "fields"),
    [
        pytest.param("zero", 0, "empty", {}, id="old-mmu"),
        pytest.param("remains", 0, "empty", {}, id="v5.10-empty"),
        pytest.param(
            "remains", 0x00400000800007FE, "page-remains", {"pfn": 0x80000}, id="20"
        ),
        pytest.param("owner63", 0x0100000000000000, "owner", {"owner": 1}, id="v5.14"),
        pytest.param("owner9", 0x4, "owner", {"owner": 1}, id="v5.15"),
        pytest.param("locked", 0x4, "owner", {"owner": 1}, id="v6.2-owner"),
        pytest.param("locked", 0x400, "locked", {"locked": 1}, id="v6.2-locked"),
        pytest.param(
            "typed",
            0x1000000000000000,
            "locked",
            {"type": InvalidType.LOCKED},
            id="v7.1-locked",
        ),
        pytest.param(
            "typed",
            0x2000000000000052,
            "donation",
            {"type": InvalidType.DONATION, "owner": 1, "extra": 5},
            id="v7.1-donation",
        ),
        pytest.param(
            "typed",
            0x3000000000000000,
            "poisoned",
            {"type": InvalidType.POISONED},
            id="v7.1-poisoned",
        ),
        pytest.param("zero", 0x00400000800007FE, "unknown", {}, id="remains-old-mmu"),
        pytest.param("owner63", 0x00400000800007FE, "unknown", {}, id="remains-v5.13"),
        pytest.param("owner9", 0x400, "unknown", {}, id="locked-before-v6.2"),
        pytest.param("locked", 0x404, "unknown", {}, id="locked-and-owned"),
        pytest.param("typed", 0x400, "unknown", {}, id="old-lock-in-v7.1"),
        pytest.param("typed", 0x4000000000000000, "unknown", {}, id="type-4"),
    ],
)
def test_invalid_entry(invalid, entry, kind, fields):
    layout = make_layout(invalid=invalid)

    found = decode(layout, entry, 3)

    assert found.kind == kind
    assert fields.items() <= found.fields.items()
    if found.format is not None:
        assert found.format.pack(**found.fields) == entry
    assert not kvm_pte_valid(entry)
    assert not kvm_pte_table(entry, 2)


@pytest.mark.parametrize(
    ("entry", "level", "kind"),
    [
        pytest.param(0x8_1234_5002, 2, "table-remains", id="table"),
        pytest.param(0x00400000402007FC, 2, "block-remains", id="block"),
        pytest.param(0x00400000402007FC, 3, "unknown", id="block-at-level-3"),
        pytest.param(0x00400000402007FC, 0, "unknown", id="block-at-level-0"),
        pytest.param(0x00400000402007FD, 0, "unknown", id="valid-block-at-level-0"),
        pytest.param(0x00400000402007FD, 3, "unknown", id="valid-block-at-level-3"),
        pytest.param(0x00400000402017FD, 2, "unknown", id="block-not-aligned"),
    ],
)
def test_kinds_belong_to_levels(entry, level, kind):
    assert decode(make_layout(invalid="remains"), entry, level).kind == kind


@pytest.mark.parametrize("level", [-1, 4])
def test_no_such_level(level):
    with pytest.raises(EntryError, match="levels 0 to 3"):
        decode(make_layout(), 0, level)


def test_no_such_value():
    with pytest.raises(EntryError, match="no 64-bit value"):
        decode(make_layout(), 1 << 64, 3)


@pytest.mark.parametrize(
    ("invalid", "locked"),
    [("owner9", None), ("locked", 0x400), ("typed", 0x1000000000000000)],
)
def test_what_the_break_step_stores(invalid, locked):
    assert make_layout(invalid=invalid).locked == locked


@pytest.mark.parametrize(("page_size", "lpa2"), SHAPES)
@pytest.mark.parametrize("invalid", INVALID_ENCODINGS)
@pytest.mark.parametrize("software", SOFTWARE_BITS)
def test_a_flipped_bit_is_known_or_refused(page_size, lpa2, invalid, software):
    layout = make_layout(page_size, lpa2=lpa2, invalid=invalid, software=software)

    for level, _, fmt in formats(layout):
        whole = {
            name: field.get(field.mask)
            for name, field in fmt.fields.items()
            if field.fixed is None and field.enum is None
        }
        for entry in (fmt.pack(), fmt.pack(**whole)):
            for bit in range(64):
                flipped = entry ^ 1 << bit
                kind, found, fields = decode(layout, flipped, level)
                assert (found is None) == (kind == "unknown")
                if found is not None:
                    assert found.pack(**fields) == flipped
                if not fmt.known >> bit & 1:
                    with pytest.raises(EntryError):
                        fmt.unpack(flipped)


@pytest.mark.parametrize("bit", [11, 50, 51, 52, 59, 60, 61, 62, 63])
def test_bits_that_kvm_never_sets_are_unknown(bit):
    assert decode(make_layout(), PAGE | 1 << bit, 3).kind == "unknown"


def test_memory_type_of_the_wrong_kind_is_unknown():
    assert decode(make_layout(fwb=True), PAGE, 3).kind == "unknown"
    with pytest.raises(EntryError, match="memattr is 0xf; there is DEVICE_nGnRE"):
        dict(formats_of(make_layout(fwb=True)))["page"].unpack(PAGE)


def test_block_frame_must_be_aligned():
    block = dict(formats_of(make_layout(), 2))["block"]

    with pytest.raises(EntryError, match="no multiple of 0x200"):
        block.pack(pfn=0x201)


@given(layout=layouts, entry=st.integers(0, 2**64 - 1), level=st.integers(0, 3))
def test_any_value_is_at_most_one_kind(layout, entry, level):
    accepting = [kind for kind, fmt in formats_of(layout, level) if fmt.accepts(entry)]

    assert decode(layout, entry, level).kind in (accepting or ["unknown"])
    assert len(accepting) <= 1 or (entry == 0 and set(accepting) == {"empty", "owner"})


@pytest.mark.parametrize(
    ("software", "entry", "fields"),
    [
        pytest.param("plain", 0x00C00000800007FF, {"sw": 1}, id="plain"),
        pytest.param(
            "nested", 0x01400000800007FF, {"sw": 0, "guest_level": 2}, id="nested"
        ),
        pytest.param(
            "pkvm",
            0x01400000800007FF,
            {"state": PkvmPageState.SHARED_BORROWED},
            id="pkvm-borrowed",
        ),
        pytest.param(
            "pkvm",
            0x00C00000800007FF,
            {"state": PkvmPageState.SHARED_OWNED},
            id="pkvm-owned",
        ),
    ],
)
def test_software_bits(software, entry, fields):
    layout = make_layout(software=software)

    found = decode(layout, entry, 3)

    assert found.kind == "page"
    assert fields.items() <= found.fields.items()
    assert may_change(layout, PAGE, entry)


def test_pkvm_page_state_3_is_unknown():
    assert decode(make_layout(software="pkvm"), PAGE | 3 << 55, 3).kind == "unknown"


def test_layout_is_made_once():
    assert make_layout(4096, fwb=True) is make_layout(4096, fwb=True)
    assert make_layout(16384, lpa2=True, dic=True).name == "16K lpa2 dic invalid-locked"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param({"page_size": 8192}, "no arm64 granule of 8192", id="granule"),
        pytest.param({"page_size": 65536, "lpa2": True}, "LPA2 is for", id="lpa2"),
        pytest.param({"invalid": "odd"}, "no encoding of invalid", id="invalid"),
        pytest.param({"software": "odd"}, "no use of the software", id="software"),
    ],
)
def test_no_such_layout(options, text):
    with pytest.raises(FormatError, match=text):
        make_layout(**options)
