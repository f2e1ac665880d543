"""The contract suite in a process of its own, and what its table says."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from kvmarch import plugins
from kvmarch.cli import command_line
from kvmarch.errors import PluginError, UnknownNameError
from kvmarch.hookspecs import TIERS
from kvmarch.testing import check
from kvmarch.testing.check import Result, check_table, run_contract


def rows(*failing):
    return [
        Result(tier, f"t{tier}", f"toy-v{release}.0", "it broke" * (tier in failing))
        for tier in TIERS
        for release in (5, 6)
    ]


def without(module, *names):
    kept = {n: v for n, v in vars(module).items() if n not in names}
    kept.pop("__name__")
    return plugins.check("toy", SimpleNamespace(**kept, __name__="x"), "dist", "1")


def test_the_contract_is_kept_by_an_installed_architecture():
    results = run_contract("mips", ["v6.12"])

    assert {row.tier for row in results} == set(TIERS)
    assert {row.why for row in results} == {""}
    kernels = {row.case.split("-")[2] for row in results if row.case != "mips"}
    assert kernels == {"guestid", "rad"}
    assert [row.test for row in results if row.case == "mips"] == [
        "only_public_names_are_imported"
    ]


def test_a_table_of_what_is_kept(toy):
    table = check_table(toy, rows())

    assert [row["status"] for row in table.rows] == ["kept"] * 5
    assert table.notes == ["toy reaches tier 5"]
    assert table.status == 0


def test_a_failure_is_told_once_with_its_first_kernel(toy):
    table = check_table(toy, rows(3))

    assert [row["status"] for row in table.rows][1:4] == ["kept", "not kept", "kept"]
    assert table.notes == [
        "FAILED tier 3: t3 on toy-v5.0 and 1 more: it broke",
        "toy reaches tier 2",
    ]
    assert table.status == 1


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("assert 1 == 2\n  +  where", "assert 1 == 2"),
        ("\n\nAssertionError: x", "AssertionError: x"),
        ("kvmarch.errors.PluginError: plugin toy: y", "plugin toy: y"),
        (
            'failed on setup with "kvmarch.errors.PluginError: plugin toy: y"',
            "plugin toy: y",
        ),
        ('failed on setup with "ValueError: "z""', 'ValueError: "z"'),
        ('failed on setup with "E: a line\nand more"', "E: a line"),
        ('assert x == "z"', 'assert x == "z"'),
        ("", "failed"),
    ],
)
def test_a_failure_is_one_line(message, line):
    assert check._line(message) == line


def test_several_hooks_that_are_missing_are_counted(toy_module):
    arch = without(toy_module, *(f"kvmarch_{name}" for name in TIERS[3]))
    table = check_table(arch, [row for row in rows() if row.tier <= 2])

    assert table.rows[2]["status"] == (
        "not reached: kvmarch_set_spte_gfn and 2 more are missing"
    )


@pytest.mark.parametrize("tier", [1, 2, 3, 4])
def test_what_stops_at_a_tier(toy_module, tier):
    lacks = f"kvmarch_{TIERS[tier + 1][0]}"
    arch = without(toy_module, lacks)
    table = check_table(arch, [row for row in rows() if row.tier <= tier])

    status = [row["status"] for row in table.rows]
    assert status[:tier] == ["kept"] * tier
    assert status[tier] == f"not reached: {lacks} is missing"
    assert all(s == "not reached: a lower tier is missing" for s in status[tier + 1 :])
    assert table.notes[-1] == f"toy reaches tier {tier}"
    assert table.status == 0


def test_the_command_prints_the_table():
    result = CliRunner().invoke(command_line(), ["check-plugin", "mips", "-k", "v6.12"])

    assert result.exit_code == 0
    assert "mips reaches tier 5" in result.output


# -- what goes wrong ---------------------------------------------------------------


def test_pytest_is_missing(monkeypatch):
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda _name: None)

    with pytest.raises(PluginError, match=r"pip install 'kvmarch\[kit\]'"):
        run_contract("mips")


def test_a_release_that_is_none():
    with pytest.raises(UnknownNameError, match=r"unknown release 'v9\.9'"):
        run_contract("mips", ["v9.9"])


def test_releases_before_the_architecture():
    with pytest.raises(
        PluginError, match=r"mips: there is none in the releases v3\.16"
    ):
        run_contract("mips", ["v3.16"])


def test_a_suite_that_takes_too_long():
    with pytest.raises(PluginError, match=r"mips: .* not done after 0\.01 s"):
        run_contract("mips", seconds=0.01)


def test_a_suite_that_cannot_run():
    with pytest.raises(PluginError, match="unknown architecture 'vax'"):
        run_contract("vax")


def test_an_architecture_that_is_not_there():
    result = CliRunner().invoke(command_line(), ["check-plugin", "vax"])

    assert result.exit_code == 2
    assert "unknown architecture 'vax'" in result.stderr
