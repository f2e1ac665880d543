"""How a state was reached: the states on the way, and who moved."""

from __future__ import annotations

__all__ = ["move_between", "moves_to", "path_to"]

from itertools import pairwise
from typing import TYPE_CHECKING

from kvmarch.errors import ExploreError
from kvmarch.explore.node import BLOCKED_STEP, NUMBER

if TYPE_CHECKING:
    from kvmarch.explore.space import Space


def path_to(space: Space, state: int) -> list[int]:
    """Return the states through which the search has reached one."""
    chain = []
    while state >= 0:
        chain.append(state)
        state = space.parents[state]
    chain.reverse()
    return chain


def moves_to(space: Space, state: int) -> list[tuple[int, int]]:
    """Return tasks and their steps, in turn, that lead to a state.

    :param state: one that the search has reached, or that differs from one only by
        which twin is which.
    """
    symmetry = space.symmetry
    if symmetry is None:
        return [move_between(space, *pair) for pair in pairwise(path_to(space, state))]
    # Each step was taken in a sorted state and led to one that was then sorted.
    # From the end backwards: who of the sorted state is who in the end.
    state, to = symmetry.sorting(state)
    who = [to.index(i) for i in range(space.count)]
    moves = []
    for before, after in reversed([*pairwise(path_to(space, state))]):
        i, count = move_between(space, before, after)
        change = space.known(before, i)
        _state, to = symmetry.sorting(before + change)
        who = [who[to[i]] for i in range(space.count)]
        moves.append((who[i], count))
    moves.reverse()
    return moves


def move_between(space: Space, before: int, after: int) -> tuple[int, int]:
    """Return which task leads from a state to the next, and its steps."""
    for i in range(space.count):
        change = space.known(before, i)
        if (
            change is None
            or change is BLOCKED_STEP
            or space.sorted(before + change) != after
        ):
            continue
        node = space.nodes[i][before >> space.shifts[i] & NUMBER]
        return i, node.counts.get(before & node.mask, 1)
    raise ExploreError("a state has lost its predecessor")
