"""The commands: what they print, and one line for every bad input."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from kvmarch.cli.commands import cli
from kvmarch.plugins import Plugins, Refused

# -- what works --------------------------------------------------------------------


def test_without_arguments_the_commands_are_introduced(kvmarch):
    result = kvmarch()

    assert result.exit_code == 0
    for command in ("compare", "run", "formats", "conform", "scenarios"):
        assert f"kvmarch {command}" in result.stdout


def test_the_version(kvmarch):
    assert kvmarch("--version").stdout.startswith("kvmarch 0.")


@pytest.mark.parametrize("command", cli.list_commands(None))
def test_every_command_explains_itself(kvmarch, command):
    result = kvmarch(command, "--help")

    assert result.exit_code == 0
    assert cli.get_command(None, command).help.split("\n")[0] in result.stdout


def test_compare(kvmarch, own):
    result = kvmarch("compare", own(), "--kernel", "v6.1,v6.12", "--format", "json")

    rows = json.loads(result.stdout)["rows"]
    assert result.exit_code == 0
    assert [(r["arch"], r["kernel"], r["callback"]) for r in rows] == [
        ("toy", "v6.1", "present"),
        ("toy", "v6.12", "absent"),
    ]


def test_an_expectation_that_fails_is_status_1(kvmarch, own):
    result = kvmarch("compare", own(), "-k", "v6.1", "--with", "change-pte-removed")
    expected = kvmarch("compare", own(), "-k", "v6.1")

    assert (result.exit_code, expected.exit_code) == (0, 0)
    later = own("v6.10", "v6.13")
    failed = kvmarch("compare", later, "-k", "v6.12")
    assert failed.exit_code == 1
    assert "FAILED toy v6.12: callback is 'absent', expected 'present'" in failed.stdout


def test_compare_without_a_scenario_lists_what_can_be_compared(kvmarch):
    result = kvmarch("compare")

    assert result.exit_code == 0
    assert "change_pte" in result.stdout
    assert "kvmarch compare change_pte" in result.stdout


def test_compare_takes_a_span_of_releases(kvmarch, own):
    result = kvmarch("compare", own(), "-k", "v6.1..v6.3", "--format", "csv")

    kernels = [row["kernel"] for row in csv.DictReader(result.stdout.splitlines())]
    assert kernels == ["v6.1", "v6.2", "v6.3"]


def test_run(kvmarch, own):
    result = kvmarch("run", own(), "--kernel", "v6.1")

    assert result.exit_code == 0
    assert "own on toy v6.1 (page_size=4096)" in result.stdout
    assert "> slot id=0 memory=ram gfn=0" in result.stdout
    assert "no property was lost" in result.stdout
    assert "lock slots_lock" not in result.stdout


def test_run_shows_every_step(kvmarch, own):
    assert "lock slots_lock" in kvmarch("run", own(), "--steps").stdout


def test_a_run_that_is_cut_is_status_3(kvmarch, own):
    result = kvmarch("run", own(), "--bound", "5")

    assert result.exit_code == 3
    assert "the run was cut by its bound" in result.stdout


def test_a_run_that_loses_a_property_is_status_1(kvmarch, own):
    result = kvmarch("run", own(more='[property.mine]\nbad = "True"'))

    assert result.exit_code == 1
    assert "LOST mine" in result.stdout


def test_formats(kvmarch):
    result = kvmarch("formats", "toy", "--format", "json")

    rows = json.loads(result.stdout)["rows"]
    assert {"kind": "page", "levels": "1", "bits": "51:12", "field": "pfn"}.items() <= (
        rows[0].items()
    )


def test_decoding_a_value(kvmarch):
    result = kvmarch("formats", "toy", "0x123400f", "--level", "1", "--format", "json")

    rows = {r["field"]: r["value"] for r in json.loads(result.stdout)["rows"]}
    assert rows == {
        "pfn": "0x1234",
        "young": "1",
        "exec": "1",
        "write": "1",
        "present": "1",
    }


def test_decoding_a_value_of_no_kind(kvmarch):
    result = kvmarch("formats", "toy", "0x8000000000000001")

    assert result.exit_code == 0
    assert "unknown" in result.stdout


def test_scenarios(kvmarch):
    assert "tour" in kvmarch("scenarios").stdout


def test_kernels(kvmarch):
    rows = json.loads(kvmarch("kernels", "--format", "json").stdout)["rows"]

    assert rows[0]["change"] == "bracketed-set-pte"
    assert {row["arch"] for row in rows} == {"all"}


def test_the_difference_between_two_releases(kvmarch):
    result = kvmarch("kernels", "--diff", "v6.9", "v6.10", "--format", "json")

    steps = {r["step"]: r["because of"] for r in json.loads(result.stdout)["rows"]}
    assert steps == {"set_pte_at_notify": "change-pte-removed"}


def test_two_releases_without_a_difference(kvmarch):
    result = kvmarch("kernels", "--diff", "v6.2", "v6.3")

    assert "nothing that the model knows of" in result.stdout


def test_plugins(kvmarch, loaded, toy):
    loaded(Plugins([toy], [Refused("bad", "kvmarch-bad", "plugin bad: is bad")]))

    result = kvmarch("plugins", "--format", "json")

    rows = json.loads(result.stdout)["rows"]
    assert [(r["name"], r["tier"], r["status"]) for r in rows] == [
        ("toy", 5, "ok"),
        ("bad", 0, "refused: plugin bad: is bad"),
    ]
    assert result.stderr == "kvmarch: plugin bad: is bad\n"


def test_conform(kvmarch):
    result = kvmarch("conform")

    assert result.exit_code == 0
    assert "is not installed" in result.stdout


@pytest.mark.parametrize("style", ["text", "markdown", "json", "csv"])
@pytest.mark.parametrize(
    "args",
    [
        ("compare",),
        ("compare", "change_pte", "-k", "v6.1"),
        ("run", "ksm_cow"),
        ("formats", "toy"),
        ("scenarios",),
        ("kernels",),
        ("plugins",),
    ],
    ids=lambda args: "-".join(args[:2]),
)
def test_every_command_prints_every_format(kvmarch, args, style):
    result = kvmarch(*args, "--format", style)

    assert result.exit_code == 0
    assert result.stdout.endswith("\n")
    if style == "text":
        assert max(map(len, result.stdout.split("\n"))) <= 100


# -- what is refused ---------------------------------------------------------------


REFUSED = [
    pytest.param(
        ("compare", "change_pte", "--arch", "vax"),
        "unknown architecture 'vax'; there is toy",
        id="architecture",
    ),
    pytest.param(
        ("formats", "vax"), "unknown architecture 'vax'", id="architecture-formats"
    ),
    pytest.param(
        ("run", "tour", "-a", "vax"), "unknown architecture 'vax'", id="run-arch"
    ),
    pytest.param(
        ("kernels", "-a", "vax"), "unknown architecture 'vax'", id="kernels-arch"
    ),
    pytest.param(
        ("compare", "change_pte", "-k", "v9.1"),
        "unknown release 'v9.1'; there is every mainline release from v3.16 to v7.2",
        id="release",
    ),
    pytest.param(
        ("formats", "toy", "-k", "six"), "unknown release 'six'", id="release-formats"
    ),
    pytest.param(
        ("run", "tour", "-k", "v6.99"), "unknown release 'v6.99'", id="release-run"
    ),
    pytest.param(
        ("compare", "change_pte", "-k", "v6.2..v6.1"),
        "v6.2..v6.1: v6.2 is later than v6.1",
        id="span",
    ),
    pytest.param(
        ("formats", "toy", "-k", "v6.1,v6.2"),
        "entries are of one architecture and one release",
        id="several-formats",
    ),
    pytest.param(
        ("formats", "toy,toy"), "entries are of one architecture", id="archs-formats"
    ),
    pytest.param(
        ("formats", ""), "entries are of one architecture", id="no-arch-formats"
    ),
    pytest.param(
        ("run", "tour", "-k", "v6.1..v6.2"),
        "a run is of one architecture and one release",
        id="several-run",
    ),
    pytest.param(("run", "tour", "-a", "toy,x86"), "a run is of one", id="archs-run"),
    pytest.param(("compar",), "unknown command 'compar'; there is bugs,", id="command"),
    pytest.param(
        ("lab", "fecth"), "unknown command 'fecth'; there is fetch,", id="command-lab"
    ),
    pytest.param(("bugs", "tour"), "unknown bug 'tour'; there is ", id="bug"),
    pytest.param(
        ("conform", "arm64-6.2"),
        "unknown recording 'arm64-6.2'; there is arm64-6.1,",
        id="recording-name",
    ),
    pytest.param(
        ("kernels", "--diff", "v6.1", "x"), "unknown release 'x'", id="release-diff"
    ),
    pytest.param(
        ("compare", "change_pte", "--with", "magic"),
        "unknown change 'magic'; there is gpc, and",
        id="change",
    ),
    pytest.param(
        ("run", "tour", "--without", "magic"), "unknown change 'magic'", id="change-run"
    ),
    pytest.param(
        ("formats", "toy", "--with", "magic"), "unknown change", id="change-formats"
    ),
    pytest.param(
        ("compare", "change_pte", "--with", "gpc", "--without", "gpc"),
        "gpc cannot be both added and taken away",
        id="change-both",
    ),
    pytest.param(
        ("compare", "tuor"), "unknown scenario 'tuor'; there is tour,", id="scenario"
    ),
    pytest.param(("run", "tuor"), "unknown scenario 'tuor'", id="scenario-run"),
    pytest.param(
        ("run", "none.toml"), "none.toml: No such file or directory", id="no-file"
    ),
    pytest.param(("run", "./"), "Is a directory", id="directory"),
    pytest.param(
        ("run", "x" * 300 + ".toml"), "File name too long", id="long-file-name"
    ),
    pytest.param(("run", "bad.toml"), "bad.toml: not TOML: ", id="toml"),
    pytest.param(
        ("run", "own.toml"),
        "own.toml: task[0].steps[0]: unknown verb 'solt'",
        id="toml-verb",
    ),
    pytest.param(
        ("compare", "tour"), "scenario tour has no columns to compare", id="no-columns"
    ),
    pytest.param(
        ("compare", "change_pte", "--set", "colour=red"),
        "unknown option of toy 'colour'; there is page_size",
        id="option",
    ),
    pytest.param(
        ("run", "tour", "--set", "page_size=64K"),
        "unknown value of toy option page_size '64K'; there is 4096",
        id="page-size",
    ),
    pytest.param(
        ("run", "tour", "--set", "page_size=0x"),
        "unknown value of toy option page_size '0x'",
        id="page-size-odd",
    ),
    pytest.param(
        ("run", "tour", "--set", "page_size"),
        "--set page_size: wanted OPTION=VALUE",
        id="option-form",
    ),
    pytest.param(
        ("formats", "toy", "0x1" + "0" * 16),
        "has 65 bits; an entry has 64",
        id="65-bits",
    ),
    pytest.param(("formats", "toy", "entry"), "'entry' is no number", id="no-number"),
    pytest.param(
        ("formats", "toy", "9" * 5000), "is no number; wanted one such as", id="huge"
    ),
    pytest.param(
        ("formats", "toy", "--level", "7"),
        "no entries at level 7; there is 1, 2",
        id="level",
    ),
    pytest.param(
        ("formats", "toy", "1", "--level", "7"),
        "no entries at level 7",
        id="level-value",
    ),
    pytest.param(("conform", "none.json"), "none.json: No such file", id="recording"),
    pytest.param(
        ("conform", "bad.json"), "bad.json: line 1: not JSON: ", id="recording-json"
    ),
    pytest.param(
        ("conform", "vax.json"),
        "vax.json: arch: unknown architecture 'vax'; there is ",
        id="recording-arch",
    ),
    pytest.param(
        ("scenarios", "-o", "none/out.txt"),
        "none/out.txt: No such file or directory",
        id="output-folder",
    ),
    pytest.param(
        ("scenarios", "-o", "bad.toml/out.txt"),
        "bad.toml/out.txt: Not a directory",
        id="output-below-a-file",
    ),
    pytest.param(("scenarios", "-o", "."), ".: is a directory", id="output-directory"),
    pytest.param(
        ("scenarios", "-o", "x" * 300), "File name too long", id="output-name"
    ),
    pytest.param(
        ("scenarios", "-o", "/dev/full"), "No space left on device", id="output-full"
    ),
]


@pytest.mark.parametrize(("args", "message"), REFUSED)
def test_bad_input_is_one_line_and_status_2(kvmarch, own, tmp_path, args, message):
    (tmp_path / "bad.toml").write_text("title = ", "utf-8")
    own("slot id=0", "solt id=0")
    (tmp_path / "bad.json").write_text("{", "utf-8")
    vax = {"arch": "vax", "kernel": "6.1", "page_size": 4096, "stages": []}
    (tmp_path / "vax.json").write_text(json.dumps(vax), "utf-8")
    before = sorted(tmp_path.iterdir())

    result = kvmarch(*args)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("kvmarch: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_refused_plugin_that_is_asked_for(kvmarch, loaded, toy):
    loaded(Plugins([toy], [Refused("bad", "kvmarch-bad", "plugin bad: is bad")]))

    result = kvmarch("formats", "bad")

    assert result.exit_code == 2
    assert result.stderr == "kvmarch: plugin bad: is bad\n"


def test_without_any_architecture(kvmarch, loaded):
    loaded(Plugins([], []))

    result = kvmarch("compare", "change_pte")

    assert result.exit_code == 2
    assert result.stderr == "kvmarch: no architecture is installed\n"


def test_a_release_before_the_architecture(kvmarch, loaded, toy):
    young = replace(toy, info=replace(toy.info, first=(5, 0)))
    loaded(Plugins([young], []))

    result = kvmarch("run", "tour", "-k", "v4.4")

    assert result.exit_code == 2
    assert result.stderr == "kvmarch: toy: modelled from v5.0 on, not v4.4\n"


def test_a_usage_error_is_one_line_too():
    command = [sys.executable, "-m", "kvmarch", "compare", "--format", "xml"]

    ended = subprocess.run(command, capture_output=True, text=True, check=False)

    assert ended.returncode == 2
    assert ended.stderr.startswith("kvmarch: Invalid value for '--format': 'xml'")
    assert ended.stderr.count("\n") == 1
