"""Recordings against the model: here one that is made of a run of the toy itself."""

from dataclasses import replace

import pytest

from kvmarch.errors import RecordingError
from kvmarch.plugins import Plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import LeafTable, Look, Recording, Stage, shipped
from kvmarch.recordings.read import load as load_recording
from kvmarch.recordings.table import conform_table
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.records import FIRST_HVA

ELSEWHERE = 0x40000
"""How far the recording's pages and tables lie from the model's, in pages."""
EXITS = {"hlt": 5, "mmio": 6}
TRACED = {"kvm_unmap_hva_range", "kvm_set_spte_hva", "kvm_age_hva"}


def moved(entry):
    """Return a leaf of the toy with the recording's page in it."""
    return entry + (ELSEWHERE << 12) if entry else 0


def page(hva):
    return f"hva0+{hva - FIRST_HVA >> 12:#x}p"


def event_text(event):
    data = event.data
    if event.name == "guest_fault":
        return "kvm_page_fault", f"vcpu 0 address {data['gfn'] << 12:#x} error 14"
    places = [data[key] for key in ("start", "end", "hva") if key in data]
    return event.name, " -- ".join(map(page, places))


def call_text(text, value, gfn):
    verb = text.split()[0]
    if verb in {"slot", "slot_delete"}:
        return f"slot 0 errno={value}"
    if verb == "dirty_get":
        return f"dirty rc=0 {value[1]:x}"
    if verb in {"read", "write"}:
        return f"run ld gpa=0 rc=0 exit={EXITS[value]} mmio={gfn << 12:x}"
    return ""


def record(played):
    """Return what a recording of this run would say."""
    stages, events, console = {}, [], []
    text, gfn = "", -1
    for event in played.events:
        if event.name == "mark":
            events, console = [], []
            name = event.data["name"]
            stages[name] = (None, events, console)
        elif event.name == "look":
            name, look = event.data["name"], event.data
            pages = {
                look["gfn"] + i: pfn + ELSEWHERE if pfn else 0
                for i, pfn in enumerate(look["pages"])
            }
            tables = ()
            if any(look["entries"]):
                entries = tuple(map(moved, look["entries"]))
                tables = (LeafTable(look["table"] + (ELSEWHERE << 12), entries),)
            had = stages.get(name, (None, (), ()))
            stages[name] = (Look(pages, tables), *had[1:])
        elif event.name == "step":
            text = event.data["text"]
        elif event.name == "kvm_userspace_exit":
            gfn = event.data["gfn"]
        elif event.name == "result" and call_text(text, event.data["value"], gfn):
            console.append(call_text(text, event.data["value"], gfn))
        elif event.name in TRACED or event.name == "guest_fault":
            events.append(event_text(event))
    return Recording(
        "own.json",
        "toy",
        "6.1.0-50",
        4096,
        {},
        tuple(
            Stage(name, look, tuple(events), tuple(console), 0)
            for name, (look, events, console) in stages.items()
        ),
    )


@pytest.fixture
def own(play):
    """A recording of the toy on v6.1."""
    return record(play(load(find("tour"))))


def verdicts(findings):
    return {finding.verdict for finding in findings}


def differing(findings):
    return [(f.stage, f.what) for f in findings if f.verdict == "differ"]


def with_stage(recording, name, **fields):
    return replace(
        recording,
        stages=tuple(
            replace(stage, **fields) if stage.name == name else stage
            for stage in recording.stages
        ),
    )


def stage_of(recording, name):
    return next(stage for stage in recording.stages if stage.name == name)


def test_the_models_own_run_agrees(own, toys):
    findings = conform(own, toys)

    assert differing(findings) == []
    assert "agree" in verdicts(findings)
    left = {(f.what, f.detail) for f in findings if f.verdict == "not compared"}
    assert {what for what, _detail in left} <= {"host pages", "entries"}
    compared = {f.what.split()[0] for f in findings if f.verdict == "agree"}
    assert compared == {"host", "entries", "notifier", "call", "faults"}


def test_another_entry_differs(own, toys):
    look = stage_of(own, "fault").look
    table = look.tables[0]
    entries = (table.entries[0] ^ 0b1000, *table.entries[1:])
    other = with_stage(
        own, "fault", look=Look(look.pages, (LeafTable(table.pa, entries),))
    )

    (finding,) = [f for f in conform(other, toys) if f.verdict == "differ"]

    assert (finding.stage, finding.what) == ("fault", "entries")
    assert f"{entries[0]:#x}" in finding.detail


