"""What readers see of a memslot update, and what it waits for (generic facts 2.8)."""

from errno import ENOMEM

import pytest
from regions import PAGE, apply, generation, region

from kvmarch.kernel.memory_region import set_memory_region
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES, gfn_to_memslot
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.machine.steps import op
from kvmarch.testing.bench import HVA

PUBLISH = "publish memslots unless an invalidation began"


# -- what readers see --------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "publish"),
    [((4, 4), "publish memslots"), ((6, 1), PUBLISH)],
    ids=["v4.4", "v6.1"],
)
def test_a_slot_is_invalid_between_the_two_swaps(bench, release, publish):
    one = bench(release)
    apply(one)
    updater = one.actor("u", set_memory_region(one.vm, region(size=0)))
    updater.to(publish)

    assert not gfn_to_memslot(one.vm, 0).invalid
    updater.step()
    assert gfn_to_memslot(one.vm, 0).invalid
    updater.to(publish)
    assert gfn_to_memslot(one.vm, 0).invalid
    updater.step()
    assert gfn_to_memslot(one.vm, 0) is None
    updater.end()


def test_a_moved_slot_is_nowhere_valid_between_the_swaps(bench):
    one = bench()
    apply(one)
    updater = one.actor("u", set_memory_region(one.vm, region(gpa=8 * PAGE)))
    updater.past(PUBLISH)

    assert gfn_to_memslot(one.vm, 0).invalid
    assert gfn_to_memslot(one.vm, 8) is None
    updater.end()
    assert gfn_to_memslot(one.vm, 0) is None
    assert gfn_to_memslot(one.vm, 8).base_gfn == 8
    assert not gfn_to_memslot(one.vm, 8).invalid


def test_the_mapping_is_zapped_between_the_swaps(bench):
    one = bench()
    one.slot()
    one.access(3, "write")
    updater = one.actor("u", set_memory_region(one.vm, region(size=0)))
    updater.past(PUBLISH)

    assert one.entry(3)
    updater.to(PUBLISH)
    assert not one.entry(3)
    updater.end()
    assert one.lost == []


def test_readers_hold_up_the_update_and_only_slots_lock_is_held(bench):
    one = bench()

    async def reads():
        async with one.vm.srcu.read():
            await op(name="inside")(lambda: None)()

    reader = one.actor("reader", reads()).to("inside")
    updater = one.actor("u", set_memory_region(one.vm, region()))

    assert updater.waits() == "wait for readers of kvm->srcu"
    assert one.vm.slots_lock.writer == "u"
    assert one.vm.slots_arch_lock.writer is None
    assert one.vm.memslots[0].in_progress
    reader.end()
    assert updater.end() == 0
    assert not one.vm.memslots[0].in_progress


@pytest.mark.parametrize(("release", "taken"), [((5, 13), 0), ((5, 14), 2)])
def test_slots_arch_lock_exists_since_v5_14(bench, release, taken):
    one = bench(release)
    apply(one)

    steps = one.trace(set_memory_region(one.vm, region(size=0)))

    assert steps.count("lock slots_arch_lock") == taken
    assert one.lost == []


# -- invalidations and updates -----------------------------------------------------


@pytest.mark.parametrize(("release", "waits"), [((5, 14), False), ((5, 15), True)])
def test_publishing_waits_for_active_invalidations(bench, release, waits):
    one = bench(release)
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))
    updater = one.actor("u", set_memory_region(one.vm, region()))

    where = updater.waits()

    assert where == ("mn_active_invalidate_count == 0?" if waits else "")
    one.do(mmu_notifier_invalidate_range_end(one.mm, HVA, HVA + PAGE))
    assert updater.end() == 0


def test_without_elision_a_deletion_need_not_wait(bench):
    one = bench((5, 14))
    apply(one)
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))
    one.do(set_memory_region(one.vm, region(size=0)))

    one.do(mmu_notifier_invalidate_range_end(one.mm, HVA, HVA + PAGE))

    assert one.vm.mmu_invalidate_in_progress == 0
    assert one.lost == []


def test_an_invalidation_that_begins_before_the_lock_is_waited_for_again(bench):
    one = bench()
    updater = one.actor("u", set_memory_region(one.vm, region()))
    updater.past("mn_active_invalidate_count == 0?")
    one.do(mmu_notifier_invalidate_range_start(one.mm, HVA, HVA + PAGE))

    assert updater.waits() == "mn_active_invalidate_count == 0?"
    assert one.vm.memslots[0].slots == ()
    one.do(mmu_notifier_invalidate_range_end(one.mm, HVA, HVA + PAGE))
    assert updater.end() == 0
    assert one.lost == []


# -- when the architecture refuses -------------------------------------------------


@pytest.fixture
def refusing(bench):
    """A machine whose architecture refuses one kind of change with ENOMEM."""

    def make(release, refused):
        prepare = op(lambda vm, old, new, change: ENOMEM * (change == refused))
        one = bench(release, replaced={"prepare_memory_region": prepare})
        apply(one)
        return one

    return make


@pytest.mark.parametrize(
    ("change", "fields"),
    [("delete", {"size": 0}), ("move", {"gpa": 8 * PAGE})],
    ids=["delete", "move"],
)
@pytest.mark.parametrize(
    ("release", "reinstalled"), [((5, 6), False), ((5, 7), True), ((7, 2), True)]
)
def test_a_refused_deletion_puts_the_slot_back(
    refusing, change, fields, release, reinstalled
):
    one = refusing(release, change)
    before = generation(one)

    errno = apply(one, **fields)

    slot = gfn_to_memslot(one.vm, 0)
    assert errno == ENOMEM
    assert slot.invalid is not reinstalled
    assert generation(one) == before + (2 if reinstalled else 1)
    assert one.lost == []
    assert one.vm.slots_arch_lock.writer is None


def test_a_refused_deletion_has_zapped_the_mapping(bench):
    prepare = op(lambda vm, old, new, change: ENOMEM * (change == "delete"))
    one = bench(replaced={"prepare_memory_region": prepare})
    one.slot()
    one.access(0, "write")

    one.do(set_memory_region(one.vm, region(size=0)))

    assert one.entry(0) == 0
    assert one.access(0) == "done"


@pytest.mark.parametrize("release", [(5, 6), (7, 2)])
def test_refused_flags_change_nothing(refusing, release):
    one = refusing(release, "flags_only")
    before = generation(one)

    errno = apply(one, flags=LOG_DIRTY_PAGES)

    assert errno == ENOMEM
    assert (generation(one), gfn_to_memslot(one.vm, 0).flags) == (before, 0)
    assert one.vm.dirty_bitmaps == {}
    assert one.lost == []
