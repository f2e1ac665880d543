"""Fixtures of the page's tests: work on the toy, and pages made of it."""

import pytest

from kvmarch.page.collect import collect
from kvmarch.page.work import do_job, jobs_of
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose

COMPARED = """
title = "a </script> scenario"
tags = ["mine"]
watch = [0]
[vm]
memory = [{ name = "ram", pages = 4, contents = [7, 7] }]
[[task]]
name = "vmm"
steps = [
    "slot id=0 memory=ram gfn=0",
    "read gfn=0",
    "read gfn=2",
    "mark name=merge",
    "ksm_merge memory=ram page=0 pages=2",
    "read gfn=0",
]
[[column]]
name = "callback"
show = "callback"
event = "change_pte_done"
[[column]]
name = "entry_before"
show = "entry"
after = "merge"
[[expect]]
until = "v6.10"
values = { callback = "present" }
because = "it was there"
[[expect]]
since = "v6.10"
values = { callback = "absent" }
because = "it was removed"
"""

RACED = """
title = "two tasks"
tags = ["post-1"]
setup = ["slot id=0 memory=ram gfn=0", "read gfn=0"]
[vm]
memory = [{ name = "ram", pages = 2 }]
[[task]]
name = "host"
steps = ["dontneed memory=ram page=0 pages=1"]
[[task]]
name = "guest"
steps = ["read gfn=0"]
[property.counted]
ask = "always"
bad = "vm.mmu_invalidate_in_progress > 0"
[[verdict]]
kernel = "v6.1"
property = "counted"
verdict = "always"
because = "the host zaps"
"""


@pytest.fixture
def compared(scenario):
    """A scenario that is compared."""
    return scenario(COMPARED, "compared")


@pytest.fixture
def disappointed(scenario):
    """The same, with an expectation that fails."""
    expected = 'until = "v6.10"\nvalues = { callback = "present" }'
    assert expected in COMPARED
    wrong = COMPARED.replace(expected, expected.replace("present", "absent"))
    return scenario(wrong, "disappointed")


@pytest.fixture
def raced(scenario):
    """A scenario whose tasks race, and in which something is lost."""
    return scenario(RACED, "raced")


@pytest.fixture
def raced_wrongly(scenario):
    """The same, with an expectation that fails."""
    return scenario(RACED.replace('"always"\nbecause', '"never"\nbecause'), "wrongly")


@pytest.fixture
def do(toys):
    """Do all the work for a scenario; return the results."""

    def make(loaded, choose=None, how=None):
        jobs = jobs_of(loaded, toys, choose or Choose(), how or How())
        return [do_job(job, toys) for job in jobs]

    return make


@pytest.fixture
def gather(toys):
    """Collect what a page shows of scenarios, on the toy."""

    def make(*scenarios, choose=None, **options):
        return collect(scenarios, toys, choose or Choose(), How(), **options)

    return make
