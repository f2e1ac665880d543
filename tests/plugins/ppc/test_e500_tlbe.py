"""Shadow entries of e500: worked values of the fact sheet ppc, section 6."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_ppc.e500_tlbe import (
    BOOK3E_PAGESZ_4K,
    BOOK3E_PAGESZ_16M,
    E500_TLB_BITMAP,
    E500_TLB_MAS2_ATTR,
    E500_TLB_TLB0,
    E500_TLB_VALID,
    E500_TLB_WRITABLE,
    PERMISSIONS,
    E500Word,
    Mas1,
    Mas2,
    Mas73,
    get_tlb_bytes,
    kvmppc_e500_ref_setup,
    kvmppc_e500_setup_stlbe,
    make_e500_layout,
    tlbe_is_writable,
)
from kvmarch_ppc.layout import decode

from kvmarch import EntryError

NEW = make_e500_layout()
OLD = make_e500_layout(writable=False)
M = Mas2.pack(m=1)
READ_WRITE = Mas73.pack(ur=1, sr=1, uw=1, sw=1)
KERNEL = Mas73.pack(sx=1, sw=1, sr=1)

ENTRIES = [
    pytest.param(
        NEW,
        True,
        (0x10003000, 0x12345, READ_WRITE, BOOK3E_PAGESZ_4K),
        (0x80000100, 0x10003004, 0x1234500F),
        id="4K",
    ),
    pytest.param(
        NEW,
        False,
        (0x10003000, 0x12345, READ_WRITE, BOOK3E_PAGESZ_4K),
        (0x80000100, 0x10003004, 0x12345003),
        id="4K, host read-only",
    ),
    pytest.param(
        OLD,
        False,
        (0x10003000, 0x12345, READ_WRITE, BOOK3E_PAGESZ_4K),
        (0x80000100, 0x10003004, 0x1234500F),
        id="4K, host read-only, before v6.13",
    ),
    pytest.param(
        NEW,
        True,
        (0xC0000000, 0x20000, KERNEL, BOOK3E_PAGESZ_16M),
        (0x80000700, 0xC0000004, 0x20000015),
        id="16M",
    ),
]


@pytest.mark.parametrize(("layout", "writable", "what", "entry"), ENTRIES)
def test_shadow_entries(layout, writable, what, entry):
    ea, pfn, permissions, tsize = what
    flags = kvmppc_e500_ref_setup(layout, M, writable=writable)

    made = kvmppc_e500_setup_stlbe(layout, flags, ea, pfn, permissions, tsize=tsize)

    assert made == entry
    words = [decode(layout, entry[word], word) for word in list(E500Word)[:3]]
    assert [word.kind for word in words] == ["mas1", "mas2", "mas7-3"]
    assert words[0].fields["tsize"] == tsize
    assert words[1].fields["epn"] << 12 == ea
    assert words[2].fields["rpn"] == pfn
    assert tuple(w.format.pack(**w.fields) for w in words) == entry
    assert get_tlb_bytes(made.mas1) == (4096 if tsize == BOOK3E_PAGESZ_4K else 1 << 24)
    assert tlbe_is_writable(made.mas7_3) == (writable or not layout.writable)


FLAGS = [
    pytest.param(NEW, 0, "none", {}, id="not backed"),
    pytest.param(NEW, 0x80000004, "ref", {"valid": 1, "m": 1}, id="TLB0"),
    pytest.param(NEW, 0xC0000004, "ref", {"valid": 1, "bitmap": 1, "m": 1}, id="TLB1"),
    pytest.param(
        NEW, 0xA0000004, "ref", {"valid": 1, "tlb0": 1, "m": 1}, id="TLB1 by host TLB0"
    ),
    pytest.param(
        NEW, 0x90000004, "ref", {"valid": 1, "writable": 1, "m": 1}, id="writable"
    ),
    pytest.param(NEW, 0x40000000, "unknown", {}, id="bitmap without valid"),
    pytest.param(OLD, 0x90000004, "unknown", {}, id="writable before v6.13"),
    pytest.param(OLD, 0x80000004, "ref", {"valid": 1, "m": 1}, id="before v6.13"),
]


@pytest.mark.parametrize(("layout", "flags", "kind", "fields"), FLAGS)
def test_flags_of_a_ref(layout, flags, kind, fields):
    decoded = decode(layout, flags, E500Word.TLBE_REF)

    assert decoded.kind == kind
    assert {n: v for n, v in decoded.fields.items() if v} == fields
    if decoded.format is not None:
        assert decoded.format.pack(**fields) == flags


def test_masks_are_the_sheets():
    assert E500_TLB_VALID == 1 << 31
    assert E500_TLB_BITMAP == 1 << 30
    assert E500_TLB_TLB0 == 1 << 29
    assert E500_TLB_WRITABLE == 1 << 28
    assert E500_TLB_MAS2_ATTR == 0x7F
    assert PERMISSIONS == 0x3FF


def test_a_protected_or_invalid_entry_is_never_made():
    assert decode(NEW, 0xC0000100, E500Word.MAS1).kind == "unknown"
    assert decode(NEW, 0x100, E500Word.MAS1).kind == "unknown"


@pytest.mark.parametrize(
    ("flags", "ea", "pfn", "tsize", "message"),
    [
        pytest.param(0, 0, 0, 2, "E500_TLB_VALID is clear", id="nothing mapped"),
        pytest.param(
            E500_TLB_VALID, 0xC0001000, 0, 14, "not aligned to 0x1000000", id="address"
        ),
        pytest.param(
            E500_TLB_VALID, 0, 0x20001, 14, "not aligned to 0x1000000", id="frame"
        ),
    ],
)
def test_what_cannot_be_mapped_is_refused(flags, ea, pfn, tsize, message):
    with pytest.raises(EntryError, match=message):
        kvmppc_e500_setup_stlbe(NEW, flags, ea, pfn, READ_WRITE, tsize=tsize)


@given(
    st.sampled_from([NEW, OLD]),
    st.integers(0, 0x7F),
    st.integers(0, 0x3FF),
    st.integers(0, 9),
    st.integers(0, 0xFF),
    st.integers(0, 0xFF),
    st.booleans(),
)
def test_entries_give_back_what_went_in(
    layout, attributes, permissions, size, page, frame, writable
):
    tsize = 2 * size + BOOK3E_PAGESZ_4K
    pages = 1 << 2 * size
    flags = kvmppc_e500_ref_setup(layout, attributes, writable=writable)

    entry = kvmppc_e500_setup_stlbe(
        layout, flags, page * pages << 12, frame * pages, permissions, tsize=tsize, ts=1
    )

    assert get_tlb_bytes(entry.mas1) == pages << 12
    assert Mas1.unpack(entry.mas1)["ts"] == 1
    assert Mas2.epn.get(entry.mas2) == page * pages
    assert entry.mas2 & E500_TLB_MAS2_ATTR == attributes
    assert Mas73.rpn.get(entry.mas7_3) == frame * pages
    kept = entry.mas7_3 & PERMISSIONS
    assert kept & ~Mas73.pack(uw=1, sw=1) == permissions & ~Mas73.pack(uw=1, sw=1)
    if writable or not layout.writable:
        assert kept == permissions
    else:
        assert not tlbe_is_writable(entry.mas7_3)
