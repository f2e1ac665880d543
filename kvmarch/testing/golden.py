"""Golden files: what a scenario showed when somebody last looked, cell by cell."""

__all__ = ["FORMAT", "Golden", "assert_matches", "golden_path", "rows_of"]

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvmarch.errors import KvmarchError
from kvmarch.plugins import Plugins
from kvmarch.report.files import write_whole
from kvmarch.scenarios.compare import Choose, compare
from kvmarch.scenarios.records import Scenario
from kvmarch.testing.schedules import run_text

FORMAT = 1
"""The version of golden files. Another one is neither read nor overwritten."""
UPDATE = "--kvmarch-update writes it anew"
KEYS = ("arch", "kernel", "mmu")


@dataclass(frozen=True, slots=True)
class Golden:
    """One golden file.

    :raises KvmarchError: by :meth:`read`, if it is missing, torn or of another version.
    """

    path: Path

    def read(self, scenario: str) -> list[dict[str, Any]]:
        """Return the rows of the file, which must be of a scenario."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            raise KvmarchError(
                f"{self.path}: the golden file is missing; {UPDATE}"
            ) from None
        except OSError as error:
            raise KvmarchError(f"{self.path}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise KvmarchError(
                f"{self.path}: not UTF-8 at byte {error.start}; {UPDATE}"
            ) from None
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise KvmarchError(
                f"{self.path}: the golden file is torn or no JSON ({error}); {UPDATE}"
            ) from None
        version = data.get("format") if isinstance(data, dict) else None
        if version != FORMAT:
            raise KvmarchError(
                f"{self.path}: the golden file is of version {version!r}, this kvmarch "
                f"reads {FORMAT}; {UPDATE}"
            )
        rows = data.get("rows")
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and set(KEYS) <= row.keys() for row in rows
        ):
            raise KvmarchError(f"{self.path}: the golden file has no rows; {UPDATE}")
        if data.get("scenario") != scenario:
            raise KvmarchError(
                f"{self.path}: the golden file is of scenario "
                f"{data.get('scenario')!r}, not {scenario!r}; {UPDATE}"
            )
        return rows

    def write(self, scenario: str, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Write the file whole or not at all; return whether it changed.

        :raises KvmarchError: it cannot be written.
        """
        body = {"format": FORMAT, "scenario": scenario, "rows": rows}
        text = json.dumps(body, indent=1) + "\n"
        try:
            if self.path.exists() and self.path.read_bytes() == text.encode():
                return False
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KvmarchError(f"{self.path}: {error.strerror}") from None
        write_whole(self.path, text)
        return True


def golden_path(test: Path, name: str, number: int) -> Path:
    """Return the golden file of a test's comparison.

    :param test: the test's file, :param name: its name, with parameters.
    :param number: which comparison of the test it is, from 1 on.
    """
    plain = re.sub(r"[^\w.+-]+", "_", name).strip("_")
    again = f".{number}" if number > 1 else ""
    return test.parent / "golden" / f"{test.stem}.{plain}{again}.json"


def rows_of(
    scenario: Scenario, plugins: Plugins, choose: Choose
) -> list[dict[str, Any]]:
    """Return what a comparison shows, as JSON would give it back.

    :raises KvmarchError: the scenario has no columns, or an architecture's code fails.
    """
    table = compare(scenario, plugins, choose)
    if table.status == 2:
        raise KvmarchError("; ".join(table.notes))
    rows: list[dict[str, Any]] = json.loads(json.dumps(table.rows, default=str))
    return rows


def assert_matches(
    scenario: Scenario,
    plugins: Plugins,
    choose: Choose,
    golden: Golden,
    *,
    update: bool,
    part: bool = False,
) -> bool:
    """Compare a scenario with its golden file; return whether the file was written.

    :param update: write what is shown now.
    :param part: ``choose`` is a part of what the file is of.
    :raises KvmarchError: the file cannot be used.
    :raises AssertionError: something differs: which columns of which kernels, and what
        happened in the first of them, step by step.
    """
    rows = rows_of(scenario, plugins, choose)
    if update and part:
        raise KvmarchError(
            f"{golden.path}: --kvmarch-update with --kvmarch-arch or --kvmarch-kernel "
            "would lose the other rows"
        )
    if update:
        return golden.write(scenario.name, rows)
    before = golden.read(scenario.name)
    if part:
        keys = {(row["arch"], row["kernel"]) for row in rows}
        before = [row for row in before if (row["arch"], row["kernel"]) in keys]
    lines = differences(before, rows)
    if lines:
        shown = _first(scenario, plugins, choose, before, rows)
        raise AssertionError(
            "\n".join(
                [
                    f"{scenario.name} differs from {golden.path}:",
                    *(f"  {line}" for line in lines),
                    "(--kvmarch-update takes over what is shown now)",
                    *shown,
                ]
            )
        )
    return False


def _by_key(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    return {tuple(row[key] for key in KEYS): row for row in rows}


def differences(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return what differs between two comparisons, a line per row and column."""
    old, new = _by_key(before), _by_key(after)
    lines = []
    for key in {**old, **new}:
        where = " ".join(str(part) for part in key if part not in {None, "-"})
        if key not in new:
            lines.append(f"{where}: is in the golden file only")
        elif key not in old:
            lines.append(f"{where}: is not in the golden file")
        else:
            names = {**old[key], **new[key]}
            lines.extend(
                f"{where}: {name} is {new[key].get(name)!r}, was {old[key].get(name)!r}"
                for name in names
                if new[key].get(name) != old[key].get(name)
            )
    return lines


def _first(
    scenario: Scenario,
    plugins: Plugins,
    choose: Choose,
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Return the run of the first kernel that differs, as a table."""
    old = _by_key(before)
    for key, row in _by_key(after).items():
        if old.get(key) != row and row["mmu"] is not None:
            return ["", run_text(scenario, plugins, choose, row["arch"], row["kernel"])]
    return []
