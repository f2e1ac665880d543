"""Read what is recorded beside scenarios: what the search found in each."""

__all__ = ["read_found"]

import json
from pathlib import Path
from typing import Any

from kvmarch.errors import KvmarchError


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
