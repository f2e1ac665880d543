"""Dirty logging in the TDP MMU, with and without PML; huge pages under it."""

import pytest
from kvmarch_x86.tdp_log import mask_runs, tdp_dirty_masked, wrprot_gfn

from kvmarch import LOG_DIRTY_PAGES, READONLY
from kvmarch.kernel.dirty_log import clear_dirty_log, get_dirty_log

TDP = [(5, 10), (5, 12), (5, 15), (5, 17), (5, 18), (6, 1), (6, 3), (6, 12), (7, 2)]
NPT = {"paging": "npt"}
KINDS = [
    pytest.param({}, id="ept"),
    pytest.param(NPT, id="npt"),
    pytest.param({"ad": 0}, id="no A/D"),
    pytest.param({"pml": 1}, id="pml"),
]


@pytest.fixture
def tdp(machine):
    """Boot a machine with the TDP MMU and a memslot."""

    def make(release, *written, **options):
        m = machine(release, mmu="tdp", **options)
        m.slot()
        for gfn in written:
            m.access(gfn, "write")
        return m

    return make


@pytest.mark.parametrize("release", TDP)
def test_logging_changes_nothing_in_a_read_only_slot(machine, release):
    m = machine(release, mmu="tdp", pages=1024, huge=True, **NPT)
    m.slot(pages=512, flags=READONLY)
    m.access(3)
    before = m.entry(3)
    m.slot(pages=512, flags=READONLY | LOG_DIRTY_PAGES)

    assert m.entry(3) == before


@pytest.mark.parametrize("release", TDP)
@pytest.mark.parametrize("options", KINDS)
def test_every_write_is_in_the_log_once(tdp, release, options):
    m = tdp(release, 1, 2, 3, **options)
    m.slot(flags=LOG_DIRTY_PAGES)
    before = m.do(get_dirty_log(m.vm, 0))
    m.access(2, "write")
    m.access(2, "write")
    m.access(9, "write")
    first = m.do(get_dirty_log(m.vm, 0))
    idle = m.do(get_dirty_log(m.vm, 0))
    m.access(2, "write")
    again = m.do(get_dirty_log(m.vm, 0))
    m.slot()
    m.access(1, "write")

    assert (before, first) == ((0, 0), (0, 1 << 2 | 1 << 9))
    assert (idle, again) == ((0, 0), (0, 1 << 2))
    assert m.mapped() == [1, 2, 3, 9]
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "options", "bits"),
    [
        pytest.param((5, 10), {}, 0xF75, id="5.10: W"),
        pytest.param((6, 1), {}, 0x0600000000000B75, id="6.1: W"),
        pytest.param((6, 12), {}, 0x8600000000000B75, id="6.12: W"),
        pytest.param((7, 2), {}, 0x80A0000000000F75, id="7.2: W"),
        pytest.param((5, 10), {"pml": 1}, 0xD77, id="5.10: D"),
        pytest.param((6, 1), {"pml": 1}, 0x0600000000000977, id="6.1: D"),
        pytest.param((6, 12), {"pml": 1}, 0x8600000000000977, id="6.12: D"),
        pytest.param((7, 2), {"pml": 1}, 0x80A0000000000D77, id="7.2: D"),
        pytest.param((6, 1), NPT, 0xE65, id="6.1 npt, recorded"),
    ],
)
def test_entries_when_logging_begins(tdp, release, options, bits):
    m = tdp(release, 1, **options)
    m.slot(flags=LOG_DIRTY_PAGES)
    begun = m.entry(1)
    m.access(1, "write")
    m.do(get_dirty_log(m.vm, 0))

    assert begun == m.pfn(1) << 12 | bits
    assert m.entry(1) == begun
    assert not m.world.violations


@pytest.mark.parametrize("release", TDP)
def test_the_log_says_which_pages_pml_saw(tdp, release):
    m = tdp(release, 1, pml=1)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(1, "write")
    logged = list(m.vcpu.arch.pml_buffer)
    exits = m.vcpu.exits["permission"]
    bits = m.do(get_dirty_log(m.vm, 0))

    assert (logged, exits) == ([1], 0)
    assert bits == (0, 1 << 1)
    assert m.vcpu.arch.pml_buffer == []
    assert not m.world.violations


