"""What a comparison can show of a run: one function per kind of column.

A column looks at the events between a mark and the next one (``after``), or at the
whole run, and at the machine as it is at the end.
"""

__all__ = ["SHOWS", "Seen", "check_column", "value_of"]

from collections.abc import Callable, Container, Mapping
from errno import errorcode
from typing import Any

from kvmarch.errors import ScenarioError
from kvmarch.machine.world import Event
from kvmarch.scenarios import properties
from kvmarch.scenarios.play import Played
from kvmarch.scenarios.records import Column
from kvmarch.scenarios.verbs import LEAVE_GPA, VERBS, Context


class Seen:
    """One run, as columns look at it."""

    def __init__(self, played: Played, options: Mapping[str, Any]) -> None:
        self.played = played
        self.options = options
        self.k = played.machine.k
        self.events = played.events
        self.kinds = {
            (kind.level, kind.kind): kind for kind in self.k.formats.fn(self.k, options)
        }

    def after(self, args: Mapping[str, Any]) -> list[Event]:
        """Return the events from a mark to the next one; all of them without."""
        mark = args.get("after")
        if mark is None:
            return self.events
        inside = False
        found = []
        for event in self.events:
            if event.name == "mark":
                inside = event.data["name"] == mark
            elif inside:
                found.append(event)
        return found

    def entry_at(self, args: Mapping[str, Any]) -> tuple[int, int] | None:
        """Return a watched entry and its level at a moment; None if it never came.

        The moment is the last event named ``at`` after the mark, or the mark itself.
        """
        gfn = args.get("gfn", 0)
        moment: Event | None = None
        at = args.get("at")
        if at is None:
            marks = [
                event
                for event in self.events
                if event.name == "mark" and event.data["name"] == args.get("after")
            ]
            moment = next(iter(marks or self.events[-1:]), None)
        else:
            for event in self.after(args):
                if event.name == at:
                    moment = event
        if moment is None:
            return None
        found = (0, 0)
        for event in self.events:
            if event.name in {"watch", "entry"} and event.data["gfn"] == gfn:
                found = (event.data["new"], event.data["level"])
            if event is moment:
                break
        return found

    def maps(self, entry: int, level: int) -> bool:
        """Return whether an entry leads to a host page."""
        kind, _fields = self.k.decode.fn(self.k, self.options, entry, level)
        found = self.kinds.get((level, kind))
        return found is not None and found.maps


Show = Callable[[Seen, Mapping[str, Any]], Any]

SHOWS: dict[str, tuple[Show, tuple[str, ...]]] = {}

_KINDS: Mapping[str, type] = {"gfn": int, "nth": int, "with": list}
"""What the keys of columns hold; the others are texts."""


def show(*keys: str) -> Callable[[Show], Show]:
    """Register a kind of column and the keys that it understands.

    :param keys: with a question mark in front where a key may be left out.
    """

    def register(function: Show) -> Show:
        SHOWS[function.__name__.strip("_")] = function, keys
        return function

    return register


def check_column(
    name: str, args: Mapping[str, Any], marks: Container[str]
) -> tuple[str, str]:
    """Return which key of a column is refused and why; the latter empty if none is.

    :param marks: the names of the marks that the scenario sets.
    """
    if name not in SHOWS:
        return "", f"unknown show {name!r}; there is {', '.join(sorted(SHOWS))}"
    keys = SHOWS[name][1]
    known = sorted(key.removeprefix("?") for key in keys)
    for key, value in args.items():
        if key not in known:
            return "", f"{name} has no key {key}; there is {', '.join(known)}"
        kind = _KINDS.get(key, str)
        if type(value) is not kind:
            return key, f"{value!r} is {type(value).__name__}, not {kind.__name__}"
    for key in keys:
        if not key.startswith("?") and key not in args:
            return "", f"{name} needs {key}"
    if "after" in args and args["after"] not in marks:
        return "after", f"no step has mark name={args['after']}"
    if name == "value":
        try:
            properties.compile_bad(args["of"])
        except ScenarioError as error:
            return "of", str(error)
    return "", ""


def value_of(column: Column, seen: Seen) -> Any:
    """Return what a column shows of a run."""
    return SHOWS[column.show][0](seen, column.args)


@show("?gfn", "?after", "?at")
def entry(seen: Seen, args: Mapping[str, Any]) -> str:
    """Show an entry as hexadecimal; empty if the moment never came."""
    found = seen.entry_at(args)
    return "" if found is None else f"{found[0]:#x}"


@show("?gfn", "?after", "?at")
def kind(seen: Seen, args: Mapping[str, Any]) -> str:
    """Show what kind of entry there is."""
    found = seen.entry_at(args)
    if found is None:
        return ""
    return str(seen.k.decode.fn(seen.k, seen.options, *found)[0])


