"""A sweep runs: every cell once, and the same whoever explores it."""

import importlib.util
import multiprocessing
import os
import signal

import pytest

from kvmarch.errors import ExploreError, SweepError
from kvmarch.explore.search import Bounds
from kvmarch.plugins import load
from kvmarch.report.table import Table
from kvmarch.scenarios import parallel
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.outcome import Outcome
from kvmarch.scenarios.parallel import in_processes
from kvmarch.sweep.cells import plan_of
from kvmarch.sweep.run import Task, attempt, explore, places_of_work, run, table_of
from kvmarch.sweep.store import Store

TIMES = {"seconds", "states_per_s", "peak_mib"}
"""What differs from run to run."""


@pytest.fixture
def begin(tmp_path):
    """Open the file of a plan."""

    def make(plan, name="sweep.sqlite", **options):
        return Store.begin(
            tmp_path / name, plan.definition, plan.places, resume=True, **options
        )

    return make


def untimed(table):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in table.rows
    ]


def no_progress():
    """Show nothing."""


def test_a_sweep_here(toys, plan, begin):
    made = plan("v6.1..v6.3")
    seen = []
    backend, where = places_of_work(toys, 1, None, 4)
    with begin(made) as store:
        run(made, store, backend, lambda: seen.append(1))
        table = table_of(store)

    assert where == "in this process"
    assert len(seen) == 3
    assert [row["kernel"] for row in table.rows] == ["v6.1", "v6.2", "v6.3"]
    assert {row["verdict"] for row in table.rows} == {"never"}
    assert table.status == 0


def test_only_what_is_left_is_explored(toys, plan, begin):
    made = plan("v6.1..v6.3")
    asked = []

    def backend(tasks):
        for number, task in enumerate(tasks):
            asked.append(task.work.release)
            yield number, explore(task, toys)
            if len(asked) == 2:
                raise KeyboardInterrupt

    with begin(made) as store:
        with pytest.raises(KeyboardInterrupt):
            run(made, store, backend, no_progress)
        assert table_of(store).notes == ["1 of 3 cells are not explored yet"]
        assert table_of(store).status == 3
    with begin(made) as store:
        run(made, store, backend, no_progress)
        run(made, store, backend, no_progress)

    assert asked == [(6, 1), (6, 2), (6, 3)]


@pytest.mark.parametrize("error", [ExploreError, SweepError])
def test_what_is_finished_is_said_when_those_who_explore_are_gone(
    toys, plan, begin, error
):
    made = plan("v6.1..v6.3")

    def backend(tasks):
        yield 2, explore(tasks[2], toys)
        raise error("they are gone")

    with (
        begin(made) as store,
        pytest.raises(SweepError, match=r"they are gone; 1 of 3 cells are in .*sqlite"),
    ):
        run(made, store, backend, no_progress)


def test_a_bad_cell_is_not_the_end(toys, plan, begin, monkeypatch):
    made = plan("v6.1..v6.2")

    def search(cell, *_rest):
        if cell.release == (6, 1):
            raise AssertionError("the model is\nwrong")
        return found(cell, *_rest)

    found = parallel.explore_cell
    monkeypatch.setattr(parallel, "explore_cell", search)
    with begin(made) as store:
        run(made, store, places_of_work(toys, 1, None, 1)[0], no_progress)
        table = table_of(store)

    assert [row["verdict"] for row in table.rows] == ["error", "never"]
    assert (table.rows[0]["arch"], table.rows[0]["kernel"]) == ("toy", "v6.1")
    assert table.notes == ["race@toy-v6.1: AssertionError: the model is wrong"]
    assert table.status == 2


def test_a_cell_whose_processes_died_is_left_for_the_next_time(toys, plan, begin):
    made = plan("v6.1", "v6.2")

    def backend(tasks):
        yield 0, None
        yield 1, explore(tasks[1], toys)

    with begin(made) as store:
        run(made, store, backend, no_progress)

        assert store.finished() == {1}


def test_another_version_of_the_model_explores_nothing(plan):
    task = Task(plan("v6.1").works[0], "another")

    with pytest.raises(SweepError, match="has another version of kvmarch"):
        attempt(task)


def test_an_expectation_that_fails_is_told(toys, scenario, begin):
    text = (
        'title = "t"\n[[task]]\nname = "a"\nsteps = ["slot id=0 memory=ram gfn=0"]\n'
        '[vm]\nmemory = [{ name = "ram", pages = 1 }]\n[[verdict]]\nkernel = "v6.1"\n'
        'property = "ends"\nverdict = "always"\n'
    )
    made = plan_of([scenario(text)], toys, Choose())
    with begin(made) as store:
        run(made, store, places_of_work(toys, 1, None, 1)[0], no_progress)
        table = table_of(store)

    assert table.status == 1
    assert table.failed == [
        ("test toy", "v6.1", "ends: always was expected, not never")
    ]


# -- other processes ---------------------------------------------------------------


@pytest.fixture
def real(race):
    """A sweep over the architectures that are installed, and what it finds here."""
    plugins = load()
    how = How(bounds=Bounds(states=2000))
    made = plan_of(
        [race],
        plugins,
        Choose(kernel=("v5.4", "v6.12")),
        ["change-pte-removed"],
        how,
    )
    assert len(made.works) == 2 * 2 * len(plugins.loaded)
    return plugins, made


def test_verdicts_do_not_depend_on_the_number_of_processes(real, begin):
    plugins, made = real
    tables = {}
    for jobs in (1, 2, 3):
        with begin(made, f"{jobs}") as store:
            run(made, store, places_of_work(plugins, jobs, None, 2)[0], no_progress)
            tables[jobs] = untimed(table_of(store))

    assert tables[1] == tables[2] == tables[3]
    assert len(tables[1]) >= len(made.works)


def die(item):
    """Do what the kernel does to a process that takes too much memory."""
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_processes_that_are_killed_are_told():
    with pytest.raises(ExploreError, match="one of the processes was killed"):
        list(in_processes(die, range(3), 2))


def test_processes_end_when_nobody_listens():
    others = multiprocessing.active_children()
    results = in_processes(abs, [-1, -2, -3], 2)
    next(results)
    results.close()

    assert set(multiprocessing.active_children()) <= set(others)


def test_without_dask_a_scheduler_is_refused(toys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(SweepError, match=r"pip install 'kvmarch\[cluster\]'"):
        places_of_work(toys, None, "tcp://127.0.0.1:8786", 2)
    assert places_of_work(toys, None, None, 2)[1] == "in 2 processes"
    assert places_of_work(toys, None, None, 1)[1] == "in this process"


def test_with_dask_the_embedded_cluster_is_the_default(toys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr("kvmarch.sweep.cluster._knock", lambda _address: None)

    assert "embedded cluster of 2" in places_of_work(toys, None, None, 2)[1]
    assert places_of_work(toys, 3, None, 2)[1] == "in 3 processes"
    assert "tcp://x:1" in places_of_work(toys, None, "tcp://x:1", 2)[1]


def test_an_outcome_that_failed_outweighs_one_that_was_cut():
    table = Table("", ())
    for status in (0, 3, 1, 3, 0):
        Outcome(status=status).add_to(table)

    assert table.status == 1
