"""The sheet's bugs: searched for again, and compared with what is recorded."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import kvmarch_riscv

SCENARIOS = Path(kvmarch_riscv.__file__).parent / "scenarios"
FOUND = json.loads((SCENARIOS / "found.json").read_text("utf-8"))
FILES = sorted(SCENARIOS.glob("*.toml"))


def of(path):
    with path.open("rb") as file:
        return tomllib.load(file)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_verdict_is_found_again(path):
    done = subprocess.run(
        [sys.executable, "-m", "kvmarch", "explore", path.stem, "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["rows"]
    # Lengths and schedules count the core's steps too, which change with it.
    lost = next(r for r in rows if r["schedule"] and r["expected"] not in {"", "never"})
    where = lost["schedule"].partition("@")[2].rpartition(":")[0]
    recorded = FOUND[path.stem]
    assert (lost["property"], where) == (recorded["property"], recorded["kernel"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_bug_has_a_kernel_with_it_and_one_without(path):
    verdicts = {row["verdict"] for row in of(path)["verdict"]}

    assert "never" in verdicts
    assert verdicts & {"sometimes", "always"}
    assert {row["arch"] for row in of(path)["verdict"]} == {"riscv"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_candidate_says_what_would_confirm_it(path):
    bug = of(path)["bug"]

    assert bug["status"] != "candidate" or bug["confirm"]


def test_what_is_recorded_are_these():
    assert set(FOUND) == {path.stem for path in FILES}
