"""Livelock: a cycle that goes on for ever although every task gets its turn."""

__all__ = ["FAIRNESS", "Cycle", "find_fair_cycle", "going_on"]

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from kvmarch.explore.node import BLOCKED_STEP, NUMBER, Node
from kvmarch.explore.space import Space
from kvmarch.machine.world import Violation


@dataclass(frozen=True, slots=True)
class Cycle:
    """A way from a state back to itself that fairness allows to be gone for ever.

    :param state: where it begins.
    :param moves: pairs of a state and the task that moves from there.
    """

    state: int
    moves: tuple[tuple[int, int], ...]

    @property
    def moving(self) -> tuple[int, ...]:
        """Return who moves in it."""
        return tuple(sorted({i for _state, i in self.moves}))


def going_on(names: Iterable[str], fairness: str) -> Violation:
    """Return what is lost when tasks go round for ever."""
    return Violation(
        "ends",
        f"{' and '.join(names)} can go on for ever, every task in turn (locks: "
        f"{fairness})",
        "",
    )


class Loops:
    """The loops of each task's control graph: retry loops, most of them.

    In a cycle of states every task that moves comes back to where it stood, so that
    all its moves stay inside one loop of its own.

    :param space: explored as far as it is to be.
    """

    def __init__(self, space: Space) -> None:
        self.of: list[list[int]] = []
        """By task and standpoint, the number of its loop; -1 if it is in none."""
        for i, nodes in enumerate(space.nodes):
            after: list[set[int]] = [set() for _ in nodes]
            for j in space.peers(i):
                # What one twin has learnt the others can do as well.
                shift = space.shifts[j]
                for number, node in enumerate(space.nodes[j]):
                    after[number] |= {
                        part + change >> shift & NUMBER
                        for part, change in _changes(node)
                        if change is not BLOCKED_STEP
                    }
            self.of.append(_loops(after))

    def __bool__(self) -> bool:
        return any(number >= 0 for of in self.of for number in of)


def _changes(node: Node) -> Iterator[tuple[int, int]]:
    for known in (*node.older, node.latest):
        yield from known.by_part.items()


def _loops(after: list[set[int]]) -> list[int]:
    """Return the number of each standpoint's loop; -1 if it is in none."""

    def reachable(start: int, arrows: list[set[int]]) -> set[int]:
        seen: set[int] = set()
        stack = list(arrows[start])
        while stack:
            here = stack.pop()
            if here not in seen:
                seen.add(here)
                stack.extend(arrows[here])
        return seen

    before: list[set[int]] = [set() for _ in after]
    for number, targets in enumerate(after):
        for target in targets:
            before[target].add(number)
    of = [-1] * len(after)
    left = _cyclic(after, before)
    for number in sorted(left):
        if of[number] < 0:
            loop = reachable(number, after) & reachable(number, before)
            for member in loop:
                of[member] = number
    return of


def _cyclic(after: list[set[int]], before: list[set[int]]) -> set[int]:
    """Return the standpoints that are left when those that end chains are taken off."""
    left = set(range(len(after)))
    for arrows, back in ((after, before), (before, after)):
        count = [len(arrows[n] & left) for n in range(len(arrows))]
        free = [n for n in left if not count[n]]
        while free:
            here = free.pop()
            left.discard(here)
            for other in back[here]:
                count[other] -= 1
                if other in left and not count[other]:
                    free.append(other)
    return left


def _moves(space: Space, state: int) -> list[tuple[int, int]]:
    """Return task and next state of every transition from a state that was expanded."""
    found = []
    for i in range(space.count):
        # A reduced search has not asked every task whether it can move.
        change = space.change(state, i)
        if change is not None and change is not BLOCKED_STEP:
            found.append((i, state + change))
    return found


def _loop_moves(
    space: Space,
    loops: Loops,
    state: int,
    *,
    fairness: str,
    merged: bool = False,
) -> list[tuple[int, int]]:
    """Return task and next state of each move that does not leave its task's loop.

    None where a task can move that is in no loop: with queued locks no cycle that goes
    through such a state is fair.

    :param merged: give for each state the one that stands for it.
    """
    found = []
    places = state & space.where
    queued = fairness == "queued"
    for i, shift in enumerate(space.shifts):
        of = loops.of[i]
        number = places >> shift & NUMBER
        loop = of[number]
        if loop < 0 and (number == space.done_of[i] or not queued):
            continue
        node = space.nodes[i][number]
        change = node.known.get(state & node.mask)
        if change is None:
            change = space.change(state, i)
        if change is not BLOCKED_STEP:
            if loop < 0:
                return []
            after = state + change
            if of[after >> shift & NUMBER] == loop:
                found.append((i, space.sorted(after) if merged else after))
    return found


