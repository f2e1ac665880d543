import pytest

from kvmarch import LOG_DIRTY_PAGES, READONLY, KvmarchError
from kvmarch.kernel.mmap import madvise_dontneed, mprotect, populate
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.host import Vma

# Fact sheet mips, 4.4: layout, page size, options; read-only, clean, dirty, old, with
# pfn 0x12345.
WORKED = [
    pytest.param(
        (4, 20),
        {"layout": "A"},
        (0x2468B505, 0x2468B507, 0x2468B70F, 0x2468B60B),
        id="A-4K",
    ),
    pytest.param(
        (6, 1), {}, (0x48D16A05, 0x48D16A07, 0x48D16E0F, 0x48D16C0B), id="B-4K"
    ),
    pytest.param(
        (6, 1),
        {"page_size": "16K"},
        (0x123452A05, 0x123452A07, 0x123452E0F, 0x123452C0B),
        id="B-16K",
    ),
    pytest.param(
        (6, 1),
        {"page_size": "16K", "layout": "F"},
        (0x91A29505, 0x91A29507, 0x91A2970F, 0x91A2960B),
        id="F-16K",
    ),
    pytest.param(
        (5, 12),
        {"mmu": "te", "layout": "D"},
        (0x2468B509, 0x2468B50D, 0x2468B71D, 0x2468B615),
        id="D-4K",
    ),
]
MMUS = [
    pytest.param((4, 11), "te", id="v4.11-te"),
    pytest.param((4, 12), "guestid", id="v4.12-guestid"),
    pytest.param((5, 12), "rad", id="v5.12-rad"),
    pytest.param((5, 12), "te", id="v5.12-te"),
    pytest.param((5, 13), "rad", id="v5.13-rad"),
    pytest.param((7, 2), "guestid", id="v7.2-guestid"),
    pytest.param((7, 2), "rad", id="v7.2-rad"),
]


@pytest.mark.parametrize(("release", "options", "values"), WORKED)
def test_entries_of_a_fault_have_the_worked_values(machine, release, options, values):
    one = machine(release, **options)
    one.slot(pages=8)
    one.slot(1, flags=READONLY, gfn=8, pages=8, page=8)
    one.access(8)
    one.access(0)
    clean = one.entry(0)
    one.access(0, "write")
    dirty = one.entry(0)
    one.age(0, "clear_flush_young")

    read_only, *others = values
    assert one.entry(8) == one.of(read_only, one.pfn(8))
    assert [clean, dirty, one.entry(0)] == [one.of(v, one.pfn(0)) for v in others]
    assert one.lost == []


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_every_first_access_and_first_write_traps(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot()

    assert one.faults(0) == ["invalid"]
    assert one.faults(0) == []
    assert one.faults(0, "write") == ["modified"]
    assert one.faults(0, "write") == []
    assert one.faults(0, "exec") == []
    assert one.lost == []


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_an_absent_buddy_is_cached_as_invalid(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot()
    one.access(0)
    buddy = one.vcpu.tlb.lookup(one.vcpu.arch.tag, 1)
    left = one.faults(1)

    assert (buddy.read, buddy.write, buddy.exec) == (False, False, False)
    assert left == ["invalid"]
    assert one.faults(0) == []
    assert one.lost == []


def test_another_cpu_takes_a_spurious_fault(machine):
    one = machine(boot={"vcpus": 2})
    one.slot()
    one.access(0, vcpu=0)
    one.access(0, vcpu=1)
    one.access(1, vcpu=0)
    before = one.entry(1)

    assert one.faults(1, vcpu=1) == ["invalid"]
    assert one.entry(1) == before


def test_what_the_tlb_holds_is_not_walked_again(machine):
    one = machine()
    one.slot()
    one.access(0)
    table, index = one.k.leaf_table.fn(one.vm, 0, 1)
    one.vm.tables.at(table).set(index, one.entry(0) | one.layout.writeable)

    assert one.faults(0, "write") == ["modified"]


@pytest.mark.parametrize("release", [(4, 12), (6, 12), (6, 13)], ids=str)
def test_writes_to_a_read_only_slot_are_mmio(machine, release):
    one = machine(release)
    one.slot(flags=READONLY)

    assert one.access(0) == "done"
    assert one.fields(0) == {"present", "accessed", "valid"}
    assert one.access(0, "write") == "mmio"
    assert one.access(2, "write") == "mmio"
    assert one.lost == []


def test_without_a_memslot_data_is_mmio_and_code_an_error(machine):
    one = machine()
    one.slot()

    assert one.access(0x100) == "mmio"
    assert one.access(0x100, "write") == "mmio"
    assert one.access(0x100, "exec") == "error"


def test_what_the_host_denies_is_mmio_too(machine):
    one = machine()
    one.slot()
    one.do(mprotect(one.mm, one.hva(0), one.hva(1), write=False))

    assert one.access(0) == "done"
    assert one.access(0, "write") == "mmio"
    assert one.lost == []


def test_a_slot_made_later_is_found_behind_a_cached_invalid_entry(machine):
    one = machine()
    one.access(0)
    one.slot()

    assert one.faults(0) == ["invalid"]


def test_the_page_cache_covers_every_level(machine):
    four, sixty_four = machine(), machine(page_size="64K")
    tables = {}
    for one in (four, sixty_four):
        one.slot()
        one.access(0)
        tables[one.page_size] = sorted(t.level for t in one.vm.tables.live.values())

    assert tables == {4096: [1, 2, 3], 65536: [1, 2]}
    assert four.vcpu.arch.mmu_page_cache == sixty_four.vcpu.arch.mmu_page_cache == 0


def test_a_huge_page_of_the_host_is_mapped_page_by_page(machine):
    one = machine()
    start = one.hva(1 << 20)
    end = start + (512 << 12)
    one.mm.add_vma(Vma(start, end, huge=True))
    populate(one.mm, start, end, huge=True)
    one.slot(pages=512, page=1 << 20)
    one.access(7, "write")

    assert one.mm.level_pages(start >> 12) == 512
    assert one.mapped(*range(16)) == [7]
    assert one.k.entry_pfn.fn(one.k, one.options, one.entry(7), 1) == one.pfn(
        (1 << 20) + 7
    )


def test_the_zero_page_is_replaced_by_a_copy(machine):
    one = machine()
    one.slot()
    one.access(3)
    one.do(madvise_dontneed(one.mm, one.hva(2), one.hva(3)))
    one.access(2)
    zero = one.entry(2)
    one.access(2, "write")

    assert zero == one.of(0x48D16A05, one.host.zero_pfn)
    assert one.entry(2) == one.of(0x48D16E0F, one.pfn(2))
    assert one.lost == []


def test_a_fault_waits_for_an_invalidation_inside_the_kernel(machine):
    """M12: all the time it is a reader of kvm->srcu, so a memslot update waits."""
    one = machine()
    one.slot()
    one.access(3)
    span = one.mm, one.hva(0), one.hva(1)
    one.do(mmu_notifier_invalidate_range_start(*span))
    vcpu = one.task("vcpu0", guest_access(one.vcpu, 0, "read"))
    one.advance(vcpu, "retry until no invalidation is in progress")
    waits = not one.step(vcpu)
    references = one.host.pages[one.pfn(0)].refs
    delete = one.task("vmm", one.region(pages=0))
    # From v5.15 on the deletion waits for the invalidation before the grace period.
    one.advance(delete, "mn_active_invalidate_count == 0?")
    blocked = not one.step(delete)
    readers = [name for names in one.vm.srcu.readers for name in names]
    one.do(mmu_notifier_invalidate_range_end(*span))

    assert waits
    assert references == 1
    assert blocked
    assert readers == ["vcpu0"]
    assert one.finish(vcpu) == "done"
    assert one.finish(delete) == 0
    assert one.mapped() == []
    assert one.lost == []


def test_a_fault_that_lost_a_race_tries_again(machine):
    one = machine((5, 4))
    one.slot()
    one.access(3)
    vcpu = one.task("vcpu0", guest_access(one.vcpu, 0, "read"))
    one.advance(vcpu, "fast gup")
    one.step(vcpu)
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))

    assert one.finish(vcpu) == "done"
    assert one.entry(0) == one.of(0x48D16A05, one.host.zero_pfn)
    assert one.lost == []


