"""Explore cells in several processes of this machine.

A cell goes to a process by name, not as a machine: the process loads the plugins
itself. What comes back is plain values.
"""

__all__ = ["Work", "do_work", "in_processes", "results_of", "try_work", "works_of"]

import functools
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from kvmarch.blame import blaming
from kvmarch.changes import Release
from kvmarch.errors import ExploreError, KvmarchError, PluginError, TierError
from kvmarch.plugins import Loaded, Plugins, load
from kvmarch.scenarios.cells import Cell, Explored, How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.outcome import Outcome, nothing_of, outcome_of
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.records import Verdict as Expected

A = TypeVar("A")
B = TypeVar("B")

_one_search = threading.Lock()
"""A search watches classes of the whole process, so there is one at a time."""


@dataclass(frozen=True, slots=True)
class Work:
    """One cell to explore, in a form that another process understands.

    :param arch: the architecture's name.
    """

    scenario: Scenario
    arch: str
    release: Release
    choose: Choose
    expected: tuple[Expected, ...] = ()
    how: How | None = None

    def cell(self, plugins: Plugins) -> Cell:
        """Return the cell itself."""
        return Cell(self.scenario, plugins.get(self.arch), self.release, self.choose)


def works_of(
    scenarios: Iterable[Scenario],
    plugins: Plugins,
    choose: Choose,
    how: How | None = None,
) -> Iterator[Work]:
    """Yield the cells to explore of several scenarios, in order."""
    for scenario in scenarios:
        for cell, expected in cells_of(scenario, plugins, choose):
            yield Work(
                scenario, cell.arch.name, cell.release, cell.choose, expected, how
            )


@functools.cache
def _loaded() -> Plugins:
    return load()


def do_work(work: Work, plugins: Plugins | None = None) -> Outcome:
    """Explore one cell, in whatever process this is.

    :param plugins: those that are loaded; by default the process loads them once.
    :raises PluginError: the architecture's code fails.
    """
    plugins = plugins or _loaded()
    if work.how is not None and work.how.bounds.memory:
        # The last search is a web of cycles, and not to be charged to this one.
        gc.collect()
    cell = work.cell(plugins)

    def search(arch: Loaded) -> Explored:
        here = replace(cell, arch=arch)
        return explore_cell(here, plugins, work.how, work.expected)

    try:
        with _one_search, blaming(cell.arch, search):
            return outcome_of(search(cell.arch))
    except TierError as error:
        return nothing_of(cell, "not reached", str(error))


def try_work(work: Work) -> Outcome:
    """Explore one cell; a user's error is told in the outcome."""
    try:
        return _row_of(work, _loaded())
    except KvmarchError as error:
        return Outcome(error=str(error))


def _row_of(work: Work, plugins: Plugins) -> Outcome:
    """Explore one cell; what a plugin does wrong is a row, for the others go on."""
    try:
        return do_work(work, plugins)
    except PluginError as error:
        outcome = nothing_of(work.cell(plugins), "error", str(error))
        outcome.status = 2
        return outcome


def results_of(
    works: Sequence[Work], plugins: Plugins, jobs: int
) -> Iterator[tuple[int, Outcome]]:
    """Yield the number and the outcome of each cell, in the order they are ready.

    :param jobs: processes; this one alone if it is 1.
    :raises KvmarchError: a cell could not be explored.
    """
    if jobs == 1:
        for number, work in enumerate(works):
            yield number, _row_of(work, plugins)
        return
    for number, outcome in in_processes(try_work, works, jobs):
        if outcome.error:
            raise ExploreError(outcome.error)
        yield number, outcome


def in_processes(
    function: Callable[[A], B], items: Sequence[A], jobs: int
) -> Iterator[tuple[int, B]]:
    """Yield the number and the result of each item, in the order they are ready.

    Closing the iterator stops the processes at once. They also end if this process
    does, however it does.

    :param function: of a module, so that another process finds it.
    :raises ExploreError: a process was killed.
    """
    # These take a while to import, and most searches are of one process.
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    others = set(multiprocessing.active_children())
    # Not forked: a process must not hold what this one has open or has locked.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        max(min(jobs, len(items)), 1), context, initializer=_begin
    )
    try:
        futures = {pool.submit(function, item): n for n, item in enumerate(items)}
        for future in as_completed(futures):
            # What has been handed on is not kept.
            number = futures.pop(future)
            yield number, future.result()
    except BrokenProcessPool:
        raise ExploreError(
            "one of the processes was killed, perhaps for want of memory; "
            "try fewer --jobs"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Make a process end when its parent does, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # The main thread is in the midst of a search whose result nobody wants.
        os._exit(1)
