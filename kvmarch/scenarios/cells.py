"""One cell of an exploration: a scenario on one machine, and what the search found."""

__all__ = ["Cell", "Explored", "How", "cells_of", "expected_at", "explore_cell"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvmarch.changes import RELEASES, Release, find_release, show_release
from kvmarch.errors import KernelError
from kvmarch.explore.schedule import Schedule, schedule_of
from kvmarch.explore.search import Bounds, Search, explore
from kvmarch.explore.verdict import Verdict, verdict_of, verdicts
from kvmarch.plugins import Loaded, Plugins, link
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.program import ScenarioProgram
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.records import Verdict as Expected

if TYPE_CHECKING:
    from kvmarch.explore.audit import Comparison

SAMPLED = ("random", "pct")
"""Orders that try some schedules, not all."""


@dataclass(frozen=True, slots=True)
class How:
    """How a cell is explored.

    :param order: ``breadth`` or ``depth`` first, over every interleaving; ``random``
        schedules, or by ``pct``.
    :param reduce: leave out what differs only by steps that commute.
    :param symmetric: count states once that differ only by which of some identical
        tasks is which.
    :param fairness: of locks: ``queued``, or ``unfair`` to those who wait.
    :param engine: ``states``, or ``both``: the one without states as well, as audit.
    :param runs: schedules of a sample, from a ``seed``.
    :param orderings: of PCT, how many a bug may need.
    """

    order: str = "breadth"
    bounds: Bounds = field(default_factory=Bounds)
    reduce: bool = False
    symmetric: bool = False
    fairness: str = "queued"
    engine: str = "states"
    runs: int = 1000
    seed: int = 0
    orderings: int = 3


@dataclass(frozen=True, slots=True)
class Cell:
    """A scenario on one machine: architecture, release, changes, options."""

    scenario: Scenario
    arch: Loaded
    release: Release
    choose: Choose

    @property
    def changes(self) -> str:
        """Return the changes that were added and taken away, and the options."""
        parts = [f"+{name}" for name in self.choose.plus]
        parts += [f"-{name}" for name in self.choose.minus]
        parts += [f"{name}={value}" for name, value in self.choose.options.items()]
        return " ".join(parts)

    @property
    def where(self) -> str:
        """Return the cell as one word, as schedules carry it."""
        place = f"{self.scenario.name}@{self.arch.name}-{show_release(self.release)}"
        return "/".join((place, *self.changes.split()))

    def program(self, plugins: Plugins) -> ScenarioProgram:
        """Return the machine with the scenario's tasks.

        :raises KernelError: the release does not have the architecture.
        """
        k = link(self.arch, self.release, **self.choose.changes_for(self.arch, plugins))
        options = self.arch.info.settle(
            self.release, self.choose.options_for(self.arch, plugins)
        )
        return ScenarioProgram(self.scenario, k, options)


@dataclass(slots=True)
class Explored:
    """What the search of one cell found."""

    cell: Cell
    search: Search
    expected: tuple[Expected, ...] = ()
    verdicts: list[Verdict] = field(default_factory=list)
    audit: "Comparison | None" = None
    """What the second engine says, if it was asked."""

    def schedule(self, verdict: Verdict) -> Schedule | None:
        """Return the schedule on which a property is lost."""
        if verdict.found is None:
            return None
        return schedule_of(self.search.space, verdict.found, self.cell.where)

    def failures(self) -> list[tuple[Expected, str]]:
        """Return the expectations that are not met, and what was found instead.

        What a search that was cut did not find is unknown, and no failure.
        """
        out = []
        for expected in self.expected:
            if expected.property == "*":
                got = self.verdicts[0] if self.verdicts else None
                if got is not None:
                    out.append((expected, f"{got.property} {got.verdict}"))
                continue
            verdict = verdict_of(self.search, expected.property).verdict
            wanted = {expected.verdict, "unknown"}
            if self.search.cut and expected.verdict == "always":
                wanted.add("sometimes")
            if verdict not in wanted:
                out.append((expected, verdict))
        return out


def explore_cell(
    cell: Cell,
    plugins: Plugins,
    how: How | None = None,
    expected: tuple[Expected, ...] = (),
) -> Explored:
    """Explore the interleavings of a scenario on one machine."""
    how = how or How()
    program = cell.program(plugins)
    if how.order in SAMPLED:
        # Most searches need neither this nor the second engine.
        from kvmarch.explore.sample import sample

        search = sample(
            program,
            strategy=how.order,
            runs=how.runs,
            seed=how.seed,
            depth=how.orderings,
            bounds=how.bounds,
            always=program.asks_always,
        )
    else:
        search = explore(
            program,
            order=how.order,
            bounds=how.bounds,
            always=program.asks_always,
            reduce=how.reduce,
            symmetric=how.symmetric,
            fairness=how.fairness,
        )
    audit = None
    if how.engine == "both":
        from kvmarch.explore.audit import compare_engines

        # Each engine begins with a machine of its own.
        audit = compare_engines(
            cell.program(plugins), bounds=how.bounds, always=program.asks_always
        )
    return Explored(cell, search, expected, verdicts(search), audit)


def cells_of(
    scenario: Scenario, plugins: Plugins, choose: Choose
) -> Iterator[tuple[Cell, tuple[Expected, ...]]]:
    """Yield the cells to explore, with what is expected of each.

    If a kernel or a change is chosen, it is explored there; otherwise wherever the
    scenario expects something, or at the newest release.
    """
    if choose.kernel or choose.plus or choose.minus or not scenario.verdicts:
        for arch in choose.architectures(plugins):
            for release in choose.releases((RELEASES[-1],)):
                if _exists(arch, release) or (choose.arch and choose.kernel):
                    cell = Cell(scenario, arch, release, choose)
                    yield cell, expected_at(scenario, cell)
        return
    found: dict[str, tuple[Cell, list[Expected]]] = {}
    for expected in scenario.verdicts:
        release = find_release(expected.kernel)
        names = expected.arch or tuple(sorted(plugins.loaded))
        for name in names:
            if choose.arch and name not in choose.arch:
                continue
            if not choose.arch and name not in plugins.loaded:
                continue
            arch = plugins.get(name)
            if not _exists(arch, release):
                continue
            here = replace(
                choose,
                arch=(name,),
                kernel=(expected.kernel,),
                plus=expected.plus,
                minus=expected.minus,
                options={**choose.options, **expected.settings},
            )
            cell = Cell(scenario, arch, release, here)
            found.setdefault(cell.where, (cell, []))[1].append(expected)
    for cell, rows in found.values():
        yield cell, tuple(rows)


def _exists(arch: Loaded, release: Release) -> bool:
    try:
        link(arch, release)
    except KernelError:
        return False
    return True


def expected_at(scenario: Scenario, cell: Cell) -> tuple[Expected, ...]:
    """Return what the scenario expects of a cell that was chosen by hand."""

    def same(given: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
        return dict(given) == dict(row)

    return tuple(
        row
        for row in scenario.verdicts
        if find_release(row.kernel) == cell.release
        and (not row.arch or cell.arch.name in row.arch)
        and set(row.plus) == set(cell.choose.plus)
        and set(row.minus) == set(cell.choose.minus)
        and same(cell.choose.options, row.settings)
    )
