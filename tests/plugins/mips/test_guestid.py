import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvmarch_mips.guestid import (
    first_version,
    get_new_asid,
    get_new_guestid,
    hardware_id,
    is_stale,
    version,
)

MASKS = st.integers(1, 16).map(lambda bits: (1 << bits) - 1)

# Fact sheet mips, 7.1: counter before, number taken, whether the TLBs are erased.
GUESTIDS = [
    pytest.param(0x100, 0x101, False, id="first-after-boot"),
    pytest.param(0x101, 0x102, False, id="next"),
    pytest.param(0x1FE, 0x1FF, False, id="last-of-a-version"),
    pytest.param(0x1FF, 0x201, True, id="wrap-skips-root"),
    pytest.param(0xFFFF, 0x10001, True, id="wrap-carries"),
]

ASIDS = [
    pytest.param(0x100, 0x101, False, id="first-after-boot"),
    pytest.param(0x1FE, 0x1FF, False, id="last-of-a-version"),
    pytest.param(0x1FF, 0x200, True, id="wrap-does-not-skip"),
    pytest.param(0x200, 0x201, False, id="after-the-wrap"),
]


@pytest.mark.parametrize(("counter", "number", "flush"), GUESTIDS)
def test_get_new_guestid(counter, number, flush):
    assert get_new_guestid(0xFF, counter) == (number, flush)


@pytest.mark.parametrize(("counter", "number", "flush"), ASIDS)
def test_get_new_asid(counter, number, flush):
    assert get_new_asid(0xFF, counter) == (number, flush)


def test_parts_of_a_number():
    assert first_version(0xFF) == 0x100
    assert hardware_id(0xFF, 0x3_0742) == 0x42
    assert version(0xFF, 0x3_0742) == 0x3_0700


@pytest.mark.parametrize(
    ("number", "counter", "stale"),
    [
        pytest.param(0x101, 0x1FF, False, id="same-version"),
        pytest.param(0x101, 0x201, True, id="older-version"),
        pytest.param(0, 0x100, True, id="given-up-before-first-use"),
        pytest.param(0, 0x1FF, True, id="given-up"),
    ],
)
def test_is_stale(number, counter, stale):
    assert is_stale(0xFF, number, counter) is stale


@given(MASKS, st.integers(1, 1 << 48), st.integers(0, 0xFFFF))
def test_a_new_number_is_current_and_never_root(mask, high, low):
    counter = first_version(mask) * high | low & mask

    taken = get_new_guestid(mask, counter)

    assert taken.number > counter
    assert hardware_id(mask, taken.number) != 0
    assert not is_stale(mask, taken.number, taken.number)
    assert taken.flush == is_stale(mask, counter, taken.number)


@given(MASKS, st.integers(0, 1 << 48))
def test_zero_is_stale_under_every_counter(mask, taken):
    assert is_stale(mask, 0, first_version(mask) + taken)


@pytest.mark.parametrize(
    ("take", "usable"),
    [
        pytest.param(get_new_guestid, set(range(1, 8)), id="guestid"),
        pytest.param(get_new_asid, set(range(8)), id="asid"),
    ],
)
def test_an_id_comes_back_only_after_a_flush(take, usable):
    mask, counter = 7, first_version(7)
    cached, wraps, seen = set(), 0, set()

    for _ in range(50):
        counter, flush = take(mask, counter)
        if flush:
            cached.clear()
            wraps += 1
        assert hardware_id(mask, counter) not in cached
        cached.add(hardware_id(mask, counter))
        seen |= cached

    assert seen == usable
    assert wraps == version(mask, counter) // first_version(mask) - 1
