"""Read what is recorded beside scenarios: what the search found in each."""

__all__ = ["FOUND", "read_found", "recorded"]

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from kvmarch.errors import KvmarchError
from kvmarch.plugins import Plugins

FOUND = "found.json"
"""File beside the scenarios, in a plugin's folder too: what the search found in the
buggy kernel of each."""


def read_found(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a file of the name ``FOUND`` records, by scenario.

    :raises KvmarchError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise KvmarchError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise KvmarchError(f"{path}: torn or no JSON ({error})") from None
    if not isinstance(found, dict) or not all(
        isinstance(row, dict) for row in found.values()
    ):
        raise KvmarchError(f"{path}: no table of what was found, by scenario")
    return found


def recorded(
    plugins: Plugins, complain: Callable[[str], None] = lambda _why: None
) -> dict[str, dict[str, Any]]:
    """Return what is recorded beside the scenarios, the plugins' own included.

    :param complain: called with what is wrong with a file that cannot be used.
    """
    own = resources.files("kvmarch.scenarios") / "bugs"
    found: dict[str, dict[str, Any]] = {}
    for folder in (*plugins.scenario_folders(), str(own)):
        file = Path(folder) / FOUND
        try:
            found |= read_found(file) if file.is_file() else {}
        except KvmarchError as error:
            complain(str(error))
    return found
