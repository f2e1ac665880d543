"""Faults that race with each other and with invalidations."""

import pytest

from kvmarch.kernel.memslots import LOG_DIRTY_PAGES
from kvmarch.kernel.mmap import madvise_dontneed

SHARED = (
    pytest.param((6, 2), id="v6.2"),
    pytest.param((6, 3), id="v6.3"),
    pytest.param((6, 9), id="v6.9"),
    pytest.param((6, 12), id="v6.12"),
    pytest.param((7, 0), id="v7.0"),
    pytest.param((7, 2), id="v7.2"),
)

EVERY = (
    pytest.param((4, 4), id="v4.4"),
    pytest.param((5, 4), id="v5.4"),
    pytest.param((5, 10), id="v5.10"),
    pytest.param((6, 1), id="v6.1"),
    *SHARED,
)


def fault(m, gfn, how="read", vcpu=0):
    """Return the task of one access by a vCPU."""
    return m.task(f"vcpu{vcpu}", m.guest(gfn, how, vcpu))


# -- faults against faults ----------------------------------------------------------


@pytest.mark.parametrize("release", SHARED)
def test_locked_entry_makes_the_other_vcpu_try_again(machine, release):
    m = machine(release, vcpus=2)
    m.slot()
    m.access(1)
    first, second = fault(m, 0), fault(m, 0, vcpu=1)

    m.advance(first, "stage2_make_pte")
    locked = 1 << 60 if release >= (7, 1) else 1 << 10
    assert (m.entry(0), m.kind(0)) == (locked, "locked")
    assert m.table(0).refs == 2
    m.advance(second, "stage2_make_pte") if m.step(second, 40) < 40 else None
    assert m.vm.vcpus[1].exits["missing"] > 1
    m.finish(first)
    m.finish(second)
    assert m.kind(0) == "page"
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", SHARED)
def test_hardware_faults_on_a_locked_entry(machine, release):
    m = machine(release, vcpus=2)
    m.slot()
    m.access(1)
    first = fault(m, 0)
    m.advance(first, "stage2_make_pte")

    assert m.k.translate.fn(m.vm.vcpus[1], 0, "read") == "missing"
    m.finish(first)
    assert m.k.translate.fn(m.vm.vcpus[1], 0, "read").pfn == m.pfn(0)


@pytest.mark.parametrize("release", SHARED)
def test_two_vcpus_make_one_table(machine, release):
    m = machine(release, vcpus=2)
    m.slot()
    first, second = fault(m, 0), fault(m, 1, vcpu=1)

    m.advance(first, "stage2_make_pte: table")
    assert m.kind(0) == "locked"
    m.step(second, 30)
    m.finish(first)
    m.finish(second)
    assert len(m.vm.tables.live) == 3
    assert m.table(0).refs == 3
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize("release", SHARED)
def test_broken_block_is_flushed_before_the_table_is_there(machine, release):
    m = machine(release, pages=512, huge=True, vcpus=2)
    m.slot(gfn=512)
    m.access(512, vcpu=1)
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    m.access(512, vcpu=1)
    first = fault(m, 513, "write")

    m.advance(first, "stage2_try_break_pte: TLBI")
    assert m.kind(512) == "locked"
    assert m.vm.vcpus[1].tlb.entries
    m.step(first)
    assert not m.vm.vcpus[1].tlb.entries
    m.finish(first)
    assert m.kind(513) == "page"
    m.assert_counted()


def publish(m, flags):
    """Begin a change of flags: the new slot is visible, old readers are waited for."""
    task = m.task("slots", m.region(flags=flags, gfn=512))
    m.step(task, 100)
    assert task.pending.op.name.startswith("wait for readers")
    return task


@pytest.mark.parametrize("release", SHARED)
def test_detached_table_lives_until_its_readers_have_left(machine, release):
    """One vCPU has locked a page in a table that another replaces by a block."""
    m = machine(release, pages=512, huge=True, vcpus=2)
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    m.access(512)
    old = m.table(512)
    slow = fault(m, 513, vcpu=1)
    m.advance(slow, "stage2_make_pte")
    slots = publish(m, 0)

    m.access(514)
    assert (m.kind(512), m.level(512)) == ("block", 2)
    assert old.pa in m.vm.tables.retired
    m.finish(slow)
    assert old.pa in m.vm.tables.freed
    m.finish(slots)
    m.assert_counted()
    assert m.lost == []


@pytest.mark.parametrize(
    ("minus", "offset"),
    [
        pytest.param((), 0, id="v6.12"),
        pytest.param(("pa-from-offset",), 512, id="before v6.4: off by a block"),
    ],
)
def test_block_that_became_a_table_under_the_walker(machine, minus, offset):
    """1f0f4a2ef7a5 (v6.4), fact sheet 6 row 14."""
    m = machine((6, 12), minus=minus, pages=512, huge=True, vcpus=2)
    m.slot(gfn=512)
    first, second = fault(m, 512), fault(m, 1023, "write", 1)
    m.advance(first, "walk, stage2_try_break_pte")
    slots = publish(m, LOG_DIRTY_PAGES)
    # Both have faulted; the first one saw the slot without logging.
    m.advance(second, "walk, stage2_try_break_pte")
    m.advance(first, "read the entry again")
    assert m.level(512) == 2

    m.advance(second, "enter guest")
    assert (m.kind(1023), m.kind(512)) == ("page", "empty")
    m.advance(first, "enter guest")
    assert m.field(513, "pfn") == m.pfn(1) + offset
    m.finish(first)
    m.finish(second)
    m.finish(slots)
    m.assert_counted()


