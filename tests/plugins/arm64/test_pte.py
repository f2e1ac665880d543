import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_arm64.formats import (
    INVALID_ENCODINGS,
    SOFTWARE_BITS,
    ExecuteNever,
    MemAttr,
    MemAttrFwb,
)
from kvmarch_arm64.geometry import block_levels, kvm_granule_shift
from kvmarch_arm64.layout import decode, formats, make_layout
from kvmarch_arm64.pte import (
    kvm_init_invalid_leaf_owner,
    kvm_init_table_pte,
    kvm_init_valid_leaf_pte,
    kvm_phys_to_pte,
    kvm_pte_table,
    kvm_pte_to_phys,
    kvm_pte_valid,
    kvm_set_invalid_pte,
    may_change,
    stage2_is_young,
    stage2_mkold,
    stage2_mkyoung,
    stage2_pte_cacheable,
    stage2_pte_executable,
    stage2_pte_is_counted,
    stage2_pte_is_locked,
    stage2_pte_needs_update,
    stage2_set_prot_attr,
    stage2_wrprotect,
)

from kvmarch import EntryError

K4 = {}
FWB = {"fwb": True}
K16 = {"page_size": 16384}
K64 = {"page_size": 65536}
LPA2 = {"lpa2": True}
LPA2_FWB = {"lpa2": True, "fwb": True}
XNX_FWB = {"fwb": True, "xnx": True}
R = {"r": True}
RW = {"r": True, "w": True}
RX = {"r": True, "x": True}
RWX = {"r": True, "w": True, "x": True}
SW0 = 1 << 55

SHAPES = [
    pytest.param(4096, False, id="4K"),
    pytest.param(4096, True, id="4K-LPA2"),
    pytest.param(16384, False, id="16K"),
    pytest.param(16384, True, id="16K-LPA2"),
    pytest.param(65536, False, id="64K"),
]

# Fact sheet arm64, 1.6: what is mapped, and the entry.
LEAVES = [
    pytest.param(K4, 3, 0x80000000, RW, 0x00400000800007FF, id="1-page-rw"),
    pytest.param(K4, 3, 0x80000000, RX, 0x000000008000077F, id="2-page-rx"),
    pytest.param(K4, 3, 0x80000000, R, 0x004000008000077F, id="3-page-ro"),
    pytest.param(FWB, 2, 0x40200000, RW, 0x00400000402007D9, id="5-2M-fwb"),
    pytest.param(FWB, 2, 0x40200000, RWX, 0x00000000402007D9, id="6-2M-fwb-x"),
    pytest.param(K4, 1, 0x1_0000_0000, RWX, 0x00000001000007FD, id="7-1G"),
    pytest.param(
        K4, 3, 0x09000000, {**RW, "device": True}, 0x00400000090007C7, id="8-device"
    ),
    pytest.param(
        FWB, 3, 0x09000000, {**RW, "device": True}, 0x00400000090007C7, id="8-fwb"
    ),
    pytest.param(K4, 3, 0x09000000, {**RW, "nc": True}, 0x00400000090007D7, id="9-nc"),
    pytest.param(
        K64, 3, 0xF_1234_5679_0000, RW, 0x004012345679F7FF, id="11-64K-52-bit"
    ),
    pytest.param(
        LPA2, 3, 0xC_0000_8000_0000, RW, 0x00400000800007FF, id="13-lpa2-page"
    ),
    pytest.param(
        LPA2_FWB, 2, 0x8_0000_4020_0000, RW, 0x00400000402006D9, id="14-lpa2-2M"
    ),
    pytest.param(K16, 2, 0x82000000, RW, 0x00400000820007FD, id="15-32M"),
    pytest.param(K64, 2, 0x80000000, RW, 0x00400000800007FD, id="16-512M"),
    pytest.param(K4, 3, 0x12345000, R, 0x004000001234577F, id="17-change-pte"),
    pytest.param(FWB, 3, 0x12345000, R, 0x004000001234575B, id="17-change-pte-fwb"),
    pytest.param(K4, 3, 0x80000000, {**RW, "sw": SW0}, 0x00C00000800007FF, id="18-sw0"),
    pytest.param(
        XNX_FWB,
        3,
        0x80000000,
        {**RWX, "ux": False},
        0x00600000800007DB,
        id="19-el1-exec",
    ),
    pytest.param(
        XNX_FWB, 3, 0x80000000, {**RW, "ux": True}, 0x00200000800007DB, id="19-el0-exec"
    ),
]

