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
    """Return what the scenarios of the posts say, one row per answer.

    :param check: explore every kernel, and say where it is not so.
    """
    table = Table(
        "Five posts, answered by search",
        (
            Column("post"),
            Column("scenario"),
            Column("answer"),
            Column("arch"),
            Column("kernels"),
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
    said: dict[tuple[str, str], dict[str, list[str]]] = {}
    for cell, expected in cells_of(scenario, plugins, choose):
        release = cell.where.partition("@")[2].partition("/")[0].rpartition("-")[2]
        kernel = " ".join((release, *cell.changes.split()))
        for each in expected:
            name, verdict = each.property, each.verdict
            key = ("nothing lost", "") if name == "*" else (name, verdict)
            archs = said.setdefault(key, {}).setdefault(kernel, [])
            if cell.arch.name not in archs:
                archs.append(cell.arch.name)
    for (name, verdict), kernels in said.items():
        by_archs: dict[str, list[str]] = {}
        for kernel, archs in kernels.items():
            by_archs.setdefault(" ".join(sorted(archs)), []).append(kernel)
        for archs_of, found in by_archs.items():
            table.rows.append(
                {
                    "post": tag.removeprefix("post-"),
                    "scenario": scenario.name,
                    "answer": f"{name} {verdict}".rstrip(),
                    "arch": archs_of,
                    "kernels": ", ".join(found),
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
