"""One piece of what a page shows, computed in whatever process: plain values out."""

__all__ = ["Job", "do_job", "jobs_of", "try_job"]

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from kvmarch.blame import blaming
from kvmarch.changes import RELEASES, Release, find_release, show_release
from kvmarch.errors import KernelError, KvmarchError, PluginError, TierError
from kvmarch.explore.schedule import Schedule, merged
from kvmarch.explore.verdict import Verdict
from kvmarch.page.player import Camera, trace_data
from kvmarch.plugins import Loaded, Plugins, load
from kvmarch.report.table import Table
from kvmarch.scenarios.cells import Cell, Explored, How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose, compare, meant
from kvmarch.scenarios.compare import cell as play_cell
from kvmarch.scenarios.explain import told
from kvmarch.scenarios.outcome import outcome_of
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.records import Verdict as Expected
from kvmarch.scenarios.trace import replay, trace_of


@dataclass(frozen=True, slots=True)
class Job:
    """A piece of work, in a form that another process understands.

    :param arch: the architecture to explore or to follow; empty for a comparison.
    :param schedule: one to follow; empty to explore.
    :param expected: what is expected of the cell that is explored.
    """

    scenario: Scenario
    choose: Choose
    how: How
    arch: str = ""
    release: Release = RELEASES[-1]
    schedule: str = ""
    expected: tuple[Expected, ...] = ()


def jobs_of(
    scenario: Scenario, plugins: Plugins, choose: Choose, how: How
) -> Iterator[Job]:
    """Yield the work for one scenario.

    It is compared if it has something to compare, and explored if it says something
    of all interleavings or has several tasks.
    """
    raced = bool(scenario.verdicts) or len(scenario.tasks) > 1
    if scenario.columns or not raced:
        yield Job(scenario, choose, how)
    if raced:
        for cell, expected in cells_of(scenario, plugins, choose):
            mine = _narrowed(cell.choose, cell.arch, plugins)
            yield Job(
                scenario, mine, how, cell.arch.name, cell.release, expected=expected
            )


def _narrowed(choose: Choose, arch: Loaded, plugins: Plugins) -> Choose:
    """Return of the changes and options that were chosen those of one architecture.

    So a command that the page shows can be given to this architecture alone.
    """
    changes = choose.changes_for(arch, plugins)
    return replace(
        choose,
        plus=tuple(changes["plus"]),
        minus=tuple(changes["minus"]),
        options=choose.options_for(arch, plugins),
    )


@functools.cache
def _loaded() -> Plugins:
    return load()


def do_job(job: Job, plugins: Plugins | None = None) -> dict[str, Any]:
    """Do a piece of work.

    :param plugins: those that are loaded; by default the process loads them once.
    :returns: ``comparison``, ``cell`` or neither; ``traces``; ``status`` and ``notes``.
    """
    plugins = plugins or _loaded()
    if job.schedule:
        cell = _cell(job, plugins)
        names = tuple(task.name for task in job.scenario.tasks)
        schedule = Schedule.parse(job.schedule, cell.where, names)
        return {"traces": [_followed(cell, schedule, plugins)]}
    if job.arch:
        return _explored(job, plugins)
    return _compared(job, plugins)


def try_job(job: Job) -> dict[str, Any]:
    """Do a piece of work; a user's error is told in the result, under ``error``."""
    try:
        return do_job(job)
    except KvmarchError as error:
        return {"error": str(error)}


def _cell(job: Job, plugins: Plugins) -> Cell:
    return Cell(job.scenario, plugins.get(job.arch), job.release, job.choose)


# -- one schedule, many kernels ----------------------------------------------------


def _compared(job: Job, plugins: Plugins) -> dict[str, Any]:
    scenario, choose = job.scenario, job.choose
    if not scenario.columns:
        here = [
            (arch, release)
            for arch in choose.architectures(plugins)
            for release in choose.releases((RELEASES[-1],))
        ]
        return {"traces": list(_runs(scenario, here, choose, plugins))}
    table = compare(scenario, plugins, choose)
    kept = {name: number for number, name in enumerate(table.names()[3:-1])}
    machines = {
        arch.name: Cell(
            scenario, arch, RELEASES[-1], _narrowed(choose, arch, plugins)
        ).changes
        for arch in choose.architectures(plugins)
    }
    rows = [
        {
            "arch": row["arch"],
            "kernel": row["kernel"],
            "mmu": row["mmu"],
            "machine": machines[row["arch"]],
            "note": row["note"],
            "values": None if row["mmu"] is None else [row[name] for name in kept],
            "expected": list(
                _expected(scenario, row, choose, kept, plugins.get(row["arch"]))
            ),
        }
        for row in table.rows
    ]
    traces = list(_runs(scenario, _answers(table, choose, plugins), choose, plugins))
    return {
        "comparison": {
            "columns": list(kept),
            "rows": rows,
        },
        "traces": traces,
        "status": table.status,
        # That a release has no such machine is seen in the table.
        "notes": [
            note
            for note in table.notes
            if table.status == 2 or note.startswith("FAILED")
        ],
    }


