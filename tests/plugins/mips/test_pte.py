import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_mips.geometry import table_entry
from kvmarch_mips.pte import (
    LAYOUTS,
    EntryLo,
    decode,
    find_layout,
    formats,
    host_pte,
    map_page_pte,
    mips3_tlbpfn_to_paddr,
    pfn_pte,
    pte_dirty,
    pte_mkclean,
    pte_mkdirty,
    pte_mkold,
    pte_mkyoung,
    pte_pfn,
    pte_present,
    pte_to_entrylo,
    pte_write,
    pte_wrprotect,
    pte_young,
    set_spte_flush,
    set_spte_value,
    shadows_hold,
)

from kvmarch import EntryError, KvmarchError

SHIFTS = (12, 14, 16)
PFN = 0x12345

# Fact sheet mips, 4.1: P W A M H SP XI RI G V D, lowest CCA bit, PFN shift by page.
NAMES = ["present", "write", "accessed", "modified", "huge", "special"]
NAMES += ["no_exec", "no_read", "global_", "valid", "dirty"]
BITS = [
    pytest.param("A", (0, 1, 2, 3, 4, None, 5, 6, 7, 8, 9), 10, (13, 15), id="A"),
    pytest.param("B", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 11, (14, 16), id="B"),
    pytest.param("F", (0, 1, 2, 3, None, 4, 5, 6, 7, 8, 9), 10, (13, 15), id="F"),
    pytest.param("D", (0, 2, 3, 4, 5, 6, None, 1, 7, 8, 9), 10, (13, 15), id="D"),
]

# Fact sheet mips, 4.4: pfn 0x12345, CCA 5.
READ = {"present": 1, "accessed": 1, "valid": 1, "cca": 5, "pfn": PFN}
CLEAN = READ | {"write": 1}
DIRTY = CLEAN | {"modified": 1, "dirty": 1}
OLD = DIRTY | {"accessed": 0, "valid": 0}
COLUMNS = {
    ("A", 12): (0x2468B505, 0x2468B507, 0x2468B70F, 0x2468B60B),
    ("B", 12): (0x48D16A05, 0x48D16A07, 0x48D16E0F, 0x48D16C0B),
    ("B", 14): (0x123452A05, 0x123452A07, 0x123452E0F, 0x123452C0B),
    ("F", 14): (0x91A29505, 0x91A29507, 0x91A2970F, 0x91A2960B),
    ("D", 12): (0x2468B509, 0x2468B50D, 0x2468B71D, 0x2468B615),
}
WORKED = [
    pytest.param(name, shift, fields, value, id=f"{name}-{1 << shift - 10}K-{state}")
    for (name, shift), values in COLUMNS.items()
    for state, fields, value in zip(
        ("read", "clean", "dirty", "old"),
        (READ, CLEAN, DIRTY, OLD),
        values,
        strict=True,
    )
]
WORKED_COLUMNS = [
    pytest.param(name, shift, *values, id=f"{name}-{1 << shift - 10}K")
    for (name, shift), values in COLUMNS.items()
]

FLAGS = ["write", "dirty", "young", "executable", "special"]
LAYOUT = st.builds(
    find_layout, st.sampled_from(sorted(LAYOUTS)), st.sampled_from(SHIFTS), st.just(5)
)
HOST = st.fixed_dictionaries({name: st.booleans() for name in FLAGS})


def _nonzero(fields):
    return {name: value for name, value in fields.items() if value}


def _host_pte(layout, pfn, *flags):
    return host_pte(layout, pfn, **{name: name in flags for name in FLAGS})


@pytest.mark.parametrize(("name", "places", "cca", "pfn"), BITS)
def test_bit_positions(name, places, cca, pfn):
    small, large = (find_layout(name, shift, 5).format.fields for shift in (12, 14))

    assert tuple(small[n].low if n in small else None for n in NAMES) == places
    assert (small["cca"].low, small["cca"].width) == (cca, 3)
    assert (small["pfn"].low, large["pfn"].low) == pfn
    assert {n: f.bits for n, f in small.items() if n != "pfn"} == {
        n: f.bits for n, f in large.items() if n != "pfn"
    }


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_pfn_shift_follows_from_page_and_cache_shift(name, shift):
    layout = find_layout(name, shift, 5)

    assert layout.pfn_shift == shift - 12 + layout.format.fields["cca"].low + 3


