"""How a run can end, told so that two engines can compare it."""

__all__ = ["End", "end_in", "end_of"]

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from kvmarch.explore.cells import Cells
from kvmarch.explore.node import NUMBER
from kvmarch.explore.runner import Runner
from kvmarch.explore.space import Space


@dataclass(frozen=True, slots=True)
class End:
    """A state in which no task can move.

    :param waiting: tasks that are not done, each with the step at which it waits.
    :param values: every variable or piece that is not as it was in the beginning.
    """

    waiting: tuple[tuple[str, str], ...]
    values: frozenset[tuple[Hashable, Hashable]]


def _plain(value: Any) -> Any:
    """Return a value without the numbers that one engine gave its pieces."""
    if not isinstance(value, tuple):
        return value
    if len(value) == 3 and value[0] == "piece":
        return value[:2]
    return tuple(_plain(item) for item in value)


def _values(cells: Cells, numbers: dict[int, int]) -> frozenset[Any]:
    return frozenset(
        (cells.keys[cell], _plain(cells.values[cell][number]))
        for cell, number in numbers.items()
        if number
    )


def end_of(runner: Runner) -> End:
    """Return where a run stands that has come to its end."""
    waiting = tuple(
        (task.name, task.pending.op.name) for task in runner.tasks if not task.done
    )
    cells = runner.cells
    return End(waiting, _values(cells, dict(enumerate(cells.now))))


def end_in(space: Space, state: int) -> End:
    """Return what a state is in which no task can move."""
    waiting = []
    for i, name in enumerate(space.names):
        number = state >> space.shifts[i] & NUMBER
        if number != space.done_of[i]:
            waiting.append((name, space.nodes[i][number].name))
    numbers = {cell: space.digits.number_in(state, cell) for cell in space.digits.of}
    return End(tuple(waiting), _values(space.cells, numbers))
