"""The table that ``kvmarch conform`` prints."""

__all__ = ["conform_table"]

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from kvmarch.plugins import Plugins
from kvmarch.recordings.conform import conform
from kvmarch.recordings.read import find, load, shipped
from kvmarch.recordings.stages import Finding
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.compare import Choose

VERDICTS = ("agree", "differ", "not compared")


def conform_table(
    paths: tuple[str, ...],
    plugins: Plugins,
    choose: Choose,
    *,
    everything: bool,
    lab: bool = False,
) -> Table:
    """Compare recordings with the model.

    :param paths: files, or names of recordings that are shipped; all recordings of
        the package and of plugins if there are none.
    :param everything: list also what agrees.
    :param lab: without files, compare the lab's recordings that are shipped, too.
    :returns: one row per thing that was compared or could not be; notes count them.
        The status is 1 if something differs, 2 if an architecture's code fails.
    """
    findings: list[Finding] = []
    notes: list[str] = []
    kernels: dict[str, str] = {}
    folders = plugins.recording_folders()
    given = [find(name, folders) for name in paths]
    for path in given or shipped(folders, everything=lab):
        recording = load(path)
        found = conform(
            recording,
            plugins,
            plus=choose.plus,
            minus=choose.minus,
            given=choose.options,
        )
        findings.extend(found)
        kernels[recording.name] = f"{recording.arch} {recording.kernel}"
        counts = Counter(finding.verdict for finding in found)
        numbers = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
        notes.append(
            f"{recording.name} ({recording.arch}, {recording.kernel}): {numbers}"
        )
    table = Table(
        "Recordings of real kernels against the model",
        (
            Column("recording"),
            Column("stage"),
            Column("what"),
            Column("verdict"),
            Column("detail"),
        ),
        notes=notes,
        keys=2,
        merge="" if everything else "stage",
    )
    for finding in findings if everything else _together(_by_kernel(findings, kernels)):
        if everything or finding.verdict != "agree":
            table.rows.append(
                {
                    "recording": finding.recording.removesuffix(".json"),
                    "stage": finding.stage or "(all)",
                    "what": finding.what,
                    "verdict": finding.verdict,
                    "detail": finding.detail,
                }
            )
    if any(finding.verdict == "differ" for finding in findings):
        table.status = 1
    if any(finding.verdict == "error" for finding in findings):
        table.status = 2
    return table


def _by_kernel(findings: list[Finding], kernels: Mapping[str, str]) -> list[Finding]:
    """Return findings with one for each reason why recordings of a kernel are left out.

    What agrees or differs stays as it is.

    :param kernels: architecture and kernel of each recording.
    """
    told: dict[tuple[str, str, str], set[str]] = {}
    for finding in findings:
        if finding.verdict == "not compared":
            key = kernels[finding.recording], finding.what, finding.detail
            told.setdefault(key, set()).add(finding.recording)
    kept: list[Finding] = []
    for finding in findings:
        kernel = kernels[finding.recording]
        names = told.get((kernel, finding.what, finding.detail), set())
        if finding.verdict != "not compared" or len(names) == 1:
            kept.append(finding)
        elif names:
            kept.append(
                replace(finding, recording=f"{kernel} ({len(names)})", stage="")
            )
            names.clear()
    return kept


def _together(findings: list[Finding]) -> list[Finding]:
    """Return findings so that equal ones of several stages are neighbours."""
    order = {id(finding): number for number, finding in enumerate(findings)}
    first: dict[tuple[str, str, str, str], int] = {}
    for finding in findings:
        key = finding.recording, finding.what, finding.verdict, finding.detail
        first.setdefault(key, order[id(finding)])
    return sorted(
        findings,
        key=lambda f: (first[f.recording, f.what, f.verdict, f.detail], order[id(f)]),
    )
