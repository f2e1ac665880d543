"""Dirty logging: what is protected, flushed and split."""

import pytest

from kvmarch.kernel.dirty_log import clear_dirty_log, get_dirty_log
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES

EVERY = (
    pytest.param((4, 4), id="v4.4"),
    pytest.param((5, 4), id="v5.4"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((6, 1), id="v6.1"),
    pytest.param((6, 5), id="v6.5"),
    pytest.param((6, 12), id="v6.12"),
    pytest.param((7, 2), id="v7.2"),
)


def manual(m, *, all_set):
    m.vm.manual_protect = True
    m.vm.initially_set = all_set


def writable(m, pages):
    return [gfn for gfn in range(pages) if m.kind(gfn) == "page" and m.field(gfn, "w")]


@pytest.mark.parametrize("release", EVERY)
def test_switching_on_protects_all(machine, release):
    m = machine(release)
    m.slot()
    m.access(*range(8), how="write")

    m.slot(flags=LOG_DIRTY_PAGES)
    assert writable(m, 16) == []
    assert not m.vcpu.tlb.entries
    m.access(3, how="write")
    assert writable(m, 16) == [3]
    assert m.do(get_dirty_log(m.vm, 0)) == (0, 1 << 3)
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_switching_off_changes_nothing_yet(machine, release):
    m = machine(release)
    m.slot(flags=LOG_DIRTY_PAGES)
    m.access(3)
    entry = m.entry(3)

    m.slot()
    assert m.entry(3) == entry
    m.access(3, how="write")
    assert m.field(3, "w") == 1


@pytest.mark.parametrize("release", EVERY)
def test_clean_pages_between_dirty_ones_lose_w_too(machine, release):
    """The range goes from the lowest to the highest bit of the mask."""
    m = machine(release)
    slot = m.slot()
    m.access(*range(8), how="write")

    m.locked(m.k.dirty_log_masked(m.vm, slot, 0, 0b100100))
    assert writable(m, 16) == [0, 1, 6, 7]
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_mask_that_meets_nothing_owes_nothing(machine, release):
    m = machine(release)
    slot = m.slot()

    assert m.locked(m.k.dirty_log_masked(m.vm, slot, 0, 0b11)) is None


@pytest.mark.parametrize("release", EVERY)
def test_block_is_protected_as_a_whole(machine, release):
    m = machine(release, pages=512, huge=True)
    slot = m.slot(gfn=512)
    m.access(512, how="write")

    m.locked(m.k.dirty_log_masked(m.vm, slot, 576, 0b1))
    assert (m.level(512), m.field(512, "w")) == (2, 0)


@pytest.mark.parametrize(
    ("release", "options", "left"),
    [
        pytest.param((6, 5), {}, 0, id="v6.5 whole VMID"),
        pytest.param((6, 6), {}, 0, id="v6.6 without FEAT_TLBIRANGE"),
        pytest.param((6, 6), {"tlbirange": 1}, 1, id="v6.6 the slot's range"),
    ],
)
def test_what_is_flushed_for_a_slot(machine, release, options, left):
    m = machine(release, pages=16, **options)
    m.slot(pages=8)
    m.slot(1, gfn=0x100, pages=8, page=8)
    m.access(0, 0x100, how="write")

    m.slot(pages=8, flags=LOG_DIRTY_PAGES)
    assert len(m.vcpu.tlb.entries) == left
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "protected"),
    [
        pytest.param((5, 7), True, id="v5.7"),
        pytest.param((5, 8), False, id="v5.8"),
        pytest.param((6, 12), False, id="v6.12"),
    ],
)
def test_bitmap_that_starts_all_set(machine, release, protected):
    m = machine(release)
    m.slot()
    m.access(*range(4), how="write")
    manual(m, all_set=True)

    m.slot(flags=LOG_DIRTY_PAGES)
    assert writable(m, 16) == ([] if protected else [0, 1, 2, 3])
    assert m.do(clear_dirty_log(m.vm, 0, 0, 16, 0b0110)) == 0
    assert writable(m, 16) == ([] if protected else [0, 3])


# -- eager splitting -------------------------------------------------------------------

MIB2 = 2 << 20


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        pytest.param({}, "block", id="off"),
        pytest.param({"eager_split": MIB2}, "page", id="2 MiB"),
        pytest.param({"eager_split": 1 << 30}, "page", id="1 GiB"),
    ],
)
@pytest.mark.parametrize(
    "release", [pytest.param((6, 5), id="v6.5"), pytest.param((7, 2), id="v7.2")]
)
def test_split_when_logging_begins(machine, release, options, kind):
    m = machine(release, pages=1024, huge=True, **options)
    m.slot(gfn=512)
    m.access(512, how="write")
    m.access(1024, how="exec")

    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    assert {m.kind(gfn) for gfn in (512, 700, 1024)} == {kind}
    assert m.field(700, "w") == 0
    assert m.field(1024, "xn") == 0
    if kind == "page":
        assert m.field(700, "pfn") == m.pfn(188)
        assert m.table(512).refs == 513
    m.assert_counted()
    m.slot(gfn=512)
    assert m.mmu.split_page_cache == 0
    assert m.lost == []


def test_split_when_the_log_is_cleared(machine):
    m = machine((6, 5), pages=1024, huge=True, eager_split=MIB2)
    m.slot(gfn=512)
    m.access(512, 1024, how="write")
    manual(m, all_set=True)
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    assert m.kind(512) == "block"

    m.do(clear_dirty_log(m.vm, 0, 64, 64, 1))
    assert (m.kind(512), m.kind(1024)) == ("page", "block")
    # The block lost W as a whole before it was split.
    assert writable(m, 1024) == []
    m.assert_counted()
    assert m.lost == []


def test_split_of_a_gigabyte_takes_what_there_is(machine):
    """Without pages for the full depth a block is split by one level."""
    m = machine((6, 5))
    m.mmu.split_page_cache = 1
    root = m.vm.tables.at(m.mmu.pgt)
    root.set(1, 0x00000001000007FD)
    root.refs += 1

    m.locked(m.split(m.vm, 1 << 18, 2 << 18))
    assert (m.kind(1 << 18), m.level(1 << 18)) == ("block", 2)
    assert m.table(1 << 18, 2).refs == 513
    assert m.mmu.split_page_cache == 0
    m.assert_counted()


def test_split_without_memory_stops_quietly(machine):
    m = machine((6, 5), pages=512, huge=True, eager_split=MIB2)
    m.slot(gfn=512)
    m.access(512)

    assert m.locked(m.split(m.vm, 512, 1024)) == -12
    assert m.kind(512) == "block"
    m.assert_counted()


def test_lock_is_dropped_for_memory(machine):
    m = machine((6, 5), pages=512, huge=True, eager_split=MIB2)
    m.slot(gfn=512)
    m.access(512)
    task = m.task("slots", m.region(gfn=512, flags=LOG_DIRTY_PAGES))

    m.advance(task, "top up split_page_cache")
    assert m.vm.mmu_lock.writer is None
    m.do(m.k.flush_shadow_all(m.vm))
    m.finish(task)
    assert m.vm.tables.live == {}


def test_a_split_that_cannot_be_topped_up_stops(machine):
    m = machine((6, 5), pages=1024, huge=True, eager_split=MIB2)
    m.slot(gfn=512)
    m.access(512, how="write")
    m.access(1024, how="write")
    m.host.environment.no_tables = 1

    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    assert {m.kind(gfn) for gfn in (512, 1024)} == {"block"}
    m.assert_counted()
    assert m.lost == []
