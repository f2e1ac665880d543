import pytest
from kvmarch_mips.gpa_table import kvm_mips_flush_gpa_pt

from kvmarch.kernel.mmap import madvise_dontneed
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.vcpu import guest_access

OWED, REQUEST = "flush_owed", "kvm_make_all_cpus_request"
MMUS = [
    pytest.param((4, 11), "te", id="v4.11-te"),
    pytest.param((4, 12), "guestid", id="v4.12-guestid"),
    pytest.param((5, 12), "rad", id="v5.12-rad"),
    pytest.param((5, 12), "te", id="v5.12-te"),
    pytest.param((5, 13), "guestid", id="v5.13-guestid"),
    pytest.param((7, 2), "rad", id="v7.2-rad"),
]


def invalidate(one, first, stop):
    """Run one bracket around pages, in which nothing changes."""
    span = one.mm, one.hva(first), one.hva(stop)
    one.do(mmu_notifier_invalidate_range_start(*span))
    one.do(mmu_notifier_invalidate_range_end(*span))


# -- unmap: fact sheet mips, 2 and 6.1 ---------------------------------------------


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_unmap_flushes_whether_something_was_mapped_or_not(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot()
    since = len(one.world.events)
    invalidate(one, 0, 1)
    names = one.names(since)

    assert names.count(REQUEST) == 1
    assert names.index(OWED) < names.index(REQUEST) < names.index("range_start_done")


@pytest.mark.parametrize(
    ("release", "steps"),
    [
        pytest.param(
            (5, 12), ["zap range", "prepare_flush_shadow"], id="v5.12-in-hook"
        ),
        pytest.param((5, 13), ["unmap_and_ask"], id="v5.13-generic"),
    ],
)
def test_who_flushes_after_an_unmap(machine, release, steps):
    one = machine(release)
    one.slot()
    seen = []
    one.world.observer = lambda _task, step: seen.append(step.op.name)
    span = one.mm, one.hva(0), one.hva(1)
    one.do(mmu_notifier_invalidate_range_start(*span))
    one.world.observer = None
    zap = seen.index(steps[0])
    unlock = seen.index("unlock mmu_lock")

    assert seen[zap : zap + len(steps)] == steps
    assert zap < seen.index("flush done") < unlock


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_the_page_after_a_notifiers_range_goes_too(machine, release, mmu):
    """M4: the exclusive end is taken for the last page, in all versions."""
    one = machine(release, mmu=mmu)
    one.slot()
    for gfn in (9, 10, 11, 12):
        one.access(gfn)
    invalidate(one, 10, 11)

    assert one.mapped() == [9, 12]
    assert one.faults(11) == ["invalid"]


def test_an_exclusive_end_keeps_the_page_after_the_range(machine):
    one = machine(plus=["mips-exclusive-end"])
    one.slot()
    for gfn in (9, 10, 11, 12):
        one.access(gfn)
    invalidate(one, 10, 11)

    assert one.mapped() == [9, 11, 12]


def test_an_end_at_a_table_border_walks_into_the_next_table(machine):
    one = machine(pages=600)
    one.slot()
    for gfn in (510, 511, 512, 513):
        one.access(gfn)
    invalidate(one, 511, 512)

    assert one.mapped(510, 511, 512, 513) == [510, 513]


def test_a_table_goes_at_once_when_a_range_covers_it(machine):
    one = machine(pages=1200)
    one.slot()
    for gfn in (0, 511, 512, 1024):
        one.access(gfn)
    tables = [one.k.leaf_table.fn(one.vm, gfn, 1)[0] for gfn in (0, 512, 1024)]
    since = len(one.world.events)
    span = one.mm, one.hva(0), one.hva(1024)
    start = one.task("mm", mmu_notifier_invalidate_range_start(*span))
    one.advance(start, "unmap_and_ask")
    one.step(start)
    freed = [pa in one.vm.tables.freed for pa in tables]
    flushed = REQUEST in one.names(since)
    one.finish(start)

    assert freed == [True, True, False]
    assert not flushed
    assert one.mapped(0, 511, 512, 1024) == []
    assert one.lost == []


def test_a_table_stays_when_one_entry_is_left_out(machine):
    one = machine(pages=1200)
    one.slot()
    one.access(1)
    table = one.k.leaf_table.fn(one.vm, 1, 1)
    invalidate(one, 1, 512)

    assert one.mapped(1) == []
    assert one.k.leaf_table.fn(one.vm, 1, 1) == table


def test_a_pmd_table_is_freed_with_all_below(machine):
    one = machine(pages=8)
    one.slot()
    one.access(0)
    pages = one.geometry.masks[1] + 1 << 9
    removable = kvm_mips_flush_gpa_pt(one.vm, 0, pages - 1)

    assert not removable
    assert [table.level for table in one.vm.tables.live.values()] == [3]


def test_a_range_up_to_the_last_gfn_is_lost_in_the_root(machine):
    """The gfn after the last one has root index 0, so that nothing is walked."""
    one = machine()
    last = one.vm.arch.gfns
    one.slot(gfn=last - 16)
    one.access(last - 1)
    one.access(last - 16)
    one.do(madvise_dontneed(one.mm, one.hva(8), one.hva(16)))
    one.access(last - 1)

    assert one.lost == ["freed-page", "stale-permission"]


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_a_page_that_went_is_not_reached_again(machine, release, mmu):
    one = machine(release, mmu=mmu, boot={"vcpus": 2})
    one.slot()
    for vcpu in (0, 1):
        one.access(0, "write", vcpu)
        one.access(1, "read", vcpu)
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))

    assert one.faults(0, vcpu=0) == ["invalid"]
    # The other CPU finds what the first one has mapped, if it walks the same table.
    assert one.faults(0, vcpu=1) == (["invalid"] if mmu == "te" else [])
    assert one.k.entry_pfn.fn(one.k, one.options, one.entry(0), 1) == one.host.zero_pfn
    assert one.lost == []


