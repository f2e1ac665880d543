"""Faults of the direct MMU: recorded entries, prefetch, huge pages, MMIO."""

import pytest
from kvmarch_x86.rmap_mmu import rmap_map
from kvmarch_x86.rmap_pages import kvm_mmu_get_page
from kvmarch_x86.tdp_tables import lowest

from kvmarch import LOG_DIRTY_PAGES, READONLY
from kvmarch.kernel.memory_region import Region, set_memory_region

NPT = {"paging": "npt"}


def test_first_fault_and_neighbours_as_recorded(rmap):
    m = rmap((5, 10), **NPT)
    m.slot()
    m.access(3, "exec")

    entries = [m.entry(gfn) for gfn in range(4)]

    assert entries == [
        # Recorded: 0x3fdf6c47, 0x2271c47, 0x3fdf7c47, 0x3fdfec67.
        m.pfn(0) << 12 | 0xC47,
        m.pfn(1) << 12 | 0xC47,
        m.pfn(2) << 12 | 0xC47,
        m.pfn(3) << 12 | 0xC67,
    ]
    assert [e["gfn"] for e in m.named("kvm_mmu_set_spte")] == [3, 0, 1, 2]
    assert not m.world.violations


def test_tables_are_made_from_the_root_down(rmap):
    m = rmap((5, 10), **NPT)
    m.slot()
    m.access(3)

    made = [(e["level"], e["gfn"]) for e in m.named("kvm_mmu_get_page")]

    assert made == [(4, 0), (3, 0), (2, 0), (1, 0)]


@pytest.mark.parametrize(
    ("release", "mapped"),
    [
        pytest.param((5, 10), [0, 1, 2, 3], id="up to the last mapped page"),
        pytest.param((5, 15), [0, 1, 2, 3], id="v5.15"),
        pytest.param((5, 17), list(range(8)), id="c6cecc4b9324: after it too"),
        pytest.param((7, 2), list(range(8)), id="v7.2"),
    ],
)
def test_prefetch_of_trailing_neighbours(rmap, release, mapped):
    m = rmap(release)
    m.slot()
    m.access(3)

    assert m.mapped() == mapped
    assert not m.world.violations


@pytest.mark.parametrize(
    ("options", "slot", "read_only", "mapped"),
    [
        pytest.param({"ad": 0}, {}, (), [5], id="no A/D"),
        pytest.param({}, {"flags": LOG_DIRTY_PAGES}, (), [5], id="slot logs"),
        pytest.param({}, {"flags": READONLY}, (), [5], id="read-only slot"),
        pytest.param({}, {}, (2,), [0, 1, 5, 6, 7], id="stops, next run goes on"),
        pytest.param({}, {}, (0,), [5], id="first page of a run: all ends"),
        pytest.param(
            {}, {"pages": 7}, (), [0, 1, 2, 3, 4, 5], id="run leaves the slot"
        ),
        pytest.param({}, {"gfn": 2, "pages": 8, "page": 2}, (), [5], id="no slot at 0"),
    ],
)
def test_what_is_prefetched(rmap, options, slot, read_only, mapped):
    m = rmap((6, 1), **options)
    m.protect(*read_only)
    m.slot(**slot)
    m.access(5)

    assert m.mapped() == mapped
    assert not m.world.violations


def test_nothing_is_prefetched_while_pages_are_invalidated(rmap):
    m = rmap((6, 1))
    slot = m.slot()
    m.access(3)
    root = m.vcpu.arch.root_pa
    m.vm.mmu_invalidate_in_progress = 1
    m.locked(rmap_map, m.vm, slot, 9, m.pfn(9), 1, root_pa=root, host_writable=True)

    assert m.mapped() == [*range(8), 9]


@pytest.mark.parametrize(
    ("release", "mapped"),
    [
        pytest.param((4, 4), [0, 1, 3], id="looks at neighbours all the same"),
        pytest.param((5, 10), [3], id="ends"),
    ],
)
def test_a_fault_that_changes_nothing(rmap, release, mapped):
    m = rmap(release)
    m.protect(0)
    slot = m.slot()
    m.access(3, "write")
    m.mm.ptes[m.hva(0) >> 12] |= 2
    m.protect(2)
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 3, m.pfn(3), 1, root_pa=root, host_writable=True)

    assert m.mapped() == mapped
    assert not m.vm.ledger.owed


