"""Releases, changes between them, and the steps whose body depends on a change.

A change is a row; a :class:`Choice` is a step (or a value) of the kernel with one
variant per set of changes that it needs. :func:`assemble` picks one variant of
each, once. No path ever asks for a version.
"""

__all__ = [
    "RELEASES",
    "Change",
    "Choice",
    "Kernel",
    "Release",
    "Variant",
    "assemble",
    "find_release",
    "find_releases",
]

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvmarch.errors import KernelError, KvmarchError, UnknownNameError
from kvmarch.machine.steps import Op

T = TypeVar("T")

Release = tuple[int, int]
"""A mainline release: (6, 1) is v6.1."""

_MINORS = {3: range(16, 20), 4: range(21), 5: range(20), 6: range(20), 7: range(3)}

RELEASES: tuple[Release, ...] = tuple(
    (major, minor) for major, minors in _MINORS.items() for minor in minors
)
"""Every mainline release from v3.16 to v7.2, oldest first."""

COMPARED: tuple[Release, ...] = (
    (3, 16),
    (3, 17),
    (4, 4),
    (4, 12),
    (4, 15),
    (5, 4),
    (5, 10),
    (5, 12),
    (5, 13),
    (5, 15),
    (5, 17),
    (6, 1),
    (6, 4),
    (6, 9),
    (6, 12),
    (6, 15),
    (7, 2),
)
"""The releases at which behaviour is known to differ and that comparisons show."""


_RELEASE = re.compile(r"v?(\d+)\.(\d+)(?:\.\d+)*(?:[-+~_]\S*)?")
"""A mainline release, a stable one, or a distribution's with something behind it."""
SPAN = ".."
"""Between the first and the last of a row of releases."""


def find_release(name: str) -> Release:
    """Return the release with this name: ``v6.1``, ``6.1`` or ``6.1.170``.

    :raises UnknownNameError: there is no such mainline release here.
    """
    match = _RELEASE.fullmatch(name)
    release = (int(match[1]), int(match[2])) if match else None
    if release not in RELEASES:
        first, last = show_release(RELEASES[0]), show_release(RELEASES[-1])
        raise UnknownNameError(
            "release",
            name,
            [f"every mainline release from {first} to {last}"],
        )
    return release


def find_releases(name: str) -> list[Release]:
    """Return the releases that are meant by one or by a span such as ``v5.4..v6.1``.

    :raises UnknownNameError: there is no such mainline release here.
    :raises KernelError: the span runs backwards.
    """
    first, dots, last = name.partition(SPAN)
    if not dots:
        return [find_release(name)]
    begin = find_release(first) if first else RELEASES[0]
    end = find_release(last) if last else RELEASES[-1]
    if end < begin:
        raise KernelError(f"{name}: {first} is later than {last}")
    return [release for release in RELEASES if begin <= release <= end]


def show_release(release: Release) -> str:
    """Return a release as people write it."""
    return f"v{release[0]}.{release[1]}"


@dataclass(frozen=True, slots=True)
class Change:
    """One patch or series that changed behaviour.

    :param name: how ``--with`` and ``--without`` call it.
    :param subject: what it does, in one line.
    :param since: the first release that has it; None if it was never merged.
    :param commit: 12 hexadecimal digits of the mainline commit, if it is known.
    :param until: the first release that has it no longer.
    :param arch: the architecture that it belongs to; empty for the generic core.
    :param source: where the release comes from, for example a facts section.
    """

    name: str
    subject: str
    since: Release | None
    commit: str = ""
    until: Release | None = None
    arch: str = ""
    source: str = ""

    def is_in(self, release: Release) -> bool:
        """Return whether the mainline release has the change."""
        return (
            self.since is not None
            and self.since <= release
            and (self.until is None or release < self.until)
        )


@dataclass(frozen=True, slots=True)
class Variant:
    """One body of a choice, and the changes without which it does not apply."""

    needs: frozenset[str]
    value: Any


