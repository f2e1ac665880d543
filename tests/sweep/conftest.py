"""Fixtures of the sweeps' tests: a small scenario, its plan, a file for it."""

import pytest
from races import RACE

from kvmarch.scenarios.compare import Choose
from kvmarch.sweep.cells import plan_of


@pytest.fixture
def race(scenario):
    """A scenario of some hundred states."""
    return scenario(RACE, "race")


@pytest.fixture
def plan(toys, race):
    """Return the plan of a sweep over the toy."""

    def make(*kernels, toggled=(), **options):
        choose = Choose(kernel=kernels or ("v6.1", "v6.12"))
        return plan_of([race], toys, choose, toggled, **options)

    return make