async def no_flush(vm):
    """Stand in for a flush that somebody forgot."""


@pytest.mark.parametrize("mmu", ["guestid", "rad", "te"])
def test_a_forgotten_flush_is_noticed(machine, mmu):
    one = machine((5, 12), mmu=mmu, replaced={"mips_flush_shadow": no_flush})
    one.slot()
    one.access(0)
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))
    one.access(0)

    assert one.lost == ["flush-owed", "freed-page", "stale-permission"]


# -- aging: 6.2 --------------------------------------------------------------------


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_aging_makes_old_and_says_so_once(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot()
    one.access(0, "write")
    # The host's own PTEs are aged first, so that what follows is KVM's answer.
    one.age(8, "clear_flush_young")
    slot = one.vm.memslots[0].by_id(0)
    first = one.do(one.k.age_gfn(one.vm, slot, 0, 1))
    again = one.do(one.k.age_gfn(one.vm, slot, 0, 1))

    assert (first, again) == (True, False)
    assert one.fields(0) == {"present", "write", "modified", "dirty"}


@pytest.mark.parametrize(
    ("plus", "young"),
    [
        pytest.param((), False, id="mainline"),
        pytest.param(("mips-exclusive-end",), True, id="exclusive-end"),
    ],
)
def test_aging_a_page_makes_the_next_one_old(machine, plus, young):
    one = machine(plus=plus)
    one.slot()
    one.access(10)
    one.access(11)
    one.age(10, "clear_young")

    assert "accessed" not in one.fields(10)
    assert ("accessed" in one.fields(11)) is young


@pytest.mark.parametrize(
    ("release", "mmu", "why"),
    [
        pytest.param((4, 11), "te", ["invalid"], id="v4.11-te"),
        pytest.param((5, 12), "te", ["invalid"], id="v5.12-te"),
        pytest.param((5, 12), "guestid", ["invalid"], id="v5.12-guestid"),
        pytest.param((4, 12), "rad", [], id="v4.12-rad"),
        pytest.param((5, 12), "rad", [], id="v5.12-rad"),
        pytest.param((5, 13), "rad", ["invalid"], id="v5.13-rad"),
        pytest.param((7, 2), "guestid", ["invalid"], id="v7.2-guestid"),
    ],
)
def test_an_access_after_clear_flush_young_is_seen(machine, release, mmu, why):
    """M2: a request alone is no flush without GuestID, up to v5.12."""
    one = machine(release, mmu=mmu)
    one.slot()
    one.access(0)
    assert one.age(0, "clear_flush_young")
    left = one.faults(0)
    young = "accessed" in one.fields(0)

    assert left == why
    assert young is bool(why)
    assert one.lost == []


def test_the_fix_of_aging_without_guestid(machine):
    one = machine((5, 12), plus=["mips-generic-flush"], mmu="rad")
    one.slot()
    one.access(0)
    one.age(0, "clear_flush_young")

    assert one.faults(0) == ["invalid"]


@pytest.mark.parametrize("mmu", ["guestid", "rad"])
def test_clear_young_does_not_flush(machine, mmu):
    one = machine(mmu=mmu)
    one.slot()
    one.access(0)
    one.age(0, "clear_young")

    assert one.faults(0) == []
    assert "accessed" not in one.fields(0)


@pytest.mark.parametrize(
    ("release", "answers"),
    [
        pytest.param((4, 11), [False, False, False], id="v4.11"),
        pytest.param((5, 12), [False, False, False], id="v5.12"),
        pytest.param((5, 13), [True, False, False], id="v5.13"),
        pytest.param((7, 2), [True, False, False], id="v7.2"),
    ],
)
def test_test_young(machine, release, answers):
    """M3: constant False up to v5.12. After aging: old; without a table: old."""
    one = machine(release, pages=600)
    one.slot()
    one.access(0)
    given = [one.age(0, "test_young")]
    one.age(0, "clear_flush_young")
    given += [one.age(0, "test_young"), one.age(590, "test_young")]

    assert given == answers


# -- the bracket and a fault -------------------------------------------------------


def test_an_unmap_and_a_fault_take_turns(machine):
    one = machine(boot={"vcpus": 2})
    one.slot()
    one.access(0)
    start = one.task(
        "mm",
        mmu_notifier_invalidate_range_start(one.mm, one.hva(0), one.hva(1)),
    )
    one.advance(start, "unmap_and_ask")
    vcpu = one.task("vcpu1", guest_access(one.vm.vcpus[1], 3, "read"))
    one.advance(vcpu, "lock mmu_lock")
    blocked = not one.step(vcpu)
    one.finish(start)
    one.do(mmu_notifier_invalidate_range_end(one.mm, one.hva(0), one.hva(1)))

    assert blocked
    assert one.finish(vcpu) == "done"
    assert one.mapped() == [3]
    assert one.lost == []
