"""The distribution as kvmarch sees it: formats by release, walk."""

from pathlib import Path

import pytest
from kvmarch import EntryError, Kernel, WalkLayout

import kvmarch_riscv
from kvmarch_riscv.geometry import MODES
from kvmarch_riscv.pte import device_pte, leaf_pte, mkold, table_pte

pytestmark = pytest.mark.kvmarch(arch="riscv")


def kernel(*changes):
    """Return a kernel in which these changes decide, and the default options."""
    choices = {
        choice.name: choice.pick(frozenset(changes))
        for choice in kvmarch_riscv.kvmarch_choices()
    }
    return Kernel((6, 17), "riscv", frozenset(changes), choices)


def options(**given):
    info = kvmarch_riscv.kvmarch_arch()
    return info.settle((7, 2), {name: str(value) for name, value in given.items()})


@pytest.mark.parametrize(
    ("changes", "pbmt", "entry"),
    [
        ((), 1, device_pte(7, writable=True, user=False, pbmt=False)),
        (
            ("riscv-ioremap-uncached",),
            1,
            device_pte(7, writable=True, user=False, pbmt=True),
        ),
        (
            ("riscv-ioremap-uncached", "riscv-ioremap-user"),
            1,
            device_pte(7, writable=True, user=True, pbmt=True),
        ),
        (
            ("riscv-ioremap-uncached", "riscv-ioremap-user"),
            0,
            device_pte(7, writable=True, user=True, pbmt=False),
        ),
    ],
)
def test_a_kernel_knows_the_pages_of_devices_that_it_writes(changes, pbmt, entry):
    every = [
        device_pte(7, writable=True, user=user, pbmt=mapped)
        for user in (True, False)
        for mapped in (True, False)
    ]

    known = [
        kvmarch_riscv.kvmarch_decode(kernel(*changes), options(svpbmt=pbmt), one, 0)[0]
        for one in every
    ]
    assert known.count("device") == 1
    assert every[known.index("device")] == entry


def test_values_are_decoded_by_their_level():
    k, machine = kernel(), options()

    def kind(entry, level):
        return kvmarch_riscv.kvmarch_decode(k, machine, entry, level)[0]

    leaf = leaf_pte(0x200, writable=True)
    assert [kind(leaf, level) for level in range(5)] == [
        "leaf",
        "leaf",
        "unknown",
        "unknown",
        "unknown",
    ]
    pointer = table_pte(0x9000_0000)
    assert [kind(pointer, level) for level in range(5)] == ["unknown"] + ["table"] * 4
    assert {kind(0, level) for level in range(5)} == {"none"}
    assert kind(leaf & ~1, 0) == "unknown"


@pytest.mark.parametrize(
    ("entry", "level", "message"),
    [(0, 5, "has levels 0 to 4, not 5"), (1 << 64, 0, "is no 64-bit value")],
)
def test_what_is_no_entry_is_refused(entry, level, message):
    with pytest.raises(EntryError, match=message):
        kvmarch_riscv.kvmarch_decode(kernel(), options(), entry, level)


def test_only_leaves_lead_to_pages():
    k, machine = kernel(), options()

    pfn = kvmarch_riscv.kvmarch_entry_pfn
    assert pfn(k, machine, leaf_pte(0x200, writable=True), 1) == 0x200
    assert pfn(k, machine, table_pte(0x9000_0000), 1) is None
    with pytest.raises(EntryError, match="leads to no page"):
        kvmarch_riscv.kvmarch_entry_repoint(k, machine, 0, 0, 1)


# -- how tables are walked ---------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_walk_has_a_root_of_16_kib(mode):
    layout = kvmarch_riscv.kvmarch_walk(kernel(), options(mode=mode))

    assert isinstance(layout, WalkLayout)
    assert (layout.root_bytes, layout.alignment) == (16384, 16384)
    assert layout.gpa_bits == MODES[mode].gpa_bits


@pytest.mark.parametrize(
    ("entry", "level", "adue", "role", "address"),
    [
        (0, 0, 1, "absent", None),
        (leaf_pte(0x80200, writable=True), 0, 1, "leaf", 0x8020_0000),
        (leaf_pte(0x80200, writable=False), 1, 1, "leaf", 0x8020_0000),
        (mkold(leaf_pte(0x80200, writable=True)), 0, 1, "leaf", 0x8020_0000),
        (mkold(leaf_pte(0x80200, writable=True)), 0, 0, "kept", 0x8020_0000),
        (table_pte(0x9000_1000), 1, 1, "table", 0x9000_1000),
        (
            device_pte(0x28000, writable=True, user=False, pbmt=True),
            0,
            1,
            "kept",
            0x2800_0000,
        ),
    ],
)
def test_a_walk_makes_of_entries_what_hardware_does(entry, level, adue, role, address):
    layout = kvmarch_riscv.kvmarch_walk(kernel(), options(adue=adue))
    rules = layout.by_level[level].rules

    rule = next(rule for rule in rules if entry & rule.mask == rule.value)
    assert rule.role == role
    assert address is None or rule.address_of(entry) == address


def test_the_lab_has_the_guests_code():
    row = kvmarch_riscv.kvmarch_lab()

    text = Path(row.guest).read_text("utf-8")
    assert all(
        name in text
        for name in (
            "guest_code",
            "guest_leave",
            "guest_vm",
            "guest_vcpu",
            "guest_regs",
        )
    )


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ({"without": "riscv-thp"}, 0),
        ({}, 1),
        ({"with_": "riscv-eager-split"}, 0),
        ({"with_": "riscv-eager-split", "eager_split": 0}, 1),
    ],
)
def test_huge_leaves_are_split_when_logging_begins(kvmarch_compare, given, level):
    row = kvmarch_compare("huge_page", "v7.2", **given)["v7.2"]

    assert row["level_logged"] == level
    assert row["violations"] == "none"


def test_bitmaps_may_start_with_every_bit_set_since_v6_19():
    assert not kernel().initially_set_log
    assert kernel("riscv-initially-set").initially_set_log
