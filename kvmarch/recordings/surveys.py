"""Compare the whole tree after a step with the model's."""

__all__ = ["Known", "compare_entries", "compare_frames"]

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import TypeAlias

SHOWN = 4
"""Differences that are shown."""

Known: TypeAlias = dict[int, int]
"""The real page number for each of the model's, as last seen."""
Entry: TypeAlias = tuple[int, int, int]
"""First gfn, level, value."""


def compare_frames(
    real: Mapping[str, tuple[int, ...]],
    model: Mapping[str, tuple[int, ...]],
    pages: Known,
) -> str:
    """Compare which pages of the host's memory there are, and which are the same.

    :param pages: takes the real page number for each of the model's.
    :returns: the first differences; empty if there are none.
    """
    differences = []
    first_real: dict[int, str] = {}
    first_model: dict[int, str] = {}
    for name, wanted in model.items():
        for page, (theirs, ours) in enumerate(
            zip_longest(real.get(name, ()), wanted, fillvalue=0)
        ):
            place = f"{name}[{page}]"
            left = first_real.setdefault(theirs, place) if theirs else "none"
            right = first_model.setdefault(ours, place) if ours else "none"
            if theirs and ours:
                pages[ours] = theirs
            if left != right:
                differences.append(
                    f"{place}: recorded {_page(left, place)}, "
                    f"model {_page(right, place)}"
                )
    return _shown(differences)


def _page(first: str, place: str) -> str:
    if first == "none":
        return "no page"
    return "a page of its own" if first == place else f"the page of {first}"


def compare_entries(
    real: Iterable[Entry],
    model: Iterable[Entry],
    repoint: Callable[[int, int], int],
) -> str:
    """Compare all entries of two trees.

    :param repoint: returns an entry of the model, at its level, with the real page.
    :returns: the first differences; empty if there are none.
    """
    theirs = {(gfn, level): value for gfn, level, value in real}
    ours = {(gfn, level): repoint(value, level) for gfn, level, value in model}
    return _shown(
        f"gfn {gfn:#x} level {level}: recorded {_value(theirs, gfn, level)}, "
        f"model {_value(ours, gfn, level)}"
        for gfn, level in sorted(theirs.keys() | ours.keys())
        if theirs.get((gfn, level)) != ours.get((gfn, level))
    )


def _value(entries: Mapping[tuple[int, int], int], gfn: int, level: int) -> str:
    value = entries.get((gfn, level))
    return "none" if value is None else f"{value:#x}"


def _shown(differences: Iterable[str]) -> str:
    every = list(differences)
    more = len(every) - SHOWN
    return "; ".join([*every[:SHOWN], *([f"and {more} more"] if more > 0 else [])])
