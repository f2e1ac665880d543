from math import factorial

import pytest

from kvmarch.explore.audit import compare_engines
from kvmarch.explore.reference import (
    filesystem,
    handshake,
    indexer,
    lastzero,
    lockers,
    philosophers,
    readers,
    writers,
)
from kvmarch.explore.search import explore
from kvmarch.explore.stateless import explore_stateless
from kvmarch.explore.verdict import verdict_of

COUNTS = [
    *((readers, n, 2**n) for n in range(1, 7)),
    *((writers, n, factorial(n)) for n in range(1, 6)),
    *((lockers, n, factorial(n)) for n in range(1, 6)),
    *((lastzero, n, (n + 3) * 2 ** (n - 2)) for n in range(2, 9)),
    (lastzero, 10, 3328),
    (indexer, 11, 1),
    *((indexer, n, 8 ** (n - 11)) for n in range(12, 14)),
    (filesystem, 13, 1),
    *((filesystem, n, 2 ** (n - 13)) for n in range(14, 19)),
    *((philosophers, n, 2**n - 2) for n in range(2, 7)),
]


@pytest.mark.parametrize(
    ("make", "size", "count"), COUNTS, ids=lambda v: getattr(v, "__name__", str(v))
)
def test_the_traces_are_as_many_as_the_literature_says(make, size, count):
    traces = explore_stateless(make(size))

    assert (traces.traces, traces.blocked, traces.cut) == (count, 0, "")


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (readers, 4),
        (writers, 4),
        (lockers, 4),
        (lastzero, 4),
        (philosophers, 4),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_both_engines_agree(make, size):
    comparison = compare_engines(make(size))

    assert comparison.complete
    assert comparison.differences == []
    assert not comparison.search.found


def test_philosophers_who_all_take_the_left_fork_may_starve():
    comparison = compare_engines(philosophers(3, ordered=False))

    assert comparison.differences == []
    assert comparison.traces.verdict("ends") == "sometimes"
    assert comparison.traces.found["ends"].turns == (
        ("task0", 1),
        ("task1", 1),
        ("task2", 1),
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_a_claim_that_a_published_tester_holds_for_true_fails(swapped):
    program = handshake(swapped=swapped)

    assert verdict_of(explore(program), "claim").verdict == "sometimes"
    assert explore_stateless(program).verdict("claim") == "sometimes"
    assert compare_engines(program).differences == []
