"""Read recordings: JSON files of what a real kernel did, stage by stage."""

__all__ = [
    "LeafTable",
    "Look",
    "Recording",
    "Stage",
    "Survey",
    "find",
    "load",
    "shipped",
]

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kvmarch.errors import RecordingError, UnknownNameError
from kvmarch.scenarios.file import scenario_of
from kvmarch.scenarios.records import Scenario


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
class Survey:
    """The whole trees after a step, and the pages behind all of the host's memory.

    :param trees: of each VM, first gfn, level and entry of everything that is neither
        empty nor a table, by gfn; None if the root was not found.
    :param frames: by memory, the pfn of each page; 0 for none.
    """

    trees: tuple[tuple[tuple[int, int, int], ...] | None, ...]
    frames: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the tour, or one step of another scenario.

    :param events: trace events in order, as name and text.
    :param console: what the program printed of its calls.
    :param omitted: events that were cut off at the end.
    :param step: the line that was done, where a stage is a step.
    :param kernel_log: warnings of the kernel.
    """

    name: str
    look: Look | None
    events: tuple[tuple[str, str], ...]
    console: tuple[str, ...]
    omitted: int
    step: str = ""
    survey: Survey | None = None
    kernel_log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """One boot of one kernel.

    :param page_size: bytes.
    :param program: what was done; None if it is the tour.
    :param traces: the trace events that the kernel has and that were switched on; those
        that happened if it is not known.
    :param broken_off: the stage in which recording ended; it is left out, and so is the
        rest of the program. Empty if everything was recorded.
    """

    name: str
    arch: str
    kernel: str
    page_size: int
    parameters: Mapping[str, str]
    stages: tuple[Stage, ...]
    program: Scenario | None = None
    traces: tuple[str, ...] = ()
    broken_off: str = ""


def shipped(folders: tuple[str, ...] = (), *, everything: bool = False) -> list[Path]:
    """Return the recordings that come with the package, by their names.

    :param folders: more folders with recordings, those of plugins.
    :param everything: not only the first ones of the tour, but the lab's, too; those
        are in a folder ``lab`` inside each of the folders.
    """
    places = [Path(str(resources.files("kvmarch.recordings"))), *map(Path, folders)]
    if everything:
        places += [place / "lab" for place in places]
    found = [path for place in places for path in place.glob("*.json")]
    return sorted(found, key=lambda path: path.name)


def find(name: str, folders: tuple[str, ...] = ()) -> Path:
    """Return the file of a recording: a path, or the name of a shipped one.

    :param folders: more folders with recordings, those of plugins.
    :raises UnknownNameError: there is none.
    """
    path = Path(name)
    if name.endswith(".json") or "/" in name or path.exists():
        return path
    known = {path.stem: path for path in shipped(folders, everything=True)}
    if name not in known:
        raise UnknownNameError("recording", name, sorted(known))
    return known[name]


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
        program, broken_off = _program(raw, path), ""
        if raw.get("complete") is False:
            broken_off = stages.pop().name if stages else "setup"
            program = _before(program, broken_off)
        return Recording(
            path.name,
            _field(raw, "arch", str),
            _field(raw, "kernel", str),
            _page_size(raw),
            {k: str(v) for k, v in _maybe(raw, "module_params", dict).items()},
            tuple(stages),
            program,
            tuple(str(name) for name in _maybe(raw, "traces", list)),
            broken_off,
        )
    except (ValueError, TypeError) as error:
        raise RecordingError(f"{path}: {where}{error}") from None


def _before(program: Scenario | None, stage: str) -> Scenario | None:
    """Return a program up to where a stage begins."""
    if program is None:
        return None
    task = program.tasks[0]
    marks = (
        at
        for at, line in enumerate(task.steps)
        if line.verb == "mark" and line.args["name"] == stage
    )
    cut = task.steps[: next(marks, 0)]
    return replace(program, tasks=(replace(task, steps=cut), *program.tasks[1:]))


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


def _program(raw: dict[str, Any], path: Path) -> Scenario | None:
    """Return the scenario that a recording carries.

    :raises ScenarioError: with what would be accepted.
    """
    program = _maybe(raw, "program", dict)
    return scenario_of(program, path) if program else None


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
    return Stage(
        name,
        look,
        events,
        console,
        _maybe(raw, "events_omitted", int),
        _maybe(raw, "step", str),
        _survey(raw),
        tuple(str(line) for line in _maybe(raw, "kernel_log", list)),
    )


def _survey(raw: Any) -> Survey | None:
    """Return the survey of a stage, None if it has none.

    Entries are lines ``gfn=2 level=1 entry=2b2ce67 pages=1 leaf``, those of VMs after
    the first one in ``other_vms``; frames are runs ``pfn*count`` of neighbours, with 0
    where there is no page.
    """
    if "frames" not in raw:
        return None
    frames = {
        name: tuple(_runs(text)) for name, text in _field(raw, "frames", dict).items()
    }
    others = _maybe(raw, "other_vms", list)
    return Survey(tuple(_tree(vm) for vm in (raw, *others)), frames)


def _tree(raw: Any) -> tuple[tuple[int, int, int], ...] | None:
    if isinstance(raw, dict) and raw.get("leaves") is None:
        return None
    entries = []
    for line in _field(raw, "leaves", list):
        given = dict(word.split("=", 1) for word in str(line).split() if "=" in word)
        try:
            gfn, entry = (_hex(given[key], "leaves") for key in ("gfn", "entry"))
            entries.append((gfn, int(given["level"]), entry))
        except (KeyError, ValueError):
            raise ValueError(
                f"leaves: {line!r} is none such as 'gfn=2 level=1 entry=2b2ce67'"
            ) from None
    return tuple(entries)


def _runs(text: Any) -> Iterator[int]:
    for run in str(text).split():
        first, _, count = run.partition("*")
        start = _hex(first, "frames")
        for i in range(_hex(count or "1", "frames")):
            yield start + i if start else 0
