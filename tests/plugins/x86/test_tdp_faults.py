"""Faults of the TDP MMU and of both MMUs without the lock; MMIO entries."""

import pytest
from kvmarch_x86.mmio import get_mmio_spte_generation

from kvmarch import INVALID, LOG_DIRTY_PAGES, READONLY
from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.mmap import madvise_dontneed
from kvmarch.kernel.vcpu import guest_access

NPT = {"paging": "npt"}
NO_AD = {"ad": 0}
TDP = [(5, 10), (5, 11), (5, 12), (5, 13), (5, 17), (6, 1), (6, 9), (6, 12), (7, 2)]

# An entry of a page that the host has writable, without its frame (fact sheet 1.5).
WRITABLE = [
    pytest.param((5, 10), {}, 0xF77, id="5.10"),
    pytest.param((5, 12), {}, 0xF77, id="5.12"),
    pytest.param((5, 13), {}, 0x0600000000000B77, id="5.13"),
    pytest.param((6, 1), {}, 0x0600000000000B77, id="6.1"),
    pytest.param((6, 12), {}, 0x8600000000000B77, id="6.12"),
    pytest.param((6, 15), {}, 0x8600000000000B77, id="6.15"),
    pytest.param((7, 2), {}, 0x80A0000000000F77, id="7.2"),
    pytest.param((5, 10), NPT, 0xC67, id="5.10 npt"),
    pytest.param((6, 1), NPT, 0xE67, id="6.1 npt, recorded"),
    pytest.param((7, 2), NPT, 0xE67, id="7.2 npt"),
    pytest.param((5, 10), NO_AD, 0x0010000000000C77, id="5.10 no A/D"),
    pytest.param((6, 1), NO_AD, 0x0610000000000877, id="6.1 no A/D"),
    pytest.param((6, 12), NO_AD, 0x8610000000000877, id="6.12 no A/D"),
    pytest.param((7, 2), NO_AD, 0x90A0000000000F77, id="7.2 no A/D"),
]


@pytest.fixture
def tdp(machine):
    """Boot a machine with the TDP MMU."""

    def make(release, **options):
        return machine(release, mmu="tdp", **options)

    return make


@pytest.mark.parametrize(("release", "options", "bits"), WRITABLE)
@pytest.mark.parametrize("access", ["read", "write", "exec"])
def test_a_fault_maps_its_page_alone_and_writable(tdp, release, options, bits, access):
    m = tdp(release, **options)
    m.slot()

    assert m.access(3, access) == "done"
    assert m.entry(3) == m.pfn(3) << 12 | bits
    assert m.mapped() == [3]
    assert m.access(3, access) == "done"
    assert m.vcpu.exits["missing"] == 1
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "bits"),
    [
        pytest.param((5, 10), 0x175, id="5.10"),
        pytest.param((6, 1), 0x975, id="6.1"),
        pytest.param((6, 12), 0x8000000000000975, id="6.12"),
        pytest.param((7, 2), 0x8000000000000D75, id="7.2"),
    ],
)
def test_a_page_that_the_host_has_read_only_is_mapped_so(tdp, release, bits):
    m = tdp(release)
    m.slot(flags=READONLY)

    assert m.access(0) == "done"
    assert m.entry(0) == m.pfn(0) << 12 | bits
    assert m.access(0, "write") == "mmio"
    assert m.entry(0) == m.pfn(0) << 12 | bits
    assert not m.world.violations


@pytest.mark.parametrize("release", TDP)
@pytest.mark.parametrize("levels", [4, 5])
def test_tables_are_made_from_the_root_down(tdp, release, levels):
    m = tdp(release, levels=levels)
    m.slot(gfn=0x1234567)
    m.access(0x1234567)
    tables = m.vm.tables.live.values()

    assert sorted(t.level for t in tables) == list(range(1, levels + 1))
    assert {t.note.level == t.level for t in tables} == {True}
    assert m.level(0x1234567) == 1
    assert m.k.leaf_table.fn(m.vm, 0x1234567, 1)[1] == 0x167
    assert not m.world.violations


