"""Faults that nobody races with: what they map, in every era."""

import pytest

from kvmarch.kernel.memslots import LOG_DIRTY_PAGES, READONLY

ERAS = (
    pytest.param((3, 16), id="v3.16"),
    pytest.param((4, 12), id="v4.12"),
    pytest.param((4, 19), id="v4.19"),
    pytest.param((5, 9), id="v5.9"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((5, 12), id="v5.12"),
    pytest.param((5, 18), id="v5.18"),
    pytest.param((6, 1), id="v6.1"),
    pytest.param((6, 2), id="v6.2"),
    pytest.param((6, 12), id="v6.12"),
    pytest.param((7, 2), id="v7.2"),
)

GRANULES = (
    pytest.param(4096, 512, id="4K"),
    pytest.param(16384, 2048, id="16K"),
    pytest.param(65536, 8192, id="64K"),
)


@pytest.mark.parametrize("release", ERAS)
def test_first_write_maps_a_writable_page(machine, release):
    m = machine(release)
    m.slot()

    assert m.access(2, how="write") == "done"
    never = 1 << 54 if release >= (4, 16) else 0
    assert m.entry(2) == m.pfn(2) << 12 | never | 0x7FF
    assert m.level(2) == 3
    assert m.exits() == 1
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", ERAS)
def test_read_of_a_writable_page_maps_it_writable(machine, release):
    m = machine(release)
    m.slot()

    m.access(1)
    m.access(1, how="write")
    assert m.field(1, "w") == 1
    assert m.exits() == 1


@pytest.mark.parametrize("release", ERAS)
def test_read_only_page_becomes_writable_by_a_second_fault(machine, release):
    m = machine(release)
    m.slot()
    m.protect(1)

    m.access(1)
    assert m.field(1, "w") == 0
    m.access(1, how="write")
    assert m.field(1, "w") == 1
    assert m.vcpu.exits == {"missing": 1, "permission": 1}
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", ERAS)
def test_table_counts_its_entries(machine, release):
    m = machine(release)
    m.slot()

    m.access(0, 1, 2, 1)
    assert m.table(0).refs == 4
    assert m.table(0, 1).refs == 2


@pytest.mark.parametrize(
    ("release", "options", "exits", "executable"),
    [
        pytest.param((4, 15), {}, 1, True, id="no XN before v4.16"),
        pytest.param((4, 19), {}, 2, True, id="v4.19"),
        pytest.param((6, 1), {}, 2, True, id="v6.1"),
        pytest.param((6, 12), {}, 2, True, id="v6.12"),
        pytest.param((4, 19), {"dic": 1}, 1, True, id="v4.19 DIC"),
        pytest.param((6, 12), {"dic": 1}, 1, True, id="v6.12 DIC"),
    ],
)
def test_fetch_adds_execute_permission(machine, release, options, exits, executable):
    m = machine(release, **options)
    m.slot()

    m.access(3, how="write")
    m.access(3, how="exec")
    assert m.exits() == exits
    assert (m.field(3, "xn") == 0) is executable
    assert m.field(3, "w") == 1


@pytest.mark.parametrize(
    ("release", "xnx", "kept"),
    [
        pytest.param((6, 18), 0, True, id="v6.18"),
        pytest.param((6, 19), 1, False, id="v6.19 sets XN as asked"),
        pytest.param((7, 1), 0, False, id="v7.1, without FEAT_XNX"),
        pytest.param((7, 2), 0, True, id="v7.2 keeps it (recording)"),
    ],
)
def test_write_after_fetch_may_lose_execute(machine, release, xnx, kept):
    m = machine(release, xnx=xnx)
    m.slot(flags=LOG_DIRTY_PAGES)

    m.access(3, how="exec")
    m.access(3, how="write")
    assert (m.access(3, how="exec"), m.exits()) == ("done", 2 if kept else 3)


@pytest.mark.parametrize("release", ERAS)
def test_old_permission_fault_keeps_execute(machine, release):
    m = machine(release)
    m.slot(flags=LOG_DIRTY_PAGES)

    m.access(3, how="exec")
    m.access(3, how="write")
    assert m.field(3, "xn") == 0
    assert m.field(3, "w") == 1


@pytest.mark.parametrize("release", ERAS)
def test_logging_maps_a_read_page_read_only(machine, release):
    m = machine(release)
    slot = m.slot(flags=LOG_DIRTY_PAGES)

    m.access(4)
    assert m.field(4, "w") == 0
    assert not any(m.vm.dirty_bitmaps[slot.bitmap])
    m.access(4, how="write")
    assert m.field(4, "w") == 1
    assert m.vm.dirty_bitmaps[slot.bitmap][0] == 1 << 4


@pytest.mark.parametrize("release", ERAS)
def test_no_slot_is_mmio_and_has_no_entry(machine, release):
    m = machine(release)
    m.slot()

    assert m.access(0x100) == "mmio"
    assert m.access(0x100) == "mmio"
    assert m.entry(0x100) == 0
    assert m.kind(0x100) == "empty"


@pytest.mark.parametrize("release", ERAS)
def test_read_only_slot(machine, release):
    m = machine(release)
    m.slot(flags=READONLY)

    assert m.access(1) == "done"
    assert m.field(1, "w") == 0
    assert m.access(1, how="write") == "mmio"


@pytest.mark.parametrize("release", ERAS)
def test_fetch_without_a_slot_is_an_abort_in_the_guest(machine, release):
    m = machine(release)
    m.slot()

    assert m.access(0x100, how="exec") == "error"
    assert m.named("kvm_inject_pabt") == [{"vcpu": "vcpu0", "gfn": 0x100}]


@pytest.mark.parametrize(
    ("release", "result"),
    [
        pytest.param((5, 18), "mmio", id="v5.18"),
        pytest.param((5, 19), "error", id="v5.19"),
        pytest.param((7, 2), "error", id="v7.2"),
    ],
)
def test_address_beyond_the_ipa_size(machine, release, result):
    m = machine(release)
    m.slot()

    assert m.access(1 << 28) == result
    assert len(m.named("kvm_inject_dabt")) == (result == "error")


@pytest.mark.parametrize("release", ERAS)
def test_without_a_vma_the_run_fails(machine, release):
    m = machine(release)
    m.slot()
    m.mm.remove_vmas(m.hva(3), m.hva(4))

    assert m.access(3) == "error"
    assert m.entry(3) == 0


# -- block mappings --------------------------------------------------------------------


@pytest.mark.parametrize(("page_size", "pages"), GRANULES)
@pytest.mark.parametrize("release", ERAS)
def test_huge_page_of_the_host_becomes_a_block(machine, release, page_size, pages):
    m = machine(release, pages=2 * pages, huge=True, page_size=page_size)
    m.slot(gfn=pages)

    m.access(pages + 5, how="write")
    assert (m.kind(pages), m.level(pages)) == ("block", 2)
    assert m.field(pages, "pfn") == m.pfn(0)
    assert m.kind(2 * pages) in {"empty", "table"}
    m.access(*range(pages, pages + 20))
    assert m.exits() == 1
    assert m.lost == []


@pytest.mark.parametrize("release", ERAS)
def test_misaligned_slot_has_no_blocks(machine, release):
    m = machine(release, pages=1024, huge=True)
    m.slot(gfn=513)

    m.access(600)
    assert m.level(600) == 3


@pytest.mark.parametrize(
    ("release", "level"),
    [
        pytest.param((4, 19), 2, id="v4.19 maps beyond the slot"),
        pytest.param((5, 0), 3, id="v5.0 looks at both ends"),
        pytest.param((6, 12), 3, id="v6.12"),
    ],
)
def test_block_must_lie_in_the_slot(machine, release, level):
    m = machine(release, pages=1024, huge=True)
    m.slot(gfn=0x400, pages=256)

    m.access(0x400)
    assert m.level(0x400) == level


@pytest.mark.parametrize("release", ERAS)
def test_logged_write_breaks_the_block_for_one_page(machine, release):
    m = machine(release, pages=512, huge=True)
    m.slot(gfn=512)
    m.access(512, how="write")
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    assert (m.level(512), m.field(512, "w")) == (2, 0)

    m.access(600, how="write")
    assert (m.kind(600), m.field(600, "w")) == ("page", 1)
    assert m.kind(512) == "empty"
    assert m.table(600).refs == 2
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", [p for p in ERAS if p.values[0] >= (5, 1)])
def test_block_comes_back_over_its_table(machine, release):
    m = machine(release, pages=512, huge=True)
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    m.access(512, 513, how="write")
    tables = len(m.vm.tables.live)
    m.slot(gfn=512)

    m.access(514, how="write")
    assert (m.kind(512), m.level(512)) == ("block", 2)
    assert len(m.vm.tables.live) == tables - 1
    m.assert_counted()
    # Nothing cached of the table is left: two entries for one IPA would conflict.
    assert m.exits() == 3
    assert [key[2] for key in m.vcpu.tlb.entries] == [512]
    assert m.lost == []


@pytest.mark.parametrize(
    "release",
    [pytest.param((4, 19), id="v4.19"), pytest.param((5, 0), id="v5.0")],
)
def test_old_block_over_a_table_leaks_it(machine, release):
    """3c3736cd32bf (v5.1): the table is taken for a block; one IPA is flushed."""
    m = machine(release, pages=512, huge=True)
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    m.access(512, 513, how="write")
    m.slot(gfn=512)

    m.access(514, how="write")
    assert len(m.named("vm_bug_on")) == 1
    assert sorted(key[2] for key in m.vcpu.tlb.entries) == [1, 512]
    m.do(m.k.flush_shadow_all(m.vm))
    m.do(m.k.destroy_vm(m.vm))
    assert m.lost == ["table-memory"]


# -- access flag ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "haf", "exits"),
    [
        pytest.param((4, 4), 0, 2, id="v4.4"),
        pytest.param((4, 4), 1, 2, id="v4.4 does not use hardware AF"),
        pytest.param((4, 12), 1, 1, id="v4.12 HA"),
        pytest.param((6, 1), 0, 2, id="v6.1"),
        pytest.param((6, 12), 0, 2, id="v6.12"),
        pytest.param((6, 12), 1, 1, id="v6.12 HA"),
    ],
)
def test_old_page_is_young_after_an_access(machine, release, haf, exits):
    m = machine(release, haf=haf)
    slot = m.slot()
    m.access(1)
    m.locked(m.k.age_gfn(m.vm, slot, 1, 2))
    m.vcpu.tlb.drop_all()
    assert m.field(1, "af") == 0

    m.access(1)
    assert m.field(1, "af") == 1
    assert m.exits() == exits
    assert m.lost == []


