"""Read scenario files: TOML, checked key by key.

A scenario says what memory and VM there are, what each task does, what a comparison
shows of it, and what is expected where.
"""

__all__ = ["Column", "Expect", "Memory", "Scenario", "StepLine", "TaskLines", "load"]

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from kvmarch.errors import ScenarioError, UnknownNameError

FIRST_HVA = 0x7F00_0000_0000
"""Where the first memory of a scenario is mapped, in bytes; 1 GiB for each."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A range of host memory.

    :param pages: of the machine's page size; or ``mib`` to give its size.
    :param contents: what the first pages hold; equal values may be merged by KSM.
        The pages after them hold values of their own.
    :param touched: written by the host before the scenario begins.
    """

    name: str
    pages: int = 0
    mib: int = 0
    contents: tuple[Any, ...] = ()
    touched: bool = True
    mergeable: bool = False
    huge: bool = False

    def size(self, page_size: int) -> int:
        """Return the size in bytes."""
        return self.mib << 20 if self.mib else self.pages * page_size


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of a task: a verb and its arguments, as text."""

    verb: str
    args: Mapping[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class TaskLines:
    """One task: its name and its lines."""

    name: str
    steps: tuple[StepLine, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a comparison: its name, what it shows, with which arguments."""

    name: str
    show: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expect:
    """One expectation: in which cells which column has which value.

    Empty ``arch`` means every architecture; ``since`` and ``until`` (exclusive) are
    releases.
    """

    arch: str = ""
    since: str = ""
    until: str = ""
    mmu: str = ""
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    because: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, checked.

    :param code: the gfn from which the guest fetches code in every run, or -1.
    :param watch: gfns whose entries are followed.
    """

    name: str
    title: str
    source: str
    tags: tuple[str, ...]
    vcpus: int
    code: int
    memory: tuple[Memory, ...]
    tasks: tuple[TaskLines, ...]
    watch: tuple[int, ...]
    columns: tuple[Column, ...]
    expects: tuple[Expect, ...]
    schedule: tuple[tuple[str, int], ...] = ()
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def library() -> dict[str, Path]:
    """Return the scenarios that are shipped, by name."""
    folder = resources.files("kvmarch.scenarios")
    return {
        path.name.removesuffix(".toml"): Path(str(path))
        for path in sorted(folder.iterdir(), key=lambda p: p.name)
        if path.name.endswith(".toml")
    }


def find(name: str, folders: tuple[str, ...] = ()) -> Path:
    """Return the file of a scenario: a path, or the name of a shipped one.

    :param folders: more folders with scenario files.
    :raises UnknownNameError: there is none.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    known = library()
    for folder in folders:
        for path in sorted(Path(folder).glob("*.toml")):
            known.setdefault(path.stem, path)
    if name not in known:
        raise UnknownNameError("scenario", name, sorted(known))
    return known[name]


def load(path: Path) -> Scenario:
    """Read one scenario file.

    :raises ScenarioError: with the file, the place and what would be accepted.
    """
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from None
    return _Reader(path).scenario(raw)