@pytest.mark.parametrize(("name", "shift", "fields", "value"), WORKED)
def test_worked_values_both_ways(name, shift, fields, value):
    layout = find_layout(name, shift, 5)

    assert layout.format.pack(**fields) == value
    kind, found, unpacked = decode(layout, value, 1)
    assert (kind, found) == ("leaf", layout.format)
    assert _nonzero(unpacked) == _nonzero(fields)


@pytest.mark.parametrize(
    ("name", "shift", "read", "clean", "dirty", "old"), WORKED_COLUMNS
)
def test_worked_values_from_the_functions(name, shift, read, clean, dirty, old):
    layout = find_layout(name, shift, 5)

    assert map_page_pte(layout, PFN, False, False) == read
    assert map_page_pte(layout, PFN, True, False) == clean
    assert map_page_pte(layout, PFN, True, True) == dirty
    assert pte_mkold(layout, dirty) == old
    assert pte_mkclean(layout, dirty) == clean
    assert pte_mkyoung(layout, old) == dirty
    assert pte_mkdirty(layout, clean) == dirty
    assert pte_wrprotect(layout, clean) == read
    assert {pte_pfn(layout, pte) for pte in (read, clean, dirty, old)} == {PFN}


@pytest.mark.parametrize(
    ("name", "shift", "read", "clean", "dirty", "old"), WORKED_COLUMNS
)
def test_worked_predicates(name, shift, read, clean, dirty, old):
    layout = find_layout(name, shift, 5)
    table = {
        predicate: [predicate(layout, pte) for pte in (0, read, clean, dirty, old)]
        for predicate in (pte_present, pte_young, pte_write, pte_dirty)
    }

    assert table == {
        pte_present: [False, True, True, True, True],
        pte_young: [False, True, True, True, False],
        pte_write: [False, False, True, True, True],
        pte_dirty: [False, False, False, True, True],
    }


# Fact sheet mips, 4.4: EntryLo clean, dirty and old; the physical address.
ENTRYLO = {
    12: (0x48D16A, 0x48D16E, 0x48D16C, 0x12345000),
    14: (0x123452A, 0x123452E, 0x123452C, 0x48D14000),
}


@pytest.mark.parametrize(
    ("name", "shift", "read", "clean", "dirty", "old"), WORKED_COLUMNS
)
def test_worked_entrylo_both_ways(name, shift, read, clean, dirty, old):
    layout = find_layout(name, shift, 5)
    *wanted, paddr = ENTRYLO[shift]
    frame = paddr >> 12

    assert [pte_to_entrylo(layout, pte) for pte in (clean, dirty, old)] == wanted
    assert pte_to_entrylo(layout, read) == wanted[0]
    assert {mips3_tlbpfn_to_paddr(lo) for lo in wanted} == {paddr}
    assert wanted == [
        EntryLo.pack(pfn=frame, c=5, v=v, d=d) for v, d in ((1, 0), (1, 1), (0, 1))
    ]
    assert [EntryLo.unpack(lo)["pfn"] for lo in wanted] == [frame] * 3


KSM = [
    pytest.param("A", 12, 0xEEF525, 0x4000_0000_0001_DDEA, id="A-4K"),
    pytest.param("B", 12, 0x1DDEA45, 0x4000_0000_0001_DDEA, id="B-4K"),
    pytest.param("B", 14, 0x7772A45, 0x4000_0000_0007_772A, id="B-16K"),
]


@pytest.mark.parametrize(("name", "shift", "value", "entrylo"), KSM)
def test_worked_ksm_page_both_ways(name, shift, value, entrylo):
    layout = find_layout(name, shift, 5)
    fields = READ | {"no_exec": 1, "pfn": 0x777}
    frame = 0x777 << shift - 12

    assert _host_pte(layout, 0x777, "young") == value
    assert _nonzero(decode(layout, value, 1).fields) == fields
    assert pte_to_entrylo(layout, value) == entrylo
    assert _nonzero(EntryLo.unpack(entrylo)) == {"xi": 1, "pfn": frame, "c": 5, "v": 1}


