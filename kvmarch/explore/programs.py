"""Small programs on plain variables, to try the engines on."""

__all__ = [
    "SmallProgram",
    "Variable",
    "add",
    "cmpxchg",
    "load",
    "rest",
    "store",
    "wait",
]

from collections.abc import Callable, Iterable
from typing import Any

from kvmarch.explore.twins import Twins
from kvmarch.machine.locks import Lock, LockClass, Srcu
from kvmarch.machine.run import Task
from kvmarch.machine.steps import BLOCKED, Op, Path, Scope, Step, op
from kvmarch.machine.world import Part, Violation, World


class Variable(Part):
    """One shared variable."""

    variables = ("value",)

    def __init__(self, name: str, value: int = 0) -> None:
        self.name = name
        self.value = value

    def __repr__(self) -> str:
        return self.name


@op
def load(variable: Variable) -> int:
    """Return a variable's value."""
    return variable.value


@op
def store(variable: Variable, value: int) -> None:
    """Give a variable a value."""
    variable.value = value


@op
def add(variable: Variable, value: int) -> int:
    """Add to a variable and return the sum, in one step."""
    variable.value += value
    return variable.value


@op
def cmpxchg(variable: Variable, old: int, new: int) -> bool:
    """Give a variable a new value if it has the old one; return whether it had."""
    if variable.value != old:
        return False
    variable.value = new
    return True


@op
def wait(variable: Variable, value: int) -> Any:
    """Go on once a variable has a value."""
    return None if variable.value == value else BLOCKED


@op
def rest() -> None:
    """Do nothing."""


class SmallProgram:
    """Variables, locks and tasks, put together by hand; a ``Program``."""

    def __init__(self) -> None:
        self.world = World(traced=False)
        self._tasks: dict[str, Callable[[], Path[Any]]] = {}
        self._claims: dict[str, Callable[[], bool]] = {}
        self._always: dict[str, Callable[[], bool]] = {}
        self._twins: list[Twins] = []
        self._rank = 0

    # -- what it is made of ----------------------------------------------------

    def variable(self, name: str, value: int = 0) -> Variable:
        """Return a new shared variable."""
        made = Variable(name, value)
        self.world.add(name, made)
        return made

    def lock(self, name: str) -> Lock:
        """Return a new lock, to be taken after all those that were made before."""
        self._rank += 1
        made = Lock(self.world, LockClass(name, self._rank, shared=True))
        self.world.add(name, made)
        return made

    def srcu(self, name: str) -> Srcu:
        """Return a new SRCU domain."""
        made = Srcu(self.world, name)
        self.world.add(name, made)
        return made

    def task(self, name: str, start: Callable[[], Path[Any]]) -> None:
        """Add a task."""
        self._tasks[name] = start

    def alike(self, own: dict[str, tuple[Any, ...]]) -> None:
        """Say that tasks can be exchanged.

        :param own: by name of the task, what is its own, position by position.
        """
        numbers = tuple([*self._tasks].index(name) for name in own)
        self._twins.append(Twins(numbers, tuple(own.values())))

    def claim(
        self, name: str, holds: Callable[[], bool], *, always: bool = False
    ) -> None:
        """Add a property: of the end, or of every moment."""
        (self._always if always else self._claims)[name] = holds

    def violation(self, name: str, sentence: str = "") -> None:
        """Lose a property in the step that runs now."""
        self.world.violate(name, sentence or f"{name} is lost")

    # -- what can be explored --------------------------------------------------

    @property
    def asks_always(self) -> bool:
        """Return whether a property is asked between steps."""
        return bool(self._always)

    def roots(self) -> Iterable[Any]:
        """Return every part."""
        return list(self.world.parts.values())

    def tasks(self) -> list[Task]:
        """Return new tasks."""
        return [Task(name, start) for name, start in self._tasks.items()]

    def fixed(self) -> tuple[type, ...]:
        """Return classes whose objects never change."""
        return Op, Step, Scope, LockClass, World, SmallProgram

    def pieces(self) -> tuple[type, ...]:
        """Return no class: there are only variables and locks."""
        return ()

    def twins(self) -> list[Twins]:
        """Return the tasks that were said to be alike."""
        return self._twins

    def always(self) -> tuple[Violation, ...]:
        """Return the properties of every moment that do not hold."""
        return self._lost(self._always)

    def at_rest(self, end: str) -> tuple[Violation, ...]:
        """Return the properties of the end that do not hold, stuck or not."""
        del end
        return self._lost(self._claims)

    @staticmethod
    def _lost(claims: dict[str, Callable[[], bool]]) -> tuple[Violation, ...]:
        return tuple(
            Violation(name, f"{name} is lost", "")
            for name, holds in claims.items()
            if not holds()
        )
