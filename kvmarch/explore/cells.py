"""A machine taken apart into cells, and who reads and writes which.

A cell is one variable of one part, or one whole piece (a page, a table). Its value
is known by a small number, so that a state of the machine is a few numbers. While
:func:`watched` is on, every access to a variable is written down: what a step read
and wrote is found out by running it, never declared.
"""

__all__ = ["Cells", "Image", "Log", "watched"]

from array import array
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

from kvmarch.errors import ExploreError, NotSymmetricError

ATOMS = (int, str, type(None), bool, float, bytes)
_FIXED = (
    *ATOMS,
    type,
    range,
    frozenset,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
    Coroutine,
    Generator,
)
"""What never changes, or is no state of the machine."""


def _slots_of(kind: type) -> tuple[str, ...]:
    return tuple(
        name
        for base in kind.__mro__
        for name, value in vars(base).items()
        if isinstance(value, MemberDescriptorType)
    )


def _is_frozen(kind: type) -> bool:
    settings = getattr(kind, "__dataclass_params__", None)
    return settings is not None and settings.frozen


class Image:
    """The contents of every object of a machine, to be put back in place.

    :param roots: from where every object is reached.
    :param fixed: classes whose objects are taken as they are.
    """

    def __init__(self, roots: Iterable[Any], fixed: tuple[type, ...] = ()) -> None:
        self.objects: dict[int, Any] = {}
        """By id, everything that was reached; it stays alive here."""
        self._restores: list[Callable[[], None]] = []
        self.fixed = fixed
        self._fixed = (*_FIXED, *fixed)
        queue = deque(roots)
        while queue:
            queue.extend(self._keep(queue.popleft()))

    def _keep(self, thing: Any) -> Iterable[Any]:
        """Remember an object's contents; return what it leads to."""
        kind = type(thing)
        if isinstance(thing, self._fixed) or id(thing) in self.objects:
            return ()
        self.objects[id(thing)] = thing
        if isinstance(thing, dict):
            self._keep_dict(thing)
            return (*thing.keys(), *thing.values())
        if isinstance(thing, list | bytearray | array | deque):
            self._keep_run(thing)
            return tuple(thing)
        if isinstance(thing, set):
            self._keep_set(thing)
            return tuple(thing)
        if isinstance(thing, tuple) or _is_frozen(kind):
            return thing if isinstance(thing, tuple) else ()
        if kind.__module__.split(".")[0].startswith(("builtins", "functools", "re")):
            return ()
        inside: list[Any] = []
        own = getattr(thing, "__dict__", None)
        if own is not None:
            self._keep_dict(own)
            inside.extend(own.values())
        for name in _slots_of(kind):
            if hasattr(thing, name):
                value = getattr(thing, name)
                self._keep_slot(thing, kind, name, value)
                inside.append(value)
        return inside

    def _keep_dict(self, thing: dict[Any, Any]) -> None:
        saved = dict(thing)

        def restore() -> None:
            if thing != saved or list(thing) != list(saved):
                thing.clear()
                dict.update(thing, saved)

        def restore_wiring() -> None:
            thing.clear()
            dict.update(thing, saved)

        # Comparing the values would run through the whole machine.
        flat = all(isinstance(value, ATOMS) for value in saved.values())
        self._restores.append(restore if flat else restore_wiring)

    def _keep_run(self, thing: Any) -> None:
        saved = thing[:] if not isinstance(thing, deque) else list(thing)

        def restore() -> None:
            if isinstance(thing, deque):
                thing.clear()
                thing.extend(saved)
            else:
                thing[:] = saved

        self._restores.append(restore)

    def _keep_set(self, thing: set[Any]) -> None:
        saved = set(thing)

        def restore() -> None:
            thing.clear()
            thing.update(saved)

        self._restores.append(restore)

    def _keep_slot(self, thing: Any, kind: type, name: str, value: Any) -> None:
        descriptor = next(
            vars(base)[name]
            for base in kind.__mro__
            if isinstance(vars(base).get(name), MemberDescriptorType)
        )
        write = descriptor.__set__
        self._restores.append(lambda: write(thing, value))

    def restore(self) -> None:
        """Put every object back as it was."""
        for restore in self._restores:
            restore()


class Log:
    """Accesses since it was last cleared: each an object and its variable."""

    __slots__ = ("read", "stored")

    def __init__(self) -> None:
        self.read: list[tuple[Any, str]] = []
        """What was read, and may have been changed in place."""
        self.stored: list[tuple[Any, str]] = []
        """What was given another value."""

    def clear(self) -> None:
        """Forget all."""
        self.read.clear()
        self.stored.clear()


