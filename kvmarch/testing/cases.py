"""Which kernels a test runs on: architectures, releases and kinds of guest tables."""

__all__ = ["SOME", "Case", "Wanted", "architectures", "cases"]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvmarch import plugins
from kvmarch.blame import checked
from kvmarch.changes import Kernel, Release, find_release, show_release
from kvmarch.errors import KernelError, UnknownNameError
from kvmarch.plugins import Loaded, Plugins
from kvmarch.scenarios.compare import Choose

SOME: tuple[Release, ...] = (
    (3, 16),
    (4, 12),
    (5, 4),
    (5, 10),
    (5, 13),
    (5, 15),
    (6, 1),
    (6, 9),
    (7, 2),
)
"""Releases at which each property of the contract is tried."""


@dataclass(frozen=True)
class Wanted:
    """What a test asks for: the arguments of ``@pytest.mark.kvmarch``.

    :param arch: names of architectures; empty for all that are installed.
    :param kernel: names of releases, or releases; empty for :data:`SOME`.
    :param tier: architectures that stop below it are left out.
    :param plus: changes to add, :param minus: changes to take away.
    :param options: of the machine, by name; an architecture that does not have one,
        or not that value of it, goes without.
    """

    arch: tuple[str, ...] = ()
    kernel: tuple[str | Release, ...] = ()
    tier: int = 2
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, marks: Iterable[Mapping[str, Any]]) -> "Wanted":
        """Return what marks ask for; the first one that names a thing decides it.

        :raises TypeError: an argument is of no known type.
        """
        merged: dict[str, Any] = {}
        for mark in marks:
            merged = {**mark, **merged}
        known = {
            "arch": words(merged.pop("arch", ())),
            "kernel": words(merged.pop("kernel", ())),
            "tier": merged.pop("tier", 2),
            "plus": words(merged.pop("with_", ())),
            "minus": words(merged.pop("without", ())),
        }
        return cls(**known, options=merged)

    def choose(self) -> Choose:
        """Return the same, as commands take it.

        :raises KvmarchError: a release is not known.
        """
        kernels = (
            show_release(find_release(r) if isinstance(r, str) else r)
            for r in self.kernel
        )
        options = {name: str(value) for name, value in self.options.items()}
        return Choose(self.arch, tuple(kernels), self.plus, self.minus, options)


def words(value: Any) -> tuple[Any, ...]:
    """Return names that were given as one text with commas, or as a sequence."""
    if isinstance(value, str):
        return tuple(word for word in value.replace(",", " ").split() if word)
    if isinstance(value, Sequence):
        return tuple(value)
    raise TypeError(f"wanted names, got {value!r}")


class Case(NamedTuple):
    """One kernel to test on one machine.

    :param settings: options of the machine that were asked for, as texts.
    :param absent: why there is no such machine; empty if there is one.
    """

    arch: Loaded
    release: Release
    settings: tuple[tuple[str, str], ...] = ()
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    absent: str = ""

    def __str__(self) -> str:
        values = (value for _name, value in self.settings)
        more = (*(f"+{c}" for c in self.plus), *(f"-{c}" for c in self.minus))
        return "-".join((self.arch.name, show_release(self.release), *values, *more))

    @property
    def mmu(self) -> str:
        """Return the kind of guest tables; empty where there is one only."""
        return dict(self.settings).get("mmu", "")

    def keeps(self, rule: str) -> bool:
        """Return whether the kernel is said to keep a rule of the contract."""
        return self.arch.keeps(rule, self.release, self.mmu)

    def link(self) -> Kernel:
        """Return the kernel."""
        return plugins.link(checked(self.arch), self.release, self.plus, self.minus)

    def options(self) -> dict[str, Any]:
        """Return the machine's options, complete."""
        return self.arch.info.settle(self.release, dict(self.settings))


def architectures(wanted: Wanted, there: Plugins) -> list[Loaded]:
    """Return every architecture that a test asks for.

    :param there: the architectures that are there.
    :raises UnknownNameError: an architecture is not known.
    :raises PluginError: the plugin of an architecture was refused.
    """
    chosen = [there.get(name) for name in wanted.arch or there.loaded]
    return [arch for arch in chosen if arch.tier >= wanted.tier]


def cases(wanted: Wanted, there: Plugins) -> list[Case]:
    """Return every kernel that a test asks for.

    :param there: the architectures that are there.
    :raises UnknownNameError: an architecture, release or option is not known.
    :raises PluginError: the plugin of an architecture was refused.
    """
    chosen = architectures(wanted, there)
    _check_options(wanted.options, list(there.loaded.values()))
    return [
        case
        for arch in chosen
        for release in _releases(wanted, arch)
        for case in _of_release(wanted, arch, release)
    ]


def _check_options(options: Mapping[str, Any], archs: Sequence[Loaded]) -> None:
    """Refuse an option, or a value of it, that no architecture has."""
    for name, value in options.items():
        there = [a.info.options[name] for a in archs if name in a.info.options]
        if not there:
            known = {name for arch in archs for name in arch.info.options}
            raise UnknownNameError("option", name, sorted(known))
        if not any(_fits(arch, name, value) for arch in archs):
            values = {str(value) for option in there for value in option.values}
            raise UnknownNameError(
                f"value of option {name}", str(value), sorted(values)
            )


def _fits(arch: Loaded, name: str, value: Any) -> bool:
    """Return whether an architecture has an option with a value."""
    options = arch.info.options
    return name in options and arch.info.parse(name, str(value)) is not None


def _releases(wanted: Wanted, arch: Loaded) -> list[Release]:
    asked = [find_release(r) if isinstance(r, str) else r for r in wanted.kernel]
    releases = set(asked) or {*SOME, arch.info.first}
    return sorted(release for release in releases if arch.info.first <= release)


def _of_release(wanted: Wanted, arch: Loaded, release: Release) -> Iterable[Case]:
    """Yield a case for each kind of guest tables, unless one was asked for."""
    given = {
        name: str(value)
        for name, value in wanted.options.items()
        if _fits(arch, name, value)
    }
    mmu = arch.info.options.get("mmu")
    kinds = [given["mmu"]] if "mmu" in given else mmu and mmu.available(release)
    for kind in kinds or ("",):
        settings = {**({"mmu": kind} if kind else {}), **given}
        case = Case(arch, release, tuple(settings.items()), wanted.plus, wanted.minus)
        try:
            case.options()
            case.link()
        except KernelError as error:
            case = case._replace(absent=str(error))
        yield case
