"""Read scenario files: TOML, checked key by key.

A scenario says what memory and VM there are, what each task does, what a comparison
shows of it, and what is expected where.
"""

__all__ = ["find", "library", "line_of", "load", "load_all", "scenario_of"]

import tomllib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from kvmarch.changes import find_release
from kvmarch.errors import ScenarioError, UnknownNameError
from kvmarch.scenarios.columns import check_column
from kvmarch.scenarios.properties import ASKED, compile_bad
from kvmarch.scenarios.records import (
    STATUSES,
    VERDICTS,
    Bug,
    Column,
    Expect,
    Memory,
    Scenario,
    StepLine,
    TaskLines,
    Verdict,
)
from kvmarch.scenarios.verbs import check_line

COMMON = ("arch", "kernel", "mmu", "note")
"""Columns that every comparison has."""

FOLDERS = ("races", "bugs")
"""Folders of scenarios beside those that need one schedule only."""


def library(folders: tuple[str, ...] = ()) -> dict[str, Path]:
    """Return the scenarios that are shipped, by name.

    :param folders: more folders with scenario files, those of plugins; a name that is
        taken already keeps its file.
    """
    top = resources.files("kvmarch.scenarios")
    known = {
        path.name.removesuffix(".toml"): Path(str(path))
        for folder in (top, *(top / name for name in FOLDERS))
        for path in sorted(folder.iterdir(), key=lambda p: p.name)
        if path.name.endswith(".toml")
    }
    for each in folders:
        for path in sorted(Path(each).glob("*.toml")):
            known.setdefault(path.stem, path)
    return known


