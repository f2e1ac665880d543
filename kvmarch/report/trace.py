"""A schedule as people read it: columns side by side, or what each step changed.

A trace is rendered as text, Markdown, JSON and CSV as tables are, and as two formats
of other tools: a Mermaid sequence diagram, and Trace Event JSON for Perfetto.
"""

__all__ = ["TRACE_FORMATS", "Loss", "Move", "Trace", "render_trace"]

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

from kvmarch.report.render import WIDTH, render
from kvmarch.report.table import Column, Table

GAP = 2
"""Spaces between two columns of text."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A property that was lost: its id and one sentence about how."""

    property: str
    sentence: str

    def __str__(self) -> str:
        return f"*** LOST {self.property}"


@dataclass(frozen=True, slots=True)
class Move:
    """One step of the schedule.

    :param step: its number, from 1.
    :param name: what the step is called; empty if it only begins or ends a line.
    :param line: the scenario's line that begins with it.
    :param result: what the line that ends with it has returned.
    :param changes: what the step changed, if somebody looked.
    """

    step: int
    task: str
    name: str
    line: str = ""
    result: str = ""
    changes: tuple[str, ...] = ()
    lost: tuple[Loss, ...] = ()

    @property
    def text(self) -> str:
        """Return the step in one line; empty if there is nothing to show."""
        if self.line:
            return f"> {self.line}"
        return self.name or (f"= {self.result}" if self.result else "")


@dataclass(slots=True)
class Trace:
    """A schedule that was followed.

    :param tasks: all tasks, in the scenario's order.
    :param explained: show what each step changed, one step below the other.
    :param lost: what was lost at the end, by no step.
    :param cycle: the step from which on it goes round for ever; 0 if it does not.
    :param status: what the command ends with.
    """

    title: str
    tasks: tuple[str, ...]
    schedule: str
    moves: list[Move]
    notes: list[str] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    explained: bool = False
    cycle: int = 0
    status: int = 0

    @property
    def around(self) -> int:
        """Return how many steps it takes to go round once."""
        return self.moves[-1].step + 1 - self.cycle if self.cycle else 0

    @property
    def end(self) -> str:
        """Return when that is lost which no step loses."""
        return "by going on so" if self.cycle else "at the end"

    def losses(self) -> Iterator[tuple[int, str, Loss]]:
        """Yield what was lost, with step and task; those of the end come last."""
        for move in self.moves:
            for loss in move.lost:
                yield move.step, move.task, loss
        last = self.moves[-1].step if self.moves else 0
        for loss in self.lost:
            yield last, "", loss


def render_trace(trace: Trace, style: str) -> str:
    """Return a trace as text of one of :data:`TRACE_FORMATS`."""
    return TRACE_FORMATS[style](trace)


# -- text --------------------------------------------------------------------------


def _rows(trace: Trace) -> Iterator[tuple[int, str, str]]:
    """Yield number, task and text of each row of the columns."""
    for move in trace.moves:
        if move.text:
            yield move.step, move.task, move.text
        for loss in move.lost:
            yield move.step, move.task, str(loss)


def _again(trace: Trace) -> str:
    """Return what is said where a cycle begins."""
    last = trace.cycle + trace.around - 1
    return f"for ever: steps {trace.cycle} to {last}, {trace.around} steps"


