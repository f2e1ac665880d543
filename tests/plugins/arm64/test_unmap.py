"""Unmapping: chunks, tables that become empty, blocks in part, and old bugs."""

import pytest

from kvmarch.kernel.mmap import madvise_dontneed, oom_reap
from kvmarch.kernel.vcpu import guest_access

EVERY = (
    pytest.param((3, 16), id="v3.16"),
    pytest.param((4, 15), id="v4.15"),
    pytest.param((5, 9), id="v5.9"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((5, 12), id="v5.12"),
    pytest.param((5, 13), id="v5.13"),
    pytest.param((6, 1), id="v6.1"),
    pytest.param((6, 6), id="v6.6"),
    pytest.param((6, 12), id="v6.12"),
    pytest.param((7, 2), id="v7.2"),
)

HARDWARE = (
    pytest.param({}, id="plain"),
    pytest.param({"fwb": 1, "tlbirange": 1}, id="FWB and TLBIRANGE"),
    pytest.param({"tlbirange": 1}, id="TLBIRANGE"),
)


def unmap(m, start, end, may_block=True):
    slot = m.vm.memslots[0].slots[0]
    return m.locked(m.k.unmap_gfn_range(m.vm, slot, start, end, may_block))


@pytest.mark.parametrize("options", HARDWARE)
@pytest.mark.parametrize("release", EVERY)
def test_no_flush_is_left_to_be_done(machine, release, options):
    m = machine(release, **options)
    m.slot()
    m.access(0, 1, 2)

    assert unmap(m, 0, 2) is None
    assert m.vm.ledger.owed == {}
    assert [key[1] for key in m.vcpu.tlb.entries] == [2]
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_table_goes_with_its_last_page(machine, release):
    m = machine(release)
    m.slot()
    m.access(0, 1)
    table = m.table(0)

    unmap(m, 0, 1)
    assert table.refs == 2
    assert m.table(0) is table
    unmap(m, 1, 2)
    assert m.table(1) is None
    assert len(m.vm.tables.live) == 1
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "page", "table"),
    [
        pytest.param((5, 9), 0, 0, id="v5.9"),
        pytest.param((5, 10), 0x00400000010037FE, 0x10003002, id="v5.10 remains"),
        pytest.param((5, 12), 0x00400000010037FE, 0x10003002, id="v5.12 remains"),
        pytest.param((5, 13), 0, 0, id="v5.13"),
    ],
)
def test_what_is_left_of_an_entry(machine, release, page, table):
    m = machine(release)
    m.slot()
    m.access(1, 2)
    unmap(m, 2, 3)
    assert m.entry(2) == page
    assert m.kind(2) == ("page-remains" if page else "empty")

    unmap(m, 1, 2)
    root = m.vm.tables.at(m.mmu.pgt)
    assert root.get(0) in {0, table & ~0xFFFF | root.get(0) & 0xFFFE}
    assert m.access(1) == "done"
    m.assert_counted()


@pytest.mark.parametrize("release", EVERY)
def test_block_met_in_part_goes_as_a_whole(machine, release):
    m = machine(release, pages=1024, huge=True)
    m.slot(gfn=1024)
    m.access(1024, 1536)

    unmap(m, 1030, 1031)
    assert m.kind(1024) != "block"
    assert m.kind(1536) == "block"
    assert [key[1] for key in m.vcpu.tlb.entries] == [1536]
    m.assert_counted()
    assert m.lost == []


# -- chunks -------------------------------------------------------------------------

GIB = 1 << 18


@pytest.mark.parametrize(
    ("release", "options", "may_block", "drops"),
    [
        pytest.param((4, 10), {}, True, 0, id="v4.10 never"),
        pytest.param((4, 11), {}, True, 1, id="v4.11 per pgd entry"),
        pytest.param((5, 8), {}, False, 1, id="v5.8 even if it must not"),
        pytest.param((5, 9), {}, False, 0, id="v5.9 honours may_block"),
        pytest.param((5, 10), {}, True, 1, id="v5.10"),
        pytest.param((6, 0), {"ipa": 44}, True, 0, id="v6.0 root entry of 512G"),
        pytest.param((6, 1), {"ipa": 44}, True, 1, id="v6.1 largest block"),
        pytest.param((6, 12), {}, True, 1, id="v6.12"),
    ],
)
def test_where_the_lock_is_dropped(machine, release, options, may_block, drops):
    m = machine(release, **options)
    slot = m.slot()
    steps = []
    m.world.observer = lambda task, step: steps.append(step.op.name)

    m.locked(m.k.unmap_gfn_range(m.vm, slot, 0, 2 * GIB, may_block))
    assert steps.count("unlock mmu_lock") == 1 + drops
    assert m.lost == ([] if may_block else ["warn"] * drops)


