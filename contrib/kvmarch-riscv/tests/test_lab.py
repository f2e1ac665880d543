"""Scenarios that were run on real kernels in the lab: the model does the same.

``kvmarch lab run SCENARIO -a riscv -k RELEASE`` makes such a recording again.
"""

import json
from pathlib import Path

import pytest

from kvmarch_riscv.pte import W, entry_pfn

DATA = sorted((Path(__file__).parent / "data").glob("*.json"))
EXPECTED = {
    "partial-unmap-7.2": {
        ("kernel log", "3"),
        ("properties", "(all)"),
    },
    "fast-path-ksm-7.2": {("properties", "(all)")},
}
"""What differs by its nature: a warning, and what the model says is lost."""


def recorded(name):
    path = next(path for path in DATA if path.stem == name)
    return json.loads(path.read_text("utf-8"))["stages"]


def leaves(stage):
    """Return the entry of each gfn that one step shows."""
    rows = (dict(w.split("=") for w in row.split()[:3]) for row in stage["leaves"])
    return {int(row["gfn"], 16): int(row["entry"], 16) for row in rows}


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_the_model_does_the_same(kvmarch_run, path):
    expected = EXPECTED.get(path.stem, set())
    printed = kvmarch_run(
        *("conform", str(path), "--format", "json"), status=int(bool(expected))
    )

    differing = {
        (row["what"], row["stage"])
        for row in json.loads(printed)["rows"]
        if row["verdict"] == "differ"
    }
    assert differing == expected


def test_a_partial_unmap_warns():
    log = recorded("partial-unmap-7.2")[2]["kernel_log"]

    assert any("Skip unmap range" in line for line in log)


def test_the_fast_path_makes_a_merged_page_writable():
    stage = recorded("fast-path-ksm-7.2")[7]
    assert stage["step"] == "write gfn=0"

    written, other = leaves(stage)[0], leaves(stage)[1]
    assert written & W
    assert entry_pfn(written) == entry_pfn(other)


def test_a_write_to_a_split_page_never_ends():
    stage = recorded("huge-page-7.2")[6]
    assert stage["step"] == "write gfn=0x40001"

    assert stage["console"] == ["run st gpa=40001010 rc=-1 exit=10 errno=4"]
    assert leaves(stage)[0x40000] & W
    assert not leaves(stage)[0x40001] & W