def _marked(trace: Trace, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield numbered lines, with rules around those of a cycle."""
    begun = not trace.cycle
    for step, line in lines:
        if not begun and step >= trace.cycle:
            begun = True
            yield _rule(_again(trace))
        yield line
    if trace.cycle:
        yield _rule(f"from here again: step {trace.cycle}")


def _rule(text: str) -> str:
    return f"-- {text} ".ljust(WIDTH, "-")


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _shares(wanted: list[int], room: int) -> list[int]:
    """Divide a width among columns: none gets more than it wants."""
    shares = [0] * len(wanted)
    left = sorted(range(len(wanted)), key=lambda n: wanted[n])
    for count, n in enumerate(left):
        shares[n] = max(min(wanted[n], room // (len(left) - count)), 1)
        room -= shares[n]
    return shares


def _step_width(trace: Trace) -> int:
    last = str(trace.moves[-1].step) if trace.moves else ""
    return max(len("step"), len(last))


def _columns(trace: Trace) -> list[str]:
    """Return the steps with the tasks side by side."""
    rows = list(_rows(trace))
    first = _step_width(trace)
    wanted = [
        max(len(name), *(len(text) for _step, task, text in rows if task == name), 0)
        for name in trace.tasks
    ]
    room = WIDTH - first - GAP * len(trace.tasks)
    widths = dict(zip(trace.tasks, _shares(wanted, room), strict=True))
    gap = " " * GAP

    def line(step: str, cells: Mapping[str, str], fill: str = " ") -> str:
        padded = [
            _shortened(cells.get(name, ""), width).ljust(width, fill)
            for name, width in widths.items()
        ]
        return gap.join((step.ljust(first, fill), *padded)).rstrip()

    lines = [
        line("step", {name: name for name in trace.tasks}),
        line("", dict.fromkeys(trace.tasks, ""), "-"),
    ]
    told = ((step, line(str(step), {task: text})) for step, task, text in rows)
    lines.extend(_marked(trace, told))
    return lines


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_on_hyphens=False,
    )


def _explained(trace: Trace) -> list[str]:
    """Return the steps one below the other, each with what it changed.

    Steps that change nothing that is watched are joined.
    """
    names = max((len(name) for name in trace.tasks), default=0)
    first = 2 * _step_width(trace) + 1
    indent = first + GAP + names + GAP

    def alone(move: Move) -> bool:
        return bool(move.line or move.result or move.changes or move.lost)

    lines = [f"{'step':{first}}  {'task':{names}}  what happens".rstrip()]
    lines.append(f"{'-' * first}  {'-' * names}  {'-' * (WIDTH - indent)}")
    told: list[tuple[int, str]] = []
    key = [
        (move.task, move.step if alone(move) else 0, move.step < trace.cycle)
        for move in trace.moves
    ]
    numbered = zip(key, trace.moves, strict=True)
    for (task, step, _before), group in groupby(numbered, key=lambda pair: pair[0]):
        moves = [move for _key, move in group]
        shown = [move for move in moves if move.text or move.lost]
        if not shown:
            continue
        numbers = str(moves[0].step)
        if len(moves) > 1:
            numbers += f"-{moves[-1].step}"
        text = shown[0].text if step else f". {', '.join(m.text for m in shown)}"
        head = f"{numbers:{first}}  {task:{names}}  "
        found = _wrapped(text, indent)
        # Wrapping has made room for the head in the first line.
        found[0] = head + found[0][indent:]
        for move in shown:
            for change in move.changes:
                found.extend(_wrapped(change, indent + 4))
            for loss in move.lost:
                found.extend(_wrapped(f"{loss}: {loss.sentence}", indent))
        told.extend((moves[0].step, line) for line in found)
    return [*lines, *_marked(trace, told)]


def _text(trace: Trace) -> str:
    parts = ["\n".join(_wrapped(trace.title, 0))] if trace.title else []
    if trace.moves:
        parts.append(
            "\n".join(_explained(trace) if trace.explained else _columns(trace))
        )
    notes = [*trace.notes, *_loss_notes(trace)]
    parts.append("\n".join(line for note in notes for line in _wrapped(note, 0)))
    return "\n\n".join(parts) + "\n"


def _loss_notes(trace: Trace) -> list[str]:
    found = []
    for step, task, loss in trace.losses():
        where = f"step {step}, {task}" if task else trace.end
        found.append(f"LOST {loss.property} ({where}): {loss.sentence}")
    if not found and trace.moves:
        found.append("no property was lost")
    return found


# -- for other programs ------------------------------------------------------------


def _markdown(trace: Trace) -> str:
    table = Table(
        trace.title, (Column("step"), *(Column(name) for name in trace.tasks))
    )

    def number(step: int) -> str:
        return f"{step} (for ever)" if 0 < trace.cycle <= step else str(step)

    if trace.explained:
        table.columns = (
            Column("step"),
            Column("task"),
            Column("what"),
            Column("changes"),
        )
        for move in trace.moves:
            table.rows.append(
                {
                    "step": number(move.step),
                    "task": move.task,
                    "what": " ".join((move.text, *map(str, move.lost))).strip(),
                    "changes": "; ".join(move.changes),
                }
            )
    else:
        for step, task, text in _rows(trace):
            cells = {**dict.fromkeys(trace.tasks, ""), task: text}
            table.rows.append({"step": number(step), **cells})
    table.notes = [*trace.notes, *_loss_notes(trace)]
    return render(table, "markdown")


def _json(trace: Trace) -> str:
    steps = [
        {
            "step": move.step,
            "task": move.task,
            "name": move.name,
            "line": move.line,
            "result": move.result,
            "changes": list(move.changes),
            "lost": [loss.property for loss in move.lost],
        }
        for move in trace.moves
    ]
    result: Mapping[str, Any] = {
        "title": trace.title,
        "schedule": trace.schedule,
        "tasks": list(trace.tasks),
        "steps": steps,
        "cycle": {"step": trace.cycle, "steps": trace.around} if trace.cycle else None,
        "lost": [
            {
                "property": loss.property,
                "sentence": loss.sentence,
                "step": step,
                "task": task,
            }
            for step, task, loss in trace.losses()
        ],
        "notes": trace.notes,
    }
    return json.dumps(result, indent=2, ensure_ascii=False) + "\n"


def _csv(trace: Trace) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ("step", "task", "name", "line", "result", "changes", "lost", "for_ever")
    )
    for move in trace.moves:
        lost = " ".join(loss.property for loss in move.lost)
        changes = "; ".join(move.changes)
        what = move.name, move.line, move.result, changes, lost
        again = "yes" if 0 < trace.cycle <= move.step else ""
        writer.writerow((move.step, move.task, *what, again))
    for loss in trace.lost:
        writer.writerow(("", "", "", "", "", "", loss.property, ""))
    return out.getvalue()


def _escaped(text: str) -> str:
    """Return a text as Mermaid takes it: some marks would end it."""
    codes = {"#": "#35;", ";": "#59;", "<": "#lt;", ">": "#gt;"}
    return "".join(codes.get(letter, letter) for letter in text)


def _mermaid(trace: Trace) -> str:
    """Return a sequence diagram: one note per step over its task."""
    letters = {name: f"t{n}" for n, name in enumerate(trace.tasks)}
    lines = ["sequenceDiagram", f"    title {_escaped(trace.title)}"]
    lines.extend(
        f"    participant {letter} as {_escaped(name)}"
        for name, letter in letters.items()
    )

    def red(who: str, words: list[str]) -> Iterator[str]:
        yield "    rect rgb(255, 200, 200)"
        yield f"    Note over {who}: {'<br/>'.join(map(_escaped, words))}"
        yield "    end"

    def notes(moves: Iterable[Move]) -> Iterator[str]:
        for move in moves:
            if not move.text and not move.lost:
                continue
            words = [f"{move.step} {move.text}".strip(), *move.changes]
            if move.lost:
                words += [
                    f"LOST {lost.property}: {lost.sentence}" for lost in move.lost
                ]
                yield from red(letters[move.task], words)
            else:
                said = "<br/>".join(map(_escaped, words))
                yield f"    Note over {letters[move.task]}: {said}"

    first = trace.cycle - 1 if trace.cycle else len(trace.moves)
    lines.extend(notes(trace.moves[:first]))
    if trace.cycle:
        lines.append(f"    loop {_again(trace)}")
        lines.extend(notes(trace.moves[first:]))
        lines.append("    end")
    ends = list(letters.values())
    over = ends[0] if len(ends) == 1 else f"{ends[0]},{ends[-1]}"
    for loss in trace.lost:
        lines.extend(red(over, [f"LOST {loss.property} {trace.end}: {loss.sentence}"]))
    return "\n".join(lines) + "\n"


def _perfetto(trace: Trace) -> str:
    """Return Trace Event JSON: one track per task, one microsecond per step."""
    tracks = {name: n for n, name in enumerate(trace.tasks, 1)}

    def event(phase: str, name: str, tid: int, **rest: Any) -> dict[str, Any]:
        return {"ph": phase, "name": name, "pid": 1, "tid": tid, **rest}

    events = [event("M", "process_name", 0, args={"name": trace.title})]
    for name, tid in tracks.items():
        events.append(event("M", "thread_name", tid, args={"name": name}))
        events.append(event("M", "thread_sort_index", tid, args={"sort_index": tid}))
    events.extend(
        event("X", line, tracks[task], cat="line", ts=begun, dur=ended - begun)
        for task, line, begun, ended in _lines(trace)
    )
    for move in trace.moves:
        tid = tracks[move.task]
        if move.name:
            args = {"step": move.step, "changes": list(move.changes)}
            events.append(
                event("X", move.name, tid, cat="step", ts=move.step, dur=1, args=args)
            )
    if trace.cycle:
        # A track of its own, so that it is seen above all that it holds.
        events.append(event("M", "thread_name", 0, args={"name": "for ever"}))
        again = {"ts": trace.cycle, "dur": trace.around}
        events.append(event("X", _again(trace), 0, cat="cycle", **again))
    for step, task, loss in trace.losses():
        scope = "t" if task else "g"
        args = {"sentence": loss.sentence}
        name, at = f"LOST {loss.property}", step if task else step + 1
        events.append(
            event("i", name, tracks.get(task, 0), cat="lost", ts=at, s=scope, args=args)
        )
    result = {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"schedule": trace.schedule, "notes": "; ".join(trace.notes)},
    }
    return json.dumps(result, indent=1, ensure_ascii=False) + "\n"


def _lines(trace: Trace) -> Iterator[tuple[str, str, int, int]]:
    """Yield task, line, begin and end (exclusive) of the scenario's lines."""
    for task in trace.tasks:
        moves = [move for move in trace.moves if move.task == task]
        begins = [n for n, move in enumerate(moves) if move.line]
        for n, following in pairwise((*begins, len(moves))):
            yield task, moves[n].line, moves[n].step, moves[following - 1].step + 1


TRACE_FORMATS: Mapping[str, Callable[[Trace], str]] = {
    "text": _text,
    "markdown": _markdown,
    "json": _json,
    "csv": _csv,
    "mermaid": _mermaid,
    "perfetto": _perfetto,
}
"""The renderers of traces by the name that ``--format`` takes."""
