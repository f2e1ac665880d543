"""Measure what a second process brings, and what a sweep costs beside its cells.

    python benchmarks/sweep.py             two processes against one
    python benchmarks/sweep.py 8           so many against one

The cells are independent, so the ratio tells of the machine and of what is not shared:
starting processes, and the last cells when others have none left. On a machine that is
busy otherwise, look at the CPU seconds: they say what the processes cost in addition.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

from kvmarch.plugins import Plugins, load
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.sweep.cells import Plan, plan_of
from kvmarch.sweep.run import places_of_work, run
from kvmarch.sweep.store import Store

SCENARIO = "change_pte_dontneed"
KERNELS = ("v5.4", "v5.10", "v6.1", "v6.12")
TARGET = 1.7
"""Of two processes against one, on two idle cores."""


def cpu() -> float:
    """Return the CPU seconds of this process and of those that it has ended."""
    used = [
        resource.getrusage(who)
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return sum(each.ru_utime + each.ru_stime for each in used)


def sweep(plan: Plan, plugins: Plugins, jobs: int) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.sqlite"
        begun, used = time.perf_counter(), cpu()
        with Store.begin(path, plan.definition, plan.places) as store:
            backend, _where = places_of_work(plugins, jobs, None, jobs)
            run(plan, store, backend, lambda: None)
        return time.perf_counter() - begun, cpu() - used


def main() -> None:
    """Print the ratio."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    plugins = load()
    scenario = load_scenario(find(SCENARIO))
    plan = plan_of([scenario], plugins, Choose(kernel=KERNELS))
    one, one_cpu = sweep(plan, plugins, 1)
    many, many_cpu = sweep(plan, plugins, jobs)
    print(
        f"{len(plan.works)} cells: 1 process {one:.1f} s (CPU {one_cpu:.1f}), "
        f"{jobs} processes {many:.1f} s (CPU {many_cpu:.1f}); "
        f"ratio {one / many:.2f}" + (f" (at least {TARGET})" if jobs == 2 else "")
    )


if __name__ == "__main__":
    main()
