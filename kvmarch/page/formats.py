"""Entry formats as plain data: every architecture, every release, each said once."""

__all__ = ["formats_data"]

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from kvmarch.arch import EntryKind
from kvmarch.blame import blaming
from kvmarch.changes import RELEASES, Release, show_release
from kvmarch.errors import KvmarchError, PluginError
from kvmarch.format.bits import EntryFormat, Field
from kvmarch.plugins import Loaded, Plugins, link
from kvmarch.scenarios.compare import Choose


class _Shelf:
    """Things by number; equal ones are kept once."""

    def __init__(self) -> None:
        self.things: list[Any] = []
        self._numbers: dict[str, int] = {}

    def number(self, thing: Any) -> int:
        """Return the number of a thing."""
        number = self._numbers.setdefault(repr(thing), len(self.things))
        if number == len(self.things):
            self.things.append(thing)
        return number


class _Shelves:
    """Fields, formats made of them, and sets made of those."""

    def __init__(self) -> None:
        self.fields, self.formats, self.sets = _Shelf(), _Shelf(), _Shelf()

    def set_of(self, kinds: list[EntryKind] | None) -> int:
        """Return the number of a set of kinds; -1 if there is no such machine."""
        if kinds is None:
            return -1
        return self.sets.number(
            [[kind.level, kind.kind, self.format_of(kind.format)] for kind in kinds]
        )

    def format_of(self, fmt: type[EntryFormat]) -> int:
        """Return the number of a format."""
        fields = [self.fields.number(_field(field)) for field in fmt.fields.values()]
        return self.formats.number({"width": fmt.width, "fields": fields})


def formats_data(plugins: Plugins, choose: Choose) -> dict[str, Any]:
    """Return the entry formats of the chosen architectures.

    ``fields`` and ``formats`` are there once; ``sets`` are what a machine has: level,
    kind and number of the format. Each machine of an architecture says which set it
    has at each release, -1 for none; those that have what another one has, as far as
    they are there, are left out. ``failed`` says which plugins could not say theirs.
    """
    shelves = _Shelves()
    archs, failed = [], []
    for arch in choose.architectures(plugins):
        try:
            machines = _machines(arch, choose, plugins, shelves)
        except PluginError as error:
            failed.append(str(error))
            continue
        archs.append(
            {"name": arch.name, "title": arch.info.title, "machines": machines}
        )
    return {
        "failed": failed,
        "releases": [show_release(release) for release in choose.releases(RELEASES)],
        "fields": shelves.fields.things,
        "formats": shelves.formats.things,
        "sets": shelves.sets.things,
        "archs": archs,
    }


def _machines(
    arch: Loaded, choose: Choose, plugins: Plugins, shelves: _Shelves
) -> list[dict[str, Any]]:
    """Return the machines of an architecture that differ in what they have.

    :raises PluginError: its code fails.
    """
    machines: list[dict[str, Any]] = []
    for settings in _settings(arch, choose, plugins):
        numbers = [
            shelves.set_of(_kinds(arch, release, settings, choose, plugins))
            for release in choose.releases(RELEASES)
        ]
        if not any(_covers(machine["sets"], numbers) for machine in machines):
            machines.append({"settings": settings, "sets": numbers})
    return machines


def _covers(known: list[int], numbers: list[int]) -> bool:
    """Return whether a machine has nothing that another one has not."""
    return all(new in {-1, old} for old, new in zip(known, numbers, strict=True))


def _settings(
    arch: Loaded, choose: Choose, plugins: Plugins
) -> Iterator[dict[str, str]]:
    """Yield the usual machine, and those that differ in one option."""
    given = choose.options_for(arch, plugins)
    yield given
    for name, option in arch.info.options.items():
        if name not in given:
            for value in option.values:
                yield {**given, name: str(value)}


def _kinds(
    arch: Loaded,
    release: Release,
    settings: Mapping[str, str],
    choose: Choose,
    plugins: Plugins,
) -> list[EntryKind] | None:
    """Return the kinds of entries; None if the release has no such machine."""
    here = replace(choose, options=settings)

    def ask(arch: Loaded) -> list[EntryKind]:
        k = link(arch, release, **here.changes_for(arch, plugins))
        options = arch.info.settle(release, settings)
        return list(k.formats.fn(k, options))

    try:
        with blaming(arch, ask):
            return ask(arch)
    except PluginError:
        raise
    except KvmarchError:
        # No such machine: another option would have to go with this one.
        return None


def _field(field: Field) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": field.name,
        "bits": field.bits,
        "parts": [list(part) for part in field.parts],
        "doc": field.doc,
    }
    if field.fixed is not None:
        said["fixed"] = f"{field.fixed:#x}"
    if field.enum is not None:
        said["values"] = [[f"{e.value:#x}", e.name] for e in field.enum]
    if field.shift:
        said["shift"] = field.shift
    return said
