"""What every architecture must keep, on several releases and kinds of tables."""

import pytest

from kvmarch import plugins
from kvmarch.kernel.boot import destroy_vm
from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES
from kvmarch.kernel.mmap import (
    exit_mmap,
    fork,
    madvise_dontneed,
    mprotect,
    munmap,
    touch_pages,
)
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.notifier import clear_flush_young
from kvmarch.kernel.notifier import test_young as ask_young
from kvmarch.kernel.reclaim import migrate, reclaim
from kvmarch.kernel.vcpu import enter_guest, guest_access, run_guest
from kvmarch.machine.tlb import Translation
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.play import play

FLUSHES = {"flush", "tlb_invalidate", "kvm_make_all_cpus_request"}
"""Events of a flush that is made."""


def translate(one, gfn, access="read"):
    """Enter the guest and walk; return the translation, or None if the walk faults."""
    one.do(enter_guest(one.vcpu))
    found = one.k.translate.fn(one.vcpu, gfn, access)
    return found if isinstance(found, Translation) else None


def maps(one, gfn):
    """Return whether the lowest entry of a gfn leads to a page."""
    entry, level = one.k.entry.fn(one.vm, gfn)
    options = one.vm.options
    kind, _fields = one.k.decode.fn(one.k, options, entry, level)
    return any(
        row.maps and (row.kind, row.level) == (kind, level)
        for row in one.k.formats.fn(one.k, options)
    )


def flushes(one, path):
    """Run a path; return whether anything was flushed."""
    before = len(one.world.events)
    one.do(path)
    return any(event.name in FLUSHES for event in one.world.events[before:])


@pytest.mark.parametrize("access", ["read", "write", "exec"])
def test_what_is_mapped_translates(one, access):
    how = one.access(3, access)

    found = translate(one, 3, access)
    assert how == "done"
    assert found is not None
    assert found.pfn + 3 - found.gfn == one.pfn(3)
    assert maps(one, 3)
    assert one.lost == []


def test_the_entry_names_the_page_and_can_be_repointed(one):
    one.access(3, "write")
    entry, level = one.k.entry.fn(one.vm, 3)
    rest = one.k, one.vm.options

    pfn = one.k.entry_pfn.fn(*rest, entry, level)
    other = one.k.entry_repoint.fn(*rest, entry, level, pfn + 0x100)

    assert pfn == one.pfn(3)
    assert one.k.entry_pfn.fn(*rest, other, level) == pfn + 0x100
    assert one.k.entry_repoint.fn(*rest, other, level, pfn) == entry
    assert (
        one.k.decode.fn(*rest, other, level)[0]
        == (one.k.decode.fn(*rest, entry, level)[0])
    )


def test_every_entry_of_a_table_is_of_a_known_kind(one):
    for gfn in (0, 3, 15):
        one.access(gfn, "write")
    one.access(5)

    for gfn in range(16):
        entry, level = one.k.entry.fn(one.vm, gfn)
        kind, _fields = one.k.decode.fn(one.k, one.vm.options, entry, level)
        assert kind != "unknown", f"gfn {gfn:#x}: {entry:#x} at level {level}"


def test_what_is_unmapped_does_not_translate(one):
    for gfn in range(4):
        one.access(gfn, "write")
    one.do(munmap(one.mm, one.at(1), one.at(3)))

    # More may go than what was asked for, never less.
    assert [translate(one, gfn) for gfn in (1, 2)] == [None, None]
    assert "done" not in {one.access(gfn) for gfn in (1, 2)}
    assert [one.access(gfn) for gfn in (0, 3)] == ["done", "done"]
    assert one.lost == []


def test_a_flush_is_made_exactly_when_a_mapping_goes(case, one):
    one.access(3, "write")
    span = one.at(3), one.at(4)

    mapped = flushes(one, mmu_notifier_invalidate_range_start(one.mm, *span))
    one.do(mmu_notifier_invalidate_range_end(one.mm, *span))
    again = flushes(one, mmu_notifier_invalidate_range_start(one.mm, *span))
    one.do(mmu_notifier_invalidate_range_end(one.mm, *span))

    assert mapped
    assert again is not case.keeps("flushes-only-what-goes")
    assert one.lost == []


