"""What several tests look at, explored once."""

from dataclasses import dataclass

import pytest

from kvmarch.explore.search import Bounds
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.catalogue import measure
from kvmarch.scenarios.cells import How, explore_cell

PLUGINS = load_plugins()


@dataclass
class Looked:
    """What is left of an explored cell; the search itself would fill the memory."""

    failures: list
    cut: str
    schedules: list
    measured: dict


@pytest.fixture(scope="session")
def look():
    """Return a function that explores a cell, or remembers that it did."""
    seen = {}

    def look_at(cell, expected):
        if cell.where not in seen:
            how = How(bounds=Bounds(seconds=120))
            explored = explore_cell(cell, PLUGINS, how, expected)
            schedules = [(v.property, explored.schedule(v)) for v in explored.verdicts]
            seen[cell.where] = Looked(
                explored.failures(), explored.search.cut, schedules, measure([explored])
            )
        return seen[cell.where]

    return look_at
