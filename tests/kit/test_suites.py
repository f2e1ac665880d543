"""The shared suites, on a new architecture: what they hold, and what they say."""

import json
import shutil

import pytest

SCENARIO = "kvmarch_demo/scenarios/demo-maps-what-went.toml"
FOUND = "kvmarch_demo/scenarios/found.json"


@pytest.fixture
def demo(written):
    """A new architecture whose tests of scenarios are run."""
    made = written()
    made.test = lambda *words: made.run(
        *("pytest", "-q", "-rs", "tests/test_scenarios.py"), *words
    )
    return made


def change(demo, file, old, new):
    path = demo.folder / file
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def test_what_is_found_is_recorded_when_it_is_asked_for(demo):
    path = demo.folder / FOUND

    fresh = demo.test()
    assert f"{path} is not there; --kvmarch-update writes it" in fresh.stdout
    assert not path.exists()

    updated = demo.test("--kvmarch-update")
    assert updated.stdout.count(f"kvmarch: written: {path}") == 1
    recorded = json.loads(path.read_text("utf-8"))["demo-maps-what-went"]
    assert recorded["property"] == "freed-page"
    assert recorded["kernel"] == "demo-v6.12/+demo-never-asks"

    matched = demo.test()
    assert [ran.returncode for ran in (fresh, updated, matched)] == [0, 0, 0]
    assert "skipped" not in matched.stdout
    assert "kvmarch: written" not in demo.test("--kvmarch-update").stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        pytest.param('"states": ', '"states": 9', "is recorded as", id="differs"),
        pytest.param("demo-maps", "demo-gone", "there is no scenario demo", id="gone"),
        pytest.param('"property"', "property", "torn or no JSON", id="torn"),
    ],
)
def test_a_record_that_is_not_right_is_said_and_kept(demo, old, new, message):
    demo.test("--kvmarch-update")
    right = demo.folder.joinpath(FOUND).read_text("utf-8")
    change(demo, FOUND, old, new)
    wrong = demo.folder.joinpath(FOUND).read_text("utf-8")
    ran = demo.test()

    assert ran.returncode == 1
    assert f"{FOUND}: " in ran.stdout
    assert message in ran.stdout
    assert "--kvmarch-update " in ran.stdout
    assert "Traceback" not in ran.stdout
    assert demo.folder.joinpath(FOUND).read_text("utf-8") == wrong
    assert demo.test("--kvmarch-update").returncode == 0
    assert demo.folder.joinpath(FOUND).read_text("utf-8") == right


def test_a_record_that_is_torn_hides_no_other_bug(demo):
    demo.folder.joinpath(FOUND).write_text('{"demo', "utf-8")
    ran = demo.run("kvmarch", "bugs", "--arch", "demo", "--format", "json")

    table = json.loads(ran.stdout)
    found = {row["id"]: row["shortest"] for row in table["rows"]}
    assert found["demo-maps-what-went"] == ""
    assert any(shortest for shortest in found.values())
    assert any("found.json: torn or no JSON" in note for note in table["notes"])
    assert (ran.returncode, ran.stderr) == (2, "")


@pytest.mark.parametrize("command", ["bugs", "scenarios", "compare"])
def test_a_scenario_that_is_torn_hides_no_other(demo, command):
    demo.folder.joinpath(SCENARIO).write_text("title = ", "utf-8")
    ran = demo.run("kvmarch", command, "--format", "json")

    table = json.loads(ran.stdout)
    assert len(table["rows"]) > 5
    assert any(f"{SCENARIO}: not TOML" in note for note in table["notes"])
    assert (ran.returncode, ran.stderr) == (2, "")


def test_a_verdict_that_is_not_met_is_shown_with_its_schedule(demo):
    change(demo, SCENARIO, '"sometimes"', '"never"')
    ran = demo.test()

    assert ran.returncode == 1
    assert "freed-page: never was expected" in ran.stdout
    assert "this is its shortest schedule" in ran.stdout
    assert "test_a_bug_has_a_kernel_with_it_and_one_without[demo" in ran.stdout


def test_an_expectation_that_is_not_met_is_shown_with_its_run(demo):
    text = """
title = "A read"
source = "a test"
setup = ["slot id=0 memory=ram gfn=0"]

[vm]
memory = [{ name = "ram", pages = 1 }]

[[task]]
name = "vcpu0"
steps = ["read gfn=0"]

[[column]]
name = "lost"
show = "violations"

[[expect]]
values = { lost = "freed-page" }
"""
    demo.folder.joinpath("kvmarch_demo/scenarios/demo-reads.toml").write_text(text)
    ran = demo.test("-k", "expected_is_shown")

    assert ran.returncode == 1, ran.stdout
    assert "demo v3.16: " in ran.stdout
    assert "1 failed, 1 passed" in ran.stdout


def test_a_scenario_that_is_none_is_one_line(demo):
    change(demo, SCENARIO, "read gfn=0", "reed gfn=0")
    ran = demo.test()

    assert ran.returncode == 1
    assert "reed" in ran.stdout
    assert "Traceback" not in ran.stdout
    assert "def scenario" not in ran.stdout


def test_a_scenario_whose_name_is_taken_is_told(demo):
    path = demo.folder / SCENARIO
    shutil.copy(path, path.with_name("change_pte.toml"))
    ran = demo.test("-k", "name_of_its_own")

    assert ran.returncode == 1
    assert "1 failed, 1 passed" in ran.stdout
    assert "[change_pte]" in ran.stdout


def test_a_name_that_is_not_public_fails_the_contract_where_it_is_taken(demo):
    change(
        demo,
        "kvmarch_demo/table.py",
        "from kvmarch import Table, Vm\n",
        "from kvmarch import Vm\nfrom kvmarch.format.table import Table\n",
    )
    ran = demo.run("kvmarch", "check-plugin", "demo", "-k", "v6.12")

    assert ran.returncode == 1, ran.stdout + ran.stderr
    said = " ".join(ran.stdout.split())
    assert (
        "FAILED tier 1: only_public_names_are_imported on demo: AssertionError: "
        "kvmarch_demo/table.py:6: kvmarch.format.table is no public name of kvmarch"
        in said
    )
    assert "demo reaches tier 0" in said