@pytest.mark.parametrize("release", TDP)
def test_a_fault_that_an_invalidation_overtook_is_tried_again(tdp, release):
    m = tdp(release)
    m.slot()
    vcpu = m.task("vcpu0", guest_access(m.vcpu, 2, "write"))
    # The page is found, mmu_lock not taken yet.
    lock = "read-lock mmu_lock" if release >= (5, 12) else "lock mmu_lock"
    assert m.reaches(vcpu, lock)
    m.do(madvise_dontneed(m.mm, m.hva(2), m.hva(3)), "host")
    m.finish(vcpu)

    assert m.vcpu.exits["missing"] == 2
    assert m.entry(2) >> 12 & 0xFFFFFF == m.pfn(2)
    assert not m.world.violations


def test_who_loses_the_race_for_an_entry_tries_again(tdp):
    m = tdp((6, 1), vcpus=2)
    m.slot()
    m.access(1)
    first = m.task("vcpu0", guest_access(m.vm.vcpus[0], 0, "read"))
    second = m.task("vcpu1", guest_access(m.vm.vcpus[1], 0, "read"))
    assert m.reaches(first, "cmpxchg SPTE")
    assert m.reaches(second, "cmpxchg SPTE")
    m.finish(first)
    m.finish(second)

    assert m.entry(0) == m.pfn(0) << 12 | 0x0600000000000B77
    assert m.vm.vcpus[1].exits["missing"] == 1
    assert not m.world.violations


def test_who_loses_the_race_for_a_table_frees_its_own(tdp):
    m = tdp((6, 1), vcpus=2)
    m.slot()
    first = m.task("vcpu0", guest_access(m.vm.vcpus[0], 0, "read"))
    second = m.task("vcpu1", guest_access(m.vm.vcpus[1], 0, "read"))
    assert m.reaches(first, "cmpxchg SPTE to table")
    assert m.reaches(second, "cmpxchg SPTE to table")
    m.finish(first)
    m.finish(second)

    assert len(m.vm.tables.live) == 4
    assert m.mapped() == [0]
    assert not m.world.violations


# -- without the lock ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "mmu", "fast"),
    [
        pytest.param((4, 4), "rmap", 1, id="4.4 rmap"),
        pytest.param((5, 10), "rmap", 1, id="5.10 rmap, recorded"),
        pytest.param((5, 10), "tdp", 0, id="5.10: not in the TDP MMU"),
        pytest.param((5, 13), "tdp", 0, id="5.13: not in the TDP MMU"),
        pytest.param((5, 15), "tdp", 1, id="5.15"),
        pytest.param((6, 1), "tdp", 1, id="6.1, recorded"),
        pytest.param((7, 2), "tdp", 1, id="7.2"),
    ],
)
def test_a_write_to_a_logged_page_is_fixed_without_the_lock(
    machine, release, mmu, fast
):
    m = machine(release, mmu=mmu)
    m.slot()
    m.access(2, "write")
    before = m.entry(2)
    m.slot(flags=1)
    protected = m.entry(2)
    m.access(2, "write")
    events = m.named("fast_page_fault")

    assert protected == before & ~2
    assert m.entry(2) == before
    assert [e["fixed"] for e in events] == [True] * fast
    assert m.vm.dirty_bitmaps[m.vm.memslots[0].by_id(0).bitmap][0] == 1 << 2
    assert not m.world.violations


# Entries of 1.5 without their frame: as mapped, aged, read again, written again.
TRACKED = [
    pytest.param(
        (5, 15),
        (0x0610000000000877, 0x0750000000000870, 0x0610000000000875),
        id="5.15",
    ),
    pytest.param(
        (6, 1), (0x0610000000000877, 0x0750000000000870, 0x0610000000000875), id="6.1"
    ),
    pytest.param(
        (6, 12), (0x8610000000000877, 0x8750000000000870, 0x8610000000000875), id="6.12"
    ),
    pytest.param(
        (7, 2), (0x90A0000000000F77, 0xD0F0000000000A70, 0x90A0000000000F75), id="7.2"
    ),
]


