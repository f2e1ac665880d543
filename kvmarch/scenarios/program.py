"""A scenario as a program that can be explored: its machine and its tasks."""

__all__ = ["FIXED", "ScenarioProgram"]

from collections.abc import Iterable, Mapping
from typing import Any

from kvmarch.arch import ArchInfo
from kvmarch.changes import Choice, Kernel
from kvmarch.errors import ScenarioError
from kvmarch.explore.twins import Twins
from kvmarch.format.table import SparseTable
from kvmarch.kernel.checks import OpenRange
from kvmarch.machine.host import Page
from kvmarch.machine.run import Task
from kvmarch.machine.steps import Op, Scope, Step
from kvmarch.machine.world import Piece, Violation
from kvmarch.scenarios import properties
from kvmarch.scenarios.play import check_dirty_logs, run_setup, set_up, tasks_of
from kvmarch.scenarios.records import Scenario, StepLine
from kvmarch.scenarios.twins import twins_of


class _Forgotten(dict[tuple[str, int], Any]):
    """Results that nobody reads: they are no state."""

    def __setitem__(self, key: tuple[str, int], value: Any) -> None:
        """Keep nothing."""


FIXED = (Kernel, Choice, Op, Step, Scope, ArchInfo, StepLine, _Forgotten)
"""Classes whose objects never change."""


class ScenarioProgram:
    """The machine and the tasks of one scenario.

    :param options: every option of the architecture, see ``ArchInfo.settle``.
    """

    def __init__(
        self, scenario: Scenario, k: Kernel, options: Mapping[str, Any]
    ) -> None:
        self.scenario = scenario
        self.context = set_up(scenario, k, options)
        run_setup(scenario, self.context)
        self.world = self.context.machine.world
        # Events are for those who watch one run; the checks go on.
        self.world.silent = True
        self._results = _Forgotten()
        for name, (_ask, bad) in scenario.bad.items():
            if properties.asks_for(bad, "exits"):
                raise ScenarioError(
                    f"{scenario.name}: property {name} asks for exits, which are "
                    "counted in a run and are no state"
                )
        self._always = properties.compiled(scenario, "always")
        self._at_rest = properties.compiled(scenario, "at-rest")

    @property
    def asks_always(self) -> bool:
        """Return whether the scenario asks something between steps."""
        return bool(self._always)

    def roots(self) -> Iterable[Any]:
        """Return objects from which the whole machine is reached."""
        return [self.context]

    def fixed(self) -> tuple[type, ...]:
        """Return classes whose objects never change."""
        return FIXED

    def pieces(self) -> tuple[type[Piece], ...]:
        """Return the classes of pieces that steps make."""
        return Page, SparseTable, OpenRange

    def tasks(self) -> list[Task]:
        """Return new tasks, not begun."""
        return tasks_of(self.scenario, self.context, self._results)

    def twins(self) -> list[Twins]:
        """Return the tasks that can be exchanged."""
        return twins_of(self.scenario, self.context)

    def _check(self, tests: Any) -> tuple[Violation, ...]:
        self.world.violations.clear()
        properties.check(tests, self.context)
        return tuple(self.world.violations)

    def always(self) -> tuple[Violation, ...]:
        """Return which of the scenario's properties are lost between steps."""
        return self._check(self._always)

    def at_rest(self, end: str) -> tuple[Violation, ...]:
        """Return which properties are lost at the end."""
        lost = self._check(self._at_rest)
        if end == "done":
            self.world.violations.clear()
            check_dirty_logs(self.context)
            lost += tuple(self.world.violations)
        return lost
