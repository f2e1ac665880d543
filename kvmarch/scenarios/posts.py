"""The answers to the posts that kvmarch began with, as one table."""

__all__ = ["POSTS", "posts_table"]

from kvmarch.plugins import Plugins
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import Explored, How, cells_of, explore_cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.records import Scenario

POSTS = {
    "post-1": "change_pte: assert the count, or bump the sequence?",
    "post-2": "memslots: is one change of the generation enough?",
    "post-3": "gfn_to_pfn_cache: who retries, who waits, who ends?",
    "post-4": "teardown: who walks what release has freed?",
    "post-5": "TDP MMU: zap under the read lock?",
}
"""Tags of scenarios, and what the post is about."""


def posts_table(
    plugins: Plugins, choose: Choose, *, check: bool = False, how: How | None = None
) -> Table:
    """Return what the scenarios of the posts say, one row per kernel and property.

    :param check: explore every kernel, and say where it is not so.
    """
    table = Table(
        "Five posts, answered by search",
        (
            Column("post"),
            Column("scenario"),
            Column("kernel"),
            Column("answer"),
            Column("because", detail=True),
        ),
        keys=2,
    )
    for tag, question in POSTS.items():
        table.notes.append(f"{tag}: {question}")
        for name in library():
            scenario = load(find(name, plugins.scenario_folders()))
            if tag in scenario.tags:
                _add(table, tag, scenario, plugins, choose)
                if check:
                    _check(table, scenario, plugins, choose, how)
    return table


def _add(
    table: Table, tag: str, scenario: Scenario, plugins: Plugins, choose: Choose
) -> None:
    rows: dict[str, dict[str, list[str]]] = {}
    because: dict[str, str] = {}
    for cell, expected in cells_of(scenario, plugins, choose):
        release = cell.where.partition("@")[2].partition("/")[0].rpartition("-")[2]
        kernel = " ".join((release, *cell.changes.split()))
        answers = rows.setdefault(kernel, {})
        for each in expected:
            name = "nothing lost" if each.property == "*" else each.property
            said = name if each.property == "*" else f"{name} {each.verdict}"
            known = answers.setdefault(said, [])
            if cell.arch.name not in known:
                known.append(cell.arch.name)
            if each.because:
                because.setdefault(kernel, each.because)
    for kernel, answers in rows.items():
        said = "; ".join(
            f"{answer} ({' '.join(sorted(archs))})" for answer, archs in answers.items()
        )
        table.rows.append(
            {
                "post": tag.removeprefix("post-"),
                "scenario": scenario.name,
                "kernel": kernel,
                "answer": said,
                "because": because.get(kernel, ""),
            }
        )


def _check(
    table: Table, scenario: Scenario, plugins: Plugins, choose: Choose, how: How | None
) -> None:
    for cell, expected in cells_of(scenario, plugins, choose):
        explored: Explored = explore_cell(cell, plugins, how, expected)
        for row, got in explored.failures():
            table.status = 1
            table.notes.append(
                f"FAILED {cell.where}: {row.property} {row.verdict} was expected, "
                f"not {got}"
            )
