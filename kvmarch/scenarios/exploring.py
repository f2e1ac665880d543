"""The table that ``kvmarch explore`` prints."""

__all__ = ["explore_table", "find_cell", "find_schedule", "names_of_all"]

from collections.abc import Iterable

from kvmarch.changes import RELEASES
from kvmarch.errors import ExploreError
from kvmarch.explore.schedule import Schedule
from kvmarch.plugins import Plugins
from kvmarch.report.table import Table
from kvmarch.scenarios.cells import Cell, How, cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.outcome import COLUMNS
from kvmarch.scenarios.parallel import results_of, works_of
from kvmarch.scenarios.records import Scenario


def names_of_all(plugins: Plugins) -> list[str]:
    """Return the scenarios of which something is expected over all interleavings."""
    paths = library(plugins.scenario_folders())
    return [name for name, path in paths.items() if load(path).verdicts]


def explore_table(
    scenarios: Iterable[Scenario],
    plugins: Plugins,
    choose: Choose,
    how: How | None = None,
    jobs: int = 1,
) -> Table:
    """Explore scenarios; return one row per property that is lost or expected.

    :param jobs: processes to share the cells; the rows are the same for any number.
    """
    table = Table("Every interleaving", COLUMNS, keys=4)
    works = list(works_of(scenarios, plugins, choose, how))
    if not works:
        raise ExploreError(
            "nothing to explore: no such kernel has such an architecture"
        )
    outcomes = dict(results_of(works, plugins, jobs))
    for number in range(len(works)):
        outcomes[number].add_to(table)
    return table


def find_cell(
    text: str, plugins: Plugins, choose: Choose, scenario: str | Scenario
) -> Cell:
    """Return the cell that a schedule belongs to, of those that were asked for.

    :param scenario: one that is loaded, or its name or file.
    :raises ExploreError: it belongs to another scenario, architecture or kernel.
    """
    place = text.rpartition(":")[0]
    loaded = (
        load(find(scenario, plugins.scenario_folders()))
        if isinstance(scenario, str)
        else scenario
    )
    cells = [cell for cell, _ in cells_of(loaded, plugins, choose)]
    if not choose.kernel:
        cells += [
            Cell(loaded, arch, release, choose)
            for arch in choose.architectures(plugins)
            for release in RELEASES
        ]
    for cell in cells:
        if cell.where == place:
            return cell
    raise ExploreError(
        f"the schedule is of {place or text!r}, which is none of the kernels of "
        f"{loaded.name} that were asked for"
    )


def find_schedule(
    text: str, plugins: Plugins, choose: Choose, scenario: str | None
) -> tuple[Cell, Schedule]:
    """Return a schedule that was printed, and the cell that it belongs to.

    :raises ExploreError: it does not parse, or belongs to something else.
    """
    if scenario is None:
        raise ExploreError("a schedule is of one SCENARIO, not of --all")
    cell = find_cell(text, plugins, choose, scenario)
    names = tuple(task.name for task in cell.scenario.tasks)
    return cell, Schedule.parse(text, cell.where, names)
