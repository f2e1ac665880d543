"""Scenario steps: what a verb is, and how a line of one is read.

The verbs themselves are in verbs.py.
"""

__all__ = [
    "VERBS",
    "Context",
    "Streams",
    "Verb",
    "check_line",
    "check_own_line",
    "check_own_verbs",
    "find_verb",
    "parse",
    "values",
    "verb",
]

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvmarch.changes import Kernel
from kvmarch.errors import ScenarioError
from kvmarch.kernel.boot import Machine
from kvmarch.kernel.gpc import Gpc
from kvmarch.kernel.memslots import LOG_DIRTY_PAGES, READONLY
from kvmarch.kernel.vm import Vm
from kvmarch.machine.steps import Path
from kvmarch.machine.world import Part

if TYPE_CHECKING:
    from kvmarch.scenarios.records import Memory, Scenario, StepLine

FLAGS = {"log_dirty": LOG_DIRTY_PAGES, "readonly": READONLY}


class Streams(Part):
    """Whether endless streams of invalidations go on."""

    variables = ("going",)

    def __init__(self) -> None:
        self.going = 1


@dataclass(slots=True)
class Context:
    """What the verbs of one run share.

    :param memory: hva and size in bytes of each named memory.
    :param code: the gfn of the guest's code, or -1.
    :param leave: ``hlt``, or ``mmio`` for a store to an address without a slot.
    """

    machine: Machine
    memory: Mapping[str, tuple[int, int]]
    code: int = -1
    leave: str = "hlt"
    gpcs: dict[str, Gpc] = field(default_factory=dict)
    streams: Streams = field(default_factory=Streams)

    @property
    def page_shift(self) -> int:
        """Return bytes of a page as a power of two."""
        return self.machine.mm.page_shift

    def vm(self, args: Mapping[str, Any]) -> Vm:
        """Return the VM that ``vm`` names, the first one if nothing does."""
        number: int = args.get("vm", 0)
        return self.machine.vms[number]

    def gfn(self, args: Mapping[str, Any]) -> int:
        """Return the gfn that ``gfn`` or ``gpa`` names."""
        if "gpa" in args:
            return int(args["gpa"]) >> self.page_shift
        return int(args["gfn"])

    def pages(self, args: Mapping[str, Any]) -> tuple[int, int]:
        """Return start and end (hva, exclusive) of pages of a memory."""
        base, size = self.memory[args["memory"]]
        first = args.get("page", 0)
        count = args.get("pages", (size >> self.page_shift) - first)
        start = base + (first << self.page_shift)
        return start, start + (count << self.page_shift)


Make = Callable[[Context, Mapping[str, Any]], Path[Any]]


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    :param params: by name, the kind: ``int``, ``name``, ``flags``, ``word:a|b``; with
        a question mark in front where it may be left out.
    """

    name: str
    params: Mapping[str, str]
    doc: str
    make: Make

    @property
    def returns_errno(self) -> bool:
        """Return whether the result is 0 or an errno."""
        return self.name.startswith(("slot", "dirty", "gpc"))


VERBS: dict[str, Verb] = {}
"""The core's verbs. Those of an architecture have its name in front, and a dot."""

_OWN = re.compile(r"([a-z]\w*)\.([a-z]\w*)", re.ASCII)


def find_verb(k: Kernel, name: str) -> Verb:
    """Return a verb of a machine: one of the core, or of its architecture.

    :raises ScenarioError: its architecture has none of that name.
    """
    own = _OWN.fullmatch(name)
    if own is None:
        return VERBS[name]
    arch, word = own.groups()
    if arch != k.arch:
        raise ScenarioError(f"{name} is of {arch}, and this is {k.arch}")
    row = k.verbs.get(word)
    if row is None:
        known = ", ".join(f"{arch}.{word}" for word in sorted(k.verbs)) or "none"
        raise ScenarioError(f"unknown verb {name!r}; of {arch} there is {known}")
    return Verb(name, row.params, row.doc, lambda c, args: row.run(c.machine.vm, args))


def check_own_verbs(scenario: "Scenario", k: Kernel) -> None:
    """Check a scenario's lines that only an architecture understands.

    :raises ScenarioError: with the place and what would be accepted.
    """
    places: list[tuple[str, Iterable[StepLine]]] = [("setup", scenario.setup)]
    places += [
        (f"task[{number}].steps", task.steps)
        for number, task in enumerate(scenario.tasks)
    ]
    memory = {row.name: row for row in scenario.memory}
    for place, lines in places:
        for number, line in enumerate(lines):
            why = check_own_line(line, k, memory, scenario.vcpus)
            if why:
                raise ScenarioError(f"{scenario.name}: {place}[{number}]: {why}")


