"""KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG (generic facts 2.12)."""

from errno import EINVAL, ENOENT, ENOTTY

import pytest

from kvmarch.kernel.dirty_log import clear_dirty_log, get_dirty_log
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.steps import op

RELEASES = [(3, 16), (5, 3), (5, 15), (6, 1), (7, 2)]


@pytest.fixture
def logging(bench):
    """A machine that logs 130 pages."""

    def make(release=(6, 1), pages=130, **options):
        one = bench(release, pages=pages, **options)
        one.slot(flags=LOG_DIRTY_PAGES)
        return one

    return make


def get(one, slot=0):
    return one.do(get_dirty_log(one.vm, slot))


def clear(one, first, pages, bits=-1, slot=0):
    return one.do(
        clear_dirty_log(one.vm, slot, first, pages, bits & ((1 << pages) - 1))
    )


def bits(*pages):
    return sum(1 << page for page in pages)


@pytest.mark.parametrize("release", RELEASES)
def test_written_pages_are_reported_once(logging, release):
    one = logging(release)
    for gfn in (0, 1, 63, 64, 129):
        one.access(gfn, "write")
    one.access(5, "read")

    first, second = get(one), get(one)
    one.access(64, "write")

    assert first == (0, bits(0, 1, 63, 64, 129))
    assert second == (0, 0)
    assert get(one) == (0, bits(64))
    assert one.lost == []


@pytest.mark.parametrize("release", RELEASES)
def test_pages_written_before_logging_are_not_reported(bench, release):
    one = bench(release)
    one.slot()
    one.access(0, "write")
    one.access(1, "write")
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(1, "write")

    assert get(one) == (0, bits(1))
    assert one.lost == []


def test_the_order_is_snapshot_protect_flush_return(logging):
    one = logging()
    one.access(0, "write")

    names = one.trace(get_dirty_log(one.vm, 0))

    order = [
        "lock slots_lock",
        "lock mmu_lock",
        "xchg bitmap word",
        "kvmarch_dirty_log_masked",
        "unlock mmu_lock",
        "flush done",
        "log returns",
        "unlock slots_lock",
    ]
    assert sorted(order, key=names.index) == order


def test_a_clean_log_flushes_nothing(logging):
    one = logging()

    names = one.trace(get_dirty_log(one.vm, 0))

    assert "flush done" not in names


def test_protecting_after_the_flush_is_a_lost_flush(logging):
    one = logging(replaced={"flush_remote_tlbs": op(lambda vm, start, end: None)})
    one.access(0, "write")
    get(one)
    one.access(0, "write")

    # The flush did nothing: the guest writes through its old translation.
    assert get(one) == (0, 0)


def test_a_flush_that_is_due_at_unlock_is_too_late_after_it(logging):
    forgetful = op(
        lambda vm, slot, gfn, mask: vm.ledger.owe(gfn, gfn + 64, due="unlock")
    )
    one = logging(replaced={"dirty_log_masked": forgetful})
    one.access(0, "write")
    get(one)

    assert one.lost == ["flush-owed"]


@pytest.mark.parametrize("steps", range(0, 40, 2))
@pytest.mark.parametrize("release", RELEASES)
def test_a_write_at_any_moment_is_in_this_log_or_the_next(logging, release, steps):
    one = logging(release, pages=8)
    one.access(0, "write")
    one.access(1, "write")
    get(one)
    one.access(0, "write")
    fetching = one.actor("vmm", get_dirty_log(one.vm, 0))
    for _ in range(steps):
        fetching.step()
    guest = one.actor("vcpu0", guest_access(one.vcpu, 1, "write"))

    one.interleave(guest, fetching)

    assert fetching.task.result[1] | get(one)[1] == bits(0, 1)
    assert one.lost == []


@pytest.mark.parametrize(
    ("slot", "flags"),
    [
        pytest.param(0, 0, id="not-logging"),
        pytest.param(7, LOG_DIRTY_PAGES, id="no-slot"),
    ],
)
def test_there_is_no_log(bench, slot, flags):
    one = bench()
    one.slot(flags=flags)

    assert get(one, slot) == (ENOENT, 0)
    assert clear(one, 0, 16, slot=slot) == ENOENT


