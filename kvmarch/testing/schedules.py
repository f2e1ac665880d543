"""Schedules as text, for failures: what happened, one column per task."""

__all__ = ["explain_text", "run_text"]

from dataclasses import replace

from kvmarch.errors import KvmarchError
from kvmarch.plugins import Plugins
from kvmarch.report.render import render
from kvmarch.report.trace import render_trace
from kvmarch.scenarios.cells import Cell
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.explain import explain
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.show import run_table


def run_text(
    scenario: Scenario, plugins: Plugins, choose: Choose, arch: str, kernel: str
) -> str:
    """Return a scenario's run on one kernel."""
    here = replace(choose, arch=(arch,), kernel=(kernel,))
    try:
        return render(run_table(scenario, plugins, here), "text")
    except KvmarchError as error:
        return str(error)


def explain_text(cell: Cell, plugins: Plugins, wanted: str) -> str:
    """Return the schedule on which a property of a cell is lost.

    :param wanted: the property; whichever is lost if it is empty.
    """
    trace = explain(cell.scenario, plugins, cell.choose, wanted=wanted)
    return render_trace(trace, "text")