def test_empty_entries_of_the_root_are_one_chunk(machine):
    m = machine((5, 10))
    slot = m.slot()
    steps = []
    m.world.observer = lambda task, step: steps.append(step.op.name)

    m.locked(m.k.unmap_gfn_range(m.vm, slot, 0, 900 * GIB, True))
    assert steps.count("unlock mmu_lock") == 2


@pytest.mark.parametrize(
    ("release", "minus", "lost"),
    [
        pytest.param((4, 11), (), ["table-memory"], id="v4.11 goes on in freed tables"),
        pytest.param((4, 12), (), [], id="v4.12 looks again"),
        pytest.param(
            (4, 12), ("pgd-recheck",), ["table-memory"], id="without 0c428a6a9256"
        ),
        pytest.param((5, 10), (), ["warn"], id="v5.10 warns"),
        pytest.param((6, 12), (), ["warn"], id="v6.12 warns"),
    ],
)
def test_release_while_an_unmap_has_dropped_the_lock(machine, release, minus, lost):
    """Fact sheet 6 row 2."""
    m = machine(release, minus=minus)
    slot = m.slot()
    m.access(0)

    async def zap():
        async with m.vm.mmu_lock.write():
            await m.k.unmap_gfn_range(m.vm, slot, 0, 2 * GIB, True)

    task = m.task("zap", zap())
    m.advance(task, "unlock mmu_lock")
    m.step(task)
    m.do(m.k.flush_shadow_all(m.vm))
    m.finish(task)
    assert m.lost[:1] == lost


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param((5, 8), ["warn"], id="v5.8"),
        pytest.param((5, 9), [], id="v5.9"),
    ],
)
def test_oom_reaper_across_a_root_entry(machine, release, lost):
    """b5331379bc62 (v5.9)."""
    m = machine(release, pages=32)
    m.slot(gfn=GIB - 16)
    m.access(GIB - 1)

    assert m.do(oom_reap(m.mm, m.hva(0), m.hva(32))) is True
    assert m.entry(GIB - 1) == 0
    assert m.lost == lost


@pytest.mark.parametrize(
    ("release", "left"),
    [
        pytest.param((5, 11), True, id="v5.11 steps over it"),
        pytest.param((5, 12), False, id="v5.12"),
    ],
)
def test_unaligned_start_beside_an_empty_entry(machine, release, left):
    """357ad203d45c (v5.12): the range of fact sheet 6 row 8, moved to 0."""
    m = machine(release, pages=1024)
    m.slot(gfn=0)
    m.access(512)

    unmap(m, 0xB2, 0x2B2)
    assert (m.kind(512) == "page") is left


# -- deferred flushes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "options", "deferred"),
    [
        pytest.param((6, 5), {"fwb": 1, "tlbirange": 1}, False, id="v6.5"),
        pytest.param((6, 6), {"fwb": 1, "tlbirange": 1}, True, id="v6.6"),
        pytest.param((6, 12), {"fwb": 1, "tlbirange": 1}, True, id="v6.12"),
        pytest.param((6, 12), {"fwb": 0, "tlbirange": 1}, False, id="no FWB"),
        pytest.param((6, 12), {"fwb": 1, "tlbirange": 0}, False, id="no TLBIRANGE"),
    ],
)
def test_one_range_flush_at_the_end(machine, release, options, deferred):
    m = machine(release, **options)
    m.slot()
    m.access(0, 1, 2)
    zap = m.task("zap", madvise_dontneed(m.mm, m.hva(0), m.hva(3)))
    m.advance(zap, "clear PTEs")

    assert bool(m.named("flush_owed")) is deferred
    assert m.named("tlb_invalidate")[-1] == {"start": 0, "end": 3}
    m.finish(zap)
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "lost"),
    [
        pytest.param((6, 8), ["table-memory"], id="v6.8 frees before the flush"),
        pytest.param((6, 9), [], id="v6.9 flushes tables at once"),
    ],
)
def test_walk_through_a_table_that_was_just_freed(machine, release, lost):
    """f62d4c3eb687 (v6.9): a CPU still remembers the table."""
    m = machine(release, fwb=1, tlbirange=1, vcpus=2)
    m.slot()
    m.access(0, vcpu=1)
    m.vm.vcpus[1].tlb.drop_all()
    zap = m.task("zap", madvise_dontneed(m.mm, m.hva(0), m.hva(1)))
    m.advance(zap, "flush the unmapped range")

    guest = m.task("vcpu1", guest_access(m.vm.vcpus[1], 0, "read"))
    m.step(guest, 2)
    assert m.lost == lost
    m.finish(zap)
    assert m.vm.vcpus[1].arch.walk_cache == {}
    m.finish(guest)