_log = Log()


def _watch(kind: type, name: str) -> property:
    slot = vars(kind).get(name)
    log, stored = _log.read.append, _log.stored.append
    if isinstance(slot, MemberDescriptorType):
        read, store = slot.__get__, slot.__set__

        def get_slot(self: Any) -> Any:
            log((self, name))
            return read(self)

        def set_slot(self: Any, value: Any) -> None:
            stored((self, name))
            store(self, value)

        return property(get_slot, set_slot)

    def get(self: Any) -> Any:
        log((self, name))
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(name) from None

    def put(self: Any, value: Any) -> None:
        stored((self, name))
        self.__dict__[name] = value

    return property(get, put)


@contextmanager
def watched(kinds: Iterable[type[Any]]) -> Iterator[Log]:
    """Write down every access to a variable of these classes.

    :returns: the log; whoever uses it clears it.
    """
    before: list[tuple[type[Any], str, Any]] = []
    absent = object()
    try:
        for kind in dict.fromkeys(kinds):
            for name in kind.variables:
                before.append((kind, name, vars(kind).get(name, absent)))
                setattr(kind, name, _watch(kind, name))
        _log.clear()
        yield _log
    finally:
        for kind, name, value in reversed(before):
            if value is absent:
                delattr(kind, name)
            else:
                setattr(kind, name, value)
        _log.clear()


def _sorted(names: Any) -> Hashable:
    """Return a list of names, or of such lists, without its order."""
    if any(isinstance(item, list) for item in names):
        return tuple(tuple(sorted(item)) for item in names)
    return tuple(sorted(names))


def _seen(
    view: Callable[[int, Hashable], Hashable], member: int, get: Callable[[], Hashable]
) -> Hashable:
    return view(member, get())


