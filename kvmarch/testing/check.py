"""Run the contract suite on one architecture, in a process of its own."""

__all__ = ["Result", "check_table", "run_contract"]

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from kvmarch.changes import find_release, show_release
from kvmarch.errors import PluginError
from kvmarch.hookspecs import TIERS
from kvmarch.plugins import Loaded
from kvmarch.report.table import Column, Table

SUITE = Path(__file__).parent / "contract"
WHAT = {
    1: "formats",
    2: "map, unmap, flush",
    3: "change_pte and aging",
    4: "dirty logging and memslots",
    5: "teardown",
}
"""What each tier is about."""


class Result(NamedTuple):
    """What one test of the contract found on one kernel.

    :param case: architecture, release and options, as ``demo-v6.1``; the name alone if
        the test is of the plugin itself.
    :param why: what went wrong, in one line; empty if the test passed.
    """

    tier: int
    test: str
    case: str
    why: str


def run_contract(
    name: str, kernels: Sequence[str] = (), seconds: float = 600
) -> list[Result]:
    """Run the contract suite on an installed architecture.

    :param kernels: names of releases; empty for those of the suite.
    :param seconds: how long it may take.
    :raises KernelError: no such release.
    :raises PluginError: pytest is missing, or the suite could not be run.
    """
    releases = ",".join(show_release(find_release(kernel)) for kernel in kernels)
    if importlib.util.find_spec("pytest") is None:
        raise PluginError(
            "check-plugin needs pytest: install it with pip install 'kvmarch[kit]'"
        )
    with tempfile.TemporaryDirectory(prefix="kvmarch-") as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(sys.executable, "-P", "-m", "pytest", str(SUITE)),
            *("-c", os.devnull, "--rootdir", str(SUITE), "--import-mode=importlib"),
            *("-q", "-p", "pytest_kvmarch", "-p", "no:cacheprovider"),
            *(f"--junit-xml={report}", f"--kvmarch-arch={name}"),
            f"--kvmarch-kernel={releases}",
        ]
        # Other plugins, and options meant for other runs, have no place here.
        alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}
        if environment.get("PYTHONPATH"):
            # The suite runs in another folder.
            places = environment["PYTHONPATH"].split(os.pathsep)
            alone["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, places))
        try:
            ended = subprocess.run(  # noqa: S603 - the command is our own
                command,
                env={**environment, **alone},
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PluginError(
                f"plugin {name}: the contract suite was not done after {seconds:g} s"
            ) from None
        if not report.exists() or ended.returncode not in {0, 1, 5}:
            raise PluginError(
                f"plugin {name}: the contract suite ended with status "
                f"{ended.returncode}: {_reason(report, ended.stderr)}"
            )
        results = list(map(_result, _cases_of(report)))
    # What is of the plugin itself runs on no kernel.
    if all(row.case == name for row in results):
        asked = releases.replace(",", ", ") or "that the suite tries"
        raise PluginError(f"plugin {name}: there is none in the releases {asked}")
    return results


def _reason(report: Path, stderr: str) -> str:
    """Return why the suite did not run, in one line."""
    errors = ET.parse(report).iter("error") if report.exists() else ()  # noqa: S314
    said = [*(error.text or "" for error in errors), *reversed(stderr.splitlines())]
    return next((_line(text) for text in said if text.strip()), "no output")


def _cases_of(report: Path) -> list[ET.Element]:
    # The file is our own: pytest has just written it.
    rows = ET.parse(report).getroot().findall(".//testcase")  # noqa: S314
    return [row for row in rows if row.find("skipped") is None]


def _result(row: ET.Element) -> Result:
    test, _, case = row.get("name", "").removesuffix("]").partition("[")
    module = row.get("classname", "").split(".")[-1]
    tier = int(module.split("_")[1]) if module.startswith("test_") else 0
    why = ""
    for kind in ("failure", "error"):
        found = row.find(kind)
        if found is not None:
            why = _line(found.get("message", "") or kind)
    return Result(tier, test.removeprefix("test_"), case, why)


_NOISE = re.compile(
    r'(?P<setup>failed on setup with ")?(?:kvmarch\.errors\.PluginError: )?'
    r'(?P<said>.*?)(?(setup)"?|)'
)
"""What is said, and what pytest writes around it."""


def _line(message: str) -> str:
    """Return the first line of a failure, without what pytest explains around it."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    found = _NOISE.fullmatch(lines[0]) if lines else None
    return found["said"] if found else "failed"


def check_table(arch: Loaded, results: Sequence[Result]) -> Table:
    """Return what the contract suite found: a row per tier, then what fails.

    The status is 1 if a test fails in a tier whose hooks are all there.
    """
    table = Table(
        f"{arch.name} {arch.version} ({arch.distribution}), {arch.info.title}",
        (
            Column("tier"),
            Column("about"),
            Column("tests"),
            Column("failed"),
            Column("status"),
        ),
    )
    kept = 0
    for tier, needed in TIERS.items():
        mine = [row for row in results if row.tier == tier]
        failed = [row for row in mine if row.why]
        missing = [name for name in needed if not _has(arch, name)]
        if missing or tier > arch.tier:
            status = f"not reached: {_lacking(missing)}"
        elif failed:
            status = "not kept"
        elif not mine:
            status = "no kernel to try"
        else:
            status = "kept"
            kept = tier if kept == tier - 1 else kept
        table.rows.append(
            {
                "tier": tier,
                "about": WHAT[tier],
                "tests": len(mine),
                "failed": len(failed),
                "status": status,
            }
        )
    _add_failures(table, arch, results)
    for row in arch.deviations:
        table.notes.append(f"deviates: {row.rule}, {row.source}")
    table.notes.append(f"{arch.name} reaches tier {kept}")
    return table


def _lacking(missing: Sequence[str]) -> str:
    if not missing:
        return "a lower tier is missing"
    if len(missing) == 1:
        return f"kvmarch_{missing[0]} is missing"
    return f"kvmarch_{missing[0]} and {len(missing) - 1} more are missing"


def _has(arch: Loaded, name: str) -> bool:
    return name in arch.operations or any(c.name == name for c in arch.choices)


def _add_failures(table: Table, arch: Loaded, results: Sequence[Result]) -> None:
    """Say what fails, test by test, with the first kernel that shows it."""
    by_test: dict[tuple[int, str], list[Result]] = {}
    for row in results:
        if row.why:
            by_test.setdefault((row.tier, row.test), []).append(row)
    for (tier, test), rows in sorted(by_test.items()):
        table.status = 1
        first = rows[0]
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        table.notes.append(
            f"FAILED tier {tier}: {test} on {first.case}{others}: {first.why}"
        )