def test_cached_translation_faults_by_itself(machine):
    m = machine((6, 12), pages=1)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(0)
    m.change(0, m.entry(0) | 1 << 7)
    before = m.exits()

    assert m.access(0) == "done"
    assert m.exits() == before
    assert m.access(0, how="write") == "done"
    assert m.exits() == before + 1


# -- no memory for tables ----------------------------------------------------------


@pytest.mark.parametrize("release", [(4, 4), (5, 4), (5, 10), (6, 1), (6, 9), (7, 2)])
def test_without_memory_for_tables_a_fault_fails(machine, release):
    m = machine(release)
    m.slot()
    m.host.environment.no_tables = 1
    failed = m.access(0)
    cached = m.vcpu.arch.mmu_page_cache
    m.host.environment.no_tables = 0

    assert (failed, cached, m.kind(0)) == ("error", 0, "empty")
    assert m.access(0) == "done"
    assert m.lost == []


def test_pages_that_were_set_aside_last_for_another_fault(machine):
    m = machine((6, 1))
    m.slot()
    m.access(0)
    m.vcpu.arch.mmu_page_cache = m.mmu.cache_min_pages
    m.host.environment.no_tables = 1

    assert m.access(1) == "done"
    m.vcpu.arch.mmu_page_cache = 0
    assert m.access(2) == "error"


def test_a_permission_fault_asks_for_no_table(machine):
    m = machine((6, 1))
    m.slot()
    m.access(0)
    m.vcpu.arch.mmu_page_cache = 0
    m.host.environment.no_tables = 1

    assert m.access(0, how="exec") == "done"


@pytest.mark.parametrize("release", ERAS)
@pytest.mark.parametrize(
    ("flags", "level"), [(LOG_DIRTY_PAGES, 3), (LOG_DIRTY_PAGES | READONLY, 2)]
)
def test_only_a_slot_that_can_be_written_is_mapped_page_by_page(
    machine, release, flags, level
):
    m = machine(release, pages=512, huge=True)
    m.slot(gfn=512, flags=flags)
    m.access(517)

    assert m.level(517) == level
