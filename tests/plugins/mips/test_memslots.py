from errno import EINVAL

import pytest

from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.dirty_log import clear_dirty_log, get_dirty_log

REQUEST = "kvm_make_all_cpus_request"
MMUS = [
    pytest.param((4, 11), "te", id="v4.11-te"),
    pytest.param((4, 12), "guestid", id="v4.12-guestid"),
    pytest.param((5, 12), "rad", id="v5.12-rad"),
    pytest.param((5, 13), "rad", id="v5.13-rad"),
    pytest.param((7, 2), "guestid", id="v7.2-guestid"),
]


def flush_place(one, path):
    """Run a path; return where it flushed: inside mmu_lock, outside, or nowhere."""
    inside, place = False, "nowhere"

    def observe(_task, step):
        nonlocal inside, place
        name = step.op.name
        inside = (inside or name == "lock mmu_lock") and name != "unlock mmu_lock"
        if name == "flush done":
            place = "inside" if inside else "outside"

    one.world.observer = observe
    one.do(path)
    one.world.observer = None
    return place


# -- memslots: fact sheet mips, 6.5 ------------------------------------------------


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_a_slot_that_goes_takes_its_pages_and_no_more(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot(pages=8)
    one.slot(1, gfn=8, pages=8, page=8)
    for gfn in (0, 7, 8, 15):
        one.access(gfn, "write")
    place = flush_place(one, one.region(pages=0))

    assert place == "inside"
    assert one.mapped() == [8, 15]
    assert one.access(0) == one.access(7) == "mmio"
    assert one.faults(8) == ([] if mmu != "te" else ["invalid"])
    assert one.lost == []


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_a_slot_that_moves(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot()
    one.access(0, "write")
    one.slot(gfn=0x100)

    assert one.access(0) == "mmio"
    assert one.faults(0x100) == ["invalid"]
    assert one.entry(0x100) >> one.layout.pfn_shift == one.pfn(0)
    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "number"),
    [
        pytest.param((4, 11), 8, id="v4.11"),
        pytest.param((5, 7), 8, id="v5.7"),
        pytest.param((5, 8), 16, id="v5.8"),
        pytest.param((5, 14), 16, id="v5.14"),
        pytest.param((5, 15), 32767, id="v5.15"),
    ],
)
def test_how_many_memslots_there_are(machine, release, number):
    one = machine(release)

    assert one.do(one.region(number - 1)) == 0
    assert one.do(one.region(number, gfn=0x100)) == EINVAL


# -- dirty log: 6.5, 6.6 -----------------------------------------------------------


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_switching_the_log_on_makes_clean_and_flushes_if_needed(machine, release, mmu):
    one = machine(release, mmu=mmu)
    one.slot()
    one.access(0)
    clean = flush_place(one, one.region(flags=LOG_DIRTY_PAGES))
    one.slot()
    one.access(0, "write")
    dirty = one.fields(0)
    written = flush_place(one, one.region(flags=LOG_DIRTY_PAGES))

    assert (clean, written) == ("nowhere", "inside")
    assert dirty == one.fields(0) | {"modified", "dirty"}
    assert "write" in one.fields(0)
    assert one.faults(0, "write") == ["invalid" if mmu == "te" else "modified"]
    assert one.lost == []


def test_switching_the_log_off_changes_nothing(machine):
    one = machine()
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(0)
    before = one.entry(0)
    place = flush_place(one, one.region())

    assert place == "nowhere"
    assert one.entry(0) == before
    assert one.faults(0, "write") == ["modified"]


@pytest.mark.parametrize(("release", "mmu"), MMUS)
def test_fetching_the_log_makes_clean_and_flushes_after_the_lock(machine, release, mmu):
    one = machine(release, mmu=mmu, pages=128)
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(2, "write")
    one.access(70, "write")
    place = flush_place(one, get_dirty_log(one.vm, 0))
    one.access(2, "write")
    errno, bits = one.do(get_dirty_log(one.vm, 0))

    assert place == "outside"
    assert (errno, bits) == (0, 1 << 2)
    assert not one.fields(70) & {"modified", "dirty"}
    assert one.lost == []


def test_a_hole_in_the_mask_is_made_clean_and_loses_nothing(machine):
    one = machine()
    slot = one.slot(flags=LOG_DIRTY_PAGES)
    one.vm.manual_protect = True
    for gfn in range(5):
        one.access(gfn, "write")
    # Pages 1 and 3: between them page 2, which is not asked for.
    one.do(clear_dirty_log(one.vm, 0, 0, 16, 0b01010))
    dirty = [gfn for gfn in range(5) if "modified" in one.fields(gfn)]
    kept = one.vm.dirty_bitmaps[slot.bitmap][0]
    hole = one.faults(2, "write")
    _errno, bits = one.do(get_dirty_log(one.vm, 0))

    assert dirty == [0, 4]
    assert kept == 0b10101
    assert hole == ["modified"]
    assert bits == 0b10101
    assert one.lost == []


def test_an_empty_log_flushes_nothing(machine):
    one = machine()
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(0)

    assert flush_place(one, get_dirty_log(one.vm, 0)) == "nowhere"


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_clean_pages_need_no_flush_of_the_log(machine, dense):
    one = machine(boot={"dense": dense})
    slot = one.slot(flags=LOG_DIRTY_PAGES)
    one.access(0)
    masked = one.k.dirty_log_masked.fn(one.vm, slot, 0, 0b1)

    assert masked is None