# From the recording of a 6.1 kernel: level, entry, address, fields that are not RW, XN.
RECORDED = [
    pytest.param(3, 0x40000041EA37FF, 0x41EA3, {}, id="read-0"),
    pytest.param(3, 0x40000041E927FF, 0x41E92, {}, id="read-1"),
    pytest.param(3, 0x40000041E987FF, 0x41E98, {}, id="write-2"),
    pytest.param(3, 0x41E917FF, 0x41E91, {"xn": 0}, id="code"),
    pytest.param(3, 0x40000041E9277F, 0x41E92, {"w": 0}, id="ksm"),
    pytest.param(3, 0x40000041EA377F, 0x41EA3, {"w": 0}, id="dirty-on-0"),
    pytest.param(3, 0x40000041E9877F, 0x41E98, {"w": 0}, id="dirty-on-2"),
    pytest.param(3, 0x41E9177F, 0x41E91, {"w": 0, "xn": 0}, id="dirty-on-code"),
    pytest.param(3, 0x4000004217377F, 0x42173, {"w": 0}, id="zero-page"),
    pytest.param(2, 0x400000438007FD, 0x43800, {}, id="huge"),
    pytest.param(2, 0x4000004380077D, 0x43800, {"w": 0}, id="huge-dirty"),
    pytest.param(3, 0x400000438007FF, 0x43800, {}, id="huge-dirty-write"),
]

RECORDED_TABLES = [
    pytest.param(2, 0x43433003, 0x43433000, id="level-2"),
    pytest.param(1, 0x43434003, 0x43434000, id="level-1"),
    pytest.param(1, 0x43431003, 0x43431000, id="level-1-huge"),
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


def formats_of(layout, level=3):
    return [(kind, fmt) for at, kind, fmt in formats(layout) if at == level]


PAGE = 0x00400000800007FF
BLOCK = 0x00400000800007FD
TABLE = 0x0000000080000003
CHANGES = [
    pytest.param(PAGE, PAGE, True, False, id="same"),
    pytest.param(PAGE, stage2_wrprotect(PAGE), True, False, id="wp"),
    pytest.param(stage2_wrprotect(PAGE), PAGE, True, False, id="relax-w"),
    pytest.param(PAGE, 0x00000000800007FF, True, False, id="relax-x"),
    pytest.param(PAGE, stage2_mkold(PAGE), True, True, id="age"),
    pytest.param(PAGE, 0x00C00000800007FF, True, True, id="software"),
    pytest.param(PAGE, 0x00400000810007FF, False, True, id="address"),
    pytest.param(PAGE, 0x00400000800007D7, False, True, id="memory-type"),
    pytest.param(PAGE, 0x00400000800006FF, False, True, id="shareability"),
    pytest.param(BLOCK, TABLE, False, True, id="block-to-table"),
    pytest.param(TABLE, BLOCK, False, True, id="table-to-block"),
    pytest.param(TABLE, 0x80001003, False, True, id="other-table"),
    pytest.param(PAGE, 0, True, True, id="clear"),
    pytest.param(PAGE, 0x400, True, True, id="break"),
    pytest.param(0x400, TABLE, True, True, id="make"),
    pytest.param(0, PAGE, True, True, id="map"),
    pytest.param(0x4, 0, True, True, id="give-back"),
]


@pytest.mark.parametrize(("options", "level", "pa", "prot", "entry"), LEAVES)
def test_worked_leaf_both_ways(options, level, pa, prot, entry):
    layout = make_layout(**options)

    made = kvm_init_valid_leaf_pte(
        layout, pa, stage2_set_prot_attr(layout, **prot), level
    )
    kind, fmt, fields = decode(layout, entry, level)

    assert made == entry
    assert kind == ("page" if level == 3 else "block")
    assert fmt.pack(**fields) == entry
    assert fields["pfn"] << layout.page_shift == pa
    assert kvm_pte_to_phys(layout, entry) == pa
    assert (fields["r"], fields["w"]) == (prot.get("r", 0), prot.get("w", 0))
    assert kvm_pte_valid(entry)
    assert not kvm_pte_table(entry, level)


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        pytest.param(stage2_wrprotect, 0x004000008000077F, id="3-wp"),
        pytest.param(stage2_mkold, 0x00400000800003FF, id="4-aging"),
        pytest.param(kvm_set_invalid_pte, 0x00400000800007FE, id="20-v5.10-remains"),
    ],
)
def test_worked_change_both_ways(change, entry):
    layout = make_layout(invalid="remains")

    changed = change(0x00400000800007FF)
    _, fmt, fields = decode(layout, entry, 3)

    assert changed == entry
    assert fmt.pack(**fields) == entry
    assert fields["pfn"] == 0x80000


@pytest.mark.parametrize(
    ("options", "pa", "entry"),
    [
        pytest.param(K4, 0x8_1234_5000, 0x0000000812345003, id="10-4K"),
        pytest.param(K64, 0xA_0000_0001_0000, 0x000000000001A003, id="12-64K"),
    ],
)
def test_worked_table_both_ways(options, pa, entry):
    layout = make_layout(**options)

    kind, fmt, fields = decode(layout, entry, 1)

    assert kvm_init_table_pte(layout, pa) == entry
    assert kind == "table"
    assert fmt.pack(**fields) == entry
    assert fields["pfn"] << layout.page_shift == pa
    assert kvm_pte_to_phys(layout, entry) == pa
    assert kvm_pte_table(entry, 1)
    assert not kvm_pte_table(entry, 3)