class Choice:
    """A step or value of the kernel that depends on which changes are applied.

    :param name: the attribute of :class:`Kernel` under which paths find it.
    :param doc: one sentence about what it decides.
    """

    def __init__(self, name: str, doc: str) -> None:
        self.name = name
        self.doc = doc
        self.variants: list[Variant] = []

    def __repr__(self) -> str:
        return f"Choice({self.name})"

    def when(self, *needs: str) -> Callable[[T], T]:
        """Register the decorated function as the body for these changes.

        Without any it is the body of a kernel that has none of them.
        """

        def register(value: T) -> T:
            self.add(value, *needs)
            return value

        return register

    def add(self, value: Any, *needs: str) -> None:
        """Register a value for these changes."""
        wanted = frozenset(needs)
        if any(v.needs == wanted for v in self.variants):
            raise KernelError(f"choice {self.name}: two variants need {sorted(wanted)}")
        self.variants.append(Variant(wanted, value))

    def joined(self, own: "Choice | None") -> "Choice":
        """Return this choice as an architecture has it.

        :param own: the architecture's choice of the same name. With a variant that
            needs nothing it stands alone; without one it adds to this choice.
        """
        if own is None:
            return self
        if any(not variant.needs for variant in own.variants):
            return own
        both = Choice(self.name, self.doc)
        mine = {variant.needs: variant for variant in (*self.variants, *own.variants)}
        both.variants = list(mine.values())
        return both

    def pick(self, applied: frozenset[str]) -> Any:
        """Return the variant with the most needs that are all applied.

        :raises KernelError: none applies, or two equally specific ones do.
        """
        fitting = [v for v in self.variants if v.needs <= applied]
        if not fitting:
            raise KernelError(f"choice {self.name}: no variant applies")
        most = max(len(v.needs) for v in fitting)
        best = [v for v in fitting if len(v.needs) == most]
        if len(best) > 1:
            sets = " and ".join("+".join(sorted(v.needs)) for v in best)
            raise KernelError(
                f"choice {self.name}: {sets} both apply; add a variant for both"
            )
        return best[0].value


@dataclass
class Kernel:
    """One assembled kernel: every choice as an attribute, picked once.

    Plain functions arrive as :class:`~kvmarch.machine.steps.Op`, so that a path
    awaits every choice alike, whether it is one atomic step or a path of its own.
    """

    # Without slots: an attribute that was read once is found without a call.

    release: Release
    arch: str
    applied: frozenset[str]
    choices: Mapping[str, Any] = field(repr=False)

    def __getattr__(self, name: str) -> Any:
        try:
            value = self.choices[name]
        except KeyError:
            raise AttributeError(f"the kernel has no {name}") from None
        vars(self)[name] = value
        return value

    def has(self, name: str) -> bool:
        """Return whether the kernel has a step or value of that name."""
        return name in self.choices


def as_step(value: Any) -> Any:
    """Return a plain function as an Op; anything else as it is."""
    if inspect.isfunction(value) and not inspect.iscoroutinefunction(value):
        return Op(value)
    return value


def applied_changes(
    changes: Iterable[Change],
    release: Release,
    plus: Iterable[str] = (),
    minus: Iterable[str] = (),
) -> frozenset[str]:
    """Return the names of the changes that a kernel has.

    :raises UnknownNameError: ``plus`` or ``minus`` names no change.
    :raises KvmarchError: a change is to be added and taken away at once.
    """
    table = {change.name: change for change in changes}
    plus, minus = set(plus), set(minus)
    for name in sorted(plus | minus):
        if name not in table:
            raise UnknownNameError("change", name, sorted(table))
    if plus & minus:
        both = ", ".join(sorted(plus & minus))
        raise KvmarchError(f"{both} cannot be both added and taken away")
    merged = {name for name, change in table.items() if change.is_in(release)}
    return frozenset((merged | plus) - minus)


def assemble(
    arch: str,
    release: Release,
    applied: frozenset[str],
    choices: Iterable[Choice],
    fixed: Mapping[str, Any],
) -> Kernel:
    """Return the kernel in which every choice is made.

    :param fixed: operations that do not depend on a change, by name.
    """
    chosen: dict[str, Any] = {name: as_step(value) for name, value in fixed.items()}
    for choice in choices:
        chosen[choice.name] = as_step(choice.pick(applied))
    return Kernel(release, arch, applied, chosen)