def test_no_vcpu_reaches_a_page_after_it_went(case, bench_class):
    k = plugins.link(case.arch, case.release)
    one = bench_class(k, case.options(), 16, vcpus=2)
    one.slot()
    for vcpu in one.vm.vcpus:
        one.do(guest_access(vcpu, 3, "write"), vcpu.name)
    old = one.pfn(3)

    one.do(madvise_dontneed(one.mm, one.at(3), one.at(4)))
    for vcpu in one.vm.vcpus:
        assert one.do(guest_access(vcpu, 3, "read"), vcpu.name) == "done"

    assert one.host.pages[old].freed
    assert one.pfn(3) not in {0, old}
    assert one.lost == []


def test_aging_twice_finds_it_old(one):
    one.access(3)
    span = one.at(3), one.at(4)

    first = one.do(clear_flush_young(one.vm, *span))
    second = one.do(clear_flush_young(one.vm, *span))
    asked = one.do(ask_young(one.vm, *span))

    assert first in {True, False}
    assert (second, asked) == (False, False)
    assert one.access(3) == "done"
    assert one.lost == []


def test_asking_changes_nothing(one):
    one.access(3)
    span = one.at(3), one.at(4)
    before = one.k.entry.fn(one.vm, 3)

    asked = [one.do(ask_young(one.vm, *span)) for _ in range(2)]

    assert asked[0] == asked[1]
    assert one.k.entry.fn(one.vm, 3) == before
    assert one.lost == []


def test_what_was_never_used_is_not_young(one):
    span = one.at(3), one.at(4)

    assert one.do(clear_flush_young(one.vm, *span)) is False
    assert one.do(ask_young(one.vm, *span)) is False


def test_writes_are_logged_and_logged_again(case, one):
    one.access(2, "write")
    one.access(5, "write")
    one.slot(flags=LOG_DIRTY_PAGES)

    logs = []
    for gfns in ((), (2,), (2, 5), ()):
        for gfn in gfns:
            assert one.access(gfn, "write") == "done"
        one.access(7)
        errno, bits = one.do(get_dirty_log(one.vm, 0))
        logs.append((errno, bits & 0b100100))

    if case.keeps("logs-writes"):
        assert logs[1:] == [(0, 0b100), (0, 0b100100), (0, 0)]
    else:
        assert all(errno for errno, _bits in logs)
    assert one.lost == []


def test_a_page_that_is_not_written_is_logged_at_most_once(case, one):
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(7)
    one.do(get_dirty_log(one.vm, 0))
    one.access(7)

    errno, bits = one.do(get_dirty_log(one.vm, 0))

    assert bool(errno) is not case.keeps("logs-writes")
    assert bool(bits) is not case.keeps("logs-only-writes")


def test_logging_is_switched_off(one):
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(2, "write")
    one.slot()

    assert one.access(2, "write") == "done"
    assert one.vm.dirty_bitmaps == {}
    assert one.lost == []


def test_a_deleted_slot_leaves_no_entry(case, one):
    for gfn in range(4):
        one.access(gfn, "write")
    one.do(set_memory_region(one.vm, Region(0, 0, 0, 0, 0)))

    keeps = case.keeps("zaps-deleted-slots")
    assert [maps(one, gfn) for gfn in range(4)] == [not keeps] * 4
    assert [translate(one, gfn) is None for gfn in range(4)] == [keeps] * 4
    assert one.access(0) == ("mmio" if keeps else "done")
    assert one.lost == ([] if keeps else ["no-slot"])


def test_a_moved_slot_is_found_at_its_new_place(case, one):
    one.access(1, "write")
    one.slot(gfn=64)

    assert one.access(65, "write") == "done"
    if case.keeps("zaps-deleted-slots"):
        assert one.access(1) == "mmio"
        assert one.lost == []


def test_a_new_slot_is_seen_where_there_was_mmio(case, one):
    before = [one.access(65) for _ in range(2)]
    one.slot(slot=1, gfn=64)

    keeps = case.keeps("forgets-mmio")
    assert before == ["mmio", "mmio"]
    assert one.access(65) == ("done" if keeps else "mmio")
    assert one.lost == ([] if keeps else ["stale-mmio"])