def test_a_full_pml_buffer_is_drained(tdp):
    m = tdp((6, 1), pml=1, pages=1024)
    for gfn in range(600):
        m.access(gfn, "write")
    m.slot(flags=LOG_DIRTY_PAGES)
    for gfn in range(600):
        m.access(gfn, "write")

    assert len(m.vcpu.arch.pml_buffer) == 600 - 512
    assert m.do(get_dirty_log(m.vm, 0)) == (0, (1 << 600) - 1)
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "flushes"),
    [
        pytest.param((5, 18), 0, id="5.18: only what changed"),
        pytest.param((6, 0), 1, id="6.0: always"),
        pytest.param((7, 2), 1, id="7.2: always"),
    ],
)
def test_the_flush_when_logging_begins(tdp, release, flushes):
    m = tdp(release)
    m.slot(flags=LOG_DIRTY_PAGES)

    assert len(m.named("flush")) == flushes
    assert not m.world.violations


@pytest.mark.parametrize("mmu", ["rmap", "tdp"])
@pytest.mark.parametrize("pml", [0, 1])
def test_with_initially_set_only_clear_protects(machine, mmu, pml):
    m = machine((6, 1), mmu=mmu, pml=pml, pages=64)
    m.vm.manual_protect = m.vm.initially_set = True
    m.slot()
    m.access(1, "write")
    before = m.entry(1)
    m.slot(flags=LOG_DIRTY_PAGES)
    begun = m.entry(1)
    copied = m.do(get_dirty_log(m.vm, 0))
    copied_entry = m.entry(1)
    m.do(clear_dirty_log(m.vm, 0, 0, 64, 0b10))

    assert begun == copied_entry == before
    assert copied == (0, (1 << 64) - 1)
    assert m.entry(1) == before & ~(1 << 9 if pml else 2)
    assert m.do(get_dirty_log(m.vm, 0)) == (0, (1 << 64) - 1 & ~0b10)
    assert not m.world.violations


@pytest.mark.parametrize(
    ("mask", "runs"),
    [
        pytest.param(0, [], id="none"),
        pytest.param(1, [(10, 11)], id="first"),
        pytest.param(0b11010, [(11, 12), (13, 15)], id="two runs"),
        pytest.param((1 << 64) - 1, [(10, 74)], id="all"),
        pytest.param(1 << 63, [(73, 74)], id="last"),
    ],
)
def test_runs_of_a_mask(mask, runs):
    assert list(mask_runs(10, mask)) == runs


def test_chosen_pages_alone_are_protected(tdp):
    m = tdp((6, 1), 1, 2, 3, 4)
    slot = m.vm.memslots[0].by_id(0)
    before = [m.entry(gfn) for gfn in range(5)]
    owed = m.locked(tdp_dirty_masked, m.vm, slot, 0, 0b01010)
    again = m.locked(tdp_dirty_masked, m.vm, slot, 0, 0b01010)

    assert owed.due == "return"
    assert again is None
    assert [m.entry(gfn) for gfn in range(5)] == [
        before[0],
        before[1] & ~2,
        before[2],
        before[3] & ~2,
        before[4],
    ]
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "protected"),
    [
        pytest.param((5, 16), False, id="5.16: skipped, as W is clear (D9)"),
        pytest.param((5, 17), True, id="5.17"),
        pytest.param((7, 2), True, id="7.2"),
    ],
)
def test_write_protection_of_a_page_that_is_logged(tdp, release, protected):
    m = tdp(release, 1)
    m.slot(flags=LOG_DIRTY_PAGES)
    owed = m.locked(wrprot_gfn, m.vm, 0, 1, 1)
    m.access(1, "write")

    assert (owed is not None) == protected
    # Without MMU-writable no fast fault brings W back.
    fixed = [e["fixed"] for e in m.named("fast_page_fault")]
    assert fixed == [not protected]


# -- huge pages ------------------------------------------------------------------------