@pytest.mark.parametrize(("level", "entry", "pfn", "other"), RECORDED)
def test_recorded_leaf(level, entry, pfn, other):
    layout = make_layout(invalid="owner9")
    prot = {"r": True, "w": other.get("w", 1), "x": not other.get("xn", 1)}

    kind, fmt, fields = decode(layout, entry, level)

    assert kind == ("page" if level == 3 else "block")
    assert fields == {
        "sw": 0,
        "xn": 1,
        "pfn": pfn,
        "af": 1,
        "sh": 3,
        "w": 1,
        "r": 1,
        "memattr": MemAttr.NORMAL,
        "kind": int(level == 3),
        "valid": 1,
        **other,
    }
    assert fmt.pack(**fields) == entry
    assert entry == kvm_init_valid_leaf_pte(
        layout, pfn << 12, stage2_set_prot_attr(layout, **prot), level
    )


@pytest.mark.parametrize(("level", "entry", "pa"), RECORDED_TABLES)
def test_recorded_table(level, entry, pa):
    layout = make_layout(invalid="owner9")

    assert decode(layout, entry, level).kind == "table"
    assert kvm_init_table_pte(layout, pa) == entry


@pytest.mark.parametrize(
    ("invalid", "entry", "locked", "counted"),
    [
        pytest.param("zero", 0, False, False, id="empty"),
        pytest.param("remains", 0x00400000800007FE, False, False, id="remains"),
        pytest.param("remains", 0x00400000800007FF, False, True, id="remains-valid"),
        pytest.param("owner9", 0x400, False, True, id="no-lock-before-v6.2"),
        pytest.param("locked", 0x400, True, True, id="locked"),
        pytest.param("locked", 0x404, True, True, id="locked-tests-one-bit"),
        pytest.param("locked", 0x00400000800007FF, False, True, id="valid-has-af"),
        pytest.param("locked", 0x4, False, True, id="owner"),
        pytest.param("typed", 0x1000000000000000, True, True, id="typed-locked"),
        pytest.param("typed", 0x400, False, True, id="typed-no-old-lock"),
        pytest.param("typed", 0x3000000000000000, False, True, id="typed-poisoned"),
    ],
)
def test_locked_and_counted(invalid, entry, locked, counted):
    layout = make_layout(invalid=invalid)

    assert stage2_pte_is_locked(layout, entry) is locked
    assert stage2_pte_is_counted(layout, entry) is counted


@pytest.mark.parametrize(
    ("invalid", "owner", "entry"),
    [
        pytest.param("owner63", 1, 0x0100000000000000, id="v5.14"),
        pytest.param("owner9", 1, 0x4, id="v5.15"),
        pytest.param("locked", 1, 0x4, id="v6.2"),
        pytest.param("typed", 1, 0x2000000000000002, id="v7.1"),
        pytest.param("typed", 0, 0, id="host"),
    ],
)
def test_owner(invalid, owner, entry):
    assert kvm_init_invalid_leaf_owner(make_layout(invalid=invalid), owner) == entry


@pytest.mark.parametrize("invalid", ["zero", "remains"])
def test_no_owner_before_v5_13(invalid):
    with pytest.raises(EntryError, match="keeps no owner"):
        kvm_init_invalid_leaf_owner(make_layout(invalid=invalid), 1)


@pytest.mark.parametrize(
    ("options", "prot"),
    [
        pytest.param(K4, {**RX, "device": True}, id="device-x"),
        pytest.param(K4, {**RX, "nc": True}, id="nc-x"),
        pytest.param(XNX_FWB, {**R, "ux": True, "device": True}, id="device-ux"),
        pytest.param(K4, {**R, "device": True, "nc": True}, id="device-and-nc"),
        pytest.param(K4, {**RX, "ux": False}, id="px-without-xnx"),
        pytest.param(K4, {**R, "ux": True}, id="ux-without-xnx"),
    ],
)
def test_refused_protection(options, prot):
    assert stage2_set_prot_attr(make_layout(**options), **prot) == -errno.EINVAL


@pytest.mark.parametrize(
    ("options", "memattr"),
    [
        pytest.param({}, MemAttr.NORMAL, id="as-s1"),
        pytest.param(FWB, MemAttrFwb.AS_S1, id="as-s1-fwb"),
    ],
)
def test_host_stage_2_takes_the_type_of_stage_1(options, memattr):
    layout = make_layout(as_s1=True, **options)

    entry = kvm_init_valid_leaf_pte(layout, 0, stage2_set_prot_attr(layout, r=True), 3)

    assert decode(layout, entry, 3).fields["memattr"] == memattr
    assert stage2_pte_cacheable(layout, entry)