def find(name: str, folders: tuple[str, ...] = ()) -> Path:
    """Return the file of a scenario: a path, or the name of a shipped one.

    :param folders: more folders with scenario files.
    :raises UnknownNameError: there is none.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    known = library(folders)
    if name not in known:
        raise UnknownNameError("scenario", name, sorted(known))
    return known[name]


def load_all(
    folders: tuple[str, ...], complain: Callable[[str], None]
) -> dict[str, Scenario]:
    """Return every scenario that can be named.

    :param folders: more folders with scenario files, those of plugins.
    :param complain: called with what is wrong with a file, which is left out.
    """
    scenarios = {}
    for name, path in library(folders).items():
        try:
            scenarios[name] = load(path)
        except ScenarioError as error:
            complain(str(error))
    return scenarios


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
    except (ValueError, RecursionError) as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from None
    return _Reader(path).scenario(raw)


def scenario_of(raw: Mapping[str, Any], path: Path) -> Scenario:
    """Return the scenario that tables say, as they would be in a file.

    :param path: the file that they are from, for messages.
    :raises ScenarioError: with the file, the place and what would be accepted.
    """
    return _Reader(path).scenario(deepcopy(dict(raw)))


def line_of(text: str, memory: Memory, vcpus: int) -> StepLine:
    """Return one line of a task, as it would stand in a file.

    :param memory: the only one that the line may name.
    :param vcpus: how many vCPUs there are.
    :raises ScenarioError: with what would be accepted.
    """
    reader = _Reader(Path("a line"))
    reader.vcpus = vcpus
    reader.known[memory.name] = memory
    return reader.line(text, repr(text))


class _Reader:
    """Takes a file's tables apart; every refusal names file and key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vcpus = 1
        self.vms = 1
        self.known: dict[str, Memory] = {}
        """The scenario's memories by name."""
        self.marks: set[str] = set()
        """The marks that its steps set."""

    def refuse(self, where: str, why: str) -> ScenarioError:
        return ScenarioError(f"{self.path}: {where}: {why}")

    def take(
        self, table: dict[str, Any], where: str, key: str, kind: type, default: Any
    ) -> Any:
        place = f"{where}.{key}" if where and key else where or key
        value = table.pop(key, default)
        if value is ...:
            raise self.refuse(place, "is missing")
        wrong = not isinstance(value, kind) or (kind is int and value is True)
        if wrong and value is not default:
            raise self.refuse(
                place, f"{value!r} is {type(value).__name__}, not {kind.__name__}"
            )
        return value

    def done(self, table: dict[str, Any], where: str, known: str) -> None:
        for key in table:
            raise self.refuse(
                f"{where}.{key}" if where else key, f"unknown key; there is {known}"
            )

    def number(
        self, table: dict[str, Any], where: str, key: str, default: int, least: int
    ) -> int:
        value: int = self.take(table, where, key, int, default)
        if value < least and value is not default:
            raise self.refuse(f"{where}.{key}", f"{value} is less than {least}")
        return value

    def rows(
        self, table: dict[str, Any], where: str, key: str, kind: type, default: Any
    ) -> list[tuple[Any, str]]:
        """Return the items of a list, all of one kind, each with its place."""
        place = f"{where}.{key}" if where else key
        items = self.take(table, where, key, list, default)
        for number, item in enumerate(items):
            self.take({"": item}, f"{place}[{number}]", "", kind, ...)
        return [(item, f"{place}[{number}]") for number, item in enumerate(items)]

    def words(self, table: dict[str, Any], where: str, key: str) -> tuple[str, ...]:
        return tuple(word for word, _place in self.rows(table, where, key, str, []))

    def own_names(self, place: str, what: str, names: list[str]) -> None:
        if len(set(names)) != len(names):
            raise self.refuse(place, f"{what} need names of their own, not {names}")

    def scenario(self, raw: dict[str, Any]) -> Scenario:
        title = self.take(raw, "", "title", str, ...)
        source = self.take(raw, "", "source", str, "")
        tags = self.words(raw, "", "tags")
        vm = self.take(raw, "", "vm", dict, {})
        self.vcpus = self.number(vm, "vm", "vcpus", 1, 1)
        self.vms = self.number(vm, "vm", "count", 1, 1)
        code = self.number(vm, "vm", "code", -1, 0)
        memory = tuple(
            self.memory(row, where)
            for row, where in self.rows(vm, "vm", "memory", dict, [])
        )
        self.own_names("vm.memory", "memories", [row.name for row in memory])
        self.known = {row.name: row for row in memory}
        self.done(vm, "vm", "count, vcpus, code, memory")
        setup = tuple(
            self.line(text, f"setup[{i}]")
            for i, text in enumerate(self.take(raw, "", "setup", list, []))
        )
        tasks = tuple(
            self.task(row, where)
            for row, where in self.rows(raw, "", "task", dict, ...)
        )
        names = [task.name for task in tasks]
        self.own_names("task", "tasks", names or [""] * 2)
        self.marks = {
            line.args["name"]
            for task in tasks
            for line in task.steps
            if line.verb == "mark"
        }
        columns = tuple(
            self.column(row, where)
            for row, where in self.rows(raw, "", "column", dict, [])
        )
        shown = [column.name for column in columns]
        self.own_names("column", "columns", shown)
        expects = tuple(
            self.expect(row, where, shown)
            for row, where in self.rows(raw, "", "expect", dict, [])
        )
        watch = self.rows(raw, "", "watch", int, [])
        for gfn, where in watch:
            if gfn < 0:
                raise self.refuse(where, f"{gfn} is less than 0")
        bad = {
            name: self.property(row, f"property.{name}")
            for name, row in self.take(raw, "", "property", dict, {}).items()
        }
        verdicts = tuple(
            self.verdict(row, where)
            for row, where in self.rows(raw, "", "verdict", dict, [])
        )
        said = [replace(row, because="") for row in verdicts]
        for number, row in enumerate(said):
            if row in said[:number]:
                raise self.refuse(f"verdict[{number}]", "says what another one says")
        bug = self.take(raw, "", "bug", dict, None)
        schedule = tuple(
            self.turn(text, f"schedule[{i}]", names)
            for i, text in enumerate(self.take(raw, "", "schedule", list, []))
        )
        self.done(
            raw,
            "",
            "title, source, tags, vm, setup, task, watch, column, expect, property, "
            "verdict, bug, schedule",
        )
        return Scenario(
            self.path.stem,
            title,
            source,
            tags,
            self.vcpus,
            code,
            memory,
            tasks,
            tuple(gfn for gfn, _where in watch),
            columns,
            expects,
            schedule,
            bad,
            setup,
            verdicts,
            None if bug is None else self.bug(bug),
            self.vms,
        )

    def verdict(self, row: dict[str, Any], where: str) -> Verdict:
        arch = row.get("arch")
        if isinstance(arch, str):
            row["arch"] = [arch]
        settings = self.take(row, where, "set", dict, {})
        made = Verdict(
            self.release(row, where, "kernel"),
            self.take(row, where, "property", str, "*"),
            self.take(row, where, "verdict", str, ...),
            self.words(row, where, "arch"),
            self.words(row, where, "with"),
            self.words(row, where, "without"),
            {name: str(value) for name, value in settings.items()},
            self.take(row, where, "because", str, ""),
        )
        self.done(
            row, where, "kernel, property, verdict, arch, with, without, set, because"
        )
        if not made.kernel:
            raise self.refuse(f"{where}.kernel", "is missing")
        if made.verdict not in VERDICTS:
            raise self.refuse(
                f"{where}.verdict",
                f"{made.verdict!r} is none of {', '.join(VERDICTS)}",
            )
        if made.property == "*" and made.verdict != "never":
            raise self.refuse(
                f"{where}.property", "* stands for all properties: never only"
            )
        return made

    def bug(self, row: dict[str, Any]) -> Bug:
        made = Bug(
            self.take(row, "bug", "subject", str, ...),
            self.take(row, "bug", "fix", str, ""),
            self.take(row, "bug", "releases", str, ""),
            self.take(row, "bug", "arch", str, ""),
            self.take(row, "bug", "status", str, "fixed"),
            self.take(row, "bug", "source", str, ""),
            self.take(row, "bug", "confirm", str, ""),
        )
        self.done(row, "bug", "subject, fix, releases, arch, status, source, confirm")
        if made.status not in STATUSES:
            raise self.refuse(
                "bug.status", f"{made.status!r} is none of {', '.join(STATUSES)}"
            )
        return made

    def property(self, row: Any, where: str) -> tuple[str, str]:
        table = self.take({"": row}, where, "", dict, ...)
        ask = self.take(table, where, "ask", str, "at-rest")
        if ask not in ASKED:
            raise self.refuse(f"{where}.ask", f"{ask!r} is none of {', '.join(ASKED)}")
        bad = self.take(table, where, "bad", str, ...)
        try:
            compile_bad(bad)
        except ScenarioError as error:
            raise self.refuse(f"{where}.bad", str(error)) from None
        self.done(table, where, "ask, bad")
        return ask, bad

    def memory(self, row: dict[str, Any], where: str) -> Memory:
        made = Memory(
            self.take(row, where, "name", str, ...),
            self.take(row, where, "pages", int, 0),
            self.take(row, where, "mib", int, 0),
            tuple(self.take(row, where, "contents", list, [])),
            self.take(row, where, "touched", bool, True),
            self.take(row, where, "mergeable", bool, False),
            self.take(row, where, "huge", bool, False),
            self.take(row, where, "hugetlb", bool, False),
        )
        known = "name, pages, mib, contents, touched, mergeable, huge, hugetlb"
        self.done(row, where, known)
        if (made.pages > 0) == (made.mib > 0):
            raise self.refuse(where, "needs either pages or mib, more than 0")
        if made.pages and len(made.contents) > made.pages:
            raise self.refuse(
                f"{where}.contents",
                f"{len(made.contents)} values for {made.pages} page"
                f"{'s' if made.pages > 1 else ''}",
            )
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
        why = check_line(verb, args, self.known, self.vcpus, self.vms)
        if why:
            raise self.refuse(where, why)
        return StepLine(verb, args, text)

    def column(self, row: dict[str, Any], where: str) -> Column:
        name = self.take(row, where, "name", str, ...)
        show = self.take(row, where, "show", str, ...)
        if name in COMMON:
            raise self.refuse(
                f"{where}.name", f"{name} is a column of every comparison"
            )
        key, why = check_column(show, row, self.marks)
        if why:
            raise self.refuse(f"{where}.{key}" if key else where, why)
        return Column(name, show, row)

    def expect(self, row: dict[str, Any], where: str, columns: list[str]) -> Expect:
        made = Expect(
            self.take(row, where, "arch", str, ""),
            self.release(row, where, "since"),
            self.release(row, where, "until"),
            self.take(row, where, "mmu", str, ""),
            self.words(row, where, "with"),
            self.words(row, where, "without"),
            self.take(row, where, "values", dict, ...),
            self.take(row, where, "because", str, ""),
            self.take(row, where, "keeps", str, ""),
        )
        known = "arch, since, until, mmu, keeps, with, without, values, because"
        self.done(row, where, known)
        for name in made.values:
            if name not in columns:
                raise self.refuse(
                    f"{where}.values.{name}",
                    f"no such column; there is {', '.join(columns)}",
                )
        return made

    def release(self, row: dict[str, Any], where: str, key: str) -> str:
        name: str = self.take(row, where, key, str, "")
        if name:
            try:
                find_release(name)
            except UnknownNameError as error:
                raise self.refuse(f"{where}.{key}", str(error)) from None
        return name

    def turn(self, text: Any, where: str, names: list[str]) -> tuple[str, int]:
        words = text.split() if isinstance(text, str) else []
        if len(words) != 2 or words[0] not in names or not words[1].isdecimal():
            raise self.refuse(
                where, f"{text!r} is no turn such as '{names[0]} 5' (task and steps)"
            )
        return words[0], int(words[1])
