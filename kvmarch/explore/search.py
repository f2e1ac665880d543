"""Search a state space: breadth first for shortest schedules, or depth first."""

__all__ = [
    "Bounds",
    "Found",
    "Search",
    "end_of",
    "explore",
    "is_out",
    "look_at",
    "peak_memory",
]

import gc
import resource
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kvmarch.errors import ExploreError, NotSymmetricError
from kvmarch.explore.cells import watched
from kvmarch.explore.cycles import find_fair_cycle, going_on
from kvmarch.explore.node import BLOCKED_STEP, NUMBER
from kvmarch.explore.program import Program
from kvmarch.explore.reduce import Reduction
from kvmarch.explore.route import path_to
from kvmarch.explore.space import Space
from kvmarch.explore.twins import SORTED
from kvmarch.machine.world import Violation


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a search is cut; 0 for no bound.

    :param seconds: of the whole search.
    :param memory: of the process, in MiB.
    """

    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    memory: int = 0


@dataclass(slots=True)
class Found:
    """One property that is lost somewhere.

    :param state: the state before the transition in which it is lost, or the end state
        in which it is.
    :param task: who takes that transition; -1 if it is lost at the end.
    :param length: transitions of the shortest schedule that was found.
    """

    violation: Violation
    state: int
    task: int
    length: int
    count: int = 1
    cycle: tuple[tuple[int, int], ...] = ()
    """Of tasks that go on for ever: where, and who moves there, once around."""


@dataclass(slots=True)
class Search:
    """What a search has found."""

    space: Space
    found: dict[str, Found] = field(default_factory=dict)
    transitions: int = 0
    lost_at: dict[str, set[int]] = field(default_factory=dict)
    """By property, the states in which it is lost, not the step."""
    fairness: str = "queued"
    back: set[int] | None = None
    """States that are reached again, not one level deeper; None if not noted."""
    ends: set[int] = field(default_factory=set)
    stuck: set[int] = field(default_factory=set)
    seconds: float = 0.0
    depth: int = 0
    cut: str = ""
    """Why the search is not complete; empty if it is."""
    reduction: Reduction | None = None
    symmetry: str = ""
    """Which tasks were taken for exchangeable, or why none; empty if not asked."""
    passes: int = 1
    """How often the space was walked; more than once only with a reduction."""
    growth: int = -1
    peak: int = 0
    """Memory of the process at its highest, in KiB."""

    def settle(self) -> bool:
        """Return whether a reduced search must begin anew, and make it ready.

        What the reduction took for granted held if nothing has been learnt since the
        pass began.
        """
        grown = self.space.growth[0]
        if grown == self.growth:
            return False
        self.growth = grown
        self.passes += 1
        self.transitions = self.depth = 0
        self.found.clear()
        self.lost_at.clear()
        self.ends.clear()
        self.stuck.clear()
        self.space.parents.clear()
        self.space.parents[self.space.initial] = -1
        return True

    @property
    def states(self) -> int:
        """Return how many states were reached."""
        return len(self.space.parents)

    def lose(self, violation: Violation, state: int, task: int, length: int) -> None:
        """Count a loss, and keep the first of each property."""
        if task < 0:
            self.lost_at.setdefault(violation.property, set()).add(state)
        known = self.found.get(violation.property)
        if known is None:
            self.found[violation.property] = Found(violation, state, task, length)
        else:
            known.count += 1
            if length < known.length:
                known.violation, known.state = violation, state
                known.task, known.length = task, length


def explore(
    program: Program,
    *,
    order: str = "breadth",
    bounds: Bounds | None = None,
    always: bool = False,
    reduce: bool = False,
    symmetric: bool = False,
    fairness: str = "queued",
) -> Search:
    """Visit every state that some schedule reaches.

    :param order: ``breadth``, which finds shortest schedules first, or ``depth``.
    :param always: ask the program's questions between all steps.
    :param reduce: leave out schedules that differ only in the order of steps that
        commute: verdicts and end states stay, shortest lengths may not.
    :param symmetric: take states that differ only by which of some identical tasks is
        which for one: verdicts and shortest lengths stay. Where tasks turn out not to
        be identical the search is made without, and says so.
    :param fairness: of locks, when it is asked whether all tasks end: ``queued`` or
        ``unfair``.
    :raises ExploreError: ``reduce`` and ``symmetric`` at once.
    """
    if reduce and symmetric:
        raise ExploreError("--reduce and --symmetry do not go together")
    walk = partial(_explore, program, order, bounds or Bounds(), always, fairness)
    if not symmetric:
        return walk(Space(program), reduce)
    space = Space(program, symmetric=True)
    try:
        search = walk(space, reduce)
    except NotSymmetricError as error:
        search = walk(Space(program), reduce)
        search.symmetry = f"not used: {error}"
    else:
        search.symmetry = str(space.symmetry or "no task is like another")
    return search


def _explore(
    program: Program,
    order: str,
    bounds: Bounds,
    always: bool,
    fairness: str,
    space: Space,
    reduce: bool,
) -> Search:
    search = Search(space, reduction=Reduction(space) if reduce else None)
    search.fairness = fairness
    begun = time.perf_counter()
    with watched(space.open()) as log:
        walk = _breadth_first if order == "breadth" else _depth_first
        collecting = gc.isenabled()
        gc.disable()
        try:
            space.start(log)
            walk(search, bounds, begun, always)
            while reduce and not search.cut and search.settle():
                walk(search, bounds, begun, always)
            if not search.cut:
                _look_for_livelock(search)
            if space.symmetry is not None:
                space.symmetry.audit(space.nodes)
        finally:
            if collecting:
                gc.enable()
            space.restore()
    search.seconds = time.perf_counter() - begun
    search.peak = peak_memory()
    return search


def peak_memory() -> int:
    """Return the memory of this process at its highest, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_now() -> int:
    """Return the memory of this process, in KiB.

    Not its highest: what an earlier search took must not cut a later one.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return peak_memory()
    return pages * resource.getpagesize() >> 10


def _look_for_livelock(search: Search) -> None:
    space = search.space
    # A cycle has a transition to a state that is no deeper; where these were not
    # noted, any state may be in one.
    roots = sorted(search.back) if search.back is not None else space.parents
    cycle = find_fair_cycle(space, roots, search.fairness)
    if cycle is not None:
        state = cycle.state
        who = [space.names[i] for i in cycle.moving]
        lost = going_on(who, search.fairness)
        search.lose(lost, state, -1, len(path_to(space, space.sorted(state))) - 1)
        found = search.found["ends"]
        if found.violation is lost:
            found.cycle = cycle.moves
        # What goes through the cycle may still leave it and end.
        if state not in search.stuck:
            search.lost_at["ends"].discard(state)


def is_out(search: Search, bounds: Bounds, begun: float) -> str:
    """Return the bound that the search has reached; empty if none."""
    if bounds.states and len(search.space.parents) >= bounds.states:
        return f"{bounds.states} states"
    if bounds.seconds and time.perf_counter() - begun >= bounds.seconds:
        return f"{bounds.seconds} seconds"
    if bounds.memory and memory_now() >= bounds.memory << 10:
        return f"{bounds.memory} MiB"
    return ""


def _breadth_first(search: Search, bounds: Bounds, begun: float, always: bool) -> None:
    space = search.space
    level = [space.initial]
    search.back = None if search.reduction else set()
    if always:
        look_at(search, space.initial, 0)
    while level:
        current = set(level)
        if bounds.depth and search.depth >= bounds.depth:
            search.cut = f"depth {bounds.depth}"
            return
        following: list[int] = []
        for chunk in range(0, len(level), 4096):
            search.cut = is_out(search, bounds, begun)
            if search.cut:
                return
            _expand(search, level[chunk : chunk + 4096], following, current)
        if always:
            for state in following:
                look_at(search, state, search.depth + 1)
        level = following
        if level:
            search.depth += 1


def _expand(
    search: Search,
    states: list[int],
    following: list[int],
    current: set[int] | None = None,
) -> None:
    """Take every transition from each state.

    :param current: all states of the level that is being expanded, breadth first.
    """
    current = current or set()
    back = search.back if current else None
    space = search.space
    parents = space.parents
    tasks = [
        (i, shift, space.nodes[i], space.done_of)
        for i, shift in enumerate(space.shifts)
    ]
    transitions = 0
    length = search.depth + 1
    find = space.find
    reach = following.append
    reduction = search.reduction
    where = space.where
    symmetry = space.symmetry
    plans = {} if symmetry is None else symmetry.plans
    for state in states:
        moved = 0
        waiting = False
        # A short number, of which to take parts is quicker than of the long one.
        places = state & where
        if reduction is not None:
            change = _alone(space, reduction, state)
            if change is not None:
                after = state + change
                parents[after] = state
                reach(after)
                transitions += 1
                continue
        for i, shift, nodes, done_of in tasks:
            number = places >> shift & NUMBER
            if number == done_of[i]:
                continue
            node = nodes[number]
            change = node.known.get(state & node.mask)
            if type(change) is not int:
                if change is None:
                    change = find(state, i)
                if change is BLOCKED_STEP:
                    waiting = True
                    continue
                for violation in getattr(change, "violations", ()):
                    search.lose(violation, state, i, length)
            moved += 1
            after = state + change
            if symmetry is not None and plans.get(after & where) is not SORTED:
                after = symmetry.sort(after)
            if after not in parents:
                parents[after] = state
                reach(after)
            elif back is not None and parents[after] not in current:
                back.add(after)
        transitions += moved
        if not moved:
            end_of(search, state, waiting)
    search.transitions += transitions


def _alone(space: Space, reduction: Reduction, state: int) -> int | None:
    """Return a transition that may be the only one from a state.

    It must lead to a state that is new, so that no task is put off for ever.
    """
    for i in reduction.alone(state):
        change = space.change(state, i)
        if type(change) is int and state + change not in space.parents:
            return change
    return None


def end_of(search: Search, state: int, waiting: bool) -> None:
    """Look at a state in which no task can move."""
    space = search.space
    program = space.program
    if waiting:
        search.stuck.add(state)
        who = ", ".join(
            f"{name} waits at {space.nodes[i][number].name!r}"
            for i, name in enumerate(space.names)
            if (number := state >> space.shifts[i] & NUMBER) != space.done_of[i]
        )
        stuck = Violation("ends", f"no task can move: {who}", "")
        search.lose(stuck, state, -1, search.depth)
    else:
        search.ends.add(state)
    end = "stuck" if waiting else "done"
    lost = space.ask(space.ends[waiting], state, lambda: program.at_rest(end))
    for violation in lost:
        search.lose(violation, state, -1, search.depth)


def look_at(search: Search, state: int, length: int) -> None:
    """Ask what is asked between steps."""
    space = search.space
    for violation in space.ask(space.between, state, space.program.always):
        search.lose(violation, state, -1, length)


def _depth_first(search: Search, bounds: Bounds, begun: float, always: bool) -> None:
    """Visit states newest first; schedules are not the shortest."""
    space = search.space
    stack = [(space.initial, 0)]
    count = 0
    if always:
        look_at(search, space.initial, 0)
    while stack:
        state, depth = stack.pop()
        count += 1
        if count % 1024 == 1:
            search.cut = is_out(search, bounds, begun)
            if search.cut:
                return
        if bounds.depth and depth >= bounds.depth:
            search.cut = f"depth {bounds.depth}"
            continue
        following: list[int] = []
        search.depth = depth
        _expand(search, [state], following)
        for after in following:
            if always:
                look_at(search, after, depth + 1)
            stack.append((after, depth + 1))
