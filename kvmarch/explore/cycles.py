"""Livelock: a cycle that goes on for ever although every task gets its turn."""

__all__ = ["find_fair_cycle"]

from collections.abc import Collection, Iterable, Iterator

from kvmarch.explore.node import BLOCKED_STEP, NUMBER, Node
from kvmarch.explore.space import Space


def _control_cycle(space: Space) -> bool:
    """Return whether any task's control graph has a cycle, as retry loops have."""
    for i, nodes in enumerate(space.nodes):
        shift = space.shifts[i]
        following: list[set[int]] = []
        for number, node in enumerate(nodes):
            after = set()
            for part, change in _changes(node):
                if change is not BLOCKED_STEP:
                    after.add(part + change >> shift & NUMBER)
            following.append(after)
            del number
        if _has_cycle(following):
            return True
    return False


def _changes(node: Node) -> Iterator[tuple[int, int]]:
    for known in (*node.older, node.latest):
        yield from known.by_part.items()


def _has_cycle(following: list[set[int]]) -> bool:
    before = [0] * len(following)
    for targets in following:
        for target in targets:
            before[target] += 1
    free = [n for n, count in enumerate(before) if not count]
    seen = 0
    while free:
        seen += 1
        for target in following[free.pop()]:
            before[target] -= 1
            if not before[target]:
                free.append(target)
    return seen < len(following)


def _moves(space: Space, state: int) -> list[tuple[int, int]]:
    """Return task and next state of every transition from a state that was expanded."""
    found = []
    for i, shift in enumerate(space.shifts):
        number = state >> shift & NUMBER
        if number == space.done_of[i]:
            continue
        node = space.nodes[i][number]
        change = node.known.get(state & node.mask)
        if change is None:
            # A reduced search has not asked every task whether it can move.
            change = space.find(state, i)
        if change is not BLOCKED_STEP:
            found.append((i, state + change))
    return found


def _components(
    space: Space, roots: Iterable[int], allowed: Collection[int]
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
        work = [(root, iter(_moves(space, root)))]
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
                    work.append((after, iter(_moves(space, after))))
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
                    loops = len(component) > 1 or any(
                        after == state for _task, after in _moves(space, state)
                    )
                    if loops:
                        yield component


def find_fair_cycle(space: Space) -> tuple[int, tuple[int, ...]] | None:
    """Return a state of a cycle that weak fairness allows, and who moves in it.

    A task that could move in every state of the cycle must move in it; one that waits
    somewhere in it need not. Locks are queued: whoever waits for one that is given up
    in the cycle gets it in the end, so a task must not wait at a lock for ever that
    is free somewhere in the cycle.
    """
    if not _control_cycle(space):
        return None
    waiting = [_components(space, (space.initial,), space.parents)]
    while waiting:
        for component in waiting.pop():
            inside = set(component)
            moving, idle_can = _who(space, inside)
            if moving and not idle_can:
                return min(component), tuple(sorted(moving))
            # A smaller cycle may leave out the states in which those could move that
            # the larger one forgets.
            rest = {
                state
                for state in component
                if not idle_can.intersection(i for i, _ in _moves(space, state))
            }
            if len(rest) < len(inside):
                waiting.append(_components(space, sorted(rest), rest))
    return None


def _who(space: Space, inside: set[int]) -> tuple[set[int], set[int]]:
    """Return who moves inside a set of states, and who could but only leaves it."""
    moving: set[int] = set()
    can: set[int] = set()
    for state in inside:
        for i, after in _moves(space, state):
            can.add(i)
            if after in inside:
                moving.add(i)
    # With queued locks, one that could move somewhere in the cycle will.
    return moving, can - moving
