"""KVM_SET_USER_MEMORY_REGION: which calls are refused (generic facts 2.9)."""

from dataclasses import replace
from errno import EEXIST, EINVAL, ENOMEM

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from regions import PAGE, apply, generation, region

from kvmarch.kernel.memory_region import set_memory_region
from kvmarch.kernel.memslots import INVALID, LOG_DIRTY_PAGES, READONLY, gfn_to_memslot
from kvmarch.machine.steps import op
from kvmarch.testing.bench import HVA

U64 = 1 << 64


@pytest.mark.parametrize("release", [(3, 16), (5, 10), (5, 15), (7, 2)])
@pytest.mark.parametrize(
    ("fields", "errno"),
    [
        pytest.param({"slot": 40000}, EINVAL, id="3-slot-number"),
        pytest.param({"flags": 0x80}, EINVAL, id="4-flag"),
        pytest.param({"flags": INVALID}, EINVAL, id="4-internal-flag"),
        pytest.param({"size": PAGE + 0x800}, EINVAL, id="5-size-unaligned"),
        pytest.param({"size": U64, "hva": 0}, EINVAL, id="5-size-of-65-bits"),
        pytest.param({"gpa": 0x800}, EINVAL, id="6-gpa-unaligned"),
        pytest.param({"hva": HVA + 1}, EINVAL, id="7-hva-unaligned"),
        pytest.param({"hva": 1 << 47}, EINVAL, id="7-hva-not-of-user-space"),
        pytest.param({"hva": (1 << 47) - PAGE}, EINVAL, id="7-hva-end"),
        pytest.param({"slot": 1 << 16}, EINVAL, id="9-address-space"),
        pytest.param({"gpa": U64 - 2 * PAGE}, EINVAL, id="10-gpa-wraps"),
        pytest.param({"size": 1 << 43, "hva": 0}, EINVAL, id="11-too-many-pages"),
        pytest.param({"slot": 9, "size": 0}, EINVAL, id="12-no-slot-to-delete"),
        pytest.param({"hva": HVA + PAGE}, EINVAL, id="17-other-hva"),
        pytest.param({"size": 3 * PAGE}, EINVAL, id="17-other-size"),
        pytest.param({"flags": READONLY}, EINVAL, id="17-readonly-added"),
        pytest.param({}, 0, id="18-nothing-differs"),
        pytest.param({"slot": 1}, EEXIST, id="19-same-place"),
        pytest.param({"slot": 1, "gpa": 3 * PAGE}, EEXIST, id="19-last-page"),
        pytest.param(
            {"slot": 1, "gpa": 3 * PAGE, "hva": HVA + 1}, EINVAL, id="7-before-19"
        ),
        pytest.param({"gpa": 9 * PAGE, "hva": HVA + PAGE}, EINVAL, id="17-before-19"),
        pytest.param({"gpa": 9 * PAGE}, EEXIST, id="19-move-onto-another"),
    ],
)
def test_a_region_is_refused(bench, release, fields, errno):
    one = bench(release)
    before = (apply(one), apply(one, slot=2, gpa=8 * PAGE), generation(one))

    answer = apply(one, **fields)

    assert before[:2] == (0, 0)
    assert answer == errno
    assert generation(one) == before[2]
    assert one.lost == []


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"slot": 1, "gpa": 4 * PAGE}, id="neighbour-behind"),
        pytest.param({"slot": 1, "gpa": 12 * PAGE}, id="neighbour-behind-another"),
        pytest.param({"gpa": 2 * PAGE}, id="move-over-itself"),
        pytest.param({"flags": LOG_DIRTY_PAGES}, id="flags"),
        pytest.param({"size": 0}, id="delete"),
        pytest.param(
            {"slot": 1, "gpa": 0x100 * PAGE, "flags": LOG_DIRTY_PAGES | READONLY},
            id="both-flags",
        ),
        pytest.param({"slot": 1, "gpa": U64 - 8 * PAGE}, id="highest-gpa"),
        pytest.param({"slot": 1, "gpa": 0x100 * PAGE, "hva": HVA}, id="shared-hva"),
    ],
)
def test_a_region_is_accepted(bench, fields):
    one = bench()
    apply(one)
    apply(one, slot=2, gpa=8 * PAGE)

    assert apply(one, **fields) == 0
    assert one.lost == []


@pytest.mark.parametrize(
    ("release", "slot", "errno"),
    [
        pytest.param((5, 14), 31, 0, id="v5.14-last"),
        pytest.param((5, 14), 32, EINVAL, id="v5.14-beyond"),
        pytest.param((5, 15), 32, 0, id="v5.15-more"),
        pytest.param((5, 15), 32766, 0, id="v5.15-last"),
        pytest.param((5, 15), 32767, EINVAL, id="v5.15-beyond"),
    ],
)
def test_slot_numbers_end_where_the_release_says(bench, release, slot, errno):
    assert apply(bench(release), slot=slot) == errno


def test_private_slots_are_taken_from_user_space(bench, toy):
    one = bench((6, 1), replaced={"arch_info": replace(toy.info, private_slots=3)})

    assert apply(one, slot=32763) == 0
    assert apply(one, slot=32764, gpa=0x100 * PAGE) == EINVAL


