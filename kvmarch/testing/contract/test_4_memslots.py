"""Tier 4: dirty logging, and memslots that change."""

__all__ = [
    "test_a_deleted_slot_leaves_no_entry",
    "test_a_guest_and_a_memslot_update_at_once",
    "test_a_moved_slot_is_found_at_its_new_place",
    "test_a_page_that_is_not_written_is_logged_at_most_once",
    "test_logging_is_switched_off",
    "test_writes_are_logged_and_logged_again",
]


import pytest

from kvmarch.kernel.dirty_log import get_dirty_log
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES
from kvmarch.kernel.vcpu import run_guest
from kvmarch.testing.bench import Bench
from kvmarch.testing.cases import Case
from kvmarch.testing.contract.looks import maps, nowhere, translate

TIER = pytest.mark.kvmarch(tier=4)


@TIER
def test_writes_are_logged_and_logged_again(kvmarch_case: Case, kvm: Bench) -> None:
    kvm.access(2, "write")
    kvm.access(5, "write")
    kvm.slot(flags=LOG_DIRTY_PAGES)

    logs = []
    for gfns in ((), (2,), (2, 5), ()):
        for gfn in gfns:
            assert kvm.access(gfn, "write") == "done"
        kvm.access(7)
        errno, bits = kvm.do(get_dirty_log(kvm.vm, 0))
        logs.append((errno, bits & 0b100100))

    if kvmarch_case.keeps("logs-writes"):
        assert logs[1:] == [(0, 0b100), (0, 0b100100), (0, 0)]
    else:
        assert all(errno for errno, _bits in logs)
    assert kvm.lost == []


@TIER
def test_a_page_that_is_not_written_is_logged_at_most_once(
    kvmarch_case: Case, kvm: Bench
) -> None:
    kvm.slot(flags=LOG_DIRTY_PAGES)
    kvm.access(7)
    kvm.do(get_dirty_log(kvm.vm, 0))
    kvm.access(7)

    errno, bits = kvm.do(get_dirty_log(kvm.vm, 0))

    assert bool(errno) is not kvmarch_case.keeps("logs-writes")
    assert bool(bits) is not kvmarch_case.keeps("logs-only-writes")


@TIER
def test_logging_is_switched_off(kvm: Bench) -> None:
    kvm.slot(flags=LOG_DIRTY_PAGES)
    kvm.access(2, "write")
    kvm.slot()

    assert kvm.access(2, "write") == "done"
    assert kvm.vm.dirty_bitmaps == {}
    assert kvm.lost == []


@TIER
def test_a_deleted_slot_leaves_no_entry(kvmarch_case: Case, kvm: Bench) -> None:
    for gfn in range(4):
        kvm.access(gfn, "write")
    kvm.do(set_memory_region(kvm.vm, Region(0, 0, 0, 0, 0)))

    keeps = kvmarch_case.keeps("zaps-deleted-slots")
    assert [maps(kvm, gfn) for gfn in range(4)] == [not keeps] * 4
    assert [translate(kvm, gfn) is None for gfn in range(4)] == [keeps] * 4
    assert kvm.access(0) == (nowhere(kvmarch_case) if keeps else "done")
    assert kvm.lost == ([] if keeps else ["no-slot"])


@TIER
def test_a_moved_slot_is_found_at_its_new_place(kvmarch_case: Case, kvm: Bench) -> None:
    kvm.access(1, "write")
    kvm.slot(gfn=64)

    assert kvm.access(65, "write") == "done"
    if kvmarch_case.keeps("zaps-deleted-slots"):
        assert kvm.access(1) == nowhere(kvmarch_case)
        assert kvm.lost == []


@TIER
@pytest.mark.parametrize("turn", [1, 4])
def test_a_guest_and_a_memslot_update_at_once(kvm: Bench, turn: int) -> None:
    accesses = tuple((how, gfn) for gfn in (0, 1, 2) for how in ("read", "write"))
    guest = kvm.actor("vcpu0", run_guest(kvm.vcpu, accesses, "hlt"))
    region = Region(0, LOG_DIRTY_PAGES, 0, 16 * kvm.page, kvm.hva)
    logging = kvm.actor("vmm", set_memory_region(kvm.vm, region))

    kvm.interleave(guest, logging, turn=turn)
    kvm.do(get_dirty_log(kvm.vm, 0))

    assert guest.task.result == "hlt"
    assert kvm.lost == []
