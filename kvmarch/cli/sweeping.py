"""The command for explorations that outgrow a sitting or a machine."""

__all__ = ["sweep"]

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kvmarch.cli.commands import load_plugins, print_table, scenario_of
from kvmarch.cli.exploring import how_of, how_options
from kvmarch.cli.shared import choose_options, output_options, words
from kvmarch.cli.values import CHANGE, FILE, SCENARIO


@contextmanager
def _bar(done: int, cells: int) -> Iterator[Any]:
    """Show progress to a person who watches; yield what to call for each cell."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(
        length=cells, label="cells", file=sys.stderr, show_pos=True
    ) as bar:
        bar.update(done)
        yield lambda: bar.update(1)


@click.command()
@click.argument("scenarios", type=SCENARIO, nargs=-1, metavar="[SCENARIO]...")
@click.option("--all", "every", is_flag=True, help="Every scenario that expects any.")
@click.option(
    "--toggle",
    "toggled",
    type=CHANGE,
    multiple=True,
    metavar="CHANGE",
    help="Explore each kernel also with this change the other way round.",
)
@click.option(
    "--results",
    "-r",
    type=FILE,
    metavar="FILE",
    default="sweep.sqlite",
    show_default=True,
    help="File that every finished cell is written to at once.",
)
@click.option("--resume", is_flag=True, help="Go on with what the file has.")
@click.option(
    "--show", type=FILE, metavar="FILE", help="Print what a sweep's file has, and end."
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1),
    help="Processes of this machine; by default, one for each CPU.",
)
@click.option("--scheduler", metavar="ADDRESS", help="Dask cluster: tcp://host:8786.")
@how_options
@choose_options
@output_options
def sweep(
    scenarios: tuple[str, ...],
    every: bool,
    toggled: tuple[str, ...],
    results: str,
    resume: bool,
    show: str | None,
    jobs: int | None,
    scheduler: str | None,
    choose: Any,
    style: str,
    output: str | None,
    **search: Any,
) -> None:
    """Explore scenarios x architectures x releases x changes, and survive a crash.

    Releases may be given as a span: --kernel v5.4..v6.1. Finished cells are in the
    file; a sweep that was killed goes on with the same command and --resume.
    """
    from kvmarch.sweep import run as work
    from kvmarch.sweep.store import Store

    if show is not None:
        if scenarios or every or resume:
            raise click.UsageError("--show prints a file and takes no SCENARIO")
        with Store.look(Path(show)) as store:
            table = work.table_of(store)
        print_table(table, style, output)
        return
    if bool(scenarios) == every:
        raise click.UsageError("give either SCENARIOs or --all")
    if jobs is not None and scheduler is not None:
        raise click.UsageError("give either --jobs or --scheduler")

    from kvmarch.scenarios.exploring import names_of_all
    from kvmarch.sweep.cells import plan_of

    plugins = load_plugins()
    names = names_of_all(plugins) if every else list(dict.fromkeys(scenarios))
    plan = plan_of(
        [scenario_of(name, plugins) for name in names],
        plugins,
        choose,
        words(toggled),
        how_of(**search),
    )
    cpus = len(os.sched_getaffinity(0))
    backend, where = work.places_of_work(plugins, jobs, scheduler, cpus)
    with Store.begin(
        Path(results), plan.definition, plan.places, resume=resume
    ) as store:
        done, cells = len(store.finished()), len(plan.places)
        click.echo(
            f"{results}: cells: {cells}, finished: {done}; "
            + (f"{cells - done} left, {where}" if done < cells else "nothing is left"),
            err=True,
        )
        with _bar(done, cells) as progress:
            work.run(plan, store, backend, progress)
        lost = cells - len(store.finished())
        if lost:
            click.echo(
                f"kvmarch: the workers died of {lost} cells, perhaps for want of "
                "memory; --resume tries again",
                err=True,
            )
        table = work.table_of(store)
    print_table(table, style, output)
