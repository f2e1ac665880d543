"""Compare the stages of one recording with one run of the tour."""

__all__ = ["Comparison", "Finding"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Any

from kvmarch.errors import EntryError
from kvmarch.machine.world import Event
from kvmarch.recordings.read import LeafTable, Recording, Stage, Survey
from kvmarch.recordings.surveys import (
    alike_but_for_tables,
    compare_entries,
    compare_frames,
    tree_of,
)
from kvmarch.recordings.traces import Tracer, compare_traced
from kvmarch.scenarios.play import Played, ranges_of

_ERRNOS = {"error": 14, "hlt": 0, "livelock": 4, "mmio": 0}
"""What KVM_RUN fails with, by what the model says of it: EFAULT, nothing, or EINTR
where the lab interrupts a guest that never gets on."""
_EXITS = {"5": "hlt", "6": "mmio"}
"""KVM_EXIT_HLT and KVM_EXIT_MMIO."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was compared, or could not be.

    ``verdict`` is ``agree``, ``differ`` or ``not compared``.
    """

    recording: str
    stage: str
    what: str
    verdict: str
    detail: str = ""


class Comparison:
    """One recording against one run of the tour."""

    def __init__(
        self, recording: Recording, played: Played, options: Mapping[str, Any]
    ) -> None:
        self.recording = recording
        self.played = played
        self.options = options
        self.k = played.machine.k
        self.shift = recording.page_size.bit_length() - 1
        self.marked = _by_mark(played.events)
        self.looks = _by_name(played.events, "look")
        self.surveys = _by_name(played.events, "survey")
        self.pages: dict[int, int] = {}
        """The recording's page number for each of the model's, as last seen."""
        self.tables: dict[int, int] = {}
        """The model's table for each of the recording's, by physical address."""
        self.traces = set(recording.traces) or {
            name for stage in recording.stages for name, _text in stage.events
        }
        ranges = ranges_of(played.scenario, recording.page_size)
        # The programs of recordings without a program of their own name memories as
        # they liked, but for the first.
        every = recording.program is not None
        self.tracer = Tracer(self.shift, ranges if every else ranges[:1])

    def first_look_agrees(self) -> bool:
        """Return whether the first look that can be compared agrees."""
        for stage in self.recording.stages:
            found: list[Finding] = []
            if stage.look is not None and stage.name in self.looks:
                found = [f for f in self.entries(stage) if f.what == "entries"]
            elif stage.survey is not None and any(stage.survey.trees):
                found = list(self.survey(stage, stage.survey))
            if found:
                self.pages.clear()
                self.tables.clear()
                return all(f.verdict == "agree" for f in found)
        return True

    def findings(self) -> Iterator[Finding]:
        """Yield what each stage shows, in the recording's order."""
        for stage in self.recording.stages:
            if stage.kernel_log:
                lines = f"{len(stage.kernel_log)} warnings: {stage.kernel_log[0]}"
                yield self.row(stage, "kernel log", "differ", lines)
            known_mark, known_look = stage.name in self.marked, stage.name in self.looks
            if not known_mark and not known_look:
                yield self.row(
                    stage, "stage", "not compared", "the tour has no such stage"
                )
                continue
            if stage.look is not None:
                yield from self.entries(stage)
            if stage.survey is not None:
                yield from self.survey(stage, stage.survey)
            if known_mark:
                yield from self.events(stage)
                yield from self.calls(stage)
        for violation in self.played.violations:
            yield Finding(
                self.recording.name,
                "",
                "properties",
                "differ",
                f"the model loses {violation.property}: {violation.sentence}",
            )

    def row(self, stage: Stage, what: str, verdict: str, detail: str = "") -> Finding:
        """Return a finding about a stage."""
        return Finding(self.recording.name, stage.name, what, verdict, detail)

    def same(self, stage: Stage, what: str, real: Any, model: Any) -> Finding:
        """Compare two values that print as they are."""
        if real == model:
            return self.row(stage, what, "agree")
        return self.row(stage, what, "differ", f"recorded {real}, model {model}")

    # -- entries -----------------------------------------------------------------

    def entries(self, stage: Stage) -> Iterator[Finding]:
        """Compare the leaf table around the look's first gfn."""
        look = self.looks.get(stage.name)
        assert stage.look is not None
        if look is None:
            yield self.row(
                stage, "entries", "not compared", "the tour does not look here"
            )
            return
        first = look["gfn"]
        if first not in stage.look.pages:
            yield self.row(
                stage,
                "entries",
                "not compared",
                f"the recording looks elsewhere than gfn {first:#x}",
            )
            return
        yield self.host_pages(stage, look)
        table = self.choose(stage)
        if isinstance(table, str):
            yield self.row(stage, "entries", "not compared", table)
            return
        model = self.model_entries(look)
        if table is None:
            present = [e for e in model if self.maps(e, look["level"])]
            yield self.same(stage, "entries", [], [f"{e:#x}" for e in present])
            return
        ours = self.tables.get(table.pa)
        if ours is not None and ours not in self.played.machine.vm.tables.live:
            gone = ours != look["table"]
            if gone:
                yield self.row(
                    stage,
                    "entries",
                    "not compared",
                    f"table {table.pa:#x} is freed in the model",
                )
                return
        if look["table"]:
            self.tables.setdefault(table.pa, look["table"])
        count = min(len(table.entries), len(model))
        yield self.same(
            stage,
            "entries",
            " ".join(f"{e:#x}" for e in table.entries[:count]),
            " ".join(f"{e:#x}" for e in model[:count]),
        )

    def survey(self, stage: Stage, real: Survey) -> Iterator[Finding]:
        """Compare the whole trees, and the pages behind all of the host's memory."""
        ours = self.surveys.get(stage.name)
        if ours is None:
            yield self.row(
                stage, "tree", "not compared", "the model does not look here"
            )
            return
        why = compare_frames(real.frames, ours["frames"], self.pages)
        yield self.row(stage, "host pages", "differ" if why else "agree", why)
        alike = alike_but_for_tables(self.k, self.options)
        for number, (theirs, tree) in enumerate(
            zip_longest(real.trees, ours["trees"], fillvalue=None)
        ):
            what = tree_of(number)
            if theirs is None or tree is None:
                why = "the root was not found" if theirs is None else "no such VM"
                yield self.row(stage, what, "not compared", why)
                continue
            why = compare_entries(theirs, tree, self.repoint, alike)
            yield self.row(stage, what, "differ" if why else "agree", why)

    def repoint(self, entry: int, level: int) -> int:
        """Return an entry of the model with the recording's page put in."""
        pfn = self.k.entry_pfn.fn(self.k, self.options, entry, level)
        real = None if pfn is None else self.pages.get(pfn)
        if real is None:
            return entry
        try:
            moved: int = self.k.entry_repoint.fn(
                self.k, self.options, entry, level, real
            )
        except EntryError:
            # No entry of this level leads there, so the recording has none: it differs.
            return entry
        return moved

    def host_pages(self, stage: Stage, look: Mapping[str, Any]) -> Finding:
        """Compare which gfns have a page, and which of them share one."""
        assert stage.look is not None
        pairs = [
            (stage.look.pages[look["gfn"] + i], pfn)
            for i, pfn in enumerate(look["pages"])
            if look["gfn"] + i in stage.look.pages
        ]
        for real, pfn in pairs:
            if real and pfn:
                self.pages[pfn] = real
        # Pages that the recording does not list, but that lie behind one that it does
        # in the model, are taken to lie behind it there too: one huge page.
        for before, pfn in pairwise(look["pages"]):
            if pfn and pfn == before + 1 and before in self.pages:
                self.pages.setdefault(pfn, self.pages[before] + 1)
        real_shape = _shape([real for real, _pfn in pairs])
        return self.same(
            stage, "host pages", real_shape, _shape([pfn for _real, pfn in pairs])
        )

    def model_entries(self, look: Mapping[str, Any]) -> list[int]:
        """Return the model's entries with the recording's pages put in."""
        return [self.repoint(entry, look["level"]) for entry in look["entries"]]

    def maps(self, entry: int, level: int) -> bool:
        """Return whether an entry of the model carries a page's address."""
        return (
            self.k.entry_pfn.fn(self.k, self.options, entry, level) is not None
            and entry != 0
        )

    def choose(self, stage: Stage) -> LeafTable | str | None:
        """Return the stage-2 table of a look, None if there is none, or why neither.

        The host's own tables are among those that hold the frames. A table that was
        the only one in another stage is the one here too; values that are no
        stage-2 entries rule a table out; and of those left it is the one whose
        other entries are empty.
        """
        assert stage.look is not None
        tables = stage.look.tables
        if not tables:
            return None
        left = [t for t in tables if all(self.accepts(e) for e in t.entries)]
        if len(left) > 1:
            alone = {
                s.look.tables[0].pa
                for s in self.recording.stages
                if s.look is not None and len(s.look.tables) == 1
            }
            left = [t for t in left if t.pa in alone] or left
        if len(left) > 1:
            left = [t for t in left if not any(t.entries[1:])] or left
        if len(left) == 1:
            return left[0]
        if not left:
            if len(tables) == 1:
                return tables[0]
            return "none of the tables holds stage-2 entries"
        return f"{len(left)} tables hold these frames"

    def accepts(self, entry: int) -> bool:
        """Return whether a value is a stage-2 entry of some kind, or empty."""
        return entry == 0 or any(
            kind.format.accepts(entry)
            for kind in self.k.formats.fn(self.k, self.options)
        )

    # -- events and calls ------------------------------------------------------------

    def model(self, stage: Stage) -> list[Event]:
        """Return what the model did in a stage."""
        return self.marked.get(stage.name, [])

    def events(self, stage: Stage) -> Iterator[Finding]:
        """Compare what was traced of notifiers, faults and MMIO entries."""
        real = self.tracer.of_kernel(self.traces, stage.events, stage.omitted)
        for row in compare_traced(real, self.tracer.of_model(self.model(stage))):
            yield self.row(stage, *row)

    def calls(self, stage: Stage) -> Iterator[Finding]:
        """Compare what the calls returned, with errno and bitmap."""
        if not stage.console:
            return
        results: list[tuple[str, Any, int]] = []
        text, exit_gfn = "", -1
        for event in self.model(stage):
            if event.name == "step":
                text = event.data["text"]
            elif event.name == "kvm_userspace_exit":
                exit_gfn = event.data.get("gfn", -1)
            elif event.name == "result":
                results.append((text, event.data["value"], exit_gfn))
        results = [r for r in results if r[0].split()[0] in _CALLS]
        if len(results) != len(stage.console):
            yield self.row(
                stage,
                "calls",
                "differ",
                f"recorded {len(stage.console)} calls, model {len(results)}",
            )
            return
        for line, (_text, value, gfn) in zip(stage.console, results, strict=True):
            yield self.call(stage, line, value, gfn)

    def call(self, stage: Stage, line: str, value: Any, gfn: int) -> Finding:
        """Compare one line of the console with what the model's call returned."""
        words = line.split()
        given = dict(word.split("=", 1) for word in words if "=" in word)
        what = f"call {' '.join(words[:3])}"
        try:
            if words[0] in {"slot", "clear"}:
                return self.same(stage, what, int(given["errno"]), value)
            if words[0] == "dirty":
                rc, bits = int(given["rc"]), words[2] if len(words) > 2 else "0"
                return self.same(
                    stage, what, (rc, int(bits, 16)), (-1 if value[0] else 0, value[1])
                )
            if words[0] == "run" and int(given["rc"]):
                return self.same(stage, what, int(given["errno"]), _ERRNOS[value])
            if words[0] == "run":
                real = _EXITS.get(given["exit"], given["exit"])
                where = ""
                if "mmio" in given:
                    where = f" {int(given['mmio'], 16) >> self.shift:x}"
                model = f"{value} {gfn:x}" if where else str(value)
                return self.same(stage, what, real + where, model)
        except (KeyError, ValueError, IndexError, TypeError):
            pass
        return self.row(stage, what, "not compared", f"cannot read {line!r}")


_CALLS = {
    "slot",
    "slot_delete",
    "read",
    "write",
    "exec",
    "dirty_get",
    "dirty_clear",
}
"""Verbs whose result the recording's program prints."""


def _by_name(events: list[Event], kind: str) -> dict[str, Mapping[str, Any]]:
    return {e.data["name"]: e.data for e in events if e.name == kind}


def _by_mark(events: list[Event]) -> dict[str, list[Event]]:
    marked: dict[str, list[Event]] = {}
    here: list[Event] = []
    for event in events:
        if event.name == "mark":
            here = marked[event.data["name"]] = []
        here.append(event)
    return marked


def _shape(pfns: list[int]) -> str:
    """Return which of some pages are there and which are the same, without numbers."""
    seen: dict[int, str] = {0: "-"}
    for pfn in pfns:
        seen.setdefault(pfn, chr(ord("a") + len(seen) - 1))
    return " ".join(seen[pfn] for pfn in pfns)
