"""What fuzzing found on real kernels, and what corrected the model since."""

from pathlib import Path

import pytest

from kvmarch.plugins import load as load_plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load

FOUND = Path(__file__).parent / "found"


def verdicts(name, **changes):
    recording = load(FOUND / f"{name}.json")
    return {
        finding.what
        for finding in conform(recording, load_plugins(), **changes)
        if finding.verdict == "differ"
    }


@pytest.mark.parametrize("path", sorted(FOUND.iterdir()), ids=lambda path: path.stem)
def test_what_was_found_agrees_now(path):
    assert verdicts(path.stem) == set()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("split-huge-amd64-6.1", {"plus": ("split-keeps-dirty",)}),
        ("split-huge-amd64-6.1", {"plus": ("mprotect-upgrades-all",)}),
        ("clean-over-mmio-amd64-6.12", {"minus": ("x86-no-dirty-over-writable",)}),
        ("write-to-part-of-huge-amd64-5.10", {"minus": ("wp-by-page-count",)}),
        ("write-to-part-of-huge-amd64-5.10", {"plus": ("anon-exclusive",)}),
        ("huge-zero-special-ppc64el-7.2", {"minus": ("huge-zero-special",)}),
        ("write-after-exec-arm64-7.2", {"minus": ("arm64-relax-keeps-exec",)}),
    ],
)
def test_it_would_not_with_another_kernel(name, changes):
    assert verdicts(name, **changes) & {"tree", "faults"}
