"""A plugin's scenarios and bugs as tests: each is what it says, and as recorded.

An author's tests run them on the scenarios that ``kvmarch_scenarios`` names::

    from kvmarch.testing.catalogue import *

    pytestmark = pytest.mark.kvmarch(arch="demo")

What the search finds in the first kernel in which something is lost stands in
``found.json`` beside the scenarios, where ``kvmarch bugs`` reads it. Without that file
only verdicts are compared; ``--kvmarch-update`` writes it.
"""

__all__ = [
    "test_a_bug_has_a_kernel_with_it_and_one_without",
    "test_a_scenario_has_a_name_of_its_own",
    "test_every_verdict_is_found_again",
    "test_what_is_expected_is_shown",
    "test_what_is_recorded_are_these",
]

from dataclasses import replace
from typing import Any

import pytest

from kvmarch.errors import KvmarchError
from kvmarch.plugins import Loaded, Plugins
from kvmarch.scenarios.catalogue import measure
from kvmarch.scenarios.cells import cells_of
from kvmarch.scenarios.file import library
from kvmarch.testing.meet import (
    expects_by_changes,
    meet_expects,
    meet_verdicts,
    or_fail,
)
from kvmarch.testing.own import Found, OwnScenario, own_scenarios

UPDATE = "--kvmarch-update"


def test_a_scenario_has_a_name_of_its_own(kvmarch_scenario: OwnScenario) -> None:
    """Of two files of one name kvmarch reads one only."""
    known = library(kvmarch_scenario.plugins.scenario_folders())

    assert known[kvmarch_scenario.name] == kvmarch_scenario.path


def test_a_bug_has_a_kernel_with_it_and_one_without(
    kvmarch_scenario: OwnScenario,
) -> None:
    """Of a candidate it may be open in every release, but it says what confirms it."""
    scenario = or_fail(kvmarch_scenario.load)
    bug = scenario.bug
    if bug is None:
        return
    verdicts = {row.verdict for row in scenario.verdicts}

    assert bug.arch == kvmarch_scenario.arch.name
    assert verdicts & {"sometimes", "always"}
    assert "never" in verdicts or bug.status == "candidate"
    assert bug.confirm or bug.status != "candidate"


def test_what_is_expected_is_shown(kvmarch_scenario: OwnScenario) -> None:
    """Each ``[[expect]]`` holds in the comparison over all releases."""
    plugins, arch, _path = kvmarch_scenario
    scenario = or_fail(kvmarch_scenario.load)
    for (plus, minus), expects in expects_by_changes(scenario).items():
        if any(expect.arch in {"", arch.name} for expect in expects):
            choose = replace(kvmarch_scenario.choose, plus=plus, minus=minus)
            or_fail(meet_expects, scenario, plugins, choose)


def test_every_verdict_is_found_again(
    kvmarch_scenario: OwnScenario, request: pytest.FixtureRequest
) -> None:
    """Each ``[[verdict]]`` holds over all interleavings, and the record is still so."""
    plugins, _arch, _path = kvmarch_scenario
    scenario = or_fail(kvmarch_scenario.load)
    if not scenario.verdicts:
        return
    cells = cells_of(scenario, plugins, kvmarch_scenario.choose)
    outcomes = [or_fail(meet_verdicts, *cell, plugins) for cell in cells]
    found = measure(outcomes)
    record = kvmarch_scenario.found
    if request.config.getoption(UPDATE):
        _write(record, {scenario.name: found}, request)
    recorded = _read(record, request)
    if recorded is not None and recorded.get(scenario.name, {}) != found:
        before, now = (
            "\n".join(f"    {key}: {value}" for key, value in row.items()) or "    -"
            for row in (recorded.get(scenario.name, {}), found)
        )
        pytest.fail(
            f"{record.path}: {scenario.name} is recorded as\n{before}\nand is found "
            f"as\n{now}\n({UPDATE} takes over what is found now)",
            pytrace=False,
        )


def test_what_is_recorded_are_these(
    kvmarch_plugin: Loaded, kvmarch_plugins: Plugins, request: pytest.FixtureRequest
) -> None:
    """What is recorded is of scenarios that are there."""
    names: dict[Found, set[str]] = {}
    for own in own_scenarios(kvmarch_plugin, kvmarch_plugins):
        names.setdefault(own.found, set()).add(own.name)
    update = request.config.getoption(UPDATE)
    for record, known in names.items():
        recorded = _read(record, request)
        if recorded is None and not update:
            pytest.skip(f"{record.path} is not there; {UPDATE} writes it")
        gone = sorted((recorded or {}).keys() - known)
        if gone and update:
            _write(record, {name: {} for name in gone}, request)
        elif gone:
            pytest.fail(
                f"{record.path}: there is no scenario {', '.join(gone)}; {UPDATE} "
                "takes it out",
                pytrace=False,
            )


def _read(record: Found, request: pytest.FixtureRequest) -> dict[str, Any] | None:
    """Return what is recorded; None if nothing is, or if it is written anew now."""
    __tracebackhide__ = True
    try:
        return record.read()
    except KvmarchError as error:
        if request.config.getoption(UPDATE):
            return None
        failure = f"{error}; {UPDATE} writes it anew"
    pytest.fail(failure, pytrace=False)


def _write(record: Found, rows: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if or_fail(record.write, rows):
        written = ("kvmarch_golden", str(record.path))
        request.node.user_properties.append(written)