@pytest.mark.parametrize(("release", "entries"), TRACKED)
def test_an_aged_page_without_ad_gets_its_permissions_back(tdp, release, entries):
    m = tdp(release, **NO_AD)
    slot = m.slot()
    m.access(1, "write")
    frame = m.pfn(1) << 12
    seen = [m.entry(1)]
    young = m.do(_age(m, slot))
    seen.append(m.entry(1))
    m.vcpu.tlb.drop_all()
    m.access(1)
    seen.append(m.entry(1))
    m.access(1, "write")

    assert young
    assert seen == [frame | bits for bits in entries]
    assert m.entry(1) == frame | entries[0]
    assert [e["fixed"] for e in m.named("fast_page_fault")][-2:] == [True, True]
    assert not m.world.violations


async def _age(m, slot):
    async with m.vm.mmu_lock.write():
        return await m.k.age_gfn(m.vm, slot, 0, 4)


# -- MMIO ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "options", "spte", "gen"),
    [
        # Two updates of a memslot: generation 2 and 4 from v5.1 on; before that a VM
        # begins 150 before the wrap.
        pytest.param((5, 10), {}, 0x00300000FEBF0026, 4, id="5.10 ept"),
        pytest.param((6, 1), {}, 0x00000000FEBF0026, 4, id="6.1 ept"),
        pytest.param((6, 12), {}, 0x00000000FEBF0026, 4, id="6.12 ept"),
        pytest.param((7, 2), {}, 0x00000000FEBF0026, 4, id="7.2 ept"),
        pytest.param((5, 10), NPT, 0x00380000FEBF0027, 4, id="5.10 npt"),
        pytest.param((6, 1), NPT, 0x00080000FEBF0027, 4, id="6.1 npt"),
        pytest.param((7, 2), NPT, 0x00080000FEBF0027, 4, id="7.2 npt"),
        pytest.param((6, 12), {"l1tf": 1}, 0x00003E00FEBF0026, 4, id="6.12 l1tf"),
    ],
)
@pytest.mark.parametrize("mmu", ["rmap", "tdp"])
def test_a_gfn_without_a_slot_is_marked(machine, mmu, release, options, spte, gen):
    m = machine(release, mmu=mmu, **options)
    m.slot()
    m.slot(flags=1)
    how = m.access(0xFEBF0)

    assert how == "mmio"
    assert m.entry(0xFEBF0) == spte | (6 if options == NPT else 0)
    assert m.named("mark_mmio_spte") == [{"gfn": 0xFEBF0, "access": 7, "gen": gen}]
    assert get_mmio_spte_generation(m.layout, m.entry(0xFEBF0)) == gen
    assert not m.world.violations


@pytest.mark.parametrize("options", [{}, NPT], ids=["ept", "npt"])
@pytest.mark.parametrize(
    ("release", "mmu"),
    [
        *((r, "rmap") for r in [(3, 17), (4, 4), (4, 15), (5, 4), (5, 10), (7, 2)]),
        *((r, "tdp") for r in [(5, 10), (6, 1), (6, 12), (7, 2)]),
    ],
)
def test_an_entry_of_an_older_generation_is_written_anew(
    machine, mmu, release, options
):
    m = machine(release, mmu=mmu, **options)
    m.slot()
    results = [m.access(0xFEBF0), m.access(0xFEBF0)]
    first = m.entry(0xFEBF0)
    m.slot(slot=1, gfn=0x1000)
    results.append(m.access(0xFEBF0))
    checks = [e["valid"] for e in m.named("check_mmio_spte")]

    assert results == ["mmio"] * 3
    # The vCPU's own cache answered the second access, as nothing had changed.
    assert checks == [False]
    assert m.entry(0xFEBF0) != first
    assert len(m.named("mark_mmio_spte")) == 2
    assert not m.world.violations