@given(LAYOUT, st.data())
def test_fields_round_trip(layout, data):
    values = {
        name: data.draw(st.integers(0, (1 << row.width) - 1), label=name)
        for name, row in layout.format.fields.items()
        if row.fixed is None
    }

    entry = layout.format.pack(**values)

    assert decode(layout, entry, 1).fields.items() >= values.items()
    assert layout.format.pack(**decode(layout, entry, 1).fields) == entry
    prot = entry & (1 << layout.pfn_shift) - 1
    assert pfn_pte(layout, pte_pfn(layout, entry), prot) == entry


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_flipped_bits_are_known_or_refused(name, shift):
    layout = find_layout(name, shift, 5)
    entry = map_page_pte(layout, PFN, True, True)
    whole = decode(layout, entry, 1).fields
    unknown = set()

    for bit in range(64):
        kind, found, fields = decode(layout, entry ^ 1 << bit, 1)
        if kind == "unknown":
            unknown.add(bit)
            assert (found, fields) == (None, {})
        else:
            assert sum(fields[n] != whole[n] for n in whole) == 1

    fixed = {f.low for f in layout.format.fields.values() if f.fixed is not None}
    gap = set(range(layout.format.fields["cca"].low + 3, layout.pfn_shift))
    assert len(gap) == shift - 12
    assert unknown == fixed | gap


@pytest.mark.parametrize("bit", range(64))
def test_flipped_bit_of_entrylo_is_known(bit):
    flipped = 0x48D16E ^ 1 << bit

    assert EntryLo.pack(**EntryLo.unpack(flipped)) == flipped


STEPS = st.sampled_from(
    [pte_mkold, pte_mkyoung, pte_mkclean, pte_mkdirty, pte_wrprotect]
)


@given(
    LAYOUT,
    st.one_of(st.tuples(st.booleans(), st.booleans()), HOST),
    st.booleans(),
    st.lists(STEPS, max_size=6),
)
def test_hardware_sees_what_the_kernel_knows(layout, start, no_read, steps):
    if isinstance(start, dict):
        pte = host_pte(layout, PFN, **start)
    else:
        pte = map_page_pte(layout, PFN, *start)
    if no_read:
        pte = pte_mkold(layout, pte) | layout.no_read

    for step in steps:
        pte = step(layout, pte)
        assert shadows_hold(layout, pte)

    assert decode(layout, pte, 1).kind == "leaf"
    assert pte_pfn(layout, pte) == PFN


@pytest.mark.parametrize("bit", ["valid", "dirty", "accessed", "modified", "write"])
def test_a_shadow_that_differs_is_seen(bit):
    layout = find_layout("B", 12, 5)
    entry = map_page_pte(layout, PFN, True, True)

    assert shadows_hold(layout, entry)
    assert not shadows_hold(layout, entry ^ layout.format.fields[bit].mask)


@given(LAYOUT, HOST, st.integers(0, 1 << 36))
def test_what_the_functions_change(layout, host, pfn):
    pte = host_pte(layout, pfn, **host)

    assert pte_pfn(layout, pte) == pfn
    assert not pte_young(layout, pte_mkold(layout, pte))
    assert pte_young(layout, pte_mkyoung(layout, pte))
    assert not pte_dirty(layout, pte_mkclean(layout, pte))
    assert pte_dirty(layout, pte_mkdirty(layout, pte))
    assert pte_write(layout, pte_mkclean(layout, pte)) == host["write"]
    assert not pte_write(layout, pte_wrprotect(layout, pte))
    assert pte_dirty(layout, pte_wrprotect(layout, pte)) == host["dirty"]


@given(LAYOUT, HOST, st.integers(0, 1 << 36))
def test_entrylo_has_what_hardware_sees(layout, host, pfn):
    pte = host_pte(layout, pfn, **host)
    entrylo = pte_to_entrylo(layout, pte)

    assert EntryLo.unpack(entrylo) == {
        "ri": 0,
        "xi": int(layout.no_exec != 0 and not host["executable"]),
        "pfn": pfn << layout.page_shift - 12,
        "c": 5,
        "d": int(host["dirty"] and host["write"]),
        "v": int(host["young"]),
        "g": 0,
    }
    assert mips3_tlbpfn_to_paddr(entrylo) == pfn << layout.page_shift


