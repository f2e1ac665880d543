"""Run a sweep: here, in processes, or on a cluster; and show what it found."""

__all__ = ["Task", "attempt", "explore", "places_of_work", "run", "table_of"]

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvmarch.errors import ExploreError, KvmarchError, SweepError
from kvmarch.plugins import Plugins, load
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.outcome import COLUMNS, Outcome
from kvmarch.scenarios.parallel import Work, do_work, in_processes
from kvmarch.sweep.cells import Plan, model_of
from kvmarch.sweep.store import Store

Backend = Callable[[Sequence["Task"]], Iterator[tuple[int, Outcome | None]]]
"""Gives the number and the outcome of each task, in the order they are ready; None
where every process that tried it died."""

ERROR = "error"
"""The verdict of a cell that could not be explored."""


@dataclass(frozen=True, slots=True)
class Task:
    """A cell, and the model that must explore it."""

    work: Work
    model: str


@functools.cache
def _model_here() -> str:
    return model_of(load())


def attempt(task: Task) -> Outcome:
    """Explore one cell in a process that loads the plugins itself.

    :raises SweepError: this process has another version of the model.
    """
    if _model_here() != task.model:
        raise SweepError(
            "a process that should explore has another version of kvmarch or of a "
            "plugin than this one; install the same on every machine"
        )
    return explore(task)


def explore(task: Task, plugins: Plugins | None = None) -> Outcome:
    """Explore one cell; whatever is wrong with it is told in the outcome."""
    try:
        return do_work(task.work, plugins)
    except KvmarchError as error:
        return Outcome(error=" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - one bad cell is not the sweep's end
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(error=text)


def in_this_process(plugins: Plugins) -> Backend:
    """Explore one cell after the other."""
    return lambda tasks: ((n, explore(task, plugins)) for n, task in enumerate(tasks))


def places_of_work(
    plugins: Plugins, jobs: int | None, scheduler: str | None, cpus: int
) -> tuple[Backend, str]:
    """Return where to explore, and in words.

    A cluster if one is named. Otherwise so many processes if a number is given; and
    if nothing is, an embedded local cluster where that is installed.

    :raises SweepError: a cluster is named, but what it needs is not installed.
    """
    from kvmarch.sweep import cluster

    if scheduler is not None:
        return cluster.at(attempt, scheduler), f"on the cluster at {scheduler}"
    if jobs is None and cluster.is_installed():
        what = f"on an embedded cluster of {cpus} workers"
        return cluster.embedded(attempt, cpus), what
    number = jobs or cpus
    if number == 1:
        return in_this_process(plugins), "in this process"
    return (
        lambda tasks: in_processes(attempt, tasks, number),
        f"in {number} processes",
    )


def run(
    plan: Plan, store: Store, backend: Backend, progress: Callable[[], None]
) -> None:
    """Explore the cells that are not finished, and write each as soon as it is.

    :param progress: called for every cell.
    :raises SweepError: what explores is gone; what is finished stays so.
    """
    done = store.finished()
    model = plan.definition["the model"]
    left = [number for number in range(len(plan.works)) if number not in done]
    tasks = [Task(plan.works[number], model) for number in left]
    if not tasks:
        return
    outcomes = backend(tasks)
    try:
        for position, outcome in outcomes:
            if outcome is not None:
                store.finish(left[position], outcome)
            progress()
    except ExploreError as error:
        raise SweepError(f"{error}; {_kept(store)}") from None
    except SweepError as error:
        if str(store.path) in str(error):
            raise
        raise SweepError(f"{error}; {_kept(store)}") from None
    finally:
        close = getattr(outcomes, "close", None)
        if close is not None:
            close()


def _kept(store: Store) -> str:
    done, cells = len(store.finished()), len(store.places())
    return f"{done} of {cells} cells are in {store.path}, --resume goes on"


def table_of(store: Store) -> Table:
    """Return what a sweep has found so far: one row per cell and property."""
    notes = Column("note", detail=True)
    table = Table("Sweep", (*COLUMNS, notes), keys=4)
    errors = 0
    done = 0
    for place, outcome in store.outcomes():
        done += 1
        if outcome.error:
            errors += 1
            table.rows.append(
                {**_words(place), "verdict": ERROR, "note": outcome.error}
            )
            table.notes.append(f"{place}: {outcome.error}")
        outcome.add_to(table)
    cells = len(store.places())
    if done < cells:
        table.notes.append(f"{cells - done} of {cells} cells are not explored yet")
        table.status = table.status or 3
    if errors:
        table.status = 2
    return table


def _words(place: str) -> dict[str, str]:
    """Return the columns that say what a cell is, from its name."""
    head, *changes = place.split("/")
    scenario, _, machine = head.rpartition("@")
    arch, _, kernel = machine.rpartition("-")
    return {
        "scenario": scenario,
        "arch": arch,
        "kernel": kernel,
        "changes": " ".join(changes),
        "property": "all",
    }
