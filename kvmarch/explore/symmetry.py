"""Identical vCPUs: states that differ only by who is who are one state.

Tasks that run the same lines, each on a vCPU of its own, can be exchanged. Of all the
states that come of one by exchanging them the search keeps one, the sorted one: the
twins in the order of their standpoints and of the cells that are theirs. Lengths stay
as they are, and verdicts; counts are of states that are different in more than that.

That the model treats twins alike is not taken for granted. What cannot be seen to be
alike raises :class:`~kvmarch.errors.NotSymmetricError`, and the search is made anew
without symmetry.
"""

__all__ = ["Symmetry"]

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise, permutations
from typing import Any

from kvmarch.errors import NotSymmetricError
from kvmarch.explore.cells import Cells
from kvmarch.explore.digits import Digits
from kvmarch.explore.node import BLOCKED_STEP, DIGIT, FIELD, NUMBER, Node
from kvmarch.explore.twins import SORTED, TIED, Plan, TwinClass, Twins


class Symmetry:
    """Sorts the twins of a state.

    :param classes: the twins; each set for itself.
    :param names: of all tasks.
    """

    def __init__(
        self,
        classes: Iterable[Twins],
        names: Sequence[str],
        cells: Cells,
        digits: Digits,
    ) -> None:
        self.names = names
        self.cells = cells
        self.digits = digits
        self.where = (1 << FIELD * len(names)) - 1
        self.classes = [TwinClass(twins, names, cells) for twins in classes]
        self.class_of = {i: group for group in self.classes for i in group.tasks}
        """By task that has twins, its class."""
        self._naming: set[int] = set()
        """Cells of nobody's own that have named a twin."""
        self._own: set[int] = set()
        self._naming_mask = 0
        self._next = -1
        for group in self.classes:
            for orbit in group.orbits:
                self._own.update(orbit)
                cells.share(orbit, group.view)
                digits.share(orbit)
        cells.fresh = []
        self.plans = self.classes[0].by_places if len(self.classes) == 1 else {}
        """Plans by standpoints, for those who look before they call :meth:`sort`."""

    # -- while transitions are found -------------------------------------------

    def peers(self, i: int) -> tuple[int, ...]:
        """Return a task and its twins."""
        group = self.class_of.get(i)
        return (i,) if group is None else group.tasks

    def key(self, i: int, key: Hashable) -> Hashable:
        """Return a standpoint's key as it is for a task or any of its twins.

        :raises NotSymmetricError: a task stands somewhere that tells twins apart.
        """
        own = self.class_of.get(i)
        for group in self.classes:
            if group is own:
                seen: Hashable = group.view(group.tasks.index(i), key)
                key = seen
            elif group.names_one(key):
                raise NotSymmetricError(
                    f"{self.names[i]} has one of {self._list(group)} before it, not all"
                )
        return key

    def _list(self, group: TwinClass) -> str:
        return ", ".join(self.names[i] for i in group.tasks)

    def __str__(self) -> str:
        return "; ".join(self._list(group) for group in self.classes)

    # -- states ----------------------------------------------------------------

    def refresh(self) -> None:
        """Take up values and digits that are new."""
        cells, digits = self.cells, self.digits
        if not cells.fresh and digits.end == self._next:
            return
        while cells.fresh:
            cell, number = cells.fresh.pop()
            if number == 0 or cell in self._own or cell in self._naming:
                continue
            for group in self.classes:
                values = cells.values[cell]
                if group.names_one(values[number]) or group.names_one(values[0]):
                    self._naming.add(cell)
                    self._check_first(group, cell)
        self._next = digits.end
        self._naming_mask = digits.mask(self._naming)
        for group in self.classes:
            group.mask = digits.mask({orbit[0] for orbit in group.orbits})
            for renames in group.renames.values():
                renames.clear()

    def _check_first(self, group: TwinClass, cell: int) -> None:
        """Check that what a cell begins with is the same for all twins."""
        first = self.cells.values[cell][0]
        for to in permutations(group.identity):
            if self._image(group, cell, first, to) != first:
                raise NotSymmetricError(
                    f"{self.cells.names[cell]} tells {self._list(group)} apart from "
                    "the beginning"
                )

    def _image(self, group: TwinClass, cell: int, value: Any, to: Sequence[int]) -> Any:
        image = group.permute(value, to)
        return self.cells.in_order(cell, image)

    def sort(self, state: int) -> int:
        """Return the one state that stands for all that differ only by who is who."""
        where = self.where
        for group in self.classes:
            plan = group.by_places.get(state & where)
            if plan is None:
                plan = self._plan(group, state & where)
            if plan is TIED:
                plan = self._plan_of_tied(group, state)
            if plan is not SORTED:
                state = self._apply(group, state, plan)
        return state

    def _plan(self, group: TwinClass, places: int) -> Plan:
        """Find out how the twins are sorted by their standpoints, and remember it."""
        numbers = [places >> shift & NUMBER for shift in group.shifts]
        if len(set(numbers)) < group.size:
            plan = TIED
        elif sorted(numbers) == numbers:
            plan = SORTED
        else:
            order = tuple(sorted(group.identity, key=numbers.__getitem__))
            plan = group.plan(order, places)
        group.by_places[places] = plan
        return plan

    def _plan_of_tied(self, group: TwinClass, state: int) -> Plan:
        """Find out how twins are sorted of which some stand at the same place."""
        mask = group.mask
        keys = [
            (state >> shift & NUMBER, state >> DIGIT * member & mask)
            for member, shift in enumerate(group.shifts)
        ]
        if all(a <= b for a, b in pairwise(keys)):
            return SORTED
        order = tuple(sorted(group.identity, key=keys.__getitem__))
        plan = group.tied.get((order, state & self.where))
        if plan is None:
            plan = group.plan(order, state & self.where)
            group.tied[order, state & self.where] = plan
        return plan

    def _apply(self, group: TwinClass, state: int, plan: Plan) -> int:
        """Return a state with the twins in another order."""
        mask = group.mask
        change, order, shifts, renames = plan
        part = state & self._naming_mask
        if part:
            renamed = renames.get(part)
            if renamed is None:
                renamed = renames[part] = self._rename(group, state, order)
            change += renamed
        for here, there in shifts:
            change += (state >> there & mask) - (state >> here & mask) << here
        return state + change

    def _rename(self, group: TwinClass, state: int, order: tuple[int, ...]) -> int:
        """Return what changes in the cells that name twins."""
        cells, digits = self.cells, self.digits
        to = [0] * group.size
        for place, member in enumerate(order):
            to[member] = place
        change = 0
        for cell in self._naming:
            number = digits.number_in(state, cell)
            image = self._image(group, cell, cells.values[cell][number], to)
            change += digits.change(cell, number, cells.number_of(cell, image))
        self.refresh()
        return change

    # -- schedules -------------------------------------------------------------

    def sorting(self, state: int) -> tuple[int, tuple[int, ...]]:
        """Return the sorted state, and by task whose place it takes there."""
        to = list(range(len(self.names)))
        for group in self.classes:
            plan = self._plan_of_tied(group, state)
            for place, member in enumerate(plan.order):
                to[group.tasks[member]] = group.tasks[place]
            if plan.order:
                state = self._apply(group, state, plan)
        return state, tuple(to)

    def exchanged(self, state: int) -> set[int]:
        """Return every state that comes of one by exchanging twins."""
        found = {state}
        for group in self.classes:
            found = {
                self._apply(group, other, group.plan(order, other & self.where))
                for other in found
                for order in permutations(group.identity)
            }
        return found

    # -- audit -----------------------------------------------------------------

    def audit(self, nodes: Sequence[Sequence[Node]]) -> int:
        """Compare what was learnt of each task with what was learnt of its twins.

        A transition and the one that it becomes when two twins are exchanged must lead
        to states that the same exchange makes of each other, and lose the same.

        :param nodes: by task and number, the standpoints.
        :returns: how many transitions were compared: those that were learnt of both.
        :raises NotSymmetricError: two of them differ.
        """
        compared = 0
        for group in self.classes:
            for first in range(group.size - 1):
                for i in range(len(nodes)):
                    compared += self._audit_task(group, first, i, nodes)
        return compared

    def _audit_task(
        self, group: TwinClass, first: int, i: int, nodes: Sequence[Sequence[Node]]
    ) -> int:
        order = list(group.identity)
        order[first], order[first + 1] = first + 1, first
        other = i
        if i in group.tasks:
            other = group.tasks[order[group.tasks.index(i)]]
        compared = 0
        for number, node in enumerate(nodes[i]):
            mirror = nodes[other][number]
            if (
                self._exchanged_mask(group, first, node.mask)
                != mirror.mask & ~self.where
            ):
                continue
            for part, change in node.known.items():
                plan = group.plan(tuple(order), part & self.where)
                found = mirror.known.get(self._apply(group, part, plan))
                if found is None:
                    continue
                compared += 1
                if not self._agree(group, plan, part, change, found):
                    raise NotSymmetricError(
                        f"{self.names[i]} and {self.names[other]} do not do the same "
                        f"at {node.name!r}"
                    )
        return compared

    def _exchanged_mask(self, group: TwinClass, first: int, mask: int) -> int:
        low, high = DIGIT * first, DIGIT * (first + 1)
        differ = (mask >> low ^ mask >> high) & group.mask
        return (mask ^ (differ << low | differ << high)) & ~self.where

    def _agree(
        self, group: TwinClass, plan: Plan, part: int, change: Any, found: Any
    ) -> bool:
        if change is BLOCKED_STEP or found is BLOCKED_STEP:
            return change is found
        # So large that the sum that keeps hashes apart stays above 0.
        here = part + self.digits.room
        after = here + change
        mine = {lost.property for lost in getattr(change, "violations", ())}
        its = {lost.property for lost in getattr(found, "violations", ())}
        there = group.plan(plan.order, after & self.where)
        return mine == its and self._apply(group, after, there) == (
            self._apply(group, here, plan) + found
        )
