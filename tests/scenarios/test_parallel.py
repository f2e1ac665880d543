"""Cells in several processes: the same rows in the same order, for any number."""

import pytest
from races import RACE, TIMES

from kvmarch.errors import ExploreError
from kvmarch.explore.search import Bounds
from kvmarch.plugins import load
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.exploring import explore_table


@pytest.fixture
def explored(scenario):
    """Explore the race on the architectures that are installed."""

    def make(jobs, how=None, **choose):
        return explore_table([scenario(RACE)], load(), Choose(**choose), how, jobs)

    return make


def test_the_rows_do_not_depend_on_the_number_of_processes(explored):
    tables = [explored(jobs, kernel=("v6.1", "v6.12")) for jobs in (1, 2, 3)]

    one, *others = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in table.rows]
        for table in tables
    ]
    assert [one, one] == others
    assert len({(row["arch"], row["kernel"]) for row in one}) == 2 * len(load().loaded)


def test_a_cut_is_told_from_any_process(explored):
    how = How(bounds=Bounds(states=50))

    here, there = (explored(jobs, how, kernel=("v6.1",)) for jobs in (1, 2))

    assert here.notes == there.notes
    assert here.status == there.status == 3


def test_an_error_in_a_process_is_one_line(explored):
    with pytest.raises(ExploreError, match="unknown change 'no-such'"):
        explored(2, kernel=("v6.1", "v6.2"), arch=("ppc",), plus=("no-such",))
