"""Recordings: what a scenario did on a real kernel, in the form that conform reads."""

__all__ = ["Recorder", "check", "program_of", "record"]

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvmarch.errors import KvmarchError, LabError
from kvmarch.lab.machines import machine_of
from kvmarch.lab.session import Config, Session, booted
from kvmarch.lab.sides import Leaf, Look, Memory, Setup, code_memory
from kvmarch.lab.steps import check_verb, content_of
from kvmarch.plugins import Loaded
from kvmarch.report.files import write_whole
from kvmarch.scenarios import records
from kvmarch.scenarios.records import Scenario, StepLine

_STRING = r'("(?:[^"\\]|\\.)*")'
_EVENT = re.compile(
    rf'{{\n +"task": {_STRING},\n +"event": {_STRING},\n +"text": {_STRING}\n +}}'
)
CODE_GPA = 0xE000_0000
"""Where the page of code is mapped if a scenario has none."""
CODE_SLOT = 30
VMS = 4
VCPUS = 16
MEMORIES = 32
"""MAX_VMS, MAX_VCPUS and MAX_MEMORIES of the probe."""
LOOKED_AT = 4
"""Pages and entries that a look of the scenario's own keeps."""
LAST = ("exit_mm", "vm_destroy")
"""Verbs after which there is nothing left to look at."""


def check(scenarios: Collection[Scenario], output: Path | None) -> None:
    """Refuse what cannot be recorded, or not there, before anything is booted.

    :param output: as for :func:`record`.
    :raises LabError: with the first reason.
    """
    for scenario in scenarios:
        check_scenario(scenario)
    if output is None or output.is_dir():
        return
    if len(scenarios) > 1:
        raise LabError(f"{output}: several recordings need a folder")
    if not output.parent.is_dir():
        raise LabError(f"{output}: there is no folder {output.parent}")


def check_scenario(scenario: Scenario) -> None:
    """Refuse a scenario that the lab cannot do, before anything is booted.

    :raises LabError: several tasks race, or a step is none for a real kernel.
    """
    if len(scenario.tasks) != 1:
        raise LabError(
            f"{scenario.name} has {len(scenario.tasks)} tasks; the lab does one after "
            "the other what one task says"
        )
    rows = MEMORIES - min(scenario.vms, VMS)
    if scenario.vms > VMS or scenario.vcpus > VCPUS or len(scenario.memory) > rows:
        raise LabError(
            f"{scenario.name}: at most {VMS} VMs of {VCPUS} vCPUs, and {rows} memories"
        )
    if any(row.hugetlb for row in scenario.memory):
        raise LabError(f"{scenario.name}: the lab has no pages of hugetlbfs")
    for part, lines in (
        ("line {} of setup", scenario.setup),
        ("step {}", scenario.tasks[0].steps),
    ):
        for number, line in enumerate(lines, 1):
            check_verb(line, f"{scenario.name}, {part.format(number)}, ")


def program_of(scenario: Scenario, page_size: int) -> Scenario:
    """Return what the lab does for a scenario, and what the model has to play.

    One task, and somewhere a page of code. If the scenario does not look for itself,
    every step is a stage, with a survey of everything after it.

    :raises LabError: several tasks race, or a step is none for a real kernel.
    """
    check_scenario(scenario)
    task = scenario.tasks[0]
    if scenario.code < 0:
        scenario = _with_code(scenario, page_size)
    if not any(line.verb == "look" for line in task.steps):
        steps = tuple(_surveyed(task.steps, page_size))
        scenario = replace(scenario, tasks=(replace(task, steps=steps),))
    return replace(scenario, columns=(), expects=(), watch=(), verdicts=(), bug=None)


def _with_code(scenario: Scenario, page_size: int) -> Scenario:
    gfn = CODE_GPA // page_size
    lines = (*scenario.setup, *scenario.tasks[0].steps)
    used = {line.args["id"] for line in lines if "id" in line.args}
    number = next(n for n in range(CODE_SLOT, -1, -1) if str(n) not in used)
    names = [code_memory(vm) for vm in range(scenario.vms)]
    for row in scenario.memory:
        if row.name in names:
            raise LabError(
                f"{scenario.name}: its memory {row.name!r} needs vm.code, too"
            )
    slots = (
        _line("slot", id=number, memory=name, gfn=f"{gfn:#x}", **_vm(vm))
        for vm, name in enumerate(names)
    )
    return replace(
        scenario,
        code=gfn,
        memory=(*scenario.memory, *(records.Memory(name, 1) for name in names)),
        setup=(*slots, *scenario.setup),
    )


