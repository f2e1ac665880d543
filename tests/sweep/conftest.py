"""Fixtures of the sweeps' tests: a small scenario, its plan, a file for it."""

import pytest

from kvmarch.scenarios.compare import Choose
from kvmarch.sweep.cells import plan_of

RACE = """
title = "a guest reads while its page is thrown away"
setup = ["slot id=0 memory=ram gfn=0"]
[vm]
memory = [{ name = "ram", pages = 1 }]
[[task]]
name = "vcpu"
steps = ["read gfn=0"]
[[task]]
name = "vmm"
steps = ["dontneed memory=ram page=0 pages=1"]
"""


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
