"""The commands that look at every interleaving."""

__all__ = ["explain", "explore", "how_of", "how_options"]

from typing import Any

import click

from kvmarch.cli.commands import load_plugins, print_table, scenario_of
from kvmarch.cli.shared import (
    F,
    check_table_style,
    choose_options,
    emit,
    jobs_option,
    trace_output_options,
    with_options,
)
from kvmarch.cli.values import PROPERTY, SCENARIO, SCHEDULE


def how_options(function: F) -> F:
    """Add the options that say how to search."""
    return with_options(
        function,
        click.option(
            "--order",
            type=click.Choice(["breadth", "depth", "random", "pct"]),
            default="breadth",
            show_default=True,
            help="Breadth first finds shortest schedules; random and pct try some.",
        ),
        click.option(
            "--reduce",
            is_flag=True,
            help="Leave out what differs by steps that commute; lengths may grow.",
        ),
        click.option(
            "--symmetry",
            "symmetric",
            is_flag=True,
            help="Count states once that differ by which identical vCPU is which.",
        ),
        click.option(
            "--engine",
            type=click.Choice(["states", "both"]),
            default="states",
            show_default=True,
            help="With both, one without states audits; any disagreement is an error.",
        ),
        click.option(
            "--fairness",
            type=click.Choice(["queued", "unfair"]),
            default="queued",
            show_default=True,
            help="Of locks, where it is asked whether every task ends.",
        ),
        click.option("--runs", type=click.IntRange(1), default=1000, help="Schedules."),
        click.option("--seed", type=int, default=0, help="Of random schedules."),
        click.option(
            "--orderings",
            type=click.IntRange(1),
            default=3,
            help="Of pct: how many a bug may need.",
        ),
        click.option(
            "--states", type=click.IntRange(0), default=0, help="Cut at so many."
        ),
        click.option(
            "--depth", type=click.IntRange(0), default=0, help="Cut at this depth."
        ),
        click.option(
            "--seconds", type=click.FloatRange(0), default=0.0, help="Cut after these."
        ),
        click.option(
            "--memory", type=click.IntRange(0), default=0, help="Cut at so many MiB."
        ),
    )


def how_of(states: int, depth: int, seconds: float, memory: int, **rest: Any) -> Any:
    """Return how to search, as the options say."""
    from kvmarch.explore.search import Bounds
    from kvmarch.scenarios.cells import How

    return How(bounds=Bounds(states, depth, seconds, memory), **rest)


def print_trace(trace: Any, style: str, output: str | None) -> None:
    """Print a schedule that was followed."""
    from kvmarch.report.trace import render_trace

    emit(render_trace(trace, style), output, trace.status)


@click.command()
@click.argument("scenario", type=SCENARIO, required=False)
@click.option("--all", "every", is_flag=True, help="Every scenario that expects any.")
@how_options
@jobs_option
@click.option(
    "--replay",
    type=SCHEDULE,
    metavar="SCHEDULE",
    help="Run one schedule step by step.",
)
@click.option(
    "--shorten",
    type=SCHEDULE,
    metavar="SCHEDULE",
    help="Make one shorter that loses a property.",
)
@click.option(
    "--property",
    "wanted",
    type=PROPERTY,
    default="",
    metavar="ID",
    help="Which one, to --shorten.",
)
@choose_options
@trace_output_options
def explore(
    scenario: str | None,
    every: bool,
    jobs: int,
    replay: str | None,
    shorten: str | None,
    wanted: str,
    choose: Any,
    style: str,
    output: str | None,
    **search: Any,
) -> None:
    """Search all interleavings of a scenario's tasks for properties that are lost."""
    from kvmarch.scenarios import exploring as work

    plugins = load_plugins(choose)
    if (scenario is None) != every:
        raise click.UsageError("give either a SCENARIO or --all")
    if replay is not None and shorten is not None:
        raise click.UsageError("give either --replay or --shorten")
    if replay is not None or shorten is not None:
        from kvmarch.scenarios import trace

        text = replay if shorten is None else shorten
        cell, schedule = work.find_schedule(text or "", plugins, choose, scenario)
        followed = trace.replay(cell, schedule, plugins)
        shown = trace.trace_of(followed)
        if shorten is not None:
            shown = trace.shortened(cell, schedule, plugins, wanted)
        print_trace(shown, style, output)
        return
    check_table_style(style)
    chosen = work.names_of_all(plugins) if every else [scenario or ""]
    table = work.explore_table(
        [scenario_of(name, plugins) for name in chosen],
        plugins,
        choose,
        how_of(**search),
        jobs,
    )
    print_table(table, style, output)


@click.command()
@click.argument("scenario", type=SCENARIO)
@click.option(
    "--property", "wanted", type=PROPERTY, default="", metavar="ID", help="Which one."
)
@how_options
@choose_options
@trace_output_options
def explain(
    scenario: str,
    wanted: str,
    choose: Any,
    style: str,
    output: str | None,
    **search: Any,
) -> None:
    """Tell step by step how a property is lost, and what the steps change."""
    from kvmarch.scenarios import explain as work

    plugins = load_plugins(choose)
    loaded = scenario_of(scenario, plugins)
    trace = work.explain(loaded, plugins, choose, how_of(**search), wanted)
    print_trace(trace, style, output)