def _vm(number: int) -> dict[str, int]:
    """Return the argument that names a VM."""
    return {"vm": number} if number else {}


def _line(verb: str, **args: object) -> StepLine:
    given = {key: str(value) for key, value in args.items()}
    text = " ".join([verb, *(f"{key}={value}" for key, value in given.items())])
    return StepLine(verb, given, text)


def _surveyed(lines: Iterable[StepLine], page_size: int) -> Iterator[StepLine]:
    """Yield each step between a mark and a survey, without marks of its own."""
    number = 0
    accessed: set[int] = set()
    for line in lines:
        if line.verb == "mark":
            continue
        number += 1
        yield _line("mark", name=number)
        yield line
        if line.verb in {"read", "write", "exec"}:
            accessed.add(
                int(line.args["gfn"], 0)
                if "gfn" in line.args
                else int(line.args["gpa"], 0) // page_size
            )
        if line.verb not in LAST:
            also = ",".join(f"{gfn:x}" for gfn in sorted(accessed))
            yield _line("survey", name=number, **({"also": also} if also else {}))


class Recorder:
    """Runs one scenario in a session, and keeps what was seen, step by step."""

    def __init__(self, session: Session, scenario: Scenario) -> None:
        self.session = session
        self.program = program_of(scenario, session.page_size)
        self.name = scenario.name
        self.stages: dict[str, dict[str, Any]] = {}
        self.complete = False

    def run(self) -> None:
        """Do every step; what was seen before an error is in the document."""
        program, session = self.program, self.session
        session.begin(setup_of(program, session.page_size))
        for line in program.setup:
            session.do(line.text)
        here: dict[str, Any] = {"console": [], "events": []}
        look = Look()
        for line in program.tasks[0].steps:
            if line.verb == "mark":
                here = self._stage(line.args["name"])
            elif line.verb == "survey":
                self._survey(self._stage(line.args["name"]), look)
            elif line.verb == "look":
                self._look(self._stage(line.args["name"]), line, look)
            else:
                look = session.do(line.text)
                self._take(here, line, look)
        session.end()
        if session.alarms:
            last = self._stage("end")
            last["kernel_log"] = list(session.alarms)
            session.alarms.clear()
        self.complete = True

    def document(self) -> dict[str, Any]:
        """Return the recording as far as it has come."""
        session = self.session
        return {
            "arch": session.arch,
            "machine": session.machine,
            "kernel": session.kernel,
            "page_size": session.page_size,
            "module_params": session.parameters,
            "scenario": self.name,
            "recorded_with": session.how,
            "complete": self.complete,
            "root_found": session.method,
            "traces": session.traces,
            "program": raw_of(self.program),
            "stages": list(self.stages.values()),
        }

    def _stage(self, name: str) -> dict[str, Any]:
        return self.stages.setdefault(
            name, {"name": name, "step": "", "console": [], "events": []}
        )

    def _take(self, stage: dict[str, Any], line: StepLine, look: Look) -> None:
        """Keep what a step showed of itself."""
        steps = [stage["step"]] if stage.get("step") else []
        stage["step"] = "; ".join([*steps, line.text])
        stage["console"].extend(look.answers)
        for event in look.events:
            if event.event:
                row = {"task": event.task, "event": event.event, "text": event.text}
                stage["events"].append(row)
            else:
                stage["events_omitted"] = stage.get("events_omitted", 0) + event.more
        if look.kernel_log:
            stage.setdefault("kernel_log", []).extend(look.kernel_log)

    def _survey(self, stage: dict[str, Any], look: Look) -> None:
        stage["frames"] = {name: _runs(pfns) for name, pfns in look.frames.items()}
        first, *others = (
            {
                "root": None if vm.seen.root is None else f"{vm.seen.root:#x}",
                "leaves": None if tree is None else list(map(_line_of, tree)),
            }
            for vm, tree in zip(self.session.vms, look.trees, strict=True)
        )
        stage.update(first)
        if others:
            stage["other_vms"] = others
        if look.counters:
            stage["counters"] = dict(look.counters)

    def _look(self, stage: dict[str, Any], line: StepLine, look: Look) -> None:
        """Keep the first pages of a memory, and the entries from a gfn on."""
        gpa = int(line.args["gpa"], 0) if "gpa" in line.args else 0
        gfn = gpa // self.session.page_size
        if "gfn" in line.args:
            gfn = int(line.args["gfn"], 0)
        pages = look.frames.get(line.args["memory"], ())[:LOOKED_AT]
        stage["host_pfns"] = {
            f"{gfn + i:#x}": f"{pfn:#x}" for i, pfn in enumerate(pages)
        }
        found = self.session.table_of(gfn, LOOKED_AT)
        stage["leaf_tables"] = []
        if found is not None:
            table, entries = found
            shown = [f"{entry:#x}" for entry in entries]
            row = {"pa": f"{table:#x}", "entries_from_first_gfn": shown}
            stage["leaf_tables"].append(row)