def _components(
    space: Space,
    loops: Loops,
    roots: Iterable[int],
    allowed: Collection[int],
    *,
    fairness: str,
    merged: bool = False,
) -> Iterator[list[int]]:
    """Yield the strongly connected components that have a cycle (Tarjan).

    :param roots: states from which to begin.
    :param allowed: states that there are.
    :param merged: each stands for all that differ by which twin is which only.
    """
    moves_of = partial(_loop_moves, space, loops, fairness=fairness, merged=merged)
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    open_states: list[int] = []
    is_open: set[int] = set()
    for root in roots:
        if root in index:
            continue
        work = [(root, iter(moves_of(root)))]
        index[root] = low[root] = 0
        open_states.append(root)
        is_open.add(root)
        while work:
            state, moves = work[-1]
            for _task, after in moves:
                if after not in allowed:
                    continue
                if after not in index:
                    index[after] = low[after] = len(index)
                    open_states.append(after)
                    is_open.add(after)
                    work.append((after, iter(moves_of(after))))
                    break
                if after in is_open:
                    low[state] = min(low[state], index[after])
            else:
                work.pop()
                if work:
                    above = work[-1][0]
                    low[above] = min(low[above], low[state])
                if low[state] == index[state]:
                    component = []
                    while True:
                        member = open_states.pop()
                        is_open.discard(member)
                        component.append(member)
                        if member == state:
                            break
                    if len(component) > 1 or any(
                        after == state for _, after in moves_of(state)
                    ):
                        yield component


FAIRNESS = ("queued", "unfair")
"""What may be assumed of locks: who waits gets one in the end, or perhaps never."""


def find_fair_cycle(
    space: Space, roots: Iterable[int], fairness: str = "queued"
) -> Cycle | None:
    """Return a cycle that weak fairness allows: of those reached first, a shortest.

    A task that could move in every state of the cycle must move in it. With queued
    locks whoever waits for one that is given up in the cycle gets it in the end, so
    that a task that could move anywhere in the cycle must move in it as well; with
    unfair ones it may be passed over for ever.

    :param roots: states of which every cycle has one.
    """
    loops = Loops(space)
    if not loops:
        return None
    allowed: Collection[int] = space.parents
    if space.symmetry is not None:
        # A cycle of states that each stand for several may need several rounds until
        # everybody is who he was: it is looked for among all for which they stand.
        merged = _components(
            space, loops, roots, allowed, fairness=fairness, merged=True
        )
        allowed = {
            state
            for component in merged
            for one in component
            for state in space.symmetry.exchanged(one)
        }
        roots = sorted(allowed)
    depths = _Depths(space)
    best: tuple[int, int] | None = None
    chosen: set[int] = set()
    waiting = [_components(space, loops, roots, allowed, fairness=fairness)]
    while waiting:
        for component in waiting.pop():
            inside = set(component)
            moving, passed_over = _who(space, inside, fairness)
            if moving and not passed_over:
                # Every state of it is in such a cycle.
                nearest = min((depths.of(state), state) for state in component)
                if best is None or nearest < best:
                    best, chosen = nearest, inside
                continue
            # A smaller cycle may leave out the states in which those could move that
            # the larger one forgets.
            rest = {
                state
                for state in component
                if not passed_over.intersection(i for i, _ in _moves(space, state))
            }
            if len(rest) < len(inside):
                waiting.append(
                    _components(space, loops, sorted(rest), rest, fairness=fairness)
                )
    if best is None:
        return None
    return Cycle(best[1], _around(space, chosen, best[1], fairness))


class _Depths:
    """How far states are from the first one, along the way they were reached."""

    def __init__(self, space: Space) -> None:
        self.parents = space.parents
        self._sorted = space.sorted
        self._known = {space.initial: 0}

    def of(self, state: int) -> int:
        """Return the depth of one state."""
        chain = []
        state = self._sorted(state)
        while state not in self._known:
            chain.append(state)
            state = self.parents[state]
        depth = self._known[state]
        for below in reversed(chain):
            depth += 1
            self._known[below] = depth
        return depth


def _who(space: Space, inside: set[int], fairness: str) -> tuple[set[int], set[int]]:
    """Return who moves inside a set of states, and who must and does not."""
    moving: set[int] = set()
    able: list[set[int]] = []
    for state in inside:
        moves = _moves(space, state)
        able.append({i for i, _ in moves})
        moving |= {i for i, after in moves if after in inside}
    must = set.union(*able) if fairness == "queued" else set.intersection(*able)
    return moving, must - moving


def _around(
    space: Space, inside: set[int], start: int, fairness: str
) -> tuple[tuple[int, int], ...]:
    """Return a shortest fair way from a state back to itself inside a component.

    On the way each task that can move somewhere in the component moves; with unfair
    locks it is enough that it once cannot.
    """
    everybody = {i for state in inside for i, _ in _moves(space, state)}
    goal = sum(1 << i for i in everybody)

    def excused(state: int) -> int:
        if fairness == "queued":
            return 0
        able = {i for i, _ in _moves(space, state)}
        return sum(1 << i for i in everybody - able)

    first = start, excused(start)
    came: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
    queue = deque([first])
    while queue:
        here = queue.popleft()
        state, met = here
        for i, after in _moves(space, state):
            if after not in inside:
                continue
            there = after, met | 1 << i | excused(after)
            if there in came:
                continue
            came[there] = here, i
            if there == (start, goal):
                return _read_back(came, there, first)
            queue.append(there)
    raise AssertionError("a component has no way around")


def _read_back(
    came: dict[tuple[int, int], tuple[tuple[int, int], int]],
    last: tuple[int, int],
    first: tuple[int, int],
) -> tuple[tuple[int, int], ...]:
    moves = []
    here = last
    while True:
        before, i = came[here]
        moves.append((before[0], i))
        if before == first:
            return tuple(reversed(moves))
        here = before
