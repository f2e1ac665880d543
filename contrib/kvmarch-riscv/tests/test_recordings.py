"""The recordings that come along, of tours and of the lab: the model does the same."""

import json
from pathlib import Path

import pytest
from kvmarch.testing.recordings import *  # noqa: F403 - its tests are this file's

import kvmarch_riscv

FOLDER = Path(kvmarch_riscv.__file__).parent / "recordings"

pytestmark = pytest.mark.kvmarch(arch="riscv")


def test_only_the_guests_faults_are_not_compared(kvmarch_run):
    tours, lab = sorted(FOLDER.glob("*.json")), sorted(FOLDER.glob("lab/*.json"))
    words = ("conform", *map(str, (*tours, *lab)), "--format", "json")
    printed = json.loads(kvmarch_run(*words))

    assert (len(tours), len(lab), len(printed["notes"])) == (2, 16, 18)
    assert {row["detail"] for row in printed["rows"]} == {
        "this kernel traces no guest faults"
    }
    assert all("101 agree, 0 differ" in note for note in printed["notes"][:2])


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("riscv64-7.2", "--without=riscv-thp"),
        ("riscv64-7.2", "--without=riscv-split-on-fault"),
        ("riscv64-7.2", "--with=riscv-eager-split"),
        ("riscv64-6.12", "--with=riscv-thp"),
    ],
)
def test_a_kernel_that_was_otherwise_would_be_seen(kvmarch_run, name, switch):
    path = FOLDER / f"{name}.json"

    assert "0 differ" not in kvmarch_run("conform", str(path), switch, status=1)