@pytest.mark.parametrize(
    ("name", "inhibit"),
    [
        pytest.param("B", 1, id="rixi"),
        pytest.param("D", 0, id="software-only"),
    ],
)
def test_no_read_keeps_an_entry_invalid(name, inhibit):
    layout = find_layout(name, 12, 5)
    pte = pte_mkold(layout, map_page_pte(layout, PFN, True, True)) | layout.no_read
    young = pte_mkyoung(layout, pte)

    assert pte_young(layout, young)
    assert EntryLo.v.get(pte_to_entrylo(layout, young)) == 0
    assert EntryLo.ri.get(pte_to_entrylo(layout, young)) == inhibit


@pytest.mark.parametrize(
    ("name", "host", "flags"),
    [
        pytest.param("B", "executable", "", id="old"),
        pytest.param("B", "executable young", "accessed valid", id="young"),
        pytest.param("B", "executable special", "special", id="zero-page"),
        pytest.param("A", "executable special", "", id="A-has-no-special"),
        pytest.param("B", "", "no_exec", id="not-executable"),
        pytest.param("D", "", "", id="D-has-no-rixi"),
        pytest.param("B", "executable dirty", "modified", id="dirty-not-writable"),
        pytest.param("B", "executable write", "write", id="clean-writable"),
        pytest.param(
            "B",
            "executable write dirty young",
            "write modified dirty accessed valid",
            id="copy-on-write",
        ),
    ],
)
def test_host_pte(name, host, flags):
    layout = find_layout(name, 12, 5)
    pte = _host_pte(layout, PFN, *host.split())
    always = {"present", "cca", "pfn"}

    assert set(_nonzero(decode(layout, pte, 1).fields)) == always | set(flags.split())


B = find_layout("B", 12, 5)
B_READ, B_CLEAN, B_DIRTY, B_OLD = COLUMNS["B", 12]
COPIED = _host_pte(B, 0x777, "write", "dirty", "young", "executable")
CLEANED, PROTECTED = pte_mkclean(B, COPIED), pte_wrprotect(B, COPIED)
MERGED = 0x1DDEA45


# Fact sheet mips, 6.4 step 2 and the schedules M5, M5b.
@pytest.mark.parametrize(
    ("old", "new", "log_dirty", "readonly", "stored"),
    [
        pytest.param(0, MERGED, False, False, MERGED, id="absent-is-written"),
        pytest.param(B_CLEAN, MERGED, True, False, MERGED, id="ksm-is-clean"),
        pytest.param(B_DIRTY, COPIED, False, False, COPIED, id="verbatim"),
        pytest.param(0, COPIED, True, False, CLEANED, id="logged-absent"),
        pytest.param(B_CLEAN, COPIED, True, False, CLEANED, id="logged-clean"),
        pytest.param(B_DIRTY, COPIED, True, False, COPIED, id="logged-dirty"),
        pytest.param(B_READ, COPIED, False, True, PROTECTED, id="readonly"),
        pytest.param(B_CLEAN, COPIED, True, True, CLEANED, id="both-clean-leaks"),
        pytest.param(B_DIRTY, COPIED, True, True, PROTECTED, id="both-dirty"),
    ],
)
def test_set_spte_value(old, new, log_dirty, readonly, stored):
    assert set_spte_value(B, old, new, log_dirty, readonly) == stored


def test_a_readonly_slot_that_logs_keeps_the_right_to_write():
    logged = set_spte_value(B, B_READ, COPIED, log_dirty=True, readonly=True)
    plain = set_spte_value(B, B_READ, COPIED, log_dirty=False, readonly=True)

    assert pte_write(B, logged)
    assert not pte_write(B, plain)


def test_a_readonly_copy_stays_dirty_without_the_right_to_write():
    stored = set_spte_value(B, B_READ, COPIED, log_dirty=False, readonly=True)

    assert pte_dirty(B, stored)
    assert EntryLo.d.get(pte_to_entrylo(B, stored)) == 0


