"""Neighbours that say the same, drawn together, so that a page need not repeat them."""

__all__ = ["Run", "runs_of"]

from collections.abc import Hashable, Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T", bound=Hashable)


class Run(NamedTuple):
    """Numbers ``first`` to ``last``, end inclusive."""

    first: int
    last: int

    def __str__(self) -> str:
        if self.first == self.last:
            return f"{self.first:#x}"
        return f"{self.first:#x}-{self.last:#x}"


def runs_of(numbered: Iterable[tuple[int, T]]) -> Iterator[tuple[Run, T]]:
    """Yield runs of numbers that follow each other and have the same value.

    :param numbered: number and value, numbers rising.
    """
    run: Run | None = None
    value: T | None = None
    for number, each in numbered:
        if run is not None and number == run.last + 1 and each == value:
            run = Run(run.first, number)
            continue
        if run is not None and value is not None:
            yield run, value
        run, value = Run(number, number), each
    if run is not None and value is not None:
        yield run, value
