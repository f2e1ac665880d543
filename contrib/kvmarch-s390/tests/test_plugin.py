"""The distribution as kvmarch sees it: comparison, walk, what is no entry."""

import pytest
from kvmarch import EntryError, WalkLayout

import kvmarch_s390

pytestmark = pytest.mark.kvmarch(arch="s390")


def test_there_is_no_change_pte_in_any_release(kvmarch_compare):
    rows = kvmarch_compare("change_pte", "v5.4,v6.9,v6.19,v7.2")

    assert list(rows) == ["v5.4", "v6.9", "v6.19", "v7.2"]
    assert {row["effect"] for row in rows.values()} == {"absent"}
    assert [row["mmu"] for row in rows.values()] == ["shared"] * 3 + ["own"]
    # With the host's tables the guest goes on in the merged page without an exit.
    assert [row["exits_on_reread"] for row in rows.values()] == [0, 0, 0, 1]
    assert {row["violations"] for row in rows.values()} == {"none"}


def test_no_notification_breaks_the_sharing_of_a_page_before_v7_0(kvmarch_compare):
    rows = kvmarch_compare("ksm_cow", "v6.19,v7.0")

    assert [rows[k]["notified"] for k in ("v6.19", "v7.0")] == [0, 1]


def test_nothing_is_mmio(kvmarch_compare):
    rows = kvmarch_compare("mmio_generation", "v6.19,v7.0")

    assert {row["exit"] for row in rows.values()} == {"exception"}


@pytest.mark.parametrize("root", ["segment", "region3", "region1"])
def test_the_walk_finds_what_the_kernel_mapped(kvmarch_bench, root):
    one = kvmarch_bench((7, 2), root=root)
    one.slot()
    one.access(3, "write")
    layout = one.k.walk.fn(one.k, one.vm.options)

    table, address = one.vm.arch.root, None
    for level in layout.levels:
        index = 3 * 4096 >> level.shift & (1 << level.bits) - 1
        entry = one.vm.tables.at(table).get(index)
        rule = next(r for r in level.rules if entry & r.mask == r.value)
        table = address = rule.address_of(entry)
    assert isinstance(layout, WalkLayout)
    assert layout.byteorder == "big"
    assert rule.role == "leaf"
    assert address == one.pfn(3) * 4096


@pytest.mark.parametrize(
    ("release", "entry", "level", "role"),
    [
        ((7, 2), 0x12345225, 0, "leaf"),
        ((7, 2), 0x12345623, 0, "kept"),
        ((7, 2), 0x400, 0, "absent"),
        ((7, 2), 0x0001000500000400, 0, "note"),
        ((7, 2), 0x0001000500000020, 1, "note"),
        ((7, 2), 0x12305C03, 1, "leaf"),
        ((7, 2), 0x56789000, 1, "table"),
        ((7, 2), 0x80005C07, 2, "leaf"),
        ((6, 1), 0x1234503F, 0, "leaf"),
        ((6, 1), 0x1234543B, 0, "kept"),
        ((6, 1), 0x400, 0, "absent"),
        ((6, 1), 0x20, 1, "absent"),
        ((6, 1), 0x45678007, 2, "table"),
    ],
)
def test_roles(kvmarch_link, kvmarch_plugin, release, entry, level, role):
    k, options = kvmarch_link(release), kvmarch_plugin.info.settle(release, {})
    rules = k.walk.fn(k, options).by_level[level].rules

    assert next(r.role for r in rules if entry & r.mask == r.value) == role


def test_two_gigabytes_are_mapped_since_v7_2(kvmarch_link, kvmarch_plugin):
    kinds = [
        kvmarch_s390.kvmarch_decode(
            kvmarch_link(release),
            kvmarch_plugin.info.settle(release, {}),
            0x80005C07,
            2,
        )[0]
        for release in ((7, 1), (7, 2))
    ]

    assert kinds == ["unknown", "leaf"]


@pytest.mark.parametrize(
    ("entry", "level", "message"),
    [(0, 3, "has levels 0 to 2, not 3"), (1 << 64, 0, "is no 64-bit value")],
)
def test_what_is_no_entry_is_refused(
    kvmarch_link, kvmarch_plugin, entry, level, message
):
    with pytest.raises(EntryError, match=message):
        kvmarch_s390.kvmarch_decode(
            kvmarch_link(), kvmarch_plugin.info.settle((7, 2), {}), entry, level
        )
