"""The table that ``kvmarch conform`` prints."""

__all__ = ["conform_table"]

from collections import Counter
from pathlib import Path

from kvmarch.plugins import Plugins
from kvmarch.recordings.conform import Finding, conform
from kvmarch.recordings.read import load, shipped
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.compare import Choose

VERDICTS = ("agree", "differ", "not compared")


def conform_table(
    paths: tuple[str, ...], plugins: Plugins, choose: Choose, *, everything: bool
) -> Table:
    """Compare recordings with the model.

    :param paths: files; all recordings of the package if there are none.
    :param everything: list also what agrees.
    :returns: one row per thing that was compared or could not be; notes count them.
        The status is 1 if something differs.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    for path in [Path(p) for p in paths] or shipped():
        recording = load(path)
        found = conform(
            recording,
            plugins,
            plus=choose.plus,
            minus=choose.minus,
            given=choose.options,
        )
        findings.extend(found)
        counts = Counter(finding.verdict for finding in found)
        numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        notes.append(
            f"{recording.name} ({recording.arch}, {recording.kernel}): {numbers}"
        )
    table = Table(
        "Recordings of real kernels against the model",
        (
            Column("recording", detail=True),
            Column("stage"),
            Column("what"),
            Column("verdict"),
            Column("detail"),
        ),
        notes=notes,
    )
    for finding in findings:
        if everything or finding.verdict != "agree":
            table.rows.append(
                {
                    "recording": finding.recording,
                    "stage": finding.stage or "(all)",
                    "what": finding.what,
                    "verdict": finding.verdict,
                    "detail": finding.detail,
                }
            )
    if any(finding.verdict == "differ" for finding in findings):
        table.status = 1
    return table