def _line_of(leaf: Leaf) -> str:
    """Return an entry as the reader takes it."""
    return (
        f"gfn={leaf.gfn:x} level={leaf.level} entry={leaf.entry:x} "
        f"pages={leaf.pages:x} {leaf.kind}"
    )


def setup_of(program: Scenario, page_size: int) -> Setup:
    """Return the VM of a program, before its first step."""
    rows = tuple(
        Memory(
            row.name,
            row.size(page_size) // page_size,
            row.huge,
            row.mergeable,
            tuple(content_of(value) for value in row.contents) if row.touched else None,
        )
        for row in program.memory
    )
    return Setup(rows, program.vcpus, program.code, program.vms)


def raw_of(program: Scenario) -> dict[str, Any]:
    """Return a program as a scenario file would say it."""
    usual = asdict(records.Memory(""))
    return {
        "title": program.title,
        "source": program.source,
        "vm": {
            **({"count": program.vms} if program.vms > 1 else {}),
            "vcpus": program.vcpus,
            "code": program.code,
            "memory": [
                {k: v for k, v in asdict(row).items() if v != usual[k]}
                for row in program.memory
            ],
        },
        "setup": [line.text for line in program.setup],
        "task": [
            {"name": task.name, "steps": [line.text for line in task.steps]}
            for task in program.tasks
        ],
    }


def _runs(pfns: tuple[int, ...]) -> str:
    """Return pages as runs of neighbours ``pfn*count``, as the reader takes them."""
    runs: list[list[int]] = []
    for pfn in pfns:
        if runs and pfn == (runs[-1][0] + runs[-1][1] if runs[-1][0] else 0):
            runs[-1][1] += 1
        else:
            runs.append([pfn, 1])
    return " ".join(f"{pfn:x}*{count:x}" for pfn, count in runs)


def text_of(document: Mapping[str, Any]) -> str:
    """Return a recording as text: an event is a line."""
    text = json.dumps(document, indent=1)
    return _EVENT.sub(r'{"task": \1, "event": \2, "text": \3}', text) + "\n"


def record(
    arch: Loaded,
    config: Config,
    scenarios: Iterable[Scenario],
    output: Path | None,
    tell: Callable[[str], None],
) -> Iterator[Path]:
    """Boot a kernel, run one scenario after the other, and write their recordings.

    What was recorded before an error or an interruption is written, too. :func:`check`
    comes first.

    :param output: a file, a folder, or None for this folder.
    :param tell: called with what else the user should know.
    :returns: yields the file of each recording.
    :raises KvmarchError: with what went wrong.
    """
    machine = machine_of(arch)
    with booted(arch, config) as session:
        for scenario in scenarios:
            path = Path(f"{scenario.name}-{machine.debian}-{session.kernel}.json")
            if output is not None:
                path = output / path if output.is_dir() else output
            recorder = Recorder(session, scenario)
            try:
                recorder.run()
            except BaseException:
                with _telling(tell):
                    write_whole(path, text_of(recorder.document()))
                    tell(f"{path}: what was recorded until then")
                raise
            write_whole(path, text_of(recorder.document()))
            yield path


@contextlib.contextmanager
def _telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell an error, so that the one that was there before it is what is raised."""
    try:
        yield
    except KvmarchError as error:
        tell(str(error))
