"""Traces as text that fits, and as the formats of other tools."""

import csv
import json
from pathlib import Path

import pytest

from kvmarch.report.render import WIDTH
from kvmarch.report.trace import (
    TRACE_FORMATS,
    Loss,
    Move,
    Trace,
    _shares,
    render_trace,
)

FOLDER = Path(__file__).parent / "trace"
FREED = Loss("freed-page", "vcpu0 read of gfn 0x2 reaches page 0x1002; it is free")


def trace(**more):
    moves = [
        Move(1, "ksmd", "", line="ksm_merge memory=ram"),
        Move(2, "ksmd", "lock mmu_lock"),
        Move(3, "ksmd", "look up #1; then <2>"),
        Move(4, "ksmd", "_map", changes=("gfn 0x2: 0x0 empty -> 0x13 page (pfn=0x1)",)),
        Move(5, "madvise", "", line="read gfn=2"),
        Move(6, "madvise", "guest access", changes=("vcpu0 TLB + 2",), lost=(FREED,)),
        Move(7, "madvise", ""),
        Move(8, "ksmd", "", result="0x10"),
    ]
    trace = Trace(
        "a race: toy v6.1", ("ksmd", "madvise"), "race@toy-v6.1:a4b3a1", moves
    )
    trace.notes.append("schedule race@toy-v6.1:a4b3a1")
    trace.lost.append(Loss("mine", "the scenario's property is lost"))
    for name, value in more.items():
        setattr(trace, name, value)
    return trace


@pytest.mark.parametrize("explained", [False, True], ids=["columns", "explained"])
@pytest.mark.parametrize("style", TRACE_FORMATS)
def test_a_trace_is_printed_as_reviewed(style, explained, request):
    text = render_trace(trace(explained=explained), style)
    path = FOLDER / f"{'explained' if explained else 'columns'}.{style}"
    if request.config.getoption("--promote"):
        path.write_text(text, "utf-8")

    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("explained", [False, True], ids=["columns", "explained"])
@pytest.mark.parametrize("style", TRACE_FORMATS)
def test_a_cycle_is_marked_as_reviewed(style, explained, request):
    text = render_trace(trace(explained=explained, cycle=3), style)
    path = FOLDER / f"cycle-{'explained' if explained else 'columns'}.{style}"
    if request.config.getoption("--promote"):
        path.write_text(text, "utf-8")

    assert text == path.read_text("utf-8")


@pytest.mark.parametrize("explained", [False, True], ids=["columns", "explained"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 26])
def test_text_fits_whatever_the_number_of_tasks(count, explained):
    tasks = tuple(f"task{n}" for n in range(count))
    moves = [
        Move(n + 1, name, "a step with quite a long name " * 4, changes=("x " * 90,))
        for n, name in enumerate(tasks * 50)
    ]
    wide = Trace("a long title " * 12, tasks, "s", moves, explained=explained)

    lines = render_trace(wide, "text").split("\n")

    assert max(map(len, lines)) <= WIDTH


def test_a_long_name_is_shortened_in_columns_and_nowhere_else():
    name = "a step with quite a long name" * 4
    long = trace(moves=[Move(1, "ksmd", name), Move(2, "madvise", name)])

    assert "…" in render_trace(long, "text")
    for style in set(TRACE_FORMATS) - {"text"}:
        assert name in render_trace(long, style)


@pytest.mark.parametrize(
    ("wanted", "room", "shares"),
    [
        pytest.param([10, 20], 96, [10, 20], id="enough"),
        pytest.param([10, 90], 60, [10, 50], id="one-gives-to-the-other"),
        pytest.param([90, 90, 90], 60, [20, 20, 20], id="even"),
        pytest.param([90] * 3, 2, [1, 1, 1], id="no-room"),
    ],
)
def test_the_width_is_divided(wanted, room, shares):
    assert _shares(wanted, room) == shares


def test_what_is_not_lost_is_said():
    none = trace(moves=[Move(1, "ksmd", "x")], lost=[])

    assert "no property was lost" in render_trace(none, "text")


def test_a_trace_without_steps_has_notes_only():
    none = trace(moves=[], lost=[], notes=["x86: any property never lost"])

    assert render_trace(none, "text") == (
        "a race: toy v6.1\n\nx86: any property never lost\n"
    )
    for style in TRACE_FORMATS:
        assert render_trace(none, style).endswith("\n")


def test_perfetto_keeps_the_trace_event_format():
    events = json.loads(render_trace(trace(), "perfetto"))["traceEvents"]

    assert {event["ph"] for event in events} == {"M", "X", "i"}
    assert all({"ph", "name", "pid", "tid"} <= event.keys() for event in events)
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["ts"] >= 1 and event["dur"] >= 1 for event in slices)
    assert [e["s"] for e in events if e["ph"] == "i"] == ["t", "g"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {1: "ksmd", 2: "madvise"}


def test_slices_of_a_track_lie_in_each_other_or_apart():
    events = json.loads(render_trace(trace(), "perfetto"))["traceEvents"]

    for tid in (1, 2):
        spans = [
            (e["ts"], e["ts"] + e["dur"])
            for e in events
            if e["ph"] == "X" and e["tid"] == tid
        ]
        for a, b in spans:
            for c, d in spans:
                assert b <= c or d <= a or (a <= c and d <= b) or (c <= a and b <= d)


def test_mermaid_leaves_no_mark_that_ends_a_text():
    lines = render_trace(trace(), "mermaid").split("\n")

    assert lines[0] == "sequenceDiagram"
    codes = ("#35;", "#59;", "#lt;", "#gt;")
    for line in lines:
        for code in codes:
            line = line.replace(code, "")  # noqa: PLW2901
        assert not {"#", ";"} & set(line)
    assert sum(line.strip() == "end" for line in lines) == 2


def test_csv_has_one_row_per_step_and_one_per_loss_at_the_end():
    rows = list(csv.reader(render_trace(trace(), "csv").splitlines()))

    assert len(rows) == 1 + 8 + 1
    assert rows[6][-2] == "freed-page"
    assert rows[-1] == ["", "", "", "", "", "", "mine", ""]