def test_an_entry_where_the_model_has_none_differs(own, toys):
    look = stage_of(own, "dontneed").look
    table = look.tables[0]
    entries = (*table.entries[:2], table.entries[0], table.entries[3])
    other = with_stage(
        own, "dontneed", look=Look(look.pages, (LeafTable(table.pa, entries),))
    )

    assert differing(conform(other, toys)) == [("dontneed", "entries")]


def test_no_table_where_the_model_has_entries_differs(own, toys):
    look = stage_of(own, "idle").look
    other = with_stage(own, "idle", look=Look(look.pages, ()))

    assert differing(conform(other, toys)) == [("idle", "entries")]


def test_pages_that_are_not_shared_differ(own, toys):
    look = stage_of(own, "ksm").look
    other = with_stage(own, "ksm", look=Look({**look.pages, 1: 0x123456}, look.tables))

    assert ("ksm", "host pages") in differing(conform(other, toys))


@pytest.mark.parametrize(
    ("stage", "line", "what"),
    [
        pytest.param("dirty_on", "slot 0 errno=22", "call slot 0 errno=22", id="errno"),
        pytest.param("dirty_get", "dirty rc=0 ff", "call dirty rc=0 ff", id="bitmap"),
        pytest.param("dirty_get", "dirty rc=-1", "call dirty rc=-1", id="error"),
        pytest.param(
            "idle_touch", "run ld gpa=0 rc=0 exit=5", "call run ld gpa=0", id="exit"
        ),
        pytest.param(
            "idle_touch",
            "run ld gpa=0 rc=0 exit=6 mmio=5000",
            "call run ld gpa=0",
            id="mmio",
        ),
    ],
)
def test_another_result_differs(own, toys, stage, line, what):
    other = with_stage(own, stage, console=(line,))

    assert differing(conform(other, toys)) == [(stage, what)]


def test_another_number_of_calls_differs(own, toys):
    lines = stage_of(own, "idle_touch").console
    other = with_stage(own, "idle_touch", console=(*lines, lines[0]))

    assert differing(conform(other, toys)) == [("idle_touch", "calls")]


def test_a_line_that_nobody_can_read_is_not_compared(own, toys):
    other = with_stage(own, "idle_touch", console=("run rc=odd",))

    findings = conform(other, toys)

    assert differing(findings) == []
    assert any("cannot read 'run rc=odd'" in f.detail for f in findings)


def test_other_notifier_events_differ(own, toys):
    events = (("kvm_unmap_hva_range", "hva0+0x5p -- hva0+0x6p"),)
    other = with_stage(own, "dontneed", events=events)

    assert differing(conform(other, toys)) == [("dontneed", "notifier events")]


def test_vain_attempts_of_ksm_agree(own, toys):
    events = stage_of(own, "ksm").events
    other = with_stage(own, "ksm", events=(*events[:2], *events))

    findings = [f for f in conform(other, toys) if f.stage == "ksm"]

    assert differing(findings) == []
    assert any("vain attempts" in f.detail for f in findings)


def test_other_faults_differ(own, toys):
    more = ("kvm_page_fault", "vcpu 0 address 0x5000 error 14")
    events = (*stage_of(own, "idle_touch").events, more)
    other = with_stage(own, "idle_touch", events=events)

    assert differing(conform(other, toys)) == [("idle_touch", "faults")]


def test_events_that_were_cut_off_are_said(own, toys):
    stage = stage_of(own, "ksm")
    other = with_stage(own, "ksm", events=stage.events[:2], omitted=4)

    findings = [f for f in conform(other, toys) if f.stage == "ksm"]

    assert differing(findings) == []
    assert any("4 events were cut" in f.detail for f in findings)


def test_a_stage_that_the_tour_lacks_is_said(own, toys):
    odd = Stage("odd", None, (), (), 0)

    findings = conform(replace(own, stages=(*own.stages, odd)), toys)

    (finding,) = [f for f in findings if f.stage == "odd"]
    assert finding.verdict == "not compared"
    assert finding.detail == "the tour has no such stage"


