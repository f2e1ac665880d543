"""What several tests look at, explored once."""

import os

import pytest

from kvmarch.explore.search import Bounds
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.parallel import Work, results_of

PLUGINS = load_plugins()
HOW = How(bounds=Bounds(seconds=120))


def work_of(cell, expected):
    """Return a cell as something to be explored in any process."""
    return Work(cell.scenario, cell.arch.name, cell.release, cell.choose, expected, HOW)


@pytest.fixture(scope="session")
def look(request):
    """Return a function that gives a cell's outcome.

    All cells that the session asks for are explored in processes of their own, one
    for each CPU, while the tests run.
    """
    params = [
        item.callspec.params
        for item in request.session.items
        if hasattr(item, "callspec")
    ]
    works = {
        row["cell"].where: work_of(row["cell"], row["expected"])
        for row in params
        if {"cell", "expected"} <= row.keys()
    }
    places = list(works)
    jobs = min(os.cpu_count() or 1, len(places))
    ready = {}
    coming = results_of(list(works.values()), PLUGINS, max(jobs, 2))

    def look_at(cell, expected):
        while cell.where in works and cell.where not in ready:
            number, outcome = next(coming)
            ready[places[number]] = outcome
        if cell.where not in ready:
            [(_number, outcome)] = results_of([work_of(cell, expected)], PLUGINS, 1)
            ready[cell.where] = outcome
        return ready[cell.where]

    yield look_at
    coming.close()