def check_own_line(
    line: "StepLine", k: Kernel, memory: Mapping[str, "Memory"], vcpus: int
) -> str:
    """Return why a line is refused that only an architecture understands.

    :returns: empty if it is not refused, or is the core's.
    """
    if not _OWN.fullmatch(line.verb):
        return ""
    try:
        return _check_args(find_verb(k, line.verb), line.args, memory, vcpus)
    except ScenarioError as error:
        return str(error)


def verb(doc: str, **params: str) -> Callable[[Make], Make]:
    """Register a verb under the function's name."""

    def register(make: Make) -> Make:
        name = make.__name__.strip("_")
        VERBS[name] = Verb(name, params, doc, make)
        return make

    return register


def _number(text: str, why: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        raise ValueError(why) from None
    if number < 0:
        raise ValueError(f"{text} is less than 0")
    return number


def parse(kind: str, text: str) -> Any:
    """Return an argument's value.

    :raises ValueError: with what would be accepted.
    """
    kind = kind.removeprefix("?")
    if kind == "int":
        return _number(text, f"{text!r} is no number")
    if kind == "flags":
        flags = 0
        for word in text.split(","):
            why = f"{word!r} is no flag; there is {', '.join(FLAGS)}"
            flags |= FLAGS[word] if word in FLAGS else _number(word, why)
        return flags
    if kind.startswith("word:"):
        words = kind.removeprefix("word:").split("|")
        if text not in words:
            raise ValueError(f"{text!r} is none of {', '.join(words)}")
    return text


def check_line(
    name: str,
    args: Mapping[str, str],
    memory: Mapping[str, "Memory"],
    vcpus: int,
    vms: int = 1,
) -> str:
    """Return why a line is refused; empty if it is not.

    One that an architecture must understand is looked at when there is one, see
    :func:`check_own_verbs`.

    :param memory: the scenario's memories by name.
    :param vcpus: how many vCPUs each VM has.
    :param vms: how many VMs there are.
    """
    if _OWN.fullmatch(name):
        return ""
    known = VERBS.get(name)
    if known is None:
        return f"unknown verb {name!r}; there is {', '.join(sorted(VERBS))}"
    return _check_args(known, args, memory, vcpus, vms)


def _check_args(
    known: Verb,
    args: Mapping[str, str],
    memory: Mapping[str, "Memory"],
    vcpus: int,
    vms: int = 1,
) -> str:
    name = known.name
    given: dict[str, Any] = {}
    for key, text in args.items():
        kind = known.params.get(key)
        if kind is None:
            there = ", ".join(known.params) or "none"
            return f"{name} has no argument {key}; there is {there}"
        try:
            given[key] = parse(kind, text)
        except ValueError as error:
            return f"{name} {key}: {error}"
    for key, kind in known.params.items():
        if not kind.startswith("?") and key not in args:
            return f"{name} needs {key}="
    if {"gfn", "gpa"} <= known.params.keys():
        both = "gfn" in args and "gpa" in args
        neither = "gfn" not in args and "gpa" not in args
        if both or (neither and name != "slot"):
            return f"{name} needs either gfn= or gpa="
    if given.get("vcpu", 0) >= vcpus:
        return f"{name}: no vcpu {given['vcpu']}; there is {vcpus}"
    if given.get("vm", 0) >= vms:
        return f"{name}: no vm {given['vm']}; there is {vms}"
    why = _check_pages(given, memory, known.params)
    return f"{name}: {why}" if why else ""


def _check_pages(
    given: Mapping[str, Any], memory: Mapping[str, "Memory"], params: Mapping[str, str]
) -> str:
    for key in ("memory", "to"):
        if key in given and given[key] not in memory:
            known = ", ".join(memory) or "none"
            return f"no memory {given[key]!r}; there is {known}"
    if "memory" not in given:
        return ""
    # Of a memory given in MiB the page size decides how many pages there are. A slot
    # may reach beyond its memory.
    have = memory[given["memory"]].pages
    last = given.get("page", 0) + max(given.get("pages", 1), 1) - 1
    if "id" in params:
        last = given.get("page", 0)
    if have and last >= have:
        first = max(given.get("page", 0), have)
        return f"{given['memory']} has no page {first}; it has {have} pages"
    return ""


def values(known: Verb, args: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of a checked line as values."""
    return {key: parse(known.params[key], text) for key, text in args.items()}