@pytest.mark.parametrize(
    ("minus", "lost"),
    [
        pytest.param((), [], id="v5.18"),
        pytest.param(("logging-read-lock-page",), ["warn"], id="without f587661f21eb"),
    ],
)
def test_two_write_faults_on_one_logged_block(machine, minus, lost):
    m = machine((5, 18), minus=minus, pages=512, huge=True, vcpus=2)
    m.slot(gfn=512)
    m.access(512)
    m.slot(gfn=512, flags=LOG_DIRTY_PAGES)
    first, second = fault(m, 512, "write"), fault(m, 513, "write", 1)

    if minus:
        m.advance(first, "clear the block")
        m.advance(second, "clear the block")
        m.advance(first, "kvm_set_table_pte")
        m.advance(second, "kvm_set_table_pte")
    else:
        m.advance(first, "unlock mmu_lock")
        m.step(second, 50)
        assert second.pending.op.name == "lock mmu_lock"
    m.finish(first)
    m.finish(second)
    assert m.lost == lost


@pytest.mark.parametrize(
    ("release", "minus", "flushed"),
    [
        pytest.param((6, 6), (), 0, id="v6.6 skips the flush"),
        pytest.param((6, 7), (), 1, id="v6.7 flushes all the same"),
    ],
)
def test_relaxation_that_lost_its_race(machine, release, minus, flushed):
    """be097997a273: hardware sets AF between the walk and the cmpxchg."""
    m = machine(release, minus=minus, haf=1, vcpus=2)
    slot = m.slot()
    m.protect(0)
    m.access(0)
    m.mm.ptes[m.hva(0) // m.page_size] |= 2
    first = fault(m, 0, "write")
    m.advance(first, "stage2_try_set_pte")
    m.table(0).set(0, m.entry(0) & ~(1 << 10))

    m.advance(first, "account and release page")
    assert len(m.named("tlb_invalidate_local")) == flushed
    m.finish(first)
    assert m.field(0, "w") == 1
    assert slot.npages == 16


@pytest.mark.parametrize(
    ("release", "scope"),
    [
        pytest.param((6, 4), "tlb_invalidate", id="v6.4 all CPUs"),
        pytest.param((6, 5), "tlb_invalidate_local", id="v6.5 this CPU"),
    ],
)
def test_who_forgets_a_relaxed_leaf(machine, release, scope):
    m = machine(release)
    m.slot()
    m.protect(0)
    m.access(0)
    before = len(m.named(scope))

    m.access(0, how="write")
    assert len(m.named(scope)) > before


# -- faults against invalidations ---------------------------------------------------


@pytest.mark.parametrize("release", EVERY)
def test_fault_retries_after_any_invalidation(machine, release):
    m = machine(release)
    m.slot()
    first = fault(m, 0)
    lock = "lock mmu_lock" if release < (6, 2) else "read-lock mmu_lock"
    m.advance(first, lock)

    # Elsewhere in the VM: the check knows no range.
    m.do(madvise_dontneed(m.mm, m.hva(9), m.hva(10)))
    m.finish(first)
    assert m.exits() == 2
    assert m.kind(0) == "page"
    assert m.lost == []


@pytest.mark.parametrize("release", EVERY)
def test_fault_waits_for_an_open_invalidation(machine, release):
    m = machine(release)
    m.slot()
    zap = m.task("zap", madvise_dontneed(m.mm, m.hva(9), m.hva(10)))
    m.advance(zap, "clear PTEs")
    first = fault(m, 0)

    m.step(first, 100)
    assert not first.done
    assert m.entry(0) == 0
    m.finish(zap)
    m.finish(first)
    assert m.lost == []


@pytest.mark.parametrize(
    ("release", "retries"),
    [
        pytest.param((6, 2), False, id="v6.2 reads it after mmap_lock"),
        pytest.param((6, 3), True, id="v6.3 reads it inside mmap_lock"),
    ],
)
def test_invalidation_between_vma_and_sequence(machine, release, retries):
    """13ec9308a857 (v6.3)."""
    m = machine(release)
    m.slot()
    first = fault(m, 0)
    until = "fast gup" if retries else "snapshot mmu_invalidate_seq"
    m.advance(first, until)

    m.do(madvise_dontneed(m.mm, m.hva(9), m.hva(10)))
    m.finish(first)
    assert m.exits() == 1 + retries


@pytest.mark.parametrize("release", SHARED)
def test_notifier_waits_for_faults(machine, release):
    m = machine(release)
    m.slot()
    first = fault(m, 0)
    m.advance(first, "stage2_make_pte")
    zap = m.task("zap", madvise_dontneed(m.mm, m.hva(0), m.hva(1)))

    m.step(zap, 100)
    assert zap.pending.op.name == "lock mmu_lock"
    m.advance(first, "enter guest")
    m.finish(zap)
    assert m.entry(0) == 0
    m.finish(first)
    assert m.lost == []