@pytest.mark.parametrize("release", TDP)
@pytest.mark.parametrize("options", KINDS)
def test_a_huge_page_is_logged_page_by_page(tdp, release, options):
    m = tdp(release, 3, huge=True, pages=1024, **options)
    level = m.level(3)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(3, "write")
    m.access(7)
    bits = m.do(get_dirty_log(m.vm, 0))
    small = m.level(3)
    m.slot()
    m.access(3, "write")

    assert (level, small) == (2, 1)
    # The read found its page writable in the host, which counts as a write, unless
    # the huge page was split first or PML tells them apart.
    assert bits[1] & 1 << 3
    assert m.level(3) == 2
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "options", "split"),
    [
        pytest.param((5, 17), {}, 0, id="5.17: not eagerly"),
        pytest.param((5, 18), {}, 2, id="5.18: eagerly"),
        pytest.param((5, 18), {"eager_page_split": 0}, 0, id="5.18: switched off"),
        pytest.param((7, 2), {}, 2, id="7.2: eagerly"),
    ],
)
def test_huge_pages_are_split_when_logging_begins(tdp, release, options, split):
    m = tdp(release, 3, 512, huge=True, pages=1024, **options)
    whole = m.entry(3)
    m.slot(flags=LOG_DIRTY_PAGES)

    assert len(m.named("kvm_mmu_split_huge_page")) == split
    if split:
        children = [m.entry(gfn) for gfn in range(512)]
        frames = [m.pfn(gfn) for gfn in range(512)]
        bits = whole & ~(0xFFFFFFFFFF << 12) & ~0x80 & ~2
        assert children == [frame << 12 | bits for frame in frames]
    else:
        assert m.entry(3) == whole & ~2
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "tables", "flushes"),
    [
        pytest.param((6, 1), 1, 1, id="6.1: emptied and flushed"),
        pytest.param((6, 3), 512, 0, id="6.3: split in place"),
    ],
)
def test_a_fault_that_needs_a_small_page(tdp, release, tables, flushes):
    m = tdp(release, 3, huge=True, pages=1024, eager_page_split=0)
    m.slot(flags=LOG_DIRTY_PAGES)
    before = len(m.named("flush"))
    m.access(3, "write")

    assert len(m.mapped(*range(512))) == tables
    assert len(m.named("flush")) - before == flushes
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "level", "mapped"),
    [
        pytest.param((5, 10), 1, False, id="5.10: leafs zapped"),
        pytest.param((5, 19), 2, False, id="5.19: tables zapped"),
        pytest.param((6, 12), 2, False, id="6.12: likewise"),
        pytest.param((6, 13), 2, True, id="6.13: recovered in place"),
        pytest.param((7, 2), 2, True, id="7.2: likewise"),
    ],
)
def test_when_logging_ends_huge_pages_come_back(tdp, release, level, mapped):
    m = tdp(release, 3, huge=True, pages=1024)
    whole = m.entry(3)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(3, "write")
    m.slot()

    assert m.level(3) == level
    assert (m.mapped(3) == [3]) == mapped
    m.access(3, "write")
    assert m.entry(3) == whole
    assert not m.world.violations


@pytest.mark.parametrize("release", [(5, 10), (5, 17), (6, 1), (6, 12), (7, 2)])
def test_nx_huge_pages_are_split_for_a_fetch(tdp, release):
    m = tdp(release, 3, huge=True, pages=1024, nx_huge_pages=1)
    whole = m.level(3)
    m.access(5, "exec")
    m.access(6, "write")

    assert whole == 2
    assert m.level(5) == m.level(6) == 1
    assert m.access(5, "exec") == "done"
    assert not m.world.violations


@pytest.mark.parametrize(
    ("gfn", "page", "huge"),
    [
        pytest.param(0, 0, True, id="aligned"),
        pytest.param(512, 0, True, id="aligned, shifted by a huge page"),
        pytest.param(1, 0, False, id="gfn and hva shifted against each other"),
    ],
)
def test_where_a_memslot_allows_huge_pages(machine, gfn, page, huge):
    m = machine((6, 1), huge=True, pages=2048)
    m.slot(gfn=gfn, pages=1024, page=page)
    m.access(gfn + 600, "write")

    assert (m.level(gfn + 600) == 2) == huge
    assert not m.world.violations


def test_no_huge_page_leaves_its_memslot(machine):
    m = machine((6, 1), huge=True, pages=2048)
    m.slot(gfn=256, pages=1024, page=256)
    m.access(256, "write")
    m.access(600, "write")

    assert (m.level(256), m.level(600)) == (1, 2)
    assert not m.world.violations


def test_without_memory_huge_pages_are_not_split(tdp):
    m = tdp((6, 1), 3, 512, huge=True, pages=1024)
    whole = m.entry(3)
    m.host.environment.no_tables = 1
    m.slot(flags=LOG_DIRTY_PAGES)

    assert not m.named("kvm_mmu_split_huge_page")
    assert m.entry(3) == whole & ~2
    assert not m.world.violations
