"""Where a suspended path stands: what its future depends on, besides the machine."""

__all__ = ["standpoint"]

from collections.abc import Hashable, Iterator
from functools import cache
from gc import get_referents
from operator import length_hint
from types import CodeType, CoroutineType, GeneratorType
from typing import Any

from kvmarch.errors import ExploreError
from kvmarch.explore.cells import Cells
from kvmarch.explore.liveness import live_names

_PATHS = (CoroutineType, GeneratorType)


@cache
def _wanted(code: CodeType, at: int) -> frozenset[str]:
    """Return the locals that may still be read from an instruction on.

    A name that begins with ``_`` and counts attempts only bounds a run; it is no
    state, so that retry loops close.
    """
    return frozenset(
        name for name in live_names(code, at) if not name.startswith("_spin")
    )


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
        wanted = _wanted(code, at)
        for name, value in frame.f_locals.items():
            if name in wanted:
                found.append((name, cells.freeze(value)))
        found.extend(
            _position(thing)
            for thing in inside
            if isinstance(thing, Iterator) and not isinstance(thing, _PATHS)
        )
    return tuple(found)


def _position(iterator: Any) -> Hashable:
    """Return how far a loop has come whose iterator no local shows.

    :raises ExploreError: it cannot be seen.
    """
    kind = type(iterator)
    if kind is enumerate or kind is zip:
        inside = iterator.__reduce__()[1]
        return kind.__name__, *(
            _position(i) if isinstance(i, Iterator) else i for i in inside
        )
    left = length_hint(iterator, -1)
    if left < 0:
        raise ExploreError(
            f"a {kind.__name__} is kept over a step; how far it has come cannot be seen"
        )
    return kind.__name__, left
