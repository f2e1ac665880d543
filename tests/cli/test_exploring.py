"""The commands that look at interleavings: schedules, and what is refused."""

import json

import pytest

RACE = """
title = "a race"
setup = ["slot id=0 memory=ram gfn=0"]
[vm]
memory = [{ name = "ram", pages = 1 }]
[[task]]
name = "vmm"
steps = ["read gfn=0"]
[[task]]
name = "host"
steps = ["dontneed memory=ram page=0 pages=1"]
[property.mine]
ask = "always"
bad = "vm.mn_active_invalidate_count > 0"
"""


@pytest.fixture
def race(tmp_path):
    """Write a scenario of two tasks that loses a property."""
    path = tmp_path / "own.toml"
    path.write_text(RACE, "utf-8")
    return str(path)


@pytest.fixture
def lost(kvmarch, race):
    """Return a schedule on which the property is lost."""
    printed = kvmarch("explore", race, "-k", "v6.1", "--format", "json").stdout
    rows = {row["property"]: row for row in json.loads(printed)["rows"]}
    return rows["mine"]["schedule"]


def test_a_schedule_is_replayed_in_columns(kvmarch, race, lost):
    result = kvmarch("explore", race, "-k", "v6.1", "--replay", lost)

    assert result.exit_code == 0
    assert "LOST mine" in result.stdout
    heading = result.stdout.split("\n")[2]
    assert heading.split() == ["step", "vmm", "host"]


@pytest.mark.parametrize("command", ["--replay", "--shorten", "explain"])
@pytest.mark.parametrize(
    "style", ["text", "markdown", "json", "csv", "mermaid", "perfetto"]
)
def test_schedules_are_printed_in_every_format(kvmarch, race, lost, command, style):
    if command == "explain":
        args = ("explain", race, "--property", "mine", "-k", "v6.1")
    else:
        args = ("explore", race, "-k", "v6.1", command, lost)
    result = kvmarch(*args, "--format", style)

    assert result.exit_code == 0
    assert "mine" in result.stdout
    if style == "text":
        assert max(map(len, result.stdout.split("\n"))) <= 100
    if style in {"json", "perfetto"}:
        json.loads(result.stdout)


def test_a_schedule_needs_no_kernel(kvmarch, race, lost):
    assert "LOST mine" in kvmarch("explore", race, "--replay", lost).stdout


def test_a_schedule_is_shortened(kvmarch, race, lost):
    where = lost.rpartition(":")[0]
    result = kvmarch("explore", race, "--shorten", f"{where}:a5b7")

    assert result.exit_code == 0
    assert f"schedule {where}:b7\n" in result.stdout
    assert "which lose mine too" in result.stdout


def test_explain_says_what_changes(kvmarch, race):
    result = kvmarch("explain", race, "-k", "v6.1", "--property", "mine")

    assert "vm.mn_active_invalidate_count 0 -> 1" in result.stdout
    assert "*** LOST mine" in result.stdout


def test_explain_says_that_nothing_is_lost(kvmarch, race):
    result = kvmarch("explain", race, "-k", "v6.1", "--property", "warn")

    assert result.exit_code == 0
    assert "toy v6.1: warn never lost" in result.stdout


REFUSED = [
    pytest.param(
        ("--replay", "another@toy-v6.1:a1"),
        "the schedule is of 'another@toy",
        id="name",
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:a1", "-k", "v6.2"),
        "the schedule is of 'own@toy-v6.1'",
        id="release",
    ),
    pytest.param(
        ("--replay", "own@vax-v6.1:a1"), "the schedule is of 'own@vax", id="arch"
    ),
    pytest.param(("--replay", "a1b2"), "the schedule is of 'a1b2'", id="no-place"),
    pytest.param(
        ("--replay", "own@toy-v6.1:c1"), "there is no task c; there is a to b", id="c"
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:1a"), "'1a' are no turns such as a3b2", id="turns"
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:a9999"), "vmm is done after ", id="too-many"
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:a1~"),
        "after ~ must come the turns of a cycle",
        id="no-cycle",
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:a1~a1"),
        "a1~a1 does not come back to where it began; what differs: vmm, Lock(vcpu0",
        id="no-way-back",
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:a1~a9999"), "vmm is done after ", id="cycle-too-long"
    ),
    pytest.param(
        ("--shorten", "own@toy-v6.1:a1~a1"), "does not come back", id="shorten-cycle"
    ),
    pytest.param(
        ("--replay", "own@toy-v6.1:a" + "9" * 5000), "too many", id="far-too-many"
    ),
    pytest.param(
        ("--shorten", "own@toy-v6.1:a9999"), "vmm is done after ", id="shorten-too-many"
    ),
    pytest.param(
        ("--shorten", "own@toy-v6.1:a3"), "does not lose any property", id="not-lost"
    ),
    pytest.param(
        ("--shorten", "own@toy-v6.1:a3", "--property", "x"), "unknown property", id="id"
    ),
    pytest.param(
        ("--format", "mermaid"), "--format mermaid shows one schedule", id="mermaid"
    ),
    pytest.param(
        ("--format", "perfetto"), "--format perfetto shows one schedule", id="perfetto"
    ),
]


@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_bad_input_is_one_line_and_status_2(kvmarch, race, args, message):
    result = kvmarch("explore", race, *args)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("kvmarch: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1000


def test_a_schedule_of_all_scenarios_is_refused(kvmarch):
    result = kvmarch("explore", "--all", "--replay", "x@toy-v6.1:a1")

    assert result.exit_code == 2
    assert result.stderr == "kvmarch: a schedule is of one SCENARIO, not of --all\n"


def test_explain_that_is_cut_says_so_and_is_status_3(kvmarch, race):
    result = kvmarch("explain", race, "-k", "v6.1", "--states", "2")

    said = "toy v6.1: whether any property is lost is unknown, cut at 2 states ("
    assert result.exit_code == 3
    assert said in result.stdout


def test_explaining_an_unknown_property_is_refused(kvmarch, race):
    result = kvmarch("explain", race, "--property", "magic")

    assert result.exit_code == 2
    assert result.stderr.startswith("kvmarch: unknown property 'magic'; there is ")
