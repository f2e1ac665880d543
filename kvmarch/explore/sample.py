"""Samples of what is too large to search: random schedules, or by PCT.

PCT (probabilistic concurrency testing, Burckhardt et al. 2010) runs the task of
highest priority and lowers it at a few random places: a bug that needs ``depth``
orderings among n tasks and k steps is met with a chance of at least 1 / (n * k **
(depth - 1)) per schedule.
"""

__all__ = ["sample"]

import random
import time
from collections.abc import Callable

from kvmarch.explore.cells import watched
from kvmarch.explore.node import BLOCKED_STEP
from kvmarch.explore.program import Program
from kvmarch.explore.search import Bounds, Search, end_of, is_out, look_at, peak_memory
from kvmarch.explore.space import Space

LONGEST = 100_000
"""Steps after which one schedule is given up: it may be in a loop."""
Pick = Callable[[list[int], int], int]
"""From the tasks that can move, and how many steps were taken, who moves."""


def sample(
    program: Program,
    *,
    strategy: str = "random",
    runs: int = 1000,
    seed: int = 0,
    depth: int = 3,
    bounds: Bounds | None = None,
    always: bool = False,
) -> Search:
    """Run random schedules; what is not met stays unknown.

    :param strategy: ``random`` or ``pct``.
    :param depth: of PCT: how many orderings a bug may need.
    """
    rng = random.Random(seed)  # noqa: S311 - schedules are no secret
    space = Space(program)
    search = Search(space)
    bounds = bounds or Bounds()
    begun = time.perf_counter()
    length = 1
    with watched(space.open()) as log:
        space.start(log)
        for number in range(runs):
            out = is_out(search, bounds, begun)
            if out:
                search.cut = f"{out}, after {number} of {runs} schedules"
                break
            pick = (
                _random(rng)
                if strategy == "random"
                else _pct(rng, space.count, length, depth)
            )
            length = max(length, _walk(search, pick, always))
        else:
            search.cut = f"{runs} schedules ({strategy}, seed {seed})"
        space.load(space.initial)
    search.seconds = time.perf_counter() - begun
    search.peak = peak_memory()
    return search


def _random(rng: random.Random) -> Pick:
    return lambda can, _step: rng.choice(can)


def _pct(rng: random.Random, tasks: int, length: int, depth: int) -> Pick:
    priority = [depth + n for n in range(tasks)]
    rng.shuffle(priority)
    places = {rng.randrange(length): n for n in range(depth - 1)}

    def pick(can: list[int], step: int) -> int:
        best = max(can, key=lambda i: priority[i])
        if step in places:
            priority[best] = places[step]
            best = max(can, key=lambda i: priority[i])
        return best

    return pick


def _walk(search: Search, pick: Pick, always: bool) -> int:
    """Follow one schedule to its end; return its length."""
    space = search.space
    parents = space.parents
    state = space.initial
    length = 0
    while length < LONGEST:
        changes = {}
        waiting = False
        for i in range(space.count):
            change = space.change(state, i)
            if change is BLOCKED_STEP:
                waiting = True
            elif change is not None:
                changes[i] = change
        if not changes:
            search.depth = length
            end_of(search, state, waiting)
            break
        i = pick(list(changes), length)
        length += 1
        search.transitions += 1
        for violation in getattr(changes[i], "violations", ()):
            search.lose(violation, state, i, length)
        after = state + changes[i]
        if after not in parents:
            parents[after] = state
            if always:
                look_at(search, after, length)
        state = after
    return length
