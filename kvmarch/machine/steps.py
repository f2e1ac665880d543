"""Steps: the only things that suspend a kernel path.

A path is a coroutine. Each ``await`` in it hands a :class:`Step`, one atomic
action described as data, to whoever drives the path, and the action's result
comes back. The same path can so be run once or explored in every interleaving.

A task that is alone on a machine that nobody observes needs no driver between its
steps: inside :func:`directly` an awaited step is done on the spot, and suspends the
path only if it must wait or the bound is reached.
"""

__all__ = ["BLOCKED", "Op", "Path", "Scope", "Step", "directly", "op"]

from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import coroutine
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeAlias, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")

Path: TypeAlias = Coroutine["Step[Any]", Any, R]
"""What calling a kernel path returns."""


class _Blocked:
    """The one value that says: this step cannot happen yet."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "BLOCKED"


BLOCKED: Any = _Blocked()
"""What a step returns that must wait; it has changed nothing and is tried again."""


class _Direct:
    """The machine whose only task does its steps on the spot, and its bound."""

    __slots__ = ("bound", "world")

    def __init__(self) -> None:
        self.world: Any = None
        self.bound = 0


_DIRECT = _Direct()


@contextmanager
def directly(world: Any, bound: int) -> Iterator[None]:
    """Do awaited steps on the spot, until the machine has taken ``bound`` steps."""
    before = _DIRECT.world, _DIRECT.bound
    _DIRECT.world, _DIRECT.bound = world, bound
    try:
        yield
    finally:
        _DIRECT.world, _DIRECT.bound = before


def check_sleep(world: Any, operation: "Op[..., Any]") -> None:
    """Record a loss if the running task may sleep now and must not."""
    task = world.current
    if task.atomic:
        holds = ", ".join(lock.name for lock, _ in task.held)
        world.violate("locks", f"{operation.name} may sleep while {holds} is held")


class Step(Generic[R]):
    """One atomic action, as data: await it and its result comes back."""

    __slots__ = ("args", "op")

    def __init__(self, operation: "Op[..., R]", args: tuple[Any, ...]) -> None:
        self.op = operation
        self.args = args

    def __await__(self) -> Generator["Step[Any]", Any, R]:
        world = _DIRECT.world
        if world is not None and world.steps < _DIRECT.bound:
            operation = self.op
            if operation.sleeps:
                check_sleep(world, operation)
            value = operation.fn(*self.args)
            if value is not BLOCKED:
                world.steps += 1
                return value
        result: R = yield self
        return result

    def __repr__(self) -> str:
        return self.op.name


class Op(Generic[P, R]):
    """A plain function on the machine, run as one atomic step.

    Calling it makes the step; :attr:`fn` is the function itself, for use inside
    another step.

    :param sleeps: whether the kernel may sleep here, which is forbidden while a
        spinlock is held.
    """

    __slots__ = ("fn", "name", "sleeps")

    def __init__(
        self, fn: Callable[P, R], *, name: str = "", sleeps: bool = False
    ) -> None:
        self.fn: Callable[P, R] = fn
        self.name = name or fn.__name__.strip("_")
        self.sleeps = sleeps

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Step[R]:
            """Return the step that calls the function with these arguments."""
            ...

    else:

        @coroutine
        def __call__(self, *args: Any) -> Any:
            """Make the step when awaited; its arguments are given by position."""
            world = _DIRECT.world
            if world is not None and world.steps < _DIRECT.bound:
                if self.sleeps:
                    check_sleep(world, self)
                value = self.fn(*args)
                if value is not BLOCKED:
                    world.steps += 1
                    return value
            return (yield Step(self, args))

    def __repr__(self) -> str:
        return f"Op({self.name})"


@overload
def op(fn: Callable[P, R], /) -> Op[P, R]: ...
@overload
def op(
    *, name: str = "", sleeps: bool = False
) -> Callable[[Callable[P, R]], Op[P, R]]: ...
def op(
    fn: Callable[..., Any] | None = None, /, *, name: str = "", sleeps: bool = False
) -> Any:
    """Make an :class:`Op` of a function: ``@op`` or ``@op(sleeps=True)``."""
    if fn is not None:
        return Op(fn)
    return lambda function: Op(function, name=name, sleeps=sleeps)


@coroutine
def _finished() -> Generator[Any, Any, None]:
    """Take no step."""
    return
    yield


_NOTHING = _finished()
"""Awaiting it takes no step: it is done, or a path that is closed ends here."""
# A generator that has ended stays ended, so that one serves for all.
next(iter(_NOTHING), None)


class Scope:
    """``async with``: one step on the way in, one on the way out.

    When an exception passes, the way out takes no step: either the path is being
    closed by its driver, or the run has failed and ends here.
    """

    __slots__ = ("enter", "leave")

    def __init__(self, enter: Step[Any], leave: Step[Any]) -> None:
        self.enter, self.leave = enter, leave

    def __aenter__(self) -> Any:
        return _at_once(self.enter)

    def __aexit__(self, kind: type[BaseException] | None, *_: object) -> Any:
        return _at_once(self.leave) if kind is None else _NOTHING


def _at_once(step: Step[Any]) -> Any:
    """Do a step on the spot where that is allowed; return what is to be awaited."""
    world = _DIRECT.world
    if world is None or step.op.sleeps or world.steps >= _DIRECT.bound:
        return step
    if step.op.fn(*step.args) is BLOCKED:
        return step
    world.steps += 1
    return _NOTHING
