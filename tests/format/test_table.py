"""Tables: sparse and dense ones behave alike, and the pool sees misuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarch.errors import ModelError
from kvmarch.format.table import DenseTable, Match, SparseTable, TablePool

SIZE = 12
WORDS = st.one_of(
    st.integers(0, 7), st.integers(0, (1 << 64) - 1), st.just((1 << 64) - 1)
)
RANGES = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)
MATCHES = st.tuples(WORDS, WORDS).map(lambda mv: Match(mv[0], mv[1] & mv[0]))
ACTIONS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, SIZE - 1), WORDS),
    st.tuples(st.just("fill"), WORDS, RANGES),
    st.tuples(st.just("change"), MATCHES, RANGES, WORDS, WORDS),
    st.tuples(st.just("count"), MATCHES, RANGES),
)


def act(table, action):
    match action:
        case ("set", index, entry):
            table.set(index, entry)
        case ("fill", entry, (start, stop)):
            table.fill(entry, start, stop)
        case ("change", match, (start, stop), clear, put):
            return table.change(match, start, stop, clear=clear, put=put)
        case ("count", match, (start, stop)):
            return table.count(match, start, stop)
    return None


@given(st.sampled_from([0, 5, (1 << 64) - 1]), st.lists(ACTIONS, max_size=12))
def test_sparse_and_dense_tables_do_the_same(empty, actions):
    sparse = SparseTable(0x1000, SIZE, 1, 0x40, empty)
    dense = DenseTable(0x1000, SIZE, 1, 0x40, empty)

    for action in actions:
        assert act(sparse, action) == act(dense, action)
        assert [sparse.get(i) for i in range(SIZE)] == [
            dense.get(i) for i in range(SIZE)
        ]
        assert list(sparse.used(0, SIZE)) == list(dense.used(0, SIZE))
        assert list(sparse.used(3, 7)) == list(dense.used(3, 7))


@pytest.fixture(params=[SparseTable, DenseTable])
def table(request):
    return request.param(0x1000, SIZE, 2, 0x200, 0)


def test_a_new_table_is_empty(table):
    assert list(table.used(0, SIZE)) == []
    assert table.count(Match(0), 0, SIZE) == SIZE
    assert table.count(Match(1), 0, SIZE) == 0
    assert (table.pa, table.size, table.level, table.base) == (0x1000, SIZE, 2, 0x200)


def test_change_touches_only_what_matches(table):
    for index, entry in enumerate([0b00, 0b01, 0b11, 0b10]):
        table.set(index, entry)

    changed = table.change(Match(0b11, 0b11), 0, 4, clear=0b10, put=0b100)

    assert changed == 1
    assert [table.get(i) for i in range(4)] == [0b00, 0b01, 0b101, 0b10]


def test_change_stays_inside_its_range(table):
    table.fill(1, 0, SIZE)

    changed = table.change(Match(1), 2, 5, clear=1)

    assert changed == 3
    assert [i for i, _ in table.used(0, SIZE)] == [0, 1, 5, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("entry", [1 << 64, -1], ids=["65-bits", "negative"])
def test_an_entry_has_64_bits(table, entry):
    with pytest.raises(OverflowError):
        table.set(0, entry)
    with pytest.raises(OverflowError):
        table.fill(entry, 0, 2)


def test_freeze_differs_with_contents_and_counts(table):
    seen = {table.freeze()}
    table.set(1, 7)
    seen.add(table.freeze())
    table.refs = 3
    seen.add(table.freeze())
    table.note = "root"
    seen.add(table.freeze())

    assert len(seen) == 4


def test_match_prints_itself():
    assert repr(Match(0x3, 0x1)) == "Match(0x3, 0x1)"
    assert Match(0x5).value == 0x5


@pytest.fixture
def misuse():
    return []


@pytest.fixture
def pool(misuse):
    return TablePool(misuse=misuse.append)


def test_tables_are_aligned_to_their_size(pool):
    small = pool.alloc(4, 1, 0)
    large = pool.alloc(512, 2, 0)
    wide = pool.alloc(4, 1, 0, align=0x10000)

    assert small.pa % 32 == large.pa % 4096 == wide.pa % 0x10000 == 0
    assert len({small.pa, large.pa, wide.pa}) == 3


@pytest.mark.parametrize(
    ("dense", "kind"), [(False, SparseTable), (True, DenseTable)], ids=["no", "yes"]
)
def test_the_pool_makes_one_kind(dense, kind):
    assert isinstance(TablePool(dense=dense).alloc(4, 1, 0), kind)


def test_a_live_table_is_found_by_address(pool, misuse):
    table = pool.alloc(8, 1, 0x40, empty=3)

    assert pool.at(table.pa) is table
    assert table.get(0) == 3
    assert misuse == []


def test_a_retired_table_is_still_readable(pool, misuse):
    table = pool.alloc(8, 1, 0)
    pool.retire(table)

    assert pool.at(table.pa) is table
    assert table.pa not in pool.live
    assert misuse == []


def test_use_after_free_is_reported(pool, misuse):
    table = pool.alloc(8, 1, 0)
    pool.free(table)

    assert pool.at(table.pa) is table
    assert misuse == [f"the table at {table.pa:#x} is used after it was freed"]


def test_double_free_is_reported(pool, misuse):
    table = pool.alloc(8, 1, 0)
    pool.free(table)
    pool.free(table)

    assert misuse == [f"the table at {table.pa:#x} is freed twice"]


def test_retiring_twice_or_after_free_is_reported(pool, misuse):
    one, other = pool.alloc(8, 1, 0), pool.alloc(8, 1, 0)
    pool.retire(one)
    pool.retire(one)
    pool.free(other)
    pool.retire(other)

    assert misuse == [
        f"the table at {one.pa:#x} is retired twice",
        f"the table at {other.pa:#x} is retired twice",
    ]


def test_a_retired_table_is_freed_once(pool, misuse):
    table = pool.alloc(8, 1, 0)
    pool.retire(table)
    pool.free(table)

    assert (pool.live, pool.retired, list(pool.freed)) == ({}, {}, [table.pa])
    assert misuse == []


def test_a_freed_page_is_reused_for_a_table_of_its_size(pool, misuse):
    old = pool.alloc(8, 1, 0)
    old.set(0, 1)
    pool.free(old)

    other_size = pool.alloc(16, 1, 0)
    new = pool.alloc(8, 1, 0)

    assert other_size.pa != old.pa
    assert new.pa == old.pa
    assert pool.at(old.pa) is new
    assert (new.refs, new.note, new.level) == (0, None, 1)
    assert new.get(0) == 0
    assert misuse == []


def test_reuse_keeps_the_alignment(pool):
    pool.alloc(8, 1, 0)
    old = pool.alloc(8, 1, 0)
    pool.free(old)

    new = pool.alloc(8, 1, 0, align=0x1000)

    assert old.pa % 0x1000
    assert new.pa % 0x1000 == 0


def test_an_address_that_never_was_a_table(pool):
    with pytest.raises(ModelError, match="no table was ever at 0xdead000"):
        pool.at(0xDEAD000)


def test_without_a_reporter_misuse_is_an_error():
    pool = TablePool()
    table = pool.alloc(8, 1, 0)
    pool.free(table)

    with pytest.raises(ModelError, match="freed twice"):
        pool.free(table)


def test_the_frozen_pool_tells_live_from_freed(pool):
    table = pool.alloc(8, 1, 0)
    live = pool.freeze()
    pool.retire(table)
    retired = pool.freeze()
    pool.free(table)

    assert len({live, retired, pool.freeze()}) == 3
