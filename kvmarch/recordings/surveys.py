"""Compare the whole tree after a step with the model's."""

__all__ = [
    "Known",
    "alike_but_for_tables",
    "compare_entries",
    "compare_frames",
    "exactly",
    "tree_of",
]

from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from typing import Any, TypeAlias

from kvmarch.changes import Kernel

SHOWN = 4
"""Differences that are shown."""

Known: TypeAlias = dict[int, int]
"""The real page number for each of the model's, as last seen."""
Entry: TypeAlias = tuple[int, int, int]
"""First gfn, level, value."""


def tree_of(vm: int) -> str:
    """Return what the tree of a VM is called."""
    return f"tree of VM {vm}" if vm else "tree"


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


def exactly(left: int, right: int, level: int) -> bool:
    """Return whether entries are equal, bit for bit."""
    return left == right


def compare_entries(
    real: Iterable[Entry],
    model: Iterable[Entry],
    repoint: Callable[[int, int], int],
    alike: Callable[[int, int, int], bool] = exactly,
) -> str:
    """Compare all entries of two trees.

    :param repoint: returns an entry of the model, at its level, with the real page.
    :param alike: whether a real entry and one of the model are the same at a level.
    :returns: the first differences; empty if there are none.
    """
    theirs = {(gfn, level): value for gfn, level, value in real}
    ours = {(gfn, level): repoint(value, level) for gfn, level, value in model}
    return _shown(
        f"gfn {gfn:#x} level {level}: recorded {_value(theirs, gfn, level)}, "
        f"model {_value(ours, gfn, level)}"
        for gfn, level in sorted(theirs.keys() | ours.keys())
        if (gfn, level) not in theirs
        or (gfn, level) not in ours
        or not alike(theirs[gfn, level], ours[gfn, level], level)
    )


def alike_but_for_tables(
    k: Kernel, options: Mapping[str, Any]
) -> Callable[[int, int, int], bool]:
    """Return what tells whether entries say the same, wherever KVM's tables lie.

    A frame in an entry that maps no page, nor ever did, is that of a table which hung
    there (arm64, v5.10 to v5.12). Where tables lie is up to the kernel.
    """

    def alike(left: int, right: int, level: int) -> bool:
        if left == right:
            return True
        if any(
            k.entry_pfn.fn(k, options, entry, level) is not None
            for entry in (left, right)
        ):
            return False
        (kind, fields), (other, others) = (
            k.decode.fn(k, options, entry, level) for entry in (left, right)
        )
        return (
            kind == other
            and "pfn" in fields
            and {**fields, "pfn": 0} == {**others, "pfn": 0}
        )

    return alike


def _value(entries: Mapping[tuple[int, int], int], gfn: int, level: int) -> str:
    value = entries.get((gfn, level))
    return "none" if value is None else f"{value:#x}"


def _shown(differences: Iterable[str]) -> str:
    every = list(differences)
    more = len(every) - SHOWN
    return "; ".join([*every[:SHOWN], *([f"and {more} more"] if more > 0 else [])])
