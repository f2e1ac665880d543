"""What a plugin brings beside its code: scenarios with their record, recordings."""

__all__ = ["Found", "OwnScenario", "own_recordings", "own_scenarios"]

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kvmarch.errors import KvmarchError
from kvmarch.plugins import Loaded, Plugins
from kvmarch.report.files import write_whole
from kvmarch.scenarios.catalogue import FOUND
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import load
from kvmarch.scenarios.found import read_found
from kvmarch.scenarios.records import Scenario


class OwnScenario(NamedTuple):
    """A scenario file of a plugin.

    :param plugins: all architectures that are there.
    """

    plugins: Plugins
    arch: Loaded
    path: Path

    @property
    def name(self) -> str:
        """Return its name."""
        return self.path.stem

    def load(self) -> Scenario:
        """Return the scenario.

        :raises ScenarioError: it is none.
        """
        return load(self.path)

    @property
    def choose(self) -> Choose:
        """Return what commands take to mean the plugin's own architecture."""
        return Choose((self.arch.name,))

    @property
    def found(self) -> "Found":
        """Return what is recorded beside it."""
        return Found(self.path.parent)


def own_scenarios(arch: Loaded, plugins: Plugins) -> list[OwnScenario]:
    """Return the scenarios that an architecture's plugin brings."""
    folders = arch.operations.get("scenarios", tuple)()
    return [
        OwnScenario(plugins, arch, path)
        for folder in folders
        for path in sorted(Path(folder).glob("*.toml"))
    ]


def own_recordings(arch: Loaded) -> list[Path]:
    """Return the recordings of real kernels that an architecture's plugin brings."""
    folders = [Path(f) for f in arch.operations.get("recordings", tuple)()]
    return [
        path
        for place in (*folders, *(folder / "lab" for folder in folders))
        for path in sorted(place.glob("*.json"))
    ]


@dataclass(frozen=True, slots=True)
class Found:
    """The record in a folder of scenarios: what the search found in the buggy kernels.

    :param folder: the scenarios'.
    """

    folder: Path

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.folder / FOUND

    def read(self) -> dict[str, Any] | None:
        """Return what is recorded, by scenario; None if nothing ever was.

        :raises KvmarchError: the file cannot be used.
        """
        return read_found(self.path) if self.path.exists() else None

    def write(self, changed: Mapping[str, Mapping[str, Any]]) -> bool:
        """Record what was found; return whether anything changed.

        Several processes may do so at once.

        :param changed: what was found by scenario; nothing takes the scenario out.
        :raises KvmarchError: the file cannot be written.
        """
        with self._alone():
            try:
                before = self.read()
            except KvmarchError:
                before = None  # It is written anew, as was asked for.
            after = {**(before or {}), **changed}
            rows = {name: row for name, row in sorted(after.items()) if row}
            if rows == (before or {}):
                return False
            write_whole(self.path, json.dumps(rows, indent=1) + "\n")
            return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes out that write the same file."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