def test_a_kernel_without_traces_is_said(own, toys):
    mute = replace(own, stages=tuple(replace(stage, events=()) for stage in own.stages))

    findings = conform(mute, toys)

    assert differing(findings) == []
    assert any("traces no notifier events" in f.detail for f in findings)
    assert any("traces no guest faults" in f.detail for f in findings)


def test_a_change_makes_the_model_differ(own, toys):
    findings = conform(own, toys, plus=("change-pte-removed",))

    assert ("ksm", "notifier events") in differing(findings)


def test_a_parameter_that_the_model_lacks_is_said(own, toys):
    findings = conform(replace(own, parameters={"kvm.odd": "Y"}), toys)

    assert any("kvm.odd=Y" in f.detail for f in findings)
    assert differing(findings) == []


def test_a_newer_kernel_is_played_as_the_newest(own, toys):
    findings = conform(replace(own, kernel="9.9.1"), toys)

    assert any("9.9.1 is newer than the model" in f.detail for f in findings)


# -- refusals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param(
            {"arch": "vax"},
            r"own\.json: arch: unknown architecture 'vax'; there is .*toy",
            id="arch",
        ),
        pytest.param(
            {"kernel": "2.6.32"},
            r"own\.json: .*unknown release '2\.6\.32'",
            id="kernel",
        ),
        pytest.param(
            {"page_size": 65536},
            r"own\.json: unknown value of toy option page_size '65536'; there is 4096",
            id="page-size",
        ),
    ],
)
def test_a_recording_of_something_unknown(own, toys, fields, message):
    with pytest.raises(RecordingError, match=message):
        conform(replace(own, **fields), toys)


def test_an_option_that_the_architecture_lacks(own, toys):
    with pytest.raises(RecordingError, match="unknown option of toy 'mmu'"):
        conform(own, toys, given={"mmu": "tdp"})


def test_a_recorded_architecture_that_is_not_installed_is_said():
    recording = load_recording(shipped()[-1])

    (finding,) = conform(recording, Plugins([], []))

    assert finding.verdict == "not compared"
    assert "is not installed" in finding.detail


# -- the table ---------------------------------------------------------------------


def test_without_files_all_that_are_shipped_are_compared(toys):
    table = conform_table((), toys, Choose(), everything=False)

    assert len(table.rows) == len(table.notes) == len(shipped())
    assert table.status == 0


def test_the_status_is_1_if_something_differs(toys, own, monkeypatch):
    other = with_stage(own, "idle_touch", console=("run ld gpa=0 rc=0 exit=5",))
    monkeypatch.setattr("kvmarch.recordings.table.load", lambda path: other)

    short = conform_table(("own.json",), toys, Choose(), everything=False)
    full = conform_table(("own.json",), toys, Choose(), everything=True)

    assert (short.status, full.status) == (1, 1)
    assert {row["verdict"] for row in short.rows} <= {"differ", "not compared"}
    assert "agree" in {row["verdict"] for row in full.rows}
    assert "1 differ" in short.notes[0]


def test_what_no_recording_of_a_kernel_has_is_said_once(toys, own, monkeypatch):
    mute = replace(own, stages=tuple(replace(stage, events=()) for stage in own.stages))
    monkeypatch.setattr(
        "kvmarch.recordings.table.load", lambda path: replace(mute, name=path.name)
    )

    several = conform_table(("a.json", "b.json"), toys, Choose(), everything=False)
    one = conform_table(("a.json",), toys, Choose(), everything=False)
    full = conform_table(("a.json", "b.json"), toys, Choose(), everything=True)

    def silent(table):
        return [r for r in table.rows if "traces no guest faults" in r["detail"]]

    (row,) = silent(several)
    assert row["recording"] == "toy 6.1.0-50 (2)"
    assert row["stage"] == "(all)"
    assert {row["recording"] for row in silent(one)} == {"a"}
    assert len(silent(full)) == 2 * len(silent(one)) > 2


def test_what_differs_is_said_of_each_recording(toys, own, monkeypatch):
    other = with_stage(own, "idle_touch", console=("run ld gpa=0 rc=0 exit=5",))
    monkeypatch.setattr(
        "kvmarch.recordings.table.load", lambda path: replace(other, name=path.name)
    )

    table = conform_table(("a.json", "b.json"), toys, Choose(), everything=False)

    differing = [r["recording"] for r in table.rows if r["verdict"] == "differ"]
    assert differing == ["a", "b"]
