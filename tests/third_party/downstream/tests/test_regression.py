"""What this project relies on, on every architecture that it supports."""

import json
import subprocess
import sys

import pytest

from kvmarch import LOG_DIRTY_PAGES

SUPPORTED = pytest.mark.kvmarch(arch="arm64,x86", kernel="v6.9,v6.12")


@SUPPORTED
def test_a_write_is_logged(kvm):
    kvm.access(3, "write")
    assert kvm.slot(flags=LOG_DIRTY_PAGES) == 0
    assert kvm.access(3, "write") == "done"
    assert kvm.lost == []


@pytest.mark.kvmarch(arch="arm64,toy", kernel="v6.9,v6.12")
@pytest.mark.parametrize("vcpus", [1, 2])
def test_every_vcpu_reads(kvmarch_boot, vcpus):
    one = kvmarch_boot(pages=4, vcpus=vcpus)

    assert [one.access(gfn) for gfn in range(4)] == ["done"] * 4
    assert len(one.vm.vcpus) == vcpus


@SUPPORTED
def test_what_change_pte_does(assert_matches):
    assert_matches("change_pte")


@pytest.mark.kvmarch(arch="toy", kernel="v6.12")
def test_a_scenario_of_our_own(assert_matches):
    assert_matches("read_twice.toml")


def test_a_search_under_pytest_is_the_same_as_without():
    """Pytest rewrites assertions of installed plugins; that must change no state."""
    words = ["explore", "change_pte_cow", "-a", "arm64", "-k", "v6.9"]
    words += ["--format", "json"]
    alone = subprocess.run(
        [sys.executable, "-m", "kvmarch", *words],
        capture_output=True,
        text=True,
        check=True,
    )

    from click.testing import CliRunner

    from kvmarch.cli import command_line

    here = CliRunner().invoke(command_line(), words)
    counted = [
        [(row["property"], row["verdict"], row["states"]) for row in rows]
        for rows in (json.loads(alone.stdout)["rows"], json.loads(here.output)["rows"])
    ]
    assert counted[0] == counted[1]
    assert counted[0][0][2] > 100
