"""The state of a machine, and what is watched while it changes."""

__all__ = ["Event", "Part", "Piece", "Violation", "World"]

from array import array
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


class Part:
    """A piece of the machine.

    :attr:`variables` names the attributes that are its state: numbers, strings,
    frozen records, other parts, or lists, dicts, sets and byte arrays of those.
    Everything else about a part is wiring and never changes once it is built.
    """

    variables: ClassVar[tuple[str, ...]] = ()
    unordered: ClassVar[tuple[str, ...]] = ()
    """Those of them that are lists whose order says nothing."""

    def __repr__(self) -> str:
        kind, name = type(self).__name__, getattr(self, "name", "")
        return f"{kind}({name})" if name else kind

    def freeze(self) -> Hashable:
        """Return the state as a hashable value."""
        return tuple(_freeze(getattr(self, name)) for name in self.variables)


class Piece(Protocol):
    """A small mutable object that lives in a container of some part.

    :attr:`variables` names the attributes that are its state. Whoever explores all
    interleavings keeps one state per piece, under its :meth:`key`.
    """

    @property
    def variables(self) -> tuple[str, ...]:
        """Return the names of its state; an attribute of the class."""
        ...

    def key(self) -> Hashable:
        """Return what tells this piece from all others of its machine."""
        ...


def _freeze(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, set):
        return frozenset(value)
    if isinstance(value, bytearray | array):
        return bytes(value)
    freeze = getattr(value, "freeze", None)
    frozen: Hashable = value if freeze is None else freeze()
    return frozen


@dataclass(frozen=True, slots=True)
class Violation:
    """A property that was lost: its id, and one sentence about how."""

    property: str
    sentence: str
    task: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a step made visible, named as the kernel's trace event."""

    step: int
    task: str
    name: str
    data: dict[str, Any]

    def __str__(self) -> str:
        text = " ".join(f"{k}={_plain(v)}" for k, v in self.data.items())
        return f"{self.name} {text}".rstrip()


def _plain(value: Any) -> str:
    return f"{value:#x}" if type(value) is int else str(value)


class World:
    """One machine: its parts, the task that runs now, and what was seen.

    :param traced: keep :attr:`events`; a run without them is faster.
    """

    def __init__(self, *, traced: bool = True) -> None:
        self.parts: dict[str, Part] = {}
        self.events: list[Event] = []
        self.violations: list[Violation] = []
        self.traced = traced
        self.silent = False
        """Keep no events although checks go on: for those who explore."""
        self.steps = 0
        self.current: Any = None
        self.observer: Callable[[Any, Any], None] | None = None
        """Called after each step with the task and the step; it only looks."""

    def add(self, name: str, part: Part) -> None:
        """Make a part belong to the machine under a name."""
        self.parts[name] = part

    def note(self, name: str, /, **data: Any) -> None:
        """Record an event of the step that runs now."""
        if self.traced and not self.silent:
            task = self.current.name if self.current is not None else ""
            self.events.append(Event(self.steps, task, name, data))

    def violate(self, property_id: str, sentence: str) -> None:
        """Record that a property is lost."""
        task = self.current.name if self.current is not None else ""
        self.violations.append(Violation(property_id, sentence, task))
        self.note("violation", property=property_id, sentence=sentence)

    def freeze(self) -> Hashable:
        """Return the whole state as a hashable value."""
        return tuple((name, part.freeze()) for name, part in self.parts.items())
