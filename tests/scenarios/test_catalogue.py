"""The catalogue of bugs: its list, its record and its check."""

import json
from importlib import resources

import pytest

from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.catalogue import FOUND, bug_names, bugs_table, measure
from kvmarch.scenarios.cells import cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.records import STATUSES, VERDICTS

PLUGINS = load_plugins()
RECORD = resources.files("kvmarch.scenarios") / "bugs" / FOUND
NAMES = bug_names(PLUGINS, Choose())
LEAST = {"x86": 6, "arm64": 6, "ppc": 6, "mips": 6, "": 15}
"""How many bugs of each architecture there must be, and generic ones."""


def first_buggy(name):
    """Return the first cell of a scenario that has the bug, in the file's order."""
    for cell, expected in cells_of(load(find(name)), PLUGINS, Choose()):
        if any(row.verdict != "never" for row in expected):
            return cell, expected
    raise AssertionError(f"{name}: no verdict says that the bug is found")


BUGGY = [pytest.param(name, *first_buggy(name), id=name) for name in NAMES]


@pytest.mark.parametrize(("name", "cell", "expected"), BUGGY)
def test_what_is_recorded_of_a_bug_is_found_again(name, cell, expected, look, request):
    found = measure([look(cell, expected)])
    recorded = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}
    if request.config.getoption("--promote"):
        recorded[name] = found
        text = json.dumps(dict(sorted(recorded.items())), indent=1)
        RECORD.write_text(text + "\n", "utf-8")

    assert found == recorded.get(name)
    assert found["shortest"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_bug_has_a_kernel_with_it_and_one_without(name):
    scenario = load(find(name))
    verdicts = {row.verdict for row in scenario.verdicts}

    assert scenario.bug.subject
    assert verdicts <= set(VERDICTS)
    assert verdicts & {"sometimes", "always"}
    assert scenario.bug.status == "candidate" or "never" in verdicts


@pytest.mark.parametrize("arch", LEAST)
def test_there_are_enough_bugs(arch):
    bugs = [load(find(name)).bug for name in NAMES]
    found = [bug for bug in bugs if bug.arch == arch and bug.status != "unmerged"]

    assert len(found) >= LEAST[arch]


def test_candidates_come_last_and_say_what_would_confirm_them():
    table = bugs_table(PLUGINS, Choose())
    states = [row["status"] for row in table.rows]

    assert states == sorted(states, key=STATUSES.index)
    assert states.count("fixed") >= 40
    assert len(table.rows) >= 40
    for name in NAMES:
        bug = load(find(name)).bug
        assert bug.status != "candidate" or bug.confirm


def test_a_check_names_the_bugs_it_explores():
    seen = []

    table = bugs_table(
        PLUGINS,
        Choose(("mips",)),
        check=True,
        progress=seen.append,
        names=("mips-vpn2-mask",),
    )

    assert set(seen) == {"mips-vpn2-mask"}
    assert table.status == 0
    assert table.rows[0]["shortest"] > 0


def test_a_check_says_what_is_not_as_expected(tmp_path, monkeypatch):
    text = find("mips-vpn2-mask").read_text("utf-8")
    wrong = tmp_path / "mips-vpn2-mask.toml"
    wrong.write_text(
        text.replace('"always"', '"never"').replace('"sometimes"', '"never"')
    )
    monkeypatch.setattr("kvmarch.scenarios.catalogue.find", lambda *_: wrong)

    table = bugs_table(
        PLUGINS, Choose(("mips",)), check=True, names=("mips-vpn2-mask",)
    )

    assert table.status == 1
    assert any(note.startswith("FAILED") for note in table.notes)


def test_an_architecture_that_never_had_a_bug_does_not_fail_its_check():
    table = bugs_table(
        PLUGINS, Choose(("x86",)), check=True, names=("change-pte-invalid-slot",)
    )

    assert table.status == 0
