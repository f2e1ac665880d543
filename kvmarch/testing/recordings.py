"""A plugin's recordings as tests: the model does what real kernels did.

An author's tests run them on what ``kvmarch_recordings`` names, the lab's too::

    from kvmarch.testing.recordings import *

    pytestmark = pytest.mark.kvmarch(arch="demo")
"""

__all__ = ["test_the_model_does_what_was_recorded"]

from pathlib import Path

from kvmarch.plugins import Plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import load
from kvmarch.testing.meet import NotMetError, or_fail


def test_the_model_does_what_was_recorded(
    kvmarch_recording: Path, kvmarch_plugins: Plugins
) -> None:
    """Nothing differs. What cannot be compared is told by ``kvmarch conform``."""
    or_fail(_agrees, kvmarch_recording, kvmarch_plugins)


def _agrees(path: Path, plugins: Plugins) -> None:
    findings = conform(load(path), plugins)
    wrong = [
        f"{path}: {row.stage} {row.what}: {row.verdict}, {row.detail}"
        for row in findings
        if row.verdict not in {"agree", "not compared"}
    ]
    if wrong:
        raise NotMetError("\n".join(wrong))
    if not any(row.verdict == "agree" for row in findings):
        why = "; ".join(dict.fromkeys(row.detail for row in findings)) or "it is empty"
        raise NotMetError(f"{path}: nothing could be compared: {why}")