# Fact sheet mips, 6.4 step 4.
@pytest.mark.parametrize(
    ("old", "stored", "flush"),
    [
        pytest.param(0, MERGED, False, id="old-absent"),
        pytest.param(B_OLD, MERGED, False, id="old-not-young"),
        pytest.param(B_CLEAN, 0, True, id="new-absent"),
        pytest.param(B_CLEAN, pte_mkold(B, B_CLEAN), True, id="new-not-young"),
        pytest.param(B_CLEAN, MERGED, True, id="other-page"),
        pytest.param(B_DIRTY, B_CLEAN, True, id="dirty-to-clean"),
        pytest.param(B_CLEAN, B_DIRTY, False, id="clean-to-dirty"),
        pytest.param(B_DIRTY, B_DIRTY, False, id="same"),
        pytest.param(B_DIRTY, pte_wrprotect(B, B_DIRTY), False, id="only-write-lost"),
    ],
)
def test_set_spte_flush(old, stored, flush):
    assert set_spte_flush(B, old, stored) is flush


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    ("shift", "va_bits_48", "levels"),
    [
        pytest.param(12, False, 3, id="4K"),
        pytest.param(14, True, 3, id="16K-48"),
        pytest.param(16, False, 2, id="64K"),
        pytest.param(12, True, 4, id="4K-48"),
    ],
)
def test_every_listed_kind_is_decoded(name, shift, va_bits_48, levels):
    layout = find_layout(name, shift, 5, va_bits_48)
    geometry = layout.geometry
    seen = set()
    for level in range(1, levels + 1):
        made = (
            map_page_pte(layout, PFN, True, True)
            if level == 1
            else table_entry(geometry, 0x123_0000)
        )
        for entry in (geometry.empty[level - 1], made):
            kind, found, fields = decode(layout, entry, level)
            seen.add((level, kind, found))
            assert found.pack(**fields) == entry

    assert seen == {(row.level, row.kind, row.format) for row in formats(layout)}
    assert [(row.level, row.kind) for row in formats(layout) if row.maps] == [
        (1, "leaf")
    ]


@pytest.mark.parametrize(
    ("entry", "level"),
    [
        pytest.param(0, 2, id="zero-is-no-empty-directory-entry"),
        pytest.param(B.geometry.empty[2], 2, id="invalid-pmd-table-in-a-pmd"),
        pytest.param(B.geometry.empty[1], 3, id="invalid-pte-table-in-the-pgd"),
        pytest.param(B_DIRTY, 2, id="leaf-as-table"),
        pytest.param(table_entry(B.geometry, 0x123_0000), 1, id="table-as-leaf"),
        pytest.param(B_DIRTY & ~1, 1, id="not-present-but-not-zero"),
        pytest.param(B_DIRTY | 1 << 8, 1, id="global"),
        pytest.param(B_DIRTY | 1 << 4, 1, id="huge"),
    ],
)
def test_what_kvm_never_writes_is_unknown(entry, level):
    assert decode(B, entry, level) == ("unknown", None, {})


@pytest.mark.parametrize(
    ("entry", "level", "message"),
    [
        pytest.param(0, 0, "the table has levels 1 to 3, not 0", id="level-0"),
        pytest.param(0, 4, "the table has levels 1 to 3, not 4", id="level-4"),
        pytest.param(-1, 1, "-0x1 is no 64-bit value", id="negative"),
        pytest.param(1 << 64, 1, "is no 64-bit value", id="too-wide"),
    ],
)
def test_what_is_no_entry_is_refused(entry, level, message):
    with pytest.raises(EntryError, match=message):
        decode(B, entry, level)


def test_hardware_allows_any_change_of_a_live_entry():
    assert B.format.may_change(B_READ, COPIED)
    assert B.geometry.directory.may_change(
        table_entry(B.geometry, 0x1000), B.geometry.empty[1]
    )


def test_an_unknown_layout_is_refused():
    with pytest.raises(KvmarchError, match="no PTE layout 'C'; there is A, B, F, D"):
        find_layout("C", 12, 5)


def test_a_configuration_is_one_object():
    assert find_layout("B", 12, 5) is find_layout("B", 12, 5)
    assert find_layout("B", 12, 3).format is find_layout("B", 12, 5).format
    assert find_layout("B", 12, 3) != find_layout("B", 12, 5)