@pytest.mark.parametrize(
    ("release", "dirty"), [((5, 15), 0x200), ((6, 1), 0), ((6, 13), 0x200)]
)
def test_an_entry_is_updated_in_place(rmap, release, dirty):
    m = rmap(release)
    slot = m.slot()
    m.access(3)
    prefetched = m.entry(2)
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 2, m.pfn(2), 1, root_pa=root, host_writable=True)

    assert prefetched & 0xFFFFFFFFFF == m.pfn(2) << 12 | 0xA77
    assert m.entry(2) == prefetched & ~0x200 | 0x100 | dirty
    assert bool(m.named("flush_owed")) == (not dirty)


@pytest.mark.parametrize(
    ("release", "flushes"),
    [
        pytest.param((3, 17), 0, id="A and D did not count"),
        pytest.param((4, 4), 1, id="A changed"),
        pytest.param((4, 12), 0, id="A was only set"),
        pytest.param((7, 2), 0, id="MMU-writable stays"),
    ],
)
def test_flush_when_accessed_gets_set(rmap, release, flushes):
    m = rmap(release)
    slot = m.slot()
    m.access(3)
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 2, m.pfn(2), 1, root_pa=root, host_writable=True)

    assert len(m.named("flush_owed")) == flushes


@pytest.mark.parametrize("release", [(4, 4), (5, 10), (6, 12), (7, 2)])
def test_a_leaf_that_loses_write_is_flushed(rmap, release):
    m = rmap(release)
    slot = m.slot()
    m.access(3, "write")
    before = len(m.named("flush_owed"))
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 3, m.pfn(3), 1, root_pa=root, host_writable=False)

    assert not m.entry(3) & m.layout.writable_mask
    assert len(m.named("flush_owed")) == before + 1
    # From v6.13 the page was told when the fault gave it back.
    assert m.page(3).dirty
    assert not m.world.violations


def test_another_page_takes_a_leaf(rmap):
    m = rmap((6, 1))
    slot = m.slot()
    m.access(3, "write")
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 3, m.pfn(9), 1, root_pa=root, host_writable=True)

    assert m.entry(3) == m.pfn(9) << 12 | 0x0600000000000B77
    assert m.page(3).dirty
    assert m.named("flush_owed")[-1] == {"start": 3, "end": 4, "due": "unlock"}


# -- huge pages ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "options", "huge", "small"),
    [
        pytest.param((5, 10), NPT, 0xCE7, 0xC67, id="5.10 NPT, as recorded"),
        pytest.param((5, 10), {}, 0xFF7, 0xF77, id="5.10 EPT"),
        pytest.param((6, 1), {}, 0x0600000000000BF7, 0x0600000000000B77, id="6.1 EPT"),
        pytest.param(
            (6, 12), {}, 0x8600000000000BF7, 0x8600000000000B77, id="6.12 EPT"
        ),
        pytest.param((7, 2), {}, 0x80A0000000000FF7, 0x80A0000000000F77, id="7.2 EPT"),
    ],
)
def test_huge_page_and_dirty_logging(rmap, release, options, huge, small):
    m = rmap(release, pages=1024, huge=True, **options)
    m.slot(gfn=0x40000)
    m.access(0x40001, "write")
    first = m.pfn(0)
    mapped = m.entry(0x40001)
    m.slot(gfn=0x40000, flags=LOG_DIRTY_PAGES)
    protected = m.entry(0x40001)
    m.access(0x40001, "write")

    assert mapped == first << 12 | huge
    assert protected == first << 12 | huge & ~2
    # The huge leaf gives way to a table with the page that was written.
    assert m.mapped(*range(0x40000, 0x40004)) == [0x40001]
    assert m.entry(0x40001) == first + 1 << 12 | small
    assert not m.world.violations


def test_a_huge_leaf_takes_the_place_of_a_table(rmap):
    m = rmap((5, 10), pages=512, huge=True)
    slot = m.slot(flags=LOG_DIRTY_PAGES)
    m.access(5, "write")
    table = m.k.leaf_table.fn(m.vm, 5, 1)[0]
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 5, m.pfn(0), 2, root_pa=root, host_writable=True)
    huge = m.level(5), m.entry(5)
    # The table was unlinked, not zapped, and keeps its place in the hash.
    kept = m.vm.tables.at(table).get(5)
    m.locked(rmap_map, m.vm, slot, 6, m.pfn(6), 1, root_pa=root, host_writable=True)

    assert huge == (2, m.pfn(0) << 12 | 0xFF7)
    assert kept == m.pfn(5) << 12 | 0xF77
    assert m.k.leaf_table.fn(m.vm, 6, 1) == (table, 6)
    assert m.entry(5) == kept
    assert not m.world.violations


