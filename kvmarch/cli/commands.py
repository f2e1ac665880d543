"""The commands. Each parses, makes one call and prints the table it gets."""

__all__ = ["cli", "load_plugins", "print_table", "scenario_of"]

from typing import Any

import click

from kvmarch.cli.lazy import LazyGroup
from kvmarch.cli.shared import (
    LOADED,
    REFUSED,
    arch_option,
    change_options,
    choose_of,
    choose_options,
    emit,
    output_options,
)
from kvmarch.cli.values import ARCH, RECORDING, RELEASE, SCENARIO

WELCOME = """\
kvmarch runs KVM's guest-memory code as a model, on every architecture and release.

Try:
  kvmarch compare change_pte              is .change_pte() a no-op, where, since when?
  kvmarch run ksm_cow --arch arm64        one scenario, step by step
  kvmarch formats x86 0x0600000012345b77  what does this entry say?
  kvmarch conform                         does the model agree with real kernels?
  kvmarch explore change_pte_dontneed -a arm64 -k v6.9    can this race happen?
  kvmarch explain change_pte_dontneed -a arm64 -k v6.9    how?
  kvmarch posts; kvmarch bugs             what the search has settled

'kvmarch scenarios' lists what can be run; 'kvmarch COMMAND --help' says how.
"""


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(package_name="kvmarch", message="kvmarch %(version)s")
@click.option("--trace-plugins", is_flag=True, help="Print how plugins are loaded.")
@click.pass_context
def cli(ctx: click.Context, trace_plugins: bool) -> None:
    """Compare how KVM manages guest memory, across architectures and releases."""
    ctx.obj = trace_plugins
    if ctx.invoked_subcommand is None:
        click.echo(WELCOME, nl=False)


def load_plugins(choose: Any = None) -> Any:
    """Load the plugins, and say which were refused.

    :param choose: what is asked for: if that is some architectures at some releases,
        as they are, only those are loaded.
    """
    from kvmarch.plugins import load

    only = ()
    if choose is not None and choose.kernel:
        # Changes and options may be of an architecture that is not asked for.
        named = choose.plus or choose.minus or choose.options
        only = () if named else choose.arch
    plugins = load(trace=bool(click.get_current_context().obj), only=only)
    click.get_current_context().meta[LOADED] = plugins
    for warning in plugins.warnings:
        click.echo(f"kvmarch: {warning}", err=True)
    meant = choose.arch if choose is not None else ()
    for refused in plugins.refused:
        click.echo(f"kvmarch: {refused.why}", err=True)
        if not meant or refused.name in meant:
            click.get_current_context().meta[REFUSED] = True
    return plugins


def scenario_of(name: str, plugins: Any) -> Any:
    """Return a scenario by name or file."""
    from kvmarch.scenarios.file import find, load

    return load(find(name, plugins.scenario_folders()))


def print_table(table: Any, style: str, output: str | None) -> None:
    """Print a table, and end with its status."""
    from kvmarch.report.render import render

    emit(render(table, style), output, table.status)


@cli.command()
@click.argument("scenario", type=SCENARIO, required=False)
@choose_options
@output_options
def compare(
    scenario: str | None,
    choose: Any,
    style: str,
    output: str | None,
) -> None:
    """Put a scenario side by side over architectures and releases."""
    from kvmarch.scenarios import compare as work
    from kvmarch.scenarios.lists import comparable

    plugins = load_plugins(choose)
    if scenario is None:
        print_table(comparable(plugins), style, output)
        return
    print_table(
        work.compare(scenario_of(scenario, plugins), plugins, choose), style, output
    )


@cli.command()
@click.argument("scenario", type=SCENARIO)
@choose_options
@output_options
@click.option("--steps", is_flag=True, help="Show every atomic step.")
@click.option(
    "--bound", type=click.IntRange(1), help="Cut the run after so many steps."
)
def run(
    scenario: str,
    choose: Any,
    style: str,
    output: str | None,
    steps: bool,
    bound: int | None,
) -> None:
    """Run a scenario on one architecture and release, and show what happens."""
    from kvmarch.scenarios.show import run_table

    plugins = load_plugins(choose)
    table = run_table(
        scenario_of(scenario, plugins), plugins, choose, each_step=steps, bound=bound
    )
    print_table(table, style, output)


@cli.command()
@click.argument("arch", type=ARCH)
@click.argument("value", required=False)
@click.option(
    "--kernel", "-k", type=RELEASE, default="", metavar="RELEASE", help="Such as v6.1."
)
@click.option("--level", "-l", type=int, help="The level at which the entry stands.")
@change_options
@output_options
def formats(
    arch: str,
    value: str | None,
    kernel: str,
    level: int | None,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    settings: tuple[str, ...],
    style: str,
    output: str | None,
) -> None:
    """Show the fields of an architecture's entries, or decode a value."""
    from kvmarch.scenarios.formats import decode_table, formats_table

    choose = choose_of((arch,), (kernel,) if kernel else (), plus, minus, settings)
    plugins = load_plugins(choose)
    table = (
        formats_table(plugins, choose, level)
        if value is None
        else decode_table(plugins, choose, value, level)
    )
    print_table(table, style, output)


@cli.command()
@output_options
def scenarios(style: str, output: str | None) -> None:
    """List the scenarios."""
    from kvmarch.scenarios.lists import scenarios_table

    print_table(scenarios_table(load_plugins()), style, output)


@cli.command()
@click.option(
    "--diff",
    type=RELEASE,
    nargs=2,
    metavar="A B",
    help="What differs between releases.",
)
@arch_option
@output_options
def kernels(
    diff: tuple[str, str] | None,
    arch: tuple[str, ...],
    style: str,
    output: str | None,
) -> None:
    """List releases and changes, or what differs between two releases."""
    from kvmarch.scenarios.lists import changes_table, diff_table

    plugins = load_plugins()
    choose = choose_of(arch)
    table = (
        diff_table(plugins, choose, *diff) if diff else changes_table(plugins, choose)
    )
    print_table(table, style, output)


@cli.command()
@output_options
def plugins(style: str, output: str | None) -> None:
    """List the architectures that are installed, and those that were refused."""
    from kvmarch.scenarios.lists import plugins_table

    print_table(plugins_table(load_plugins()), style, output)


@cli.command()
@click.argument("recordings", type=RECORDING, nargs=-1, metavar="[RECORDING]...")
@change_options
@click.option("--verbose", "-v", is_flag=True, help="Show also what agrees.")
@click.option(
    "--all", "lab", is_flag=True, help="Compare the lab's shipped recordings, too."
)
@output_options
def conform(
    recordings: tuple[str, ...],
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    settings: tuple[str, ...],
    verbose: bool,
    lab: bool,
    style: str,
    output: str | None,
) -> None:
    """Compare recordings of real kernels with the model; by default those shipped."""
    from kvmarch.recordings.table import conform_table

    choose = choose_of((), (), plus, minus, settings)
    table = conform_table(
        recordings, load_plugins(), choose, everything=verbose, lab=lab
    )
    print_table(table, style, output)
