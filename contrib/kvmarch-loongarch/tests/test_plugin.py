"""The distribution as kvmarch sees it: comparison, walk, what is no entry."""

import pytest
from kvmarch import EntryError, HostPte, WalkLayout

import kvmarch_loongarch

pytestmark = pytest.mark.kvmarch(arch="loongarch")


def test_change_pte_is_no_operation(kvmarch_compare):
    rows = kvmarch_compare("change_pte", "v6.8,v6.9,v6.10")

    for kernel in ("v6.8", "v6.9"):
        row = rows[kernel]
        assert (row["effect"], row["flush"]) == ("none", "none")
        assert row["exits_saved"] == 0
        assert row["entry_after_start"] == row["entry_after_change_pte"] == "0x0"
    assert rows["v6.10"]["effect"] == "absent"


@pytest.mark.parametrize(
    ("host", "entry"),
    [
        pytest.param({"write": 1, "dirty": 1}, 0x193, id="writable"),
        pytest.param({"write": 1}, 0x191, id="clean"),
        pytest.param({"dirty": 1}, 0x091, id="read-only"),
    ],
)
def test_set_spte_keeps_what_both_entries_allow(kvmarch_bench, host, entry):
    one = kvmarch_bench((6, 8))
    one.slot()
    one.access(2, "write")
    slot = one.vm.memslots[0].by_id(0)
    pte = HostPte.pack(pfn=0x48D2, present=1, **host)

    flush = one.k.set_spte_gfn.fn(one.vm, slot, 2, pte)

    assert (flush.start, flush.end) == (2, 3)
    assert one.entry(2) == 0x48D2 << 14 | entry


def test_set_spte_clears_an_old_entry(kvmarch_bench):
    one = kvmarch_bench((6, 8))
    one.slot()
    one.access(2)
    slot = one.vm.memslots[0].by_id(0)
    one.do(one.k.age_gfn(one.vm, slot, 2, 3))
    pte = HostPte.pack(pfn=0x48D2, present=1, write=1)

    assert one.k.set_spte_gfn.fn(one.vm, slot, 2, pte) is None
    assert one.entry(2) == 0


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("release", [(6, 8), (7, 2)])
def test_the_walk_finds_what_the_kernel_mapped(kvmarch_bench, page_size, release):
    one = kvmarch_bench(release, page_size=page_size)
    one.slot()
    one.access(3, "write")
    layout = one.k.walk.fn(one.k, one.vm.options)

    table, address = one.vm.arch.pgd, None
    for level in layout.levels:
        index = 3 * page_size >> level.shift & (1 << level.bits) - 1
        entry = one.vm.tables.at(table).get(index)
        rule = next(r for r in level.rules if entry & r.mask == r.value)
        table = address = rule.address_of(entry)
    assert isinstance(layout, WalkLayout)
    assert rule.role == "leaf"
    assert address == one.pfn(3) * page_size


def test_an_old_leaf_is_kept_and_a_marker_is_absent(kvmarch_link, kvmarch_plugin):
    k, options = kvmarch_link(), kvmarch_plugin.info.settle((7, 2), {})
    by_level = k.walk.fn(k, options).by_level

    def role(entry, level):
        rules = by_level[level].rules
        return next(r.role for r in rules if entry & r.mask == r.value)

    assert role(0x12344392, 0) == "kept"
    assert role(0x12344393, 0) == "leaf"
    assert role(0, 0) == "absent"
    assert role(0x120003D3, 1) == "leaf"
    assert role(0x12344000, 1) == role(0x12344000, 2) == "table"
    assert [role(0x9000000001000000 + level * 0x4000, level) for level in (1, 2)] == [
        *("absent", "absent")
    ]


@pytest.mark.parametrize(
    ("entry", "level", "message"),
    [(0, 3, "has levels 0 to 2, not 3"), (1 << 64, 0, "is no 64-bit value")],
)
def test_what_is_no_entry_is_refused(
    kvmarch_link, kvmarch_plugin, entry, level, message
):
    with pytest.raises(EntryError, match=message):
        kvmarch_loongarch.kvmarch_decode(
            kvmarch_link(), kvmarch_plugin.info.settle((7, 2), {}), entry, level
        )


def test_a_huge_leaf_goes_to_whole_blocks_only(kvmarch_link, kvmarch_plugin):
    k, options = kvmarch_link(), kvmarch_plugin.info.settle((7, 2), {})
    repoint = kvmarch_loongarch.kvmarch_entry_repoint

    assert repoint(k, options, 0x120003D3, 1, 0x5000) == 0x140003D3
    with pytest.raises(EntryError, match="no multiple of 0x800"):
        repoint(k, options, 0x120003D3, 1, 0x5001)
    with pytest.raises(EntryError, match="leads to no page"):
        repoint(k, options, 0, 0, 1)
