"""Livelock: a cycle that goes on for ever although every task gets its turn."""

__all__ = ["FAIRNESS", "find_fair_cycle"]

from collections.abc import Collection, Iterable, Iterator

from kvmarch.explore.node import BLOCKED_STEP, NUMBER, Node
from kvmarch.explore.space import Space


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
            shift = space.shifts[i]
            after = [
                {
                    part + change >> shift & NUMBER
                    for part, change in _changes(node)
                    if change is not BLOCKED_STEP
                }
                for node in nodes
            ]
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


def _loop_moves(space: Space, loops: Loops, state: int) -> list[int]:
    """Return the states to which a task moves without leaving its loop."""
    found = []
    places = state & space.where
    for i, shift in enumerate(space.shifts):
        of = loops.of[i]
        loop = of[places >> shift & NUMBER]
        if loop < 0:
            continue
        change = space.change(state, i)
        if change is not BLOCKED_STEP:
            after = state + change
            if of[after >> shift & NUMBER] == loop:
                found.append(after)
    return found


def _components(
    space: Space, loops: Loops, roots: Iterable[int], allowed: Collection[int]
) -> Iterator[list[int]]:
    """Yield the strongly connected components that have a cycle (Tarjan).

    :param roots: states from which to begin.
    :param allowed: states that there are.
    """
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    open_states: list[int] = []
    is_open: set[int] = set()
    for root in roots:
        if root in index:
            continue
        work = [(root, iter(_loop_moves(space, loops, root)))]
        index[root] = low[root] = 0
        open_states.append(root)
        is_open.add(root)
        while work:
            state, moves = work[-1]
            for after in moves:
                if after not in allowed:
                    continue
                if after not in index:
                    index[after] = low[after] = len(index)
                    open_states.append(after)
                    is_open.add(after)
                    work.append((after, iter(_loop_moves(space, loops, after))))
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
                    if len(component) > 1 or state in _loop_moves(space, loops, state):
                        yield component


FAIRNESS = ("queued", "unfair")
"""What may be assumed of locks: who waits gets one in the end, or perhaps never."""


def find_fair_cycle(
    space: Space, roots: Iterable[int], fairness: str = "queued"
) -> tuple[int, tuple[int, ...]] | None:
    """Return a state of a cycle that weak fairness allows, and who moves in it.

    A task that could move in every state of the cycle must move in it. With queued
    locks whoever waits for one that is given up in the cycle gets it in the end, so
    that a task that could move anywhere in the cycle must move in it as well; with
    unfair ones it may be passed over for ever.

    :param roots: states of which every cycle has one.
    """
    loops = Loops(space)
    if not loops:
        return None
    waiting = [_components(space, loops, roots, space.parents)]
    while waiting:
        for component in waiting.pop():
            inside = set(component)
            moving, passed_over = _who(space, inside, fairness)
            if moving and not passed_over:
                return min(component), tuple(sorted(moving))
            # A smaller cycle may leave out the states in which those could move that
            # the larger one forgets.
            rest = {
                state
                for state in component
                if not passed_over.intersection(i for i, _ in _moves(space, state))
            }
            if len(rest) < len(inside):
                waiting.append(_components(space, loops, sorted(rest), rest))
    return None


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
