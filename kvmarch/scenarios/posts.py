"""The answers to the posts that kvmarch began with, as one table."""

__all__ = ["POSTS", "posts_table"]

from collections.abc import Sequence

from kvmarch.errors import UnknownNameError
from kvmarch.plugins import Plugins
from kvmarch.report.table import Column, Table
from kvmarch.scenarios.cells import How, cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.parallel import results_of, works_of
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
    plugins: Plugins,
    choose: Choose,
    only: Sequence[int] = (),
    *,
    check: bool = False,
    how: How | None = None,
    jobs: int = 1,
) -> Table:
    """Return what the scenarios of the posts say, one row per answer.

    :param only: numbers of the posts that are wanted; all if there are none.
    :param check: explore every kernel, and say where it is not so.
    :param jobs: processes among which the kernels are shared.
    :raises UnknownNameError: there is no such post.
    """
    for number in only:
        if f"post-{number}" not in POSTS:
            known = [tag.removeprefix("post-") for tag in POSTS]
            raise UnknownNameError("post", str(number), known)
    chosen = {
        tag: question
        for tag, question in POSTS.items()
        if not only or int(tag.removeprefix("post-")) in only
    }
    # The question of one post is the title.
    alone = next(iter(chosen.values())) if len(chosen) == 1 else ""
    table = Table(
        alone or "Five posts, answered by search",
        (
            Column("post"),
            Column("scenario"),
            Column("answer"),
            Column("arch"),
            Column("kernels"),
        ),
        keys=2,
    )
    scenarios: list[Scenario] = []
    for tag, question in chosen.items():
        if not alone:
            table.notes.append(f"{tag}: {question}")
        for name in library():
            scenario = load(find(name, plugins.scenario_folders()))
            if tag in scenario.tags:
                _add(table, tag, scenario, plugins, choose)
                scenarios.append(scenario)
    if check:
        works = list(works_of(scenarios, plugins, choose, how))
        outcomes = dict(results_of(works, plugins, jobs))
        for number in range(len(works)):
            outcome = outcomes[number]
            table.notes.extend(outcome.notes)
            if outcome.status == 1 or not table.status:
                table.status = outcome.status
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
