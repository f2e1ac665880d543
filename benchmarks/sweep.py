"""Measure what a second process brings to `explore --jobs` and to `sweep`.

    python benchmarks/sweep.py                 two processes against one
    python benchmarks/sweep.py --jobs 8        so many against one
    python benchmarks/sweep.py --seconds 120   longer: at least so many CPU seconds

The cells are independent, so the ratio tells of the machine and of what is not shared:
starting processes, and the last cells when others have none left. So what it costs to
start a process is measured first, and cells are added, release by release, until they
cost many times as much, and none of them is more than a small part of it; in CPU
seconds, so that the choice is the same on a busy machine. It is printed. One and many
take turns, and the ratio is the median of the rounds. On a machine that is busy
otherwise, look at the CPU seconds: they say what the processes cost in addition.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from kvmarch.changes import RELEASES, Release, show_release
from kvmarch.plugins import Plugins, load
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.exploring import explore_table
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.scenarios.parallel import do_work, in_processes, works_of
from kvmarch.scenarios.records import Scenario
from kvmarch.sweep.cells import Plan, plan_of
from kvmarch.sweep.run import places_of_work, run
from kvmarch.sweep.store import Store

SCENARIO = "change_pte_dontneed"
FIRST: Release = (4, 11)
"""From here on every architecture has cells, of a second or less each."""
STARTS = 30
"""How many times as long as starting a process all the work has to take."""
PART = 20
"""No cell may take more than this part of the work."""
TARGET = 1.7
"""Of two processes against one, on two idle cores."""


def cpu() -> float:
    """Return the CPU seconds of this process and of those that it has ended."""
    used = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(each.ru_utime + each.ru_stime for each in used)


def clock(function: Callable[[], object]) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds of a call."""
    begun, used = time.perf_counter(), cpu()
    function()
    return time.perf_counter() - begun, cpu() - used


def load_plugins(_number: int) -> int:
    """Do what each process does before its first cell."""
    return len(load().loaded)


def start(jobs: int) -> float:
    """Return the CPU seconds that it takes until a process is ready."""
    _took, used = clock(lambda: list(in_processes(load_plugins, range(jobs), jobs)))
    return used / jobs


def long_enough(
    scenario: Scenario, plugins: Plugins, seconds: float
) -> tuple[tuple[str, ...], float, float]:
    """Return releases whose cells cost at least so many CPU seconds together.

    :returns: their names; the CPU seconds of all their cells, and of the longest.
    """
    chosen: list[str] = []
    total = longest = 0.0
    for release in spread([known for known in RELEASES if known >= FIRST]):
        name = show_release(release)
        for work in works_of([scenario], plugins, Choose(kernel=(name,))):
            _took, used = clock(lambda work=work: do_work(work, plugins))
            total, longest = total + used, max(longest, used)
        chosen.append(name)
        if total >= max(seconds, longest * PART):
            break
    return tuple(chosen), total, longest


def spread(releases: list[Release]) -> Iterator[Release]:
    """Yield releases so that any number of them covers the whole span."""
    for step in (8, 4, 2, 1):
        for at in range(0, len(releases), step):
            if step == 8 or at % (2 * step):
                yield releases[at]


def explored(
    scenario: Scenario, plugins: Plugins, choose: Choose, jobs: int
) -> tuple[float, float]:
    """Return wall and CPU seconds of `explore --jobs`."""
    return clock(lambda: explore_table([scenario], plugins, choose, jobs=jobs))


def swept(plan: Plan, plugins: Plugins, jobs: int) -> tuple[float, float]:
    """Return wall and CPU seconds of a sweep, with its file."""

    def sweep() -> None:
        path = Path(folder) / "sweep.sqlite"
        with Store.begin(path, plan.definition, plan.places) as store:
            backend, _where = places_of_work(plugins, jobs, None, jobs)
            run(plan, store, backend, lambda: None)

    with tempfile.TemporaryDirectory() as folder:
        return clock(sweep)


def compare(
    what: str, measure: Callable[[int], tuple[float, float]], jobs: int, rounds: int
) -> None:
    """Print the ratio of many processes to one, which take turns."""
    pairs = [(measure(1), measure(jobs)) for _ in range(rounds)]
    ratio = median(one[0] / many[0] for one, many in pairs)
    one, one_cpu = (median(pair[0][n] for pair in pairs) for n in (0, 1))
    many, many_cpu = (median(pair[1][n] for pair in pairs) for n in (0, 1))
    print(
        f"{what}: 1 process {one:.1f} s (CPU {one_cpu:.1f}), {jobs} processes "
        f"{many:.1f} s (CPU {many_cpu:.1f}); ratio {ratio:.2f}"
        + (f" (at least {TARGET})" if jobs == 2 else "")
    )


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--rounds", type=int, default=3, help="of one and many each")
    parser.add_argument("--seconds", type=float, default=0.0, help="of CPU, at least")
    given = parser.parse_args()
    plugins = load()
    scenario = load_scenario(find(SCENARIO))
    starting = start(given.jobs)
    kernels, total, longest = long_enough(
        scenario, plugins, max(given.seconds, starting * STARTS)
    )
    choose = Choose(kernel=kernels)
    plan = plan_of([scenario], plugins, choose)
    print(
        f"{len(plan.works)} cells of {len(kernels)} releases, {total:.1f} CPU seconds, "
        f"the longest {longest:.2f}; starting a process takes {starting:.2f}, "
        f"1/{total / starting:.0f} of that"
    )
    if total < starting * STARTS:
        print("too short: what is printed below is of starting processes, too")
    compare(
        "explore --jobs",
        lambda jobs: explored(scenario, plugins, choose, jobs),
        given.jobs,
        given.rounds,
    )
    compare("sweep", lambda jobs: swept(plan, plugins, jobs), given.jobs, given.rounds)


if __name__ == "__main__":
    main()