def test_nx_huge_page_does_not_replace_a_table(rmap):
    m = rmap((5, 10), pages=512, huge=True, nx_huge_pages=1)
    slot = m.slot()
    root = m.locked(lambda vm: m.k.vcpu_load.fn(m.vcpu), m.vm)
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, slot, 5, m.pfn(5), 1, root_pa=root, host_writable=True)
    m.locked(rmap_map, m.vm, slot, 6, m.pfn(0), 2, root_pa=root, host_writable=True)

    assert m.level(6) == 1
    assert m.entry(6) == m.pfn(6) << 12 | 0xF77


def test_tables_below_an_obsolete_root_are_new_ones(rmap):
    m = rmap((5, 10))
    slot = m.slot()
    m.access(3)
    old_root = m.vcpu.arch.root_pa
    m.vm.arch.mmu_valid_gen ^= 1
    m.locked(rmap_map, m.vm, slot, 9, m.pfn(9), 1, root_pa=old_root, host_writable=True)
    valid = m.locked(kvm_mmu_get_page, m.vm, 0, 1, 0)

    # The old tables of the path are used as long as they are linked.
    table = lowest(m.vm, old_root, 9)[0]
    assert table.note.gen == 0
    assert valid.note.gen == 1
    assert valid.pa != table.pa


# -- MMIO ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "options", "generation", "value"),
    [
        pytest.param((5, 10), NPT, 2, 0x00380000FEBF0017, id="5.10 NPT"),
        pytest.param((5, 10), {}, 0x102, 0x00300000FEBF0816, id="5.10 EPT"),
        pytest.param((6, 1), {}, 0x102, 0x00100000FEBF0016, id="6.1 EPT"),
        pytest.param((6, 12), NPT, 2, 0x00080000FEBF0017, id="6.12 NPT"),
        pytest.param((7, 2), {}, 0x102, 0x00200000FEBF0016, id="7.2 EPT"),
        pytest.param((4, 4), {}, 4, 0xC0000000FEBF0016, id="4.4 EPT"),
        pytest.param((4, 4), NPT, 2, 0xC00FC000FEBF000F, id="4.4 NPT"),
    ],
)
def test_mmio_entry(rmap, release, options, generation, value):
    m = rmap(release, **options)
    m.slot()
    m.access(0)
    root = m.vcpu.arch.root_pa
    how = m.locked(rmap_map, m.vm, None, 0xFEBF0, 0, 1, root_pa=root, gen=generation)

    assert how == "mmio"
    assert m.entry(0xFEBF0) == value
    assert m.mapped(0xFEBF0) == []
    assert m.named("mark_mmio_spte")[-1]["gfn"] == 0xFEBF0
    assert not m.vm.ledger.owed


@pytest.mark.parametrize("release", [(4, 4), (5, 10), (6, 1), (7, 2)])
def test_a_slot_over_an_mmio_entry(rmap, release):
    m = rmap(release)
    m.slot()
    assert m.access(0x100) == "mmio"
    region = Region(1, 0, 0x100 << 12, 4 << 12, m.hva(8))
    m.do(set_memory_region(m.vm, region))

    assert m.access(0x100, "write") == "done"
    assert m.mapped(0x100) == [0x100]
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param((5, 10), [], id="the leaf is dropped before"),
        pytest.param((5, 13), ["warn"], id="D16"),
        pytest.param((6, 12), ["warn"], id="D16 in v6.12"),
        pytest.param((7, 2), [], id="aad885e77496"),
    ],
)
def test_mmio_entry_over_a_leaf(rmap, release, lost):
    m = rmap(release)
    slot = m.slot()
    m.access(3, "write")
    root = m.vcpu.arch.root_pa
    m.locked(rmap_map, m.vm, None, 3, 0, 1, root_pa=root)
    owed = bool(m.named("flush_owed"))
    m.unmap(slot, 0, 16)

    assert m.lost == lost
    assert owed == (not lost)


def test_mmio_entry_over_a_leaf_leads_into_freed_memory(rmap):
    m = rmap((6, 1))
    slot = m.slot()
    m.access(3, "write")
    m.locked(rmap_map, m.vm, None, 3, 0, 1, root_pa=m.vcpu.arch.root_pa)
    m.slot(slot=5, gfn=0x1000, pages=4)
    m.slot(slot=5, gfn=0x1000, pages=0)
    m.unmap(slot, 3, 4)

    assert "table-memory" in m.lost