def _expected(
    scenario: Scenario,
    row: Mapping[str, Any],
    choose: Choose,
    kept: Mapping[str, int],
    arch: Loaded,
) -> Iterator[list[Any]]:
    """Yield column, value that was expected, whether it is so, and why."""
    if row["mmu"] is None:
        return
    release = find_release(row["kernel"])
    for expect in scenario.expects:
        if meant(expect, row, release, choose, arch):
            for name, value in expect.values.items():
                yield [kept[name], value, row[name] == value, expect.because]


def _answers(
    table: Table, choose: Choose, plugins: Plugins
) -> Iterator[tuple[Loaded, Release]]:
    """Yield a kernel for each answer: of those that answer alike, the newest."""
    newest: dict[tuple[str, ...], tuple[str, str]] = {}
    for row in table.rows:
        if row["mmu"] is not None:
            said = tuple(str(v) for name, v in row.items() if name != "kernel")
            newest[said] = row["arch"], row["kernel"]
    for arch, kernel in newest.values():
        yield plugins.get(arch), find_release(kernel)


def _runs(
    scenario: Scenario,
    where: Iterable[tuple[Loaded, Release]],
    choose: Choose,
    plugins: Plugins,
) -> Iterator[dict[str, Any]]:
    """Yield the scenario's own schedule on some machines, step by step.

    A machine that there is not, or that its plugin cannot run, has none: comparisons
    say why.
    """
    for arch, release in where:
        with suppress(KernelError, PluginError):
            played, _options = play_cell(scenario, arch, release, choose, plugins)
            cell = Cell(scenario, arch, release, _narrowed(choose, arch, plugins))
            names = tuple(task.name for task in scenario.tasks)
            turns = merged(tuple(played.outcome.schedule))
            yield _followed(cell, Schedule(cell.where, names, turns), plugins)


def _followed(cell: Cell, schedule: Schedule, plugins: Plugins) -> dict[str, Any]:
    def follow(arch: Loaded) -> dict[str, Any]:
        camera = Camera()
        here = replace(cell, arch=arch)
        trace = trace_of(replay(here, schedule, plugins, each=camera.take))
        return trace_data(trace, camera, **_about(here))

    with blaming(cell.arch, follow):
        return follow(cell.arch)


def _about(cell: Cell) -> dict[str, Any]:
    return {
        "scenario": cell.scenario.name,
        "arch": cell.arch.name,
        "kernel": show_release(cell.release),
        "machine": cell.changes,
        "property": "",
    }


# -- every interleaving ------------------------------------------------------------


def _explored(job: Job, plugins: Plugins) -> dict[str, Any]:
    cell = _cell(job, plugins)

    def explore(arch: Loaded) -> dict[str, Any]:
        return _found(replace(cell, arch=arch), job, plugins)

    try:
        with blaming(cell.arch, explore):
            return explore(cell.arch)
    except TierError as error:
        return _nothing(cell, "not reached", str(error), 0)
    except PluginError as error:
        return _nothing(cell, "error", str(error), 2)


def _nothing(cell: Cell, verdict: str, why: str, status: int) -> dict[str, Any]:
    """Return what is said of a kernel that could not be explored."""
    row = {
        "property": "all",
        "verdict": verdict,
        "expected": "",
        "met": True,
        "because": why,
        "steps": 0,
    }
    about = {**_about(cell), "states": 0, "cut": "", "rows": [row]}
    return {"cell": about, "traces": [], "status": status, "notes": [why]}


def _found(cell: Cell, job: Job, plugins: Plugins) -> dict[str, Any]:
    explored = explore_cell(cell, plugins, job.how, job.expected)
    outcome = outcome_of(explored)
    because = {row.property: row.because for row in job.expected}
    traces = {
        verdict.property: _shown(explored, verdict, plugins)
        for verdict in explored.verdicts
    }
    rows = [
        {
            "property": row["property"],
            "verdict": row["verdict"],
            "expected": row["expected"],
            "met": _is_met(explored, row["property"], row["verdict"]),
            "because": because.get(row["property"], because.get("*", "")),
            "steps": len(traces[row["property"]]["steps"])
            if row["property"] in traces
            else 0,
        }
        for row in outcome.rows
    ]
    about = {
        **_about(cell),
        "states": explored.search.states,
        "cut": explored.search.cut,
        "rows": rows,
    }
    return {
        "cell": about,
        "traces": list(traces.values()),
        "status": outcome.status,
        "notes": outcome.notes,
    }


def _is_met(explored: Explored, name: str, verdict: str) -> bool | None:
    """Return whether what is expected of a property is so; None if nobody knows."""
    failed = {row.property for row, _got in explored.failures()}
    expected = {row.property for row in explored.expected}
    if name in failed or ("*" in failed and name not in expected):
        return False
    return None if verdict == "unknown" else True


def _shown(explored: Explored, verdict: Verdict, plugins: Plugins) -> dict[str, Any]:
    camera = Camera()
    trace = told(explored, verdict, plugins, shortest=True, each=camera.take)
    about = {**_about(explored.cell), "property": verdict.property}
    return trace_data(trace, camera, **about)