@pytest.mark.parametrize(
    ("xn", "old", "decoded"),
    [
        pytest.param(ExecuteNever.PX_UX, True, True, id="both"),
        pytest.param(ExecuteNever.UX, False, True, id="el0"),
        pytest.param(ExecuteNever.PX, False, True, id="el1"),
        pytest.param(ExecuteNever.XN, False, False, id="none"),
    ],
)
def test_executable(xn, old, decoded):
    before, after = make_layout(xnx=True), make_layout(xnx=True, decoded_exec=True)
    page = dict(formats_of(before))["page"]

    entry = page.pack(pfn=1, r=1, xn=xn)

    assert stage2_pte_executable(before, entry) is old
    assert stage2_pte_executable(after, entry) is decoded
    assert not stage2_pte_executable(after, entry & ~1)


@pytest.mark.parametrize(
    ("options", "prot", "cacheable"),
    [
        pytest.param(K4, RW, True, id="normal"),
        pytest.param(FWB, RW, True, id="normal-fwb"),
        pytest.param(K4, {**RW, "nc": True}, False, id="nc"),
        pytest.param(FWB, {**RW, "device": True}, False, id="device-fwb"),
    ],
)
def test_cacheable(options, prot, cacheable):
    layout = make_layout(**options)

    entry = kvm_init_valid_leaf_pte(layout, 0, stage2_set_prot_attr(layout, **prot), 3)

    assert stage2_pte_cacheable(layout, entry) is cacheable
    assert not stage2_pte_cacheable(layout, kvm_set_invalid_pte(entry))


@pytest.mark.parametrize(("old", "new", "allowed", "update"), CHANGES)
def test_break_before_make(old, new, allowed, update):
    layout = make_layout()
    formats_of_old = [
        fmt
        for level in (2, 3)
        for _, fmt in formats_of(layout, level)
        if fmt.accepts(old)
    ]

    assert may_change(layout, old, new) is allowed
    assert formats_of_old
    assert {fmt.may_change(old, new) for fmt in formats_of_old} == {allowed}
    assert stage2_pte_needs_update(layout, old, new) is update


def test_lpa2_address_bits_need_a_break():
    layout = make_layout(lpa2=True)

    assert not may_change(layout, PAGE, PAGE & ~0x100)


@given(layout=layouts, level=st.integers(0, 3), data=st.data())
def test_leaf_round_trip(layout, level, data):
    if level < 3 and level not in block_levels(layout.page_shift):
        level = 3
    shift = kvm_granule_shift(layout.page_shift, level)
    bits = 52 if layout.lpa2 or layout.page_shift == 16 else 48
    pa = data.draw(st.integers(0, (1 << bits - shift) - 1)) << shift
    r, w, x, nc, device = (data.draw(st.booleans()) for _ in range(5))
    ux = data.draw(st.booleans()) if layout.xnx else x
    # The fourth state of pKVM is no state.
    used = [n for n in range(16) if layout.software != "pkvm" or n & 3 != 3]
    sw = data.draw(st.sampled_from(used)) << 55
    attr = stage2_set_prot_attr(layout, r, w, x, device, nc, ux=ux, sw=sw)

    if (device or nc) and (x or ux or (device and nc)):
        assert attr == -errno.EINVAL
        return
    entry = kvm_init_valid_leaf_pte(layout, pa, attr, level)
    kind, fmt, fields = decode(layout, entry, level)

    assert kind == ("page" if level == 3 else "block")
    assert fmt.pack(**fields) == entry
    assert fields["pfn"] << layout.page_shift == pa == kvm_pte_to_phys(layout, entry)
    assert (fields["r"], fields["w"], fields["af"]) == (r, w, 1)
    assert stage2_pte_executable(layout, entry) is (x and ux)
    assert stage2_is_young(entry)
    assert stage2_mkyoung(stage2_mkold(entry)) == entry
    assert not stage2_is_young(stage2_mkold(entry))
    for live in (stage2_wrprotect(entry), stage2_mkold(entry)):
        assert may_change(layout, entry, live)
        assert fmt.may_change(entry, live)


@given(layout=layouts, data=st.data())
def test_address_round_trip(layout, data):
    bits = 52 if layout.lpa2 or layout.page_shift == 16 else 48
    frame = data.draw(st.integers(0, (1 << bits - layout.page_shift) - 1))

    pte = kvm_phys_to_pte(layout, frame << layout.page_shift)

    assert kvm_pte_to_phys(layout, pte) == frame << layout.page_shift
    assert kvm_phys_to_pte(layout, frame << layout.page_shift | 0xFFF) == pte