@show("?gfn", "?after", "?at")
def level(seen: Seen, args: Mapping[str, Any]) -> int | str:
    """Show at which level the lowest entry is."""
    found = seen.entry_at(args)
    return "" if found is None else found[1]


@show("?gfn", "after", "before", "at")
def effect(seen: Seen, args: Mapping[str, Any]) -> str:
    """Show what happened to an entry between two events.

    One of none, installed, replaced, unmapped; absent if the second never came.
    """
    old = seen.entry_at({**args, "at": args["before"]})
    new = seen.entry_at(args)
    if new is None:
        return "absent"
    old = old or seen.entry_at({"gfn": args.get("gfn", 0), "after": args["after"]})
    if old is None or old == new:
        return "none"
    had, has = seen.maps(*old), seen.maps(*new)
    if has:
        return "replaced" if had else "installed"
    return "unmapped" if had else "none"


@show("?after", "event")
def callback(seen: Seen, args: Mapping[str, Any]) -> str:
    """Show whether an event came at all: present or absent."""
    found = any(e.name == args["event"] for e in seen.after(args))
    return "present" if found else "absent"


@show("?after", "begin", "end")
def flush(seen: Seen, args: Mapping[str, Any]) -> str:
    """Show the flush of a callback: owed, inside (done by itself) or none.

    Empty if the callback never came.
    """
    inside = False
    result = ""
    for event in seen.after(args):
        if event.name == args["begin"]:
            inside, result = True, "none"
        elif event.name == args["end"]:
            inside = False
            if event.data.get("flush") == "owed":
                result = "owed"
        elif inside and event.name in _FLUSHES and result == "none":
            result = "inside"
    return result


@show("of", "with")
def saved(seen: Seen, args: Mapping[str, Any]) -> Any:
    """Show how much less another column counts than in a kernel with more changes.

    The comparison plays that other kernel and puts the difference in.
    """
    return None


_FLUSHES = {"tlb_invalidate", "kvm_make_all_cpus_request"}


@show("?after", "?gfn")
def exits(seen: Seen, args: Mapping[str, Any]) -> int:
    """Show how often the guest left with a fault, other than on purpose."""
    leave = LEAVE_GPA >> seen.played.machine.mm.page_shift
    only = args.get("gfn")
    return sum(
        1
        for event in seen.after(args)
        if event.name == "guest_fault"
        and event.data["gfn"] != leave
        and only in {None, event.data["gfn"]}
    )


@show("?after", "event")
def count(seen: Seen, args: Mapping[str, Any]) -> int:
    """Show how often an event came."""
    return sum(1 for event in seen.after(args) if event.name == args["event"])


@show("?after", "?nth")
def result(seen: Seen, args: Mapping[str, Any]) -> Any:
    """Show what a call returned; errors by name, bitmaps as hexadecimal."""
    verbs: dict[str, str] = {}
    values = []
    for event in seen.after(args):
        if event.name == "step":
            verbs[event.task] = event.data["text"].split()[0]
        elif event.name == "result":
            values.append((verbs.get(event.task, ""), event.data["value"]))
    nth = args.get("nth", 0)
    if nth >= len(values):
        return ""
    verb, value = values[nth]
    if isinstance(value, tuple):
        errno, bits = value
        return errorcode[errno] if errno else f"{bits:#x}"
    if verb in VERBS and VERBS[verb].returns_errno and value:
        return errorcode[value]
    return value if isinstance(value, int | str) else str(value)


@show("?after")
def violations(seen: Seen, args: Mapping[str, Any]) -> str:
    """Show the properties that were lost."""
    lost = dict.fromkeys(
        e.data["property"] for e in seen.after(args) if e.name == "violation"
    )
    return " ".join(lost) or "none"


@show("?after", "field", "event")
def data(seen: Seen, args: Mapping[str, Any]) -> Any:
    """Show one datum of the last event of a name."""
    value: Any = ""
    for event in seen.after(args):
        if event.name == args["event"]:
            value = event.data.get(args["field"], "")
    return f"{value:#x}" if type(value) is int and value > 9 else value


@show()
def tables(seen: Seen, args: Mapping[str, Any]) -> int:
    """Show how many table pages are left at the end."""
    pool = seen.played.machine.vm.tables
    return len(pool.live) + len(pool.retired)


@show("of")
def value(seen: Seen, args: Mapping[str, Any]) -> Any:
    """Show an expression of the machine's end state, as properties write them."""
    machine = seen.played.machine
    context = Context(machine, {}, gpcs={g.name: g for g in machine.gpcs})
    return properties.evaluate(args["of"], context)