@pytest.mark.parametrize("release", [(4, 15), (5, 10), (6, 1), (7, 2)])
def test_the_entry_answers_a_vcpu_that_did_not_make_it(machine, release):
    m = machine(release, vcpus=2)
    m.slot()
    m.access(0xFEBF0)

    assert m.access(0xFEBF0, vcpu=1) == "mmio"
    assert [e["valid"] for e in m.named("check_mmio_spte")] == [True]
    assert m.vm.vcpus[1].exits["reserved"] == 1
    assert not m.world.violations


@pytest.mark.parametrize("mmu", ["rmap", "tdp"])
def test_without_mmio_caching_every_access_takes_the_whole_way(machine, mmu):
    m = machine((6, 1), mmu=mmu, mmio_caching=0)
    m.slot()

    assert [m.access(0xFEBF0), m.access(0xFEBF0)] == ["mmio", "mmio"]
    assert m.entry(0xFEBF0) == 0
    assert m.vcpu.exits["missing"] == 2
    assert not m.world.violations


@pytest.mark.parametrize("gfn", [1 << 34, 1 << 40], ids=["PA width", "4 levels"])
def test_a_gfn_beyond_the_address_width_is_never_mapped(tdp, gfn):
    m = tdp((6, 1))
    m.slot()

    assert m.access(gfn) == "mmio"
    assert m.named("mark_mmio_spte") == []
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "how"),
    [
        pytest.param((5, 11), "mmio", id="5.11: like no slot (D20)"),
        pytest.param((5, 12), "guest", id="5.12: tried again"),
        pytest.param((7, 2), "guest", id="7.2"),
    ],
)
def test_a_fault_on_a_slot_that_is_being_deleted(tdp, release, how):
    m = tdp(release)
    slot = m.slot(flags=READONLY)
    m.access(0)
    memslots = m.vm.memslots[0]
    memslots.slots = (
        type(slot)(0, 0, 0, slot.npages, slot.userspace_addr, READONLY | INVALID),
    )

    async def fault():
        async with m.vm.srcu.read():
            return await m.k.page_fault(m.vcpu, 0, "write", "permission")

    assert m.do(fault(), "vcpu0") == how


# -- no memory for tables ----------------------------------------------------------


@pytest.mark.parametrize("mmu", ["rmap", "tdp"])
@pytest.mark.parametrize("release", [(5, 10), (5, 15), (6, 1), (7, 2)])
def test_without_memory_for_tables_a_fault_fails(machine, release, mmu):
    m = machine(release, mmu=mmu)
    m.slot()
    m.host.environment.no_tables = 1
    failed = [m.access(3), m.access(100)]
    unmapped = m.mapped()
    m.host.environment.no_tables = 0

    # A fault without a memslot asks for memory first, too.
    assert failed == ["error", "error"]
    assert unmapped == []
    assert [m.access(3), m.access(100)] == ["done", "mmio"]
    assert not m.world.violations


@pytest.mark.parametrize(
    ("release", "how"),
    [
        pytest.param((5, 8), "error", id="5.8: asked for before a fast fault"),
        pytest.param((5, 9), "done", id="5.9: after it"),
        pytest.param((6, 1), "done", id="6.1"),
    ],
)
def test_a_fault_that_needs_no_table(machine, release, how):
    m = machine(release, mmu="rmap", **NO_AD)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(3, "write")
    m.do(get_dirty_log(m.vm, 0))
    m.host.environment.no_tables = 1

    # Only W is missing.
    assert m.access(3, "write") == how
    assert [event["why"] for event in m.named("guest_fault")[1:]] == ["permission"]


@pytest.mark.parametrize(
    ("release", "dirty"),
    [((5, 15), 1), ((5, 16), 0), ((6, 1), 0), ((6, 12), 0), ((6, 13), 1), ((7, 2), 1)],
)
@pytest.mark.parametrize("mmu", ["tdp", "rmap"])
def test_what_takes_the_place_of_an_mmio_entry_is_clean_for_a_while(
    machine, release, dirty, mmu
):
    m = machine(release, mmu=mmu, paging="npt")
    assert m.access(3) == "mmio"
    m.slot()
    assert m.access(3) == "done"
    assert m.access(4) == "done"

    assert [m.entry(gfn) >> 6 & 1 for gfn in (3, 4)] == [dirty, 1]