def test_an_architecture_without_readonly_slots_refuses_the_flag(bench, toy):
    one = bench(replaced={"arch_info": replace(toy.info, readonly_slots=False)})

    assert apply(one, flags=READONLY) == EINVAL
    assert apply(one, flags=LOG_DIRTY_PAGES) == 0


def test_the_slot_number_is_checked_before_slots_lock(bench):
    one = bench()
    holder = one.actor("holder", set_memory_region(one.vm, region()))
    holder.past("lock slots_lock")
    early = one.actor("early", set_memory_region(one.vm, region(slot=40000)))
    late = one.actor("late", set_memory_region(one.vm, region(gpa=0x800)))

    assert early.end() == EINVAL
    assert late.waits() == "lock slots_lock"
    holder.end()
    assert late.end() == EINVAL


def test_a_slot_word_names_address_space_and_id(bench, two_spaces):
    one = bench(replaced=two_spaces)

    errno = apply(one, slot=0x00010003)

    slot = gfn_to_memslot(one.vm, 0, 1)
    assert (errno, slot.as_id, slot.id) == (0, 1, 3)
    assert gfn_to_memslot(one.vm, 0, 0) is None


def test_slots_of_different_address_spaces_may_overlap(bench, two_spaces):
    one = bench(replaced=two_spaces)

    assert apply(one, slot=0) == apply(one, slot=1 << 16) == 0
    assert apply(one, slot=1 << 16 | 1) == EEXIST


def test_what_the_architecture_refuses_is_returned_last(bench):
    one = bench(replaced={"prepare_memory_region": op(lambda *_: ENOMEM)})

    assert apply(one) == ENOMEM
    assert apply(one, gpa=0x800) == EINVAL
    assert one.vm.memslots[0].slots == ()


# -- dirty bitmaps -----------------------------------------------------------------


@pytest.mark.parametrize(("pages", "size"), [(100, 16), (65, 16), (64, 8), (1, 8)])
def test_a_bitmap_is_whole_words(bench, pages, size):
    one = bench(pages=0)

    apply(one, size=pages * PAGE, flags=LOG_DIRTY_PAGES)

    (bitmap,) = one.vm.dirty_bitmaps.values()
    assert len(bitmap) == size
    assert not any(bitmap)


def test_a_bitmap_lasts_as_long_as_its_flag(bench):
    one = bench()
    apply(one, flags=LOG_DIRTY_PAGES)
    first = gfn_to_memslot(one.vm, 0).bitmap
    apply(one, flags=LOG_DIRTY_PAGES, gpa=8 * PAGE)
    moved = gfn_to_memslot(one.vm, 8).bitmap
    apply(one, gpa=8 * PAGE)
    off = (gfn_to_memslot(one.vm, 8).bitmap, dict(one.vm.dirty_bitmaps))
    apply(one, gpa=8 * PAGE, flags=LOG_DIRTY_PAGES)
    again = gfn_to_memslot(one.vm, 8).bitmap
    apply(one, size=0)

    assert first == moved != 0
    assert off == (0, {})
    assert again not in {0, first}
    assert one.vm.dirty_bitmaps == {}


def test_a_new_bitmap_may_begin_with_every_page(bench):
    one = bench(pages=0)
    one.vm.initially_set = True

    apply(one, size=70 * PAGE, flags=LOG_DIRTY_PAGES)

    (bitmap,) = one.vm.dirty_bitmaps.values()
    assert int.from_bytes(bitmap, "little") == (1 << 70) - 1


# -- against a naive model ---------------------------------------------------------

CALLS = st.tuples(
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 12),
    st.integers(0, 5),
    st.integers(0, 1),
)


def naive(slots, call):
    """Return the errno of a call, and change the slots as it says."""
    number, flags, base, pages, hva = call
    old = slots.get(number)
    if not pages:
        return EINVAL if slots.pop(number, None) is None else 0
    if old is not None:
        if (hva, pages, flags & READONLY) != (old[2], old[1], old[3] & READONLY):
            return EINVAL
        if (base, flags) == (old[0], old[3]):
            return 0
    taken = {
        gfn
        for other, row in slots.items()
        if other != number
        for gfn in range(row[0], row[0] + row[1])
    }
    if (old is None or old[0] != base) and taken & set(range(base, base + pages)):
        return EEXIST
    slots[number] = (base, pages, hva, flags)
    return 0


@pytest.mark.parametrize("release", [(4, 4), (5, 10), (6, 1)])
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(calls=st.lists(CALLS, max_size=12))
def test_any_calls_leave_the_slots_of_a_naive_model(bench, release, calls):
    one = bench(release, pages=0)
    slots = {}

    for call in calls:
        number, flags, base, pages, hva = call
        errno = apply(
            one,
            slot=number,
            flags=flags,
            gpa=base * PAGE,
            size=pages * PAGE,
            hva=HVA + hva * PAGE,
        )
        assert errno == naive(slots, call)

    seen = {
        s.id: (s.base_gfn, s.npages, (s.userspace_addr - HVA) // PAGE, s.flags)
        for s in one.vm.memslots[0].slots
    }
    logged = {s.bitmap for s in one.vm.memslots[0].slots if s.logs_dirty}
    assert seen == slots
    assert logged == set(one.vm.dirty_bitmaps)
    assert one.lost == []