class Cells:
    """The cells of one machine.

    :param image: every object that the machine began with.
    """

    def __init__(self, image: Image) -> None:
        self.unordered: set[int] = set()
        """Cells to which each task adds, and from which it takes, only its own."""
        self.names: list[str] = []
        """By cell, what people call it."""
        self.keys: list[Hashable] = []
        """By cell, what tells it from all others, in any engine."""
        self.values: list[list[Hashable]] = []
        """By cell, the values that it has had, by number; 0 is the first."""
        self._numbers: list[dict[Hashable, int]] = []
        self._get: list[Callable[[], Hashable]] = []
        self._cell_of: dict[Hashable, int] = {}
        self._known = image.objects
        self._fixed = image.fixed
        self.now: list[int] = []
        """By cell, the number of its value in the machine as it stands."""
        self._begun = False
        self._piece: dict[int, Any] = {}
        self.fresh: list[tuple[int, int]] | None = None
        """Cells and numbers of values that are new, if somebody wants to know."""
        kinds = {type(thing) for thing in image.objects.values()}
        self.kinds = sorted(
            {
                base
                for kind in kinds
                for base in kind.__mro__
                if "variables" in vars(base) and vars(base)["variables"]
            },
            key=lambda kind: kind.__qualname__,
        )
        for thing in tuple(image.objects.values()):
            kind = type(thing)
            if not hasattr(kind, "variables"):
                continue
            for name in ("",) if hasattr(kind, "key") else kind.variables:
                self.look(self.cell(thing, name))
        self._begun = True

    # -- finding ---------------------------------------------------------------

    def cell(self, owner: Any, name: str) -> int:
        """Return the cell of a variable; a piece is one cell as a whole."""
        key: Hashable
        if hasattr(owner, "key"):
            key = owner.key()
            number = self._cell_of.get(key)
            if number is None:
                number = self._add(key, str(key), owner, "")
            # The same page or table may be another object by now.
            self._piece[number] = owner
            return number
        key = id(owner), name
        number = self._cell_of.get(key)
        if number is None:
            if id(owner) not in self._known:
                raise ExploreError(
                    f"{type(owner).__name__}.{name}: a part of the machine was made "
                    "after the search began; only pieces may be"
                )
            number = self._add(key, f"{owner!r}.{name}", owner, name)
        return number

    def _add(self, key: Hashable, title: str, owner: Any, name: str) -> int:
        number = len(self.names)
        self._cell_of[key] = number
        self.names.append(title)
        self.keys.append(key)
        # A piece that is made later has number 0 where it is not there yet.
        self.values.append([None] if self._begun else [])
        self._numbers.append({None: 0} if self._begun else {})
        self.now.append(0)
        if name:
            variable = owner.__dict__ if hasattr(owner, "__dict__") else None
            if variable is None:
                raise ExploreError(f"{title}: parts with slots cannot be explored")
            if name in getattr(owner, "unordered", ()):
                self.unordered.add(number)
                self._get.append(lambda: _sorted(variable.get(name)))
            else:
                self._get.append(lambda: self.freeze(variable.get(name)))
        else:
            self._piece[number] = owner
            self._get.append(lambda: self._freeze_piece(self._piece[number]))
        return number

    def _freeze_piece(self, piece: Any) -> Hashable:
        return tuple(self.freeze(getattr(piece, name)) for name in piece.variables)

    # -- values ----------------------------------------------------------------

    def look(self, cell: int) -> int:
        """Return the number of a cell's value as the machine stands."""
        return self.number_of(cell, self._get[cell]())

    def number_of(self, cell: int, value: Hashable) -> int:
        """Return the number of a value of a cell, a new one if it never had it."""
        numbers = self._numbers[cell]
        number = numbers.get(value)
        if number is None:
            number = numbers[value] = len(numbers)
            self.values[cell].append(value)
            if self.fresh is not None:
                self.fresh.append((cell, number))
        return number

    def share(
        self, orbit: tuple[int, ...], view: Callable[[int, Hashable], Hashable]
    ) -> None:
        """Let the cells of tasks that can be exchanged number their values alike.

        :param orbit: the cell of each of the tasks.
        :param view: returns a value as it is for one of them, whichever.
        :raises NotSymmetricError: they do not begin with the same value.
        """
        first = self._get[orbit[0]]
        begin = view(0, first())
        values: list[Hashable] = [begin]
        numbers = {begin: 0}
        for member, cell in enumerate(orbit):
            get = self._get[cell]
            seen = view(member, get())
            if seen != begin:
                raise NotSymmetricError(
                    f"{self.names[orbit[0]]} and {self.names[cell]} differ from the "
                    "beginning"
                )
            self._get[cell] = partial(_seen, view, member, get)
            self.values[cell] = values
            self._numbers[cell] = numbers

    def in_order(self, cell: int, value: Any) -> Hashable:
        """Return a value in which names were exchanged, sorted as the cell sorts it."""
        if cell not in self.unordered:
            frozen: Hashable = value
            return frozen
        if any(isinstance(item, tuple) for item in value):
            return tuple(tuple(sorted(item)) for item in value)
        return tuple(sorted(value))

    def freeze(self, value: Any) -> Hashable:
        """Return a value as one that can be compared and hashed."""
        kind = type(value)
        same: Hashable = value
        if kind in ATOMS:
            return same
        if isinstance(value, tuple):
            return tuple([self.freeze(item) for item in value])
        if kind is list:
            return "list", *[self.freeze(item) for item in value]
        if isinstance(value, Counter | dict):
            return "dict", *sorted(
                ((self.freeze(k), self.freeze(v)) for k, v in value.items()), key=repr
            )
        if isinstance(value, set | frozenset):
            return frozenset([self.freeze(item) for item in value])
        if isinstance(value, bytearray | array):
            return bytes(value)
        if hasattr(kind, "key") and hasattr(kind, "variables"):
            key = value.key()
            number = self.cell(value, "")
            return "piece", key, number
        return self._freeze_object(value)

    def _freeze_object(self, value: Any) -> Hashable:
        kind = type(value)
        same: Hashable = value
        if isinstance(value, self._fixed):
            return kind.__name__, id(value)
        if id(value) in self._known and not hasattr(value, "freeze"):
            return kind.__name__, id(value)
        if hasattr(kind, "variables"):
            if id(value) in self._known:
                return kind.__name__, id(value)
            raise ExploreError(f"{value!r} was made after the search began")
        if hasattr(value, "freeze"):
            frozen: Hashable = self.freeze(value.freeze())
            return frozen
        if _is_frozen(kind):
            return same
        if isinstance(value, Coroutine | Generator):
            return kind.__name__
        if isinstance(value, MethodType):
            return "method", value.__func__, self.freeze(value.__self__)
        if isinstance(value, partial):
            return "partial", value.func, self.freeze(value.args)
        if isinstance(value, FunctionType):
            inside = [self.freeze(c.cell_contents) for c in value.__closure__ or ()]
            return "function", value.__code__, *inside
        if isinstance(value, _FIXED):
            return same
        if is_dataclass(kind):
            return kind.__name__, *(
                self.freeze(getattr(value, field.name)) for field in fields(kind)
            )
        if isinstance(value, Iterator):
            raise ExploreError(
                f"a {kind.__name__} is kept over a step; its position cannot be seen"
            )
        raise ExploreError(f"{kind.__name__} {value!r} cannot be part of a state")
