"""Recordings: the program that is done, and how it is written down."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("numpy")

from kvmarch.errors import LabError
from kvmarch.lab.events import Event
from kvmarch.lab.record import Recorder, check_scenario, program_of, raw_of, text_of
from kvmarch.lab.sides import Leaf, Look
from kvmarch.plugins import load as load_plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import Survey, load
from kvmarch.scenarios.file import find, scenario_of
from kvmarch.scenarios.file import load as load_scenario


def scenario(steps, tasks=1, **more):
    vm = {"memory": [{"name": "ram", "pages": 4, "contents": [7, "a"]}], **more}
    rows = [{"name": f"vmm{i}", "steps": steps} for i in range(tasks)]
    raw = {"title": "t", "vm": vm, "task": rows}
    return scenario_of(raw, Path("mine.toml"))


def lines(program):
    return [line.text for line in program.tasks[0].steps]


def test_every_step_is_a_stage_with_a_survey_and_marks_are_dropped():
    steps = ["mark name=x", "slot id=0 memory=ram gfn=0", "read gpa=0x3010", "exit_mm"]

    program = program_of(scenario(steps, code=0), 4096)

    assert lines(program) == [
        "mark name=1",
        "slot id=0 memory=ram gfn=0",
        "survey name=1",
        "mark name=2",
        "read gpa=0x3010",
        "survey name=2 also=3",
        "mark name=3",
        "exit_mm",
    ]
    assert program.setup == ()


def test_a_scenario_without_code_gets_a_slot_with_some():
    program = program_of(scenario(["slot id=30 memory=ram gfn=0"]), 16384)

    assert program.code == 0xE000_0000 // 16384
    assert program.memory[-1].name == "code"
    assert [line.text for line in program.setup] == [
        f"slot id=29 memory=code gfn={program.code:#x}"
    ]


def test_a_scenario_that_looks_for_itself_stays_as_it_is():
    tour = load_scenario(find("tour"))

    assert lines(program_of(tour, 4096)) == lines(tour)


def test_a_program_survives_being_written_down():
    program = program_of(load_scenario(find("ksm_cow")), 4096)
    raw = json.loads(json.dumps(raw_of(program)))

    again = scenario_of(raw, Path("ksm_cow.json"))

    assert (again.memory, again.setup, again.tasks, again.code) == (
        program.memory,
        program.setup,
        program.tasks,
        program.code,
    )


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (scenario(["read gfn=0"], tasks=2), "has 2 tasks"),
        (scenario(["migrate memory=ram page=0"]), "mine, step 1, .* from outside"),
        (scenario([], vcpus=17), "at most 4 VMs of 16 vCPUs, and 31 mem"),
        (
            scenario([], memory=[{"name": "ram", "mib": 2, "hugetlb": True}]),
            "no pages of hugetlbfs",
        ),
    ],
)
def test_what_the_lab_cannot_do_is_refused(made, why):
    with pytest.raises(LabError, match=why):
        check_scenario(made)


class Session:
    """Stands in for a booted kernel: says of each step what it is given."""

    page_size, arch, machine, kernel = 4096, "x86", "x86_64", "6.1.0-1-amd64"
    parameters, how, method, traces = {"kvm.tdp_mmu": "Y"}, "not at all", "", ["a"]

    def __init__(self, looks):
        self.looks, self.done, self.alarms = list(looks), [], []
        self.vms = [SimpleNamespace(seen=SimpleNamespace(root=0x1000))]

    def begin(self, setup):
        self.done.append(setup)

    def do(self, line):
        self.done.append(line)
        look = self.looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    def end(self):
        self.done.append("end")
        self.alarms.append("BUG: at the end")


def recorded(looks, tmp_path, steps):
    recorder = Recorder(Session(looks), scenario(steps, code=0))
    try:
        recorder.run()
    finally:
        path = tmp_path / "out.json"
        path.write_text(text_of(recorder.document()), "utf-8")
    return recorder, load(path), path


STEPS = ["slot id=0 memory=ram gfn=0", "read gfn=1"]
LOOKS = [
    Look(
        ("slot id=0 flags=0 gpa=0 size=4000 rc=0 errno=0",),
        ((),),
        frames={"ram": (5, 6, 0, 9)},
    ),
    Look(
        ("run ld gpa=1010 rc=0 exit=5",),
        ((Leaf(1, 1, 0x6E67, 6, "leaf", 1),),),
        frames={"ram": (5, 6, 0, 9)},
        events=(Event("probe", "a", 'says "it"'), Event("", "", "", 3)),
        kernel_log=("WARNING: at mmu.c",),
    ),
]


def test_what_was_seen_is_read_again(tmp_path):
    recorder, recording, path = recorded(LOOKS, tmp_path, STEPS)

    first, second, last = recording.stages
    assert recorder.complete
    assert recording.traces == ("a",)
    assert lines(recording.program) == lines(recorder.program)
    assert first.survey == Survey(((),), {"ram": (5, 6, 0, 9)})
    assert second.survey.trees == (((1, 1, 0x6E67),),)
    assert second.console == ("run ld gpa=1010 rc=0 exit=5",)
    assert second.step == "read gfn=1"
    assert second.events == (("a", 'says "it"'),)
    assert second.omitted == 3
    assert second.kernel_log == ("WARNING: at mmu.c",)
    assert last.kernel_log == ("BUG: at the end",)
    assert (
        '{"task": "probe", "event": "a", "text": "says \\"it\\""}' in path.read_text()
    )


def test_equal_contents_are_equal_for_the_kernel(tmp_path):
    recorder, _recording, _path = recorded(LOOKS, tmp_path, STEPS)

    (ram,) = recorder.session.done[0].memories
    assert ram.contents[0] == 7
    assert ram.contents[1] > 1 << 32


def test_what_was_recorded_before_an_error_is_kept(tmp_path):
    with pytest.raises(LabError, match="died"):
        recorded([LOOKS[0], LabError("it died")], tmp_path, STEPS)

    text = (tmp_path / "out.json").read_text("utf-8")
    assert json.loads(text)["complete"] is False
    assert load(tmp_path / "out.json").stages[0].survey.frames == {"ram": (5, 6, 0, 9)}


def test_of_a_recording_that_broke_off_what_came_before_is_compared(tmp_path):
    steps = ["slot id=0 memory=ram gfn=0", "touch memory=ram", "read gfn=1"]
    first = replace(LOOKS[0], frames={"ram": (5, 6, 7, 9)})
    with pytest.raises(LabError, match="died"):
        recorded([first, LabError("it died")], tmp_path, steps)

    recording = load(tmp_path / "out.json")
    assert [stage.name for stage in recording.stages] == ["1"]
    assert recording.broken_off == "2"
    assert [line.text for line in recording.program.tasks[0].steps] == [
        "mark name=1",
        steps[0],
        "survey name=1",
    ]
    found = {
        (finding.stage, finding.what, finding.verdict)
        for finding in conform(recording, load_plugins())
    }
    assert ("2", "recording", "not compared") in found
    assert not [row for row in found if row[2] == "differ"]


def test_a_recording_without_a_stage_says_so(tmp_path):
    recorder = Recorder(Session([]), scenario(STEPS, code=0))
    (tmp_path / "out.json").write_text(text_of(recorder.document()))

    recording = load(tmp_path / "out.json")

    assert recording.broken_off == "setup"
    assert [finding.verdict for finding in conform(recording, load_plugins())] == [
        "not compared"
    ]


def test_a_tree_that_was_not_found_is_not_an_empty_one(tmp_path):
    looks = [LOOKS[0], replace(LOOKS[1], trees=(None,))]
    recorder = Recorder(Session(looks), scenario(STEPS, code=0))
    recorder.run()

    assert [stage["leaves"] for stage in recorder.document()["stages"][:2]] == [
        [],
        None,
    ]


def test_every_vm_has_a_tree_in_a_recording(tmp_path):
    tree = LOOKS[1].trees[0]
    session = Session([replace(LOOKS[0], trees=(tree, None)), LOOKS[1]])
    session.vms *= 2
    recorder = Recorder(session, scenario(STEPS[:1], code=0, count=2))
    recorder.run()
    path = tmp_path / "out.json"
    path.write_text(text_of(recorder.document()), "utf-8")
    recording = load(path)

    assert session.done[0].vms == recording.program.vms == 2
    assert recording.stages[0].survey.trees == (((1, 1, 0x6E67),), None)


def test_each_vm_gets_code_of_its_own():
    program = program_of(scenario(["read gfn=1 vm=1"], count=2), 4096)

    assert [row.name for row in program.memory] == ["ram", "code", "code1"]
    assert [line.text for line in program.setup] == [
        "slot id=30 memory=code gfn=0xe0000",
        "slot id=30 memory=code1 gfn=0xe0000 vm=1",
    ]