def test_a_page_is_marked_after_it_was_let_go(machine):
    """M10, up to v6.12: neither lock nor reference when the page is marked."""
    one = machine((6, 12))
    one.slot()
    one.access(3)
    vcpu = one.task("vcpu0", guest_access(one.vcpu, 0, "read"))
    one.advance(vcpu, "kvm_set_pfn_accessed")
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))
    one.finish(vcpu)

    assert one.lost == ["freed-page"]


def test_a_page_is_marked_under_the_lock(machine):
    """From v6.13 on nothing is left to do once mmu_lock is dropped."""
    one = machine((6, 13))
    one.slot()
    one.access(3)
    vcpu = one.task("vcpu0", guest_access(one.vcpu, 0, "read"))
    one.advance(vcpu, "set_pte")
    one.advance(vcpu, "unlock mmu_lock")
    one.step(vcpu)
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))
    one.finish(vcpu)

    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "marked"),
    [
        pytest.param((6, 12), (False, True, True), id="v6.12"),
        pytest.param((6, 13), (True, True, True), id="v6.13"),
    ],
)
def test_page_flags(machine, release, marked):
    """From v6.13 on the release marks a writable page dirty, written or not."""
    one = machine(release)
    one.slot()
    one.access(0)
    page = one.host.pages[one.pfn(0)]
    read = page.dirty
    one.access(1, "write")
    written = one.host.pages[one.pfn(1)]

    assert (read, page.accessed, written.dirty) == marked


def test_dirty_pages_are_logged_by_both_paths(machine):
    one = machine()
    slot = one.slot(flags=LOG_DIRTY_PAGES)
    one.access(0, "write")
    one.access(1)
    one.access(1, "write")
    one.access(2)

    assert one.vm.dirty_bitmaps[slot.bitmap][0] == 0b11


@pytest.mark.parametrize("mmu", ["guestid", "rad"])
def test_a_cpu_with_vz_has_rixi(machine, mmu):
    with pytest.raises(KvmarchError, match="layout=D goes with mmu=te only"):
        machine((5, 12), mmu=mmu, layout="D")


# -- no memory for tables ----------------------------------------------------------


@pytest.mark.parametrize("release", [(4, 12), (5, 4), (5, 10), (6, 1), (7, 2)])
def test_without_memory_for_tables_a_fault_is_taken_for_mmio(machine, release):
    m = machine(release)
    m.slot()
    m.host.environment.no_tables = 1
    failed = m.access(0), m.access(0, "exec")
    m.host.environment.no_tables = 0

    assert failed == ("mmio", "error")
    assert {violation.property for violation in m.world.violations} == {"stale-mmio"}
    assert m.access(0) == "done"


def test_pages_that_were_set_aside_last_for_another_fault(machine):
    m = machine((6, 1))
    m.slot()
    m.access(0)
    m.host.environment.no_tables = 1
    m.vcpu.arch.mmu_page_cache = m.geometry.cache_min_pages

    assert m.access(2) == "done"
    m.vcpu.arch.mmu_page_cache = 0
    assert m.access(4) == "mmio"
