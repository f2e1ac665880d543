"""HPTEs: worked values of the fact sheet ppc, 4.1 and 4.5."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_ppc.hpt import HashWord, make_hash_layout, make_pr_layout
from kvmarch_ppc.hpte import (
    HPTE_GR_MODIFIED,
    HPTE_R_C,
    HPTE_R_KEY,
    HPTE_R_PP,
    HPTE_R_PP0,
    HPTE_R_R,
    HPTE_R_RPN,
    HPTE_V_ABSENT,
    HPTE_V_AVPN,
    HPTE_V_BOLTED,
    HPTE_V_HVLOCK,
    HPTE_V_LARGE,
    HPTE_V_SECONDARY,
    HPTE_V_VALID,
    GuestRpte,
    HpteR,
    HpteR30,
    HpteV,
    HpteV30,
    Protection,
    SegmentSize,
    hpte_is_mmio,
    hpte_is_writable,
    hpte_join,
    hpte_make_absent,
    hpte_make_mmio,
    hpte_make_readonly,
    hpte_new_to_old,
    hpte_old_to_new,
    hpte_set_pa,
    hpte_split,
    hpte_state,
)
from kvmarch_ppc.layout import decode, formats, to_memory
from kvmarch_ppc.rmap import hpte_mask_rc

from kvmarch import EntryError

HASH = make_hash_layout()
HASH30 = make_hash_layout(isa300=True)
PR = make_pr_layout()

H1_AVPN = 0x123456080 >> 7
H1_V = 0x0000000123456081
H1_GUEST = 0x0000000005ABC192
H1_REAL = 0x000000022345C192
H2_V, H2_R = 0x4000001234123405, 0x0000000223451192
H2_V30, H2_R30 = 0x0000001234123405, 0x0400000223451192

MASKS = [
    pytest.param(HPTE_V_AVPN, 0x3FFFFFFFFFFFFF80, id="AVPN"),
    pytest.param(HPTE_V_HVLOCK, 0x40, id="HVLOCK"),
    pytest.param(HPTE_V_ABSENT, 0x20, id="ABSENT"),
    pytest.param(HPTE_V_BOLTED, 0x10, id="BOLTED"),
    pytest.param(HPTE_V_LARGE, 4, id="L"),
    pytest.param(HPTE_V_SECONDARY, 2, id="H"),
    pytest.param(HPTE_V_VALID, 1, id="V"),
    pytest.param(HPTE_R_PP0, 0x8000000000000000, id="PP0"),
    pytest.param(HPTE_R_PP, 3, id="PP"),
    pytest.param(HPTE_R_KEY, 0x3000000000000E00, id="KEY_HI and KEY_LO"),
    pytest.param(HPTE_R_RPN, 0x0FFFFFFFFFFFF000, id="RPN"),
    pytest.param(HPTE_R_R, 0x100, id="R"),
    pytest.param(HPTE_R_C, 0x80, id="C"),
    pytest.param(HPTE_GR_MODIFIED, 1 << 62, id="GR_MODIFIED"),
    pytest.param(HpteV30.avpn.mask, 0x000FFFFFFFFFFF80, id="AVPN, ISA 3.0"),
    pytest.param(HpteR30.b.mask, 3 << 58, id="B, ISA 3.0"),
]


@pytest.mark.parametrize(("mask", "value"), MASKS)
def test_masks_are_the_sheets(mask, value):
    assert mask == value


FIRST = [
    pytest.param(HASH, H1_V, "valid", {}, id="H1 valid"),
    pytest.param(HASH, 0x00000001234560A0, "absent", {}, id="H1 absent"),
    pytest.param(HASH, 0x00000001234560C1, "valid", {"hvlock": 1}, id="H1 valid+lock"),
    pytest.param(
        HASH, 0x00000001234560E0, "absent", {"hvlock": 1}, id="H1 absent+lock"
    ),
    pytest.param(HASH, 0x00000001234560E1, "invalidating", {}, id="H1 invalidating"),
    pytest.param(PR, 0x0000000123456089, "valid", {"lock": 1}, id="H1 by PR, locked"),
]


@pytest.mark.parametrize(("layout", "value", "kind", "more"), FIRST)
def test_first_doublewords(layout, value, kind, more):
    decoded = decode(layout, value, HashWord.HPTE_V)

    assert decoded.kind == kind
    assert decoded.fields["avpn"] == H1_AVPN
    assert decoded.fields["b"] == SegmentSize.S256M
    assert decoded.format.pack(avpn=H1_AVPN, **more) == value
    assert decoded.format.pack(**decoded.fields) == value


def test_valid_and_absent_without_the_lock_is_no_state():
    v = H1_V | HPTE_V_ABSENT

    assert decode(HASH, v, HashWord.HPTE_V).kind == "unknown"
    assert decode(HASH, hpte_join(v, H1_REAL), HashWord.HPTE).kind == "unknown"


def test_pr_knows_no_bits_of_hv():
    assert decode(PR, 0x1234560A0, HashWord.HPTE_V).kind == "unknown"
    assert {row.kind for row in formats(PR)} == {"free", "valid", "rpte"}


H1_FIELDS = {"rpn": 0x22345C, "m": 1, "pp": Protection.RWRW}
SECOND = [
    pytest.param(
        GuestRpte,
        H1_GUEST,
        {"rpn": 0x5ABC, "r": 1, "c": 1, "m": 1, "pp": Protection.RWRW},
        id="H1 guest_rpte",
    ),
    pytest.param(HpteR, 0x22345C012, H1_FIELDS, id="H1 real, R and C suppressed"),
    pytest.param(HpteR, H1_REAL, {**H1_FIELDS, "r": 1, "c": 1}, id="H1 real"),
    pytest.param(
        HpteR,
        0x22345C113,
        {**H1_FIELDS, "r": 1, "pp": Protection.RXRX},
        id="H1 real, read-only with R",
    ),
    pytest.param(
        HpteR,
        0x3000000005ABCF92,
        {"rpn": 0x5ABC, "r": 1, "c": 1, "m": 1, "pp": Protection.RWRW, "key": 31},
        id="H1 MMIO",
    ),
    pytest.param(
        HpteR,
        H2_R,
        {"rpn": 0x223451, "r": 1, "c": 1, "m": 1, "pp": Protection.RWRW},
        id="H2",
    ),
    pytest.param(
        HpteR30,
        H2_R30,
        {
            "b": SegmentSize.S1T,
            "rpn": 0x223451,
            "r": 1,
            "c": 1,
            "m": 1,
            "pp": Protection.RWRW,
        },
        id="H2, ISA 3.0",
    ),
    pytest.param(
        HpteR,
        0x31190,
        {"rpn": 0x31, "r": 1, "c": 1, "m": 1, "pp": Protection.RWXX},
        id="H3",
    ),
]


@pytest.mark.parametrize(("fmt", "value", "fields"), SECOND)
def test_second_doublewords(fmt, value, fields):
    assert fmt.pack(**fields) == value
    assert {n: v for n, v in fmt.unpack(value).items() if v} == {
        n: v for n, v in fields.items() if v
    }


@pytest.mark.parametrize(
    ("fmt", "value", "fields"),
    [
        pytest.param(
            HpteV,
            H2_V,
            {"b": 1, "avpn": 0x1234123400 >> 7, "large": 1, "valid": 1},
            id="H2",
        ),
        pytest.param(
            HpteV30,
            H2_V30,
            {"avpn": 0x1234123400 >> 7, "large": 1, "valid": 1},
            id="H2, ISA 3.0",
        ),
        pytest.param(
            HpteV,
            0x4001FFFFFF000014,
            {"b": 1, "avpn": 0x1FFFFFF000000 >> 7, "bolted": 1, "large": 1},
            id="H3",
        ),
    ],
)
def test_large_first_doublewords(fmt, value, fields):
    assert fmt.pack(**fields) == value
    assert {n: v for n, v in fmt.unpack(value).items() if v} == fields


STATES = [
    pytest.param(0, 0, "free", id="free"),
    pytest.param(HPTE_V_HVLOCK, 0, "free", id="free, locked"),
    pytest.param(H1_V, H1_REAL, "valid", id="valid"),
    pytest.param(H1_V, H1_REAL | HPTE_R_KEY, "valid", id="valid, guest uses key 31"),
    pytest.param(0x1234560A0, H1_GUEST, "absent", id="absent"),
    pytest.param(0x1234560A0, H1_GUEST | 0xE00, "absent", id="absent, key 7"),
    pytest.param(0x1234560A0, 0x3000000005ABCF92, "mmio", id="mmio"),
    pytest.param(0x1234560E0, 0x3000000005ABCF92, "mmio", id="mmio, locked"),
    pytest.param(0x1234560E1, H1_REAL, "invalidating", id="invalidating"),
]


@pytest.mark.parametrize(("v", "r", "state"), STATES)
@pytest.mark.parametrize("layout", [HASH, HASH30], ids=["2.0x", "3.0"])
def test_states_of_a_slot(v, r, state, layout):
    hpte = hpte_join(v, r)

    decoded = decode(layout, hpte, HashWord.HPTE)

    assert hpte_split(hpte) == (v, r)
    assert hpte_state(v, r) == state
    assert hpte_is_mmio(v, r) == (state == "mmio")
    assert decoded.kind == state
    assert decoded.format.pack(**decoded.fields) == hpte


def test_absent_and_mmio_exclude_each_other():
    by_kind = {r.kind: r.format for r in formats(HASH) if r.level == HashWord.HPTE}
    mmio = hpte_join(0x1234560A0, 0x3000000005ABCF92)
    absent = hpte_join(0x1234560A0, H1_GUEST)

    with pytest.raises(EntryError, match="key 31 marks emulated MMIO"):
        by_kind["absent"].unpack(mmio)
    with pytest.raises(EntryError, match="key is always 0x1f"):
        by_kind["mmio"].unpack(absent)


def test_forms_of_one_hpte():
    real = hpte_set_pa(H1_GUEST, 0x22345C000, 4096)

    assert real == H1_REAL
    assert hpte_mask_rc(real, 0) == 0x22345C012
    assert hpte_mask_rc(hpte_make_readonly(real), 0x0100010100000000) == 0x22345C113
    assert hpte_make_mmio(H1_V, H1_GUEST) == (0x1234560A0, 0x3000000005ABCF92)
    assert hpte_make_absent(H1_V, H1_REAL | HPTE_R_KEY) == (0x1234560A0, H1_REAL)


def test_the_host_address_leaves_the_page_size_and_the_key():
    guest = 0xF000000001231FFF

    assert hpte_set_pa(guest, 0x223450000, 1 << 16) == 0xB000000223451FFF


READONLY = [
    pytest.param(Protection.RWXX, Protection.RXXX, True, id="RW none"),
    pytest.param(Protection.RWRX, Protection.RXRX, True, id="RW R"),
    pytest.param(Protection.RWRW, Protection.RXRX, True, id="RW RW"),
    pytest.param(Protection.RXRX, Protection.RXRX, False, id="R R"),
    pytest.param(Protection.RXXX, Protection.RXXX, False, id="R none"),
    # Reserved codes: the kernel's rule says what comes out.
    pytest.param(4, Protection.RXXX, True, id="PP0 and 0"),
    pytest.param(5, Protection.RXXX, True, id="PP0 and 1"),
    pytest.param(7, Protection.RXXX, True, id="PP0 and 3"),
]


@pytest.mark.parametrize(("pp", "result", "writable"), READONLY)
def test_making_an_hpte_read_only(pp, result, writable):
    ptel = HpteR.pp.set(H1_REAL, pp)

    assert hpte_is_writable(ptel) == writable
    assert hpte_make_readonly(ptel) == HpteR.pp.set(H1_REAL, result)
    assert not hpte_is_writable(hpte_make_readonly(ptel))


def test_isa_3_0_moves_the_segment_size():
    assert hpte_old_to_new(H2_V, H2_R) == (H2_V30, H2_R30)
    assert hpte_new_to_old(H2_V30, H2_R30) == (H2_V, H2_R)


def test_what_isa_3_0_has_no_room_for_is_dropped():
    v = HpteV.avpn.place(1 << 45) | HPTE_V_VALID

    assert hpte_old_to_new(v, HpteR.rpn.place(1 << 46)) == (HPTE_V_VALID, 0)


@given(st.data())
def test_both_layouts_say_the_same(data):
    narrow = (1 << HpteV30.avpn.width) - 1, (1 << HpteR30.rpn.width) - 1
    v, r = (
        {
            name: data.draw(st.integers(0, (1 << f.width) - 1), label=name)
            for name, f in fmt.fields.items()
        }
        for fmt in (HpteV, HpteR)
    )
    v["avpn"] &= narrow[0]
    r["rpn"] &= narrow[1]

    old = HpteV.pack(**v), HpteR.pack(**r)
    new = hpte_old_to_new(*old)

    b = v.pop("b")
    assert new == (HpteV30.pack(**v), HpteR30.pack(**r, b=b))
    assert hpte_new_to_old(*new) == old


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        pytest.param((H1_V, H1_REAL), (H1_V, 0x22345C012), True, id="clear R and C"),
        pytest.param((H1_V, 0x22345C012), (H1_V, H1_REAL), True, id="hardware"),
        pytest.param((H1_V, H1_REAL), (0x1234560C1, H1_REAL), True, id="lock"),
        pytest.param((0x1234560C1, H1_REAL), (0x1234560E1, H1_REAL), True, id="absent"),
        pytest.param((0x1234560E1, H1_REAL), (0x1234560E0, 0), True, id="invalidate"),
        pytest.param((0x1234560A0, H1_GUEST), (H1_V, H1_REAL), True, id="map"),
        pytest.param((0, 0), (H1_V, H1_REAL), True, id="enter"),
        pytest.param((H1_V, H1_REAL), (H1_V, 0x22345C113), False, id="read-only"),
        pytest.param((H1_V, 0x22345C113), (H1_V, H1_REAL), False, id="writable"),
        pytest.param((H1_V, H1_REAL), (H1_V, H1_REAL + 4096), False, id="other page"),
        pytest.param((H1_V, H1_REAL), (H1_V + 128, H1_REAL), False, id="other address"),
    ],
)
def test_laws_for_live_hptes(old, new, may):
    before, after = hpte_join(*old), hpte_join(*new)

    assert decode(HASH, before, HashWord.HPTE).format.may_change(before, after) == may
    if old[1] == new[1]:
        first = decode(HASH, old[0], HashWord.HPTE_V).format
        assert first.may_change(old[0], new[0]) == may


def test_r_of_an_hpte_is_in_byte_14():
    before = to_memory(hpte_join(H1_V, H1_REAL), 128)
    after = to_memory(hpte_join(H1_V, H1_REAL & ~HPTE_R_R), 128)

    assert [i for i in range(16) if before[i] != after[i]] == [14]


def test_reserved_segment_sizes_can_be_told():
    decoded = decode(HASH, H1_V | 2 << 62, HashWord.HPTE_V)

    assert decoded.fields["b"] == 2
    assert decoded.format.show(H1_V).startswith("avpn=0x2468ac1")
