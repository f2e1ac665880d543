"""Where a suspended path stands: what its future depends on, besides the machine."""

__all__ = ["place_of", "standpoint"]

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import is_dataclass
from functools import cache
from gc import get_referents
from types import CodeType, CoroutineType, GeneratorType
from typing import Any

from kvmarch.errors import ExploreError
from kvmarch.explore.cells import Cells
from kvmarch.explore.liveness import live_names
from kvmarch.machine.run import Task

_PATHS = (CoroutineType, GeneratorType)
_BACKWARDS: tuple[type, ...] = (reversed, type(reversed([])))
_ITERATORS: tuple[type, ...] = (
    *_BACKWARDS,
    enumerate,
    zip,
    *(type(iter(kind())) for kind in (bytearray, bytes, dict, list, set, str, tuple)),
    *map(type, (iter({}.values()), iter({}.items()), iter(range(1)))),
    *(type(iter(text)) for text in ("", "\u2028")),
)
"""Iterators that say what is left of what they run over."""
_PLAIN = (bool, bytearray, bytes, deque, float, frozenset, int, list, set, str, tuple)
"""Types, beside dataclasses, of what a path may keep without giving it a name."""


@cache
def _wanted(code: CodeType, at: int) -> tuple[str, ...]:
    """Return the locals that may still be read from an instruction on, sorted.

    The dict of a frame's locals has them in the order in which it was asked for them.
    A name that begins with ``_`` and counts attempts only bounds a run; it is no
    state, so that retry loops close.
    """
    return tuple(
        sorted(name for name in live_names(code, at) if not name.startswith("_spin"))
    )


def place_of(task: Task, cells: Cells) -> Hashable:
    """Return what tells where a task stands; None if it is done."""
    if task.done:
        return None
    held = tuple((lock.name, mode) for lock, mode in task.held)
    step = task.pending
    doing = step.op, cells.freeze(step.args)
    return held, doing, standpoint(task.path, cells)


def standpoint(path: Any, cells: Cells) -> Hashable:
    """Return what tells a suspended path from others: frames, places, live locals."""
    found: list[Hashable] = []
    while path is not None:
        inside = get_referents(path)
        if isinstance(path, CoroutineType):
            frame, path = path.cr_frame, path.cr_await
        elif isinstance(path, GeneratorType):
            frame, path = path.gi_frame, path.gi_yieldfrom
        else:
            # The iterator of an object with __await__ is a generator; nothing else
            # suspends a path.
            break
        if frame is None:
            break
        code, at = frame.f_code, frame.f_lasti
        found.append(code)
        found.append(at)
        seen = frame.f_locals
        found.extend(
            [
                (name, cells.freeze(seen[name]))
                for name in _wanted(code, at)
                if name in seen
            ]
        )
        plain = []
        for thing in inside:
            kind: Any = type(thing)
            what = _what(kind)
            if not what:
                continue
            if what == "plain":
                plain.append(thing)
            elif what == "iterator":
                found.append(_position(thing, cells))
            elif thing is not path:
                _check_over(thing)
        found.extend([cells.freeze(value) for value in _unnamed(plain, seen.values())])
    return tuple(found)


@cache
def _what(kind: Any) -> str:
    """Return what an object is that a frame holds; empty for what is no state."""
    if issubclass(kind, _PATHS):
        return "path"
    if issubclass(kind, _PLAIN) or is_dataclass(kind):
        return "plain"
    return "iterator" if issubclass(kind, Iterator) else ""


def _check_over(kept: Any) -> None:
    """Check that a generator or path that a frame keeps will do nothing more.

    :raises ExploreError: it might; where it stands is not seen.
    """
    frame = kept.gi_frame if isinstance(kept, GeneratorType) else kept.cr_frame
    if frame is not None:
        raise ExploreError(
            f"the {type(kept).__name__} {kept.__name__} is kept over a step; how far "
            "it has come cannot be seen"
        )


def _unnamed(plain: list[Any], named: Iterable[Any]) -> list[Any]:
    """Return those of the plain values that a frame holds which no local shows.

    ``return value`` inside ``async with`` keeps the value while the end of the block
    takes its steps. The names of the path are among them, and do no harm.
    """
    known = list(map(id, named))
    found = []
    for thing in plain:
        try:
            known.remove(id(thing))
        except ValueError:
            found.append(thing)
    return found


def _position(iterator: Any, cells: Cells) -> Hashable:
    """Return what a loop has still before it whose iterator no local shows.

    Where it came from may be gone: a loop is the last to read what it runs over.

    :raises ExploreError: it cannot be seen.
    """
    kind = type(iterator)
    if kind not in _ITERATORS:
        raise ExploreError(
            f"a {kind.__name__} is kept over a step; how far it has come cannot be seen"
        )
    _make, inside, *at = iterator.__reduce__()
    if kind is enumerate or kind is zip:
        return kind.__name__, *(
            _position(i, cells) if isinstance(i, Iterator) else i for i in inside
        )
    items = inside[0]
    if at:
        items = items[: at[0] + 1] if kind in _BACKWARDS else items[at[0] :]
    return kind.__name__, cells.freeze(items)