class _Reader:
    """Takes a file's tables apart; every refusal names file and key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def refuse(self, where: str, why: str) -> ScenarioError:
        return ScenarioError(f"{self.path}: {where}: {why}")

    def take(
        self, table: dict[str, Any], where: str, key: str, kind: type, default: Any
    ) -> Any:
        value = table.pop(key, default)
        if value is ...:
            raise self.refuse(f"{where}.{key}" if where else key, "is missing")
        wrong = not isinstance(value, kind) or (kind is int and value is True)
        if wrong and value is not default:
            raise self.refuse(
                f"{where}.{key}" if where else key,
                f"{value!r} is {type(value).__name__}, not {kind.__name__}",
            )
        return value

    def done(self, table: dict[str, Any], where: str, known: str) -> None:
        for key in table:
            raise self.refuse(
                f"{where}.{key}" if where else key, f"unknown key; there is {known}"
            )

    def scenario(self, raw: dict[str, Any]) -> Scenario:
        title = self.take(raw, "", "title", str, ...)
        source = self.take(raw, "", "source", str, "")
        tags = self.take(raw, "", "tags", list, [])
        vm = self.take(raw, "", "vm", dict, {})
        vcpus = self.take(vm, "vm", "vcpus", int, 1)
        code = self.take(vm, "vm", "code", int, -1)
        memory = tuple(
            self.memory(row, f"vm.memory[{i}]")
            for i, row in enumerate(self.take(vm, "vm", "memory", list, []))
        )
        self.done(vm, "vm", "vcpus, code, memory")
        tasks = tuple(
            self.task(row, f"task[{i}]")
            for i, row in enumerate(self.take(raw, "", "task", list, ...))
        )
        names = [task.name for task in tasks]
        if len(set(names)) != len(names) or not names:
            raise self.refuse("task", f"tasks need names of their own, not {names}")
        columns = tuple(
            self.column(row, f"column[{i}]")
            for i, row in enumerate(self.take(raw, "", "column", list, []))
        )
        expects = tuple(
            self.expect(row, f"expect[{i}]", [c.name for c in columns])
            for i, row in enumerate(self.take(raw, "", "expect", list, []))
        )
        watch = self.take(raw, "", "watch", list, [])
        bad = {}
        for name, row in self.take(raw, "", "property", dict, {}).items():
            where = f"property.{name}"
            bad[name] = (
                self.take(row, where, "ask", str, "at-rest"),
                self.take(row, where, "bad", str, ...),
            )
            self.done(row, where, "ask, bad")
        schedule = tuple(
            self.turn(text, f"schedule[{i}]", names)
            for i, text in enumerate(self.take(raw, "", "schedule", list, []))
        )
        self.done(
            raw,
            "",
            "title, source, tags, vm, task, watch, column, expect, property, schedule",
        )
        return Scenario(
            self.path.stem,
            title,
            source,
            tuple(tags),
            vcpus,
            code,
            memory,
            tasks,
            tuple(watch),
            columns,
            expects,
            schedule,
            bad,
        )

    def memory(self, row: dict[str, Any], where: str) -> Memory:
        made = Memory(
            self.take(row, where, "name", str, ...),
            self.take(row, where, "pages", int, 0),
            self.take(row, where, "mib", int, 0),
            tuple(self.take(row, where, "contents", list, [])),
            self.take(row, where, "touched", bool, True),
            self.take(row, where, "mergeable", bool, False),
            self.take(row, where, "huge", bool, False),
        )
        self.done(row, where, "name, pages, mib, contents, touched, mergeable, huge")
        if (made.pages > 0) == (made.mib > 0):
            raise self.refuse(where, "needs either pages or mib, more than 0")
        return made

    def task(self, row: dict[str, Any], where: str) -> TaskLines:
        name = self.take(row, where, "name", str, ...)
        lines = self.take(row, where, "steps", list, ...)
        self.done(row, where, "name, steps")
        return TaskLines(
            name,
            tuple(
                self.line(text, f"{where}.steps[{i}]") for i, text in enumerate(lines)
            ),
        )

    def line(self, text: Any, where: str) -> StepLine:
        if not isinstance(text, str) or not text.split():
            raise self.refuse(where, f"{text!r} is no step such as 'read gfn=2'")
        verb, *words = text.split()
        args: dict[str, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or not key or not value:
                raise self.refuse(where, f"{word!r} is no argument such as gfn=2")
            if key in args:
                raise self.refuse(where, f"{key} is given twice")
            args[key] = value
        from kvmarch.scenarios.verbs import check_line

        why = check_line(verb, args)
        if why:
            raise self.refuse(where, why)
        return StepLine(verb, args, text)

    def column(self, row: dict[str, Any], where: str) -> Column:
        name = self.take(row, where, "name", str, ...)
        show = self.take(row, where, "show", str, ...)
        from kvmarch.scenarios.columns import check_column

        why = check_column(show, row)
        if why:
            raise self.refuse(where, why)
        return Column(name, show, row)

    def expect(self, row: dict[str, Any], where: str, columns: list[str]) -> Expect:
        made = Expect(
            self.take(row, where, "arch", str, ""),
            self.take(row, where, "since", str, ""),
            self.take(row, where, "until", str, ""),
            self.take(row, where, "mmu", str, ""),
            tuple(self.take(row, where, "with", list, [])),
            tuple(self.take(row, where, "without", list, [])),
            self.take(row, where, "values", dict, ...),
            self.take(row, where, "because", str, ""),
        )
        self.done(row, where, "arch, since, until, mmu, with, without, values, because")
        for name in made.values:
            if name not in columns:
                raise self.refuse(
                    f"{where}.values.{name}",
                    f"no such column; there is {', '.join(columns)}",
                )
        return made

    def turn(self, text: Any, where: str, names: list[str]) -> tuple[str, int]:
        words = text.split() if isinstance(text, str) else []
        if len(words) != 2 or words[0] not in names or not words[1].isdigit():
            raise self.refuse(
                where, f"{text!r} is no turn such as '{names[0]} 5' (task and steps)"
            )
        return words[0], int(words[1])