@pytest.mark.parametrize("slot", [1 << 16, 40000], ids=["address-space", "slot"])
def test_a_slot_number_that_cannot_be(logging, slot):
    one = logging()

    assert get(one, slot) == (EINVAL, 0)
    assert clear(one, 0, 64, slot=slot) == EINVAL


# -- manual protection -------------------------------------------------------------


@pytest.fixture
def manual(logging):
    one = logging()
    one.vm.manual_protect = True
    for gfn in (0, 1, 64, 129):
        one.access(gfn, "write")
    return one


def test_get_only_copies(manual):
    entries = [manual.entry(gfn) for gfn in (0, 1, 64, 129)]

    seen = [get(manual), get(manual)]

    assert seen == [(0, bits(0, 1, 64, 129))] * 2
    assert [manual.entry(gfn) for gfn in (0, 1, 64, 129)] == entries
    assert manual.lost == []


def test_clear_forgets_and_protects_what_it_names(manual):
    errno = clear(manual, 0, 64, bits(0))

    assert errno == 0
    assert get(manual) == (0, bits(1, 64, 129))
    assert manual.entry(0) & 0b10 == 0
    assert manual.entry(1) & 0b10
    manual.access(0, "write")
    assert get(manual) == (0, bits(0, 1, 64, 129))
    assert manual.lost == []


@pytest.mark.parametrize(
    ("first", "pages", "errno", "left"),
    [
        pytest.param(0, 64, 0, bits(64, 129), id="first-word"),
        pytest.param(64, 64, 0, bits(0, 1, 129), id="second-word"),
        pytest.param(0, 128, 0, bits(129), id="two-words"),
        pytest.param(128, 2, 0, bits(0, 1, 64), id="unaligned-end-of-slot"),
        pytest.param(0, 130, 0, 0, id="all"),
        pytest.param(0, 65, EINVAL, bits(0, 1, 64, 129), id="unaligned-count"),
        pytest.param(1, 64, EINVAL, bits(0, 1, 64, 129), id="unaligned-first"),
        pytest.param(64, 128, EINVAL, bits(0, 1, 64, 129), id="beyond-the-end"),
        pytest.param(192, 64, EINVAL, bits(0, 1, 64, 129), id="first-beyond-the-end"),
        pytest.param(0, 0, 0, bits(0, 1, 64, 129), id="nothing"),
    ],
)
def test_ranges_of_clear(manual, first, pages, errno, left):
    assert clear(manual, first, pages) == errno
    assert get(manual) == (0, left)
    assert manual.lost == []


@pytest.mark.parametrize(("release", "errno"), [((5, 2), EINVAL), ((5, 3), 0)])
def test_the_tail_of_a_slot_can_be_cleared(logging, release, errno):
    one = logging(release)
    one.access(129, "write")
    one.vm.manual_protect = True

    assert clear(one, 128, 2) == errno
    assert get(one) == (0, bits(129) if errno else 0)


def test_clearing_what_is_clean_does_nothing(manual):
    names = manual.trace(clear_dirty_log(manual.vm, 0, 64, 64, bits(5)))

    assert "kvmarch_dirty_log_masked" not in names
    assert "flush done" not in names


def test_a_log_that_begins_with_every_page(bench):
    one = bench(pages=70)
    one.vm.manual_protect = one.vm.initially_set = True
    one.slot(flags=LOG_DIRTY_PAGES)

    assert get(one) == (0, (1 << 70) - 1)
    assert clear(one, 64, 6) == 0
    assert get(one) == (0, (1 << 64) - 1)
    assert one.lost == []


def test_a_range_that_begins_badly_is_refused_before_its_slot_is_found(bench):
    one = bench()
    assert one.do(clear_dirty_log(one.vm, 9, 1, 1, 1)) == EINVAL
    assert one.do(clear_dirty_log(one.vm, 9, 64, 1, 1)) == ENOENT


def test_there_is_no_clearing_where_an_architecture_harvests_by_itself(bench):
    one = bench(replaced={"generic_dirty_log": False})
    one.slot(flags=LOG_DIRTY_PAGES)

    assert clear(one, 0, 16) == ENOTTY
    assert clear(one, 1, 16, slot=9) == ENOTTY
