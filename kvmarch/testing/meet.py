"""What a scenario file expects, and what was found instead, as text for failures."""

__all__ = [
    "NotMetError",
    "expects_by_changes",
    "meet_expects",
    "meet_verdicts",
    "or_fail",
]

from collections.abc import Callable
from typing import Any

import pytest

from kvmarch.errors import KvmarchError
from kvmarch.plugins import Plugins
from kvmarch.scenarios.cells import Cell
from kvmarch.scenarios.compare import Choose, compare
from kvmarch.scenarios.outcome import Outcome
from kvmarch.scenarios.parallel import Work, do_work
from kvmarch.scenarios.records import Expect, Scenario
from kvmarch.scenarios.records import Verdict as Expected
from kvmarch.testing.schedules import explain_text, run_text


class NotMetError(Exception):
    """What a scenario file expects was not found; the text says all."""


def or_fail(meet: Callable[..., Any], *what: Any) -> Any:
    """Return what a function finds, or fail the test with a text alone."""
    __tracebackhide__ = True
    try:
        return meet(*what)
    except (KvmarchError, NotMetError) as error:
        failure = str(error)
    return pytest.fail(failure, pytrace=False)


def expects_by_changes(
    scenario: Scenario,
) -> dict[tuple[tuple[str, ...], tuple[str, ...]], list[Expect]]:
    """Return the ``[[expect]]`` rows by the changes added and taken away."""
    rows: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Expect]] = {}
    for expect in scenario.expects:
        changes = tuple(sorted(expect.plus)), tuple(sorted(expect.minus))
        rows.setdefault(changes, []).append(expect)
    return rows


def meet_expects(scenario: Scenario, plugins: Plugins, choose: Choose) -> None:
    """Compare over the releases; each expectation must hold.

    The test is skipped if there is no such kernel.

    :raises NotMetError: with what does not, and the run of the first kernel.
    """
    table = compare(scenario, plugins, choose)
    if not table.failed and table.status in {0, 1}:
        if all(row["mmu"] is None for row in table.rows):
            pytest.skip("; ".join(table.notes) or "no such kernel")
        return
    lines = [f"{arch} {kernel}: {what}" for arch, kernel, what in table.failed]
    if not lines:
        raise NotMetError("\n".join(table.notes))
    arch, kernel, _what = table.failed[0]
    shown = run_text(scenario, plugins, choose, arch, kernel)
    raise NotMetError("\n".join([*lines, "", shown]))


def meet_verdicts(
    cell: Cell, expected: tuple[Expected, ...], plugins: Plugins
) -> Outcome:
    """Search; each property must be lost as often as is expected.

    The test is skipped if the architecture stops at a tier below.

    :returns: what was found.
    :raises NotMetError: with what is not as expected, and a schedule.
    """
    work = Work(cell.scenario, cell.arch.name, cell.release, cell.choose, expected)
    outcome = do_work(work, plugins)
    if outcome.rows and outcome.rows[0]["verdict"] == "not reached":
        pytest.skip("; ".join(outcome.notes))
    if not outcome.failed and not outcome.status:
        return outcome
    lines = [what for _where, _kernel, what in outcome.failed] or outcome.notes
    lost = (
        row["property"]
        for row in outcome.rows
        if row["verdict"] in {"sometimes", "always"}
    )
    wanted = next(lost, "")
    shown = explain_text(cell, plugins, wanted) if wanted else ""
    raise NotMetError("\n".join([cell.where, *lines, "", shown]))
