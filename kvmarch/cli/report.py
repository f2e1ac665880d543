"""The command that writes a page to look at."""

__all__ = ["report"]

import os
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from kvmarch.cli.commands import load_plugins
from kvmarch.cli.shared import choose_options, emit, jobs_option
from kvmarch.cli.values import FILE, SCENARIO, SCHEDULE
from kvmarch.errors import KvmarchError


def _title(data: dict[str, Any]) -> str:
    """Return what a page is called: by its scenario, or by how many there are."""
    every = data["scenarios"]
    if len(every) == 1:
        return f"{every[0]['name']}: {every[0]['title']} (kvmarch)"
    return f"kvmarch: {len(every)} scenarios on {len(data['archs'])} architectures"


def _command() -> str:
    """Return the command that makes the page again.

    Where the page was put and how many processes shared the work do not matter.
    """
    context = click.get_current_context()
    given = ["kvmarch", "report", *context.params["scenarios"]]
    for option in context.command.params:
        source = context.get_parameter_source(str(option.name))
        default = source is ParameterSource.DEFAULT
        if default or option.name in {"scenarios", "output", "jobs"}:
            continue
        values = context.params[str(option.name)]
        for value in values if option.multiple else (values,):
            given += [option.opts[0], str(value)]
    return shlex.join(given)


def _day() -> str:
    """Return the day, in UTC.

    ``SOURCE_DATE_EPOCH`` replaces the time, so that a page can be made alike.

    :raises KvmarchError: it is no number of seconds.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    try:
        return str(datetime.fromtimestamp(int(epoch), UTC).date())
    except (ValueError, OverflowError, OSError):
        raise KvmarchError(
            f"SOURCE_DATE_EPOCH={epoch}: wanted a number of seconds"
        ) from None


@click.command()
@click.argument("scenarios", type=SCENARIO, nargs=-1, metavar="[SCENARIO]...")
@click.option(
    "--output",
    "-o",
    type=FILE,
    default="report.html",
    show_default=True,
    metavar="FILE",
    help="Where to write the page; - for standard output.",
)
@click.option(
    "--schedule",
    "schedules",
    type=SCHEDULE,
    multiple=True,
    metavar="SCHEDULE",
    help="Put one more schedule into the player, as explore prints it.",
)
@click.option(
    "--states",
    type=click.IntRange(0),
    default=1_000_000,
    show_default=True,
    help="Cut the search of a kernel at so many; 0 never does.",
)
@jobs_option
@choose_options
def report(
    scenarios: tuple[str, ...],
    output: str,
    schedules: tuple[str, ...],
    states: int,
    jobs: int,
    choose: Any,
) -> None:
    """Write one page of HTML: comparison, interleavings, formats, a player.

    The page is a single file that asks no network for anything. Without a SCENARIO
    it shows those that need one schedule only, and the races of the five posts.
    """
    from kvmarch.explore.search import Bounds
    from kvmarch.page.collect import chosen_scenarios, collect
    from kvmarch.page.html import page
    from kvmarch.report.files import check_target, write_whole
    from kvmarch.scenarios.cells import How

    began = time.monotonic()
    if output != "-":
        # Said now, and not after minutes of work.
        check_target(Path(output))
    day = _day()
    plugins = load_plugins(choose)

    def progress(done: int, every: int) -> None:
        if sys.stderr.isatty():
            end = "" if done < every else "\r\033[K"
            click.echo(f"\r\033[K{done} of {every}{end}", err=True, nl=False)

    collected = collect(
        chosen_scenarios(scenarios, plugins),
        plugins,
        choose,
        How(bounds=Bounds(states)),
        jobs=jobs,
        schedules=schedules,
        progress=progress,
    )
    title = _title(collected.data)
    text = page(collected.data, title, command=_command(), day=day)
    for note in collected.notes:
        click.echo(f"kvmarch: {note}", err=True)
    if output == "-":
        emit(text, None, collected.status)
        return
    write_whole(Path(output), text)
    shown = len(collected.data["scenarios"])
    traces = len(collected.data["traces"])
    size = len(text.encode()) / 1e6
    seconds = time.monotonic() - began
    emit(
        f"{output}: {shown} scenarios, {traces} schedules, {size:.1f} MB, "
        f"{seconds:.0f} s\n",
        None,
        collected.status,
    )
