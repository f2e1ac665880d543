"""Bits: the worked values of the fact sheet, and what must hold of every value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch import EntryError

from kvmarch_riscv.formats import (
    Device,
    Empty,
    KernelDevice,
    KernelDevicePbmt,
    Leaf,
    Leaf1G,
    Leaf2M,
    PlainDevice,
    Table,
)
from kvmarch_riscv.geometry import (
    MODES,
    Hgatp,
    Hgatp32,
    fault_gpa,
    hfence_operand,
    index_split,
    level_pages,
)
from kvmarch_riscv.pte import (
    child_pte,
    device_pte,
    entry_pfn,
    is_leaf,
    is_table,
    leaf_pte,
    mkold,
    pte_with_pfn,
    pte_with_prot,
    table_pa,
    table_pte,
    wrprotect,
)

# Fact sheet riscv, 1.4 and 1.5.
WORKED = [
    pytest.param(leaf_pte(0, writable=False, executable=False), 0xD3, id="READ"),
    pytest.param(leaf_pte(0, writable=False), 0xDB, id="READ_EXEC"),
    pytest.param(leaf_pte(0, writable=True, executable=False), 0xD7, id="WRITE"),
    pytest.param(leaf_pte(0, writable=True), 0xDF, id="WRITE_EXEC"),
    pytest.param(leaf_pte(0x80200, writable=True), 0x2008_00DF, id="4K RWX"),
    pytest.param(wrprotect(0x2008_00DF), 0x2008_00DB, id="write-protected"),
    pytest.param(mkold(0x2008_00DF), 0x2008_009F, id="aged"),
    pytest.param(leaf_pte(0xC0000, writable=True), 0x3000_00DF, id="1G RWX"),
    pytest.param(table_pte(0x9000_1000), 0x2400_0401, id="table"),
    pytest.param(
        device_pte(0x28000, writable=True, user=True, pbmt=True),
        0x4000_0000_0A00_00D7,
        id="ioremap, Svpbmt",
    ),
    pytest.param(
        device_pte(0x28000, writable=False, user=True, pbmt=True),
        0x4000_0000_0A00_00D3,
        id="ioremap read-only, Svpbmt",
    ),
    pytest.param(
        device_pte(0x28000, writable=True, user=True, pbmt=False),
        0x0A00_00D7,
        id="ioremap",
    ),
    pytest.param(
        device_pte(0x28000, writable=True, user=False, pbmt=False),
        0x0A00_00E7,
        id="ioremap before v6.17",
    ),
    pytest.param(
        device_pte(0x28000, writable=True, user=False, pbmt=True),
        0x4000_0000_0A00_00E7,
        id="ioremap before v6.17, Svpbmt",
    ),
    pytest.param(child_pte(0x2008_00DF, 5, 1), 0x2008_14DF, id="child 5"),
    pytest.param(child_pte(0x2008_00DF, 511, 1), 0x200F_FCDF, id="child 511"),
    pytest.param(child_pte(0x3000_00DF, 3, 2), 0x3018_00DF, id="child 3 of 1G"),
    pytest.param(hfence_operand(0x8020_1000), 0x2008_0400, id="hfence.gvma"),
    pytest.param(
        Hgatp.pack(mode=8, vmid=1, ppn=0x90004), 0x8000_1000_0009_0004, id="Sv39x4"
    ),
    pytest.param(
        Hgatp.pack(mode=9, vmid=0x3FFF, ppn=0x123400),
        0x93FF_F000_0012_3400,
        id="Sv48x4",
    ),
    pytest.param(
        Hgatp.pack(mode=10, vmid=7, ppn=0x80000), 0xA000_7000_0008_0000, id="Sv57x4"
    ),
    pytest.param(Hgatp32.pack(mode=1, vmid=5, ppn=0x80004), 0x8148_0004, id="Sv32x4"),
]

INDICES = [
    ("sv39x4", 0x8020_1000, [2, 1, 1]),
    ("sv39x4", 0x1FF_FFFF_F000, [2047, 511, 511]),
    ("sv48x4", 0x8000_0000, [0, 2, 0, 0]),
    ("sv57x4", 0x8000_0000, [0, 0, 2, 0, 0]),
]

KINDS = (
    Empty,
    Table,
    Leaf,
    Leaf2M,
    Leaf1G,
    PlainDevice,
    Device,
    KernelDevice,
    KernelDevicePbmt,
)
pfns = st.integers(0, (1 << 44) - 1)
entries = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(("value", "worked"), WORKED)
def test_worked_values(value, worked):
    assert value == worked


@pytest.mark.parametrize(("mode", "gpa", "indices"), INDICES)
def test_worked_indices(mode, gpa, indices):
    assert index_split(MODES[mode], gpa) == indices


@pytest.mark.parametrize(
    ("mode", "levels", "bits"),
    [("sv39x4", 3, 41), ("sv48x4", 4, 50), ("sv57x4", 5, 59)],
)
def test_a_mode_has_its_levels_and_its_addresses(mode, levels, bits):
    assert (MODES[mode].levels, MODES[mode].gpa_bits) == (levels, bits)


def test_the_address_of_a_fault_is_put_together():
    assert fault_gpa(hfence_operand(0x8020_1000), 0x1003) == 0x8020_1003


@given(pfns, st.booleans(), st.booleans())
def test_a_leaf_says_what_it_was_made_of(pfn, writable, young):
    entry = leaf_pte(pfn, writable=writable)
    entry = entry if young else mkold(entry)

    fields = Leaf.unpack(entry)
    assert (fields["ppn"], fields["w"], fields["a"]) == (pfn, writable, young)
    assert entry_pfn(entry) == pfn
    assert is_leaf(entry)
    assert not is_table(entry)
    assert not Table.accepts(entry)


@given(st.integers(0, (1 << 44) - 1))
def test_a_pointer_says_where_the_table_is(frame):
    entry = table_pte(frame << 12)

    assert table_pa(entry) == frame << 12
    assert is_table(entry)
    assert Table.unpack(entry)["ppn"] == frame


@given(pfns, pfns, st.booleans())
def test_another_page_changes_nothing_else(pfn, other, writable):
    entry = leaf_pte(pfn, writable=writable)

    moved = pte_with_pfn(entry, other)
    assert moved == leaf_pte(other, writable=writable)
    assert pte_with_pfn(moved, pfn) == entry


@given(pfns, st.booleans(), st.booleans())
def test_protection_makes_young_again(pfn, writable, before):
    old = mkold(leaf_pte(pfn, writable=before))

    assert pte_with_prot(old, writable=writable) == leaf_pte(pfn, writable=writable)


@given(st.integers(0, (1 << 35) - 1), st.integers(0, 511), st.sampled_from([1, 2]))
def test_children_are_side_by_side(frame, index, level):
    first = frame * level_pages(level) & (1 << 44) - 1
    huge = leaf_pte(first, writable=True)

    child = child_pte(huge, index, level)
    assert child == leaf_pte(first + index * level_pages(level - 1), writable=True)


@pytest.mark.parametrize(("fmt", "pages"), [(Leaf2M, 512), (Leaf1G, 512 * 512)])
def test_a_huge_leaf_is_aligned(fmt, pages):
    assert fmt.unpack(leaf_pte(3 * pages, writable=True))["ppn"] == 3 * pages
    with pytest.raises(EntryError, match="does not know bit 10"):
        fmt.check(leaf_pte(3 * pages + 1, writable=True))


@given(entries)
def test_a_value_is_what_some_format_says_and_packs_again(entry):
    for kind in KINDS:
        if kind.accepts(entry):
            fields = kind.unpack(entry)
            assert kind.pack(**fields) == entry


@pytest.mark.parametrize("bit", [54, 55, 56, 57, 58, 59, 60, 61, 62, 63])
def test_what_the_kernel_never_sets_is_no_leaf(bit):
    # Svnapot (63) and Svpbmt (62:61) among them: no RAM is mapped with either.
    assert not Leaf.accepts(leaf_pte(0x1000, writable=True) | 1 << bit)


@pytest.mark.parametrize("bit", [4, 5, 6, 7, 54, 61, 63])
def test_a_pointer_has_v_and_nothing_else(bit):
    assert not Table.accepts(table_pte(0x9000_0000) | 1 << bit)
