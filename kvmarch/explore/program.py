"""What can be explored: a machine and its tasks."""

__all__ = ["Program"]

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from kvmarch.explore.twins import Twins
from kvmarch.machine.run import Task
from kvmarch.machine.world import Piece, Violation, World


class Program(Protocol):
    """What can be explored: a machine and its tasks."""

    world: World

    def roots(self) -> Iterable[Any]:
        """Return objects from which the whole machine is reached."""
        ...

    def tasks(self) -> list[Task]:
        """Return new tasks, in the same order each time, not begun."""
        ...

    def fixed(self) -> tuple[type, ...]:
        """Return classes whose objects never change."""
        ...

    def pieces(self) -> tuple[type[Piece], ...]:
        """Return the classes of pieces that steps make."""
        ...

    def twins(self) -> Sequence[Twins]:
        """Return sets of tasks that can be exchanged, with what is their own."""
        ...

    def always(self) -> tuple[Violation, ...]:
        """Return what is lost in the machine as it stands, between steps."""
        ...

    def at_rest(self, end: str) -> tuple[Violation, ...]:
        """Return what is lost at the end; the machine may be used up."""
        ...
