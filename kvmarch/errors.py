"""Every exception that a user can act on."""

__all__ = [
    "EntryError",
    "ExploreError",
    "FormatError",
    "KernelError",
    "KvmarchError",
    "LabError",
    "ModelError",
    "NotSymmetricError",
    "PluginError",
    "RecordingError",
    "ScenarioError",
    "SweepError",
    "TierError",
    "UnknownNameError",
    "WalkError",
]

import difflib
from collections.abc import Iterable

MANY = 40
"""Names of which an error tells the nearest only."""


class KvmarchError(Exception):
    """Anything that a user did and can mend; its text is one line."""


class FormatError(KvmarchError):
    """An entry format contradicts itself: overlap, overflow, a name used twice."""


class EntryError(KvmarchError):
    """A value is not an entry of the format, or a field cannot hold a value."""


class ModelError(KvmarchError):
    """A path asked the machine for something that no kernel can do."""


class PluginError(KvmarchError):
    """A plugin does not keep the contract."""


class TierError(PluginError):
    """A path came to an operation that the architecture's tier does not reach."""


class KernelError(KvmarchError):
    """A release, a change or a combination of them does not exist."""


class ScenarioError(KvmarchError):
    """A scenario file does not load."""


class ExploreError(KvmarchError):
    """A machine or a schedule that cannot be explored."""


class NotSymmetricError(ExploreError):
    """Tasks that were taken for exchangeable are told apart by something."""


class SweepError(KvmarchError):
    """A sweep that cannot go on, or a file that holds no such sweep."""


class RecordingError(KvmarchError):
    """A recording file does not load."""


class LabError(KvmarchError):
    """A real kernel that cannot be had, booted, driven or looked at.

    :param console: the end of what the kernel printed, to be shown under the line.
    """

    def __init__(self, text: str, console: str = "") -> None:
        super().__init__(text)
        self.console = console


class WalkError(KvmarchError):
    """An image of memory, or a tree in it, that cannot be walked."""


class UnknownNameError(KvmarchError):
    """A name that nothing answers to.

    :param kind: what was looked for, as a noun.
    :param name: the name that was given.
    :param known: the names that would have been accepted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = list(known)
        shown = names
        if len(names) > MANY:
            near = difflib.get_close_matches(name, names, 5, 0.4) or names[:5]
            shown = [*near, f"and {len(names) - len(near)} others"]
        there = f"there is {', '.join(shown)}"
        super().__init__(f"unknown {kind} {name!r}; {there}")
        self.kind, self.name, self.known = kind, name, names
