"""Keep what was found: as a scenario, and as a recording that conform reads."""

__all__ = ["save_recording", "save_scenario"]

import json
from pathlib import Path
from typing import Any

from kvmarch.lab.record import Recorder, raw_of
from kvmarch.lab.session import Session
from kvmarch.recordings.traces import COMPARED
from kvmarch.report.files import write_whole
from kvmarch.scenarios.records import Scenario


def save_scenario(scenario: Scenario, path: Path) -> None:
    """Write a scenario as a file that every command takes.

    :raises KvmarchError: it cannot be written.
    """
    raw = raw_of(scenario)
    rows = [
        "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in row.items()) + " }"
        for row in raw["vm"]["memory"]
    ]
    text = [
        f"title  = {_value(scenario.title)}",
        f"source = {_value(scenario.source)}",
        f"tags   = {_value(list(scenario.tags))}",
        "",
        "[vm]",
        *([f"count = {scenario.vms}"] if scenario.vms > 1 else []),
        f"vcpus = {scenario.vcpus}",
        f"code = {scenario.code:#x}",
        "memory = [",
        *(f"    {row}," for row in rows),
        "]",
    ]
    for task in raw["task"]:
        text += ["", "[[task]]", f"name = {_value(task['name'])}", "steps = ["]
        text += [f"    {_value(line)}," for line in task["steps"]]
        text += ["]"]
    write_whole(path, "\n".join(text) + "\n")


def _value(value: Any) -> str:
    """Return a value of ours as TOML has it: as JSON does."""
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def save_recording(session: Session, scenario: Scenario, path: Path) -> None:
    """Run a scenario once more, with trace events, and write what is seen.

    :raises LabError: it cannot be run to its end, or not be written.
    """
    session.trace(on=True)
    recorder = Recorder(session, scenario)
    try:
        recorder.run()
    finally:
        session.trace(on=True, only=COMPARED)
        write_whole(path, json.dumps(recorder.document(), indent=1) + "\n")
