"""Read recordings: JSON files of what a real kernel did, stage by stage."""

__all__ = ["LeafTable", "Look", "Recording", "Stage", "load", "shipped"]

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from kvmarch.errors import RecordingError


@dataclass(frozen=True, slots=True)
class LeafTable:
    """A table in the machine's RAM that held known frames.

    :param pa: physical address in bytes.
    :param entries: from the first gfn of the look on.
    """

    pa: int
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at RAM found.

    :param pages: gfn to pfn of the host page behind it; 0 for none.
    """

    pages: Mapping[int, int]
    tables: tuple[LeafTable, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the tour.

    :param events: trace events in order, as name and text.
    :param console: what the program printed of its calls.
    :param omitted: events that were cut off at the end.
    """

    name: str
    look: Look | None
    events: tuple[tuple[str, str], ...]
    console: tuple[str, ...]
    omitted: int


@dataclass(frozen=True, slots=True)
class Recording:
    """One boot of one kernel.

    :param page_size: bytes.
    """

    name: str
    arch: str
    kernel: str
    page_size: int
    parameters: Mapping[str, str]
    stages: tuple[Stage, ...]


def shipped() -> list[Path]:
    """Return the recordings that come with the package."""
    folder = resources.files("kvmarch.recordings")
    return sorted(
        Path(str(path)) for path in folder.iterdir() if path.name.endswith(".json")
    )


def load(path: Path) -> Recording:
    """Read one recording.

    :raises RecordingError: with the file, the place and what would be accepted.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecordingError(f"{path}: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise RecordingError(
            f"{path}: line {error.lineno}: not JSON: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RecordingError(f"{path}: not a recording: the file is no object")
    where = ""
    try:
        stages = []
        for number, stage in enumerate(_field(raw, "stages", list)):
            where = f"stages[{number}]."
            stages.append(_stage(stage))
        where = ""
        return Recording(
            path.name,
            _field(raw, "arch", str),
            _field(raw, "kernel", str),
            _page_size(raw),
            {k: str(v) for k, v in _maybe(raw, "module_params", dict).items()},
            tuple(stages),
        )
    except (ValueError, TypeError) as error:
        raise RecordingError(f"{path}: {where}{error}") from None


def _field(table: Any, key: str, kind: type) -> Any:
    if not isinstance(table, dict):
        raise TypeError(f"{key}: the value around it is no object")
    if key not in table:
        raise ValueError(f"{key} is missing")
    if not isinstance(table[key], kind):
        raise TypeError(f"{key}: {table[key]!r} is no {kind.__name__}")
    return table[key]


def _maybe(table: Any, key: str, kind: type) -> Any:
    """Return a value that may be missing or null; it is empty then."""
    if isinstance(table, dict) and table.get(key) is None:
        return kind()
    return _field(table, key, kind)


def _page_size(raw: dict[str, Any]) -> int:
    size = _field(raw, "page_size", int)
    if size < 1 << 12 or size & size - 1:
        raise ValueError(f"page_size: {size} is no power of two from 4096 on")
    return int(size)


def _hex(text: Any, key: str) -> int:
    try:
        number = int(text, 16)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: {text!r} is no hexadecimal number") from None
    if not 0 <= number < 1 << 64:
        raise ValueError(f"{key}: {text} is no 64-bit value")
    return number


def _stage(raw: Any) -> Stage:
    name = _field(raw, "name", str)
    look = None
    found = _maybe(raw, "host_pfns", dict)
    if found:
        pages = {
            _hex(gfn, "host_pfns"): _hex(pfn, "host_pfns") for gfn, pfn in found.items()
        }
        tables = tuple(
            LeafTable(
                _hex(_field(table, "pa", str), "leaf_tables.pa"),
                tuple(
                    _hex(entry, "leaf_tables.entries_from_first_gfn")
                    for entry in _maybe(table, "entries_from_first_gfn", list)
                ),
            )
            for table in _maybe(raw, "leaf_tables", list)
        )
        look = Look(pages, tables)
    events = tuple(
        (_field(event, "event", str), _field(event, "text", str))
        for event in _maybe(raw, "events", list)
    )
    console = tuple(str(line) for line in _maybe(raw, "console", list))
    return Stage(name, look, events, console, _maybe(raw, "events_omitted", int))