@pytest.mark.parametrize("access", ["read", "write"])
def test_change_pte_loses_nothing(one, access):
    one.do(touch_pages(one.mm, one.hva, (7, 7)))
    for gfn in (0, 1, 2):
        one.access(gfn, access)
    one.do(touch_pages(one.mm, one.hva, (7, 7)))

    merged = one.do(ksm_scan(one.mm, one.hva, one.at(2)))

    assert merged == 1
    assert one.pfn(0) == one.pfn(1)
    for gfn in (0, 1, 2):
        assert one.access(gfn) == "done"
        assert translate(one, gfn).pfn + gfn - translate(one, gfn).gfn == one.pfn(gfn)
    assert one.access(0, "write") == "done"
    assert one.pfn(0) != one.pfn(1)
    assert one.access(1) == "done"
    assert one.lost == []


async def protected_for_a_while(one):
    await mprotect(one.mm, one.at(0), one.at(2), write=False)
    await mprotect(one.mm, one.at(0), one.at(2), write=True)


def test_what_the_host_does_loses_nothing(one):
    for path in (
        lambda: migrate(one.mm, one.at(1)),
        lambda: reclaim(one.mm, one.at(1)),
        lambda: protected_for_a_while(one),
        lambda: madvise_dontneed(one.mm, one.at(1), one.at(2)),
        lambda: fork(one.mm),
    ):
        one.access(1, "write")
        one.do(path())
        assert one.access(1) == "done"
        assert one.access(1, "write") == "done"

    assert one.lost == []


def test_what_the_host_forbids_the_guest_cannot_write(one):
    one.access(1, "write")
    one.do(mprotect(one.mm, one.at(1), one.at(2), write=False))

    assert translate(one, 1, "write") is None
    assert one.access(1, "write") != "done"
    assert one.lost == []


@pytest.mark.parametrize("process_first", [True, False], ids=["exit", "close"])
def test_destruction_leaves_no_table(one, process_first):
    for gfn in range(4):
        one.access(gfn, "write")
    closing = destroy_vm(one.vm, one.machine.subscriptions["vm"])
    if process_first:
        one.do(exit_mmap(one.mm))
        one.do(closing)
    else:
        one.do(closing)
        one.do(exit_mmap(one.mm))

    assert one.vm.tables.live == one.vm.tables.retired == {}
    assert one.lost == []


@pytest.mark.parametrize("turn", [1, 3, 7])
def test_a_guest_and_the_host_at_once(case, one, turn):
    one.do(touch_pages(one.mm, one.hva, (7, 7)))
    accesses = tuple(
        (how, gfn) for gfn in (0, 1, 2) for how in ("read", "write", "read")
    )
    guest = one.actor("vcpu0", run_guest(one.vcpu, accesses, "hlt"))
    merging = one.actor("ksmd", ksm_scan(one.mm, one.hva, one.at(2)))
    zapping = one.actor("zap", madvise_dontneed(one.mm, one.at(2), one.at(3)))
    moving = one.actor("kcompactd", migrate(one.mm, one.at(1)))

    one.interleave(guest, merging, zapping, moving, turn=turn)

    keeps = case.keeps("maps-nothing-before-end")
    assert guest.task.result == "hlt"
    assert set(one.lost) <= (set() if keeps else {"touched-after-start"})


@pytest.mark.parametrize("turn", [1, 4])
def test_a_guest_and_a_memslot_update_at_once(one, turn):
    accesses = tuple((how, gfn) for gfn in (0, 1, 2) for how in ("read", "write"))
    guest = one.actor("vcpu0", run_guest(one.vcpu, accesses, "hlt"))
    region = Region(0, LOG_DIRTY_PAGES, 0, 16 * one.page, one.hva)
    logging = one.actor("vmm", set_memory_region(one.vm, region))

    one.interleave(guest, logging, turn=turn)
    one.do(get_dirty_log(one.vm, 0))

    assert guest.task.result == "hlt"
    assert one.lost == []


def test_the_tour_loses_nothing(compared):
    k = plugins.link(compared.arch, compared.release)

    played = play(load(find("tour")), k, compared.options())

    assert played.outcome.end == "done"
    assert played.violations == []
    assert played.machine.vm.tables.live == {}
