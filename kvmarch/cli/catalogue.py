"""The command that lists bugs and checks that the search finds them."""

__all__ = ["bugs", "posts"]

import sys

import click

from kvmarch.cli.commands import load_plugins, print_table
from kvmarch.cli.shared import arch_option, choose_of, jobs_option, output_options
from kvmarch.cli.values import BUG, POST
from kvmarch.errors import UnknownNameError


@click.command()
@click.argument("ids", metavar="[ID...]", type=BUG, nargs=-1)
@click.option("--check", is_flag=True, help="Search every kernel; 1 if one differs.")
@jobs_option
@arch_option
@output_options
def bugs(
    ids: tuple[str, ...],
    check: bool,
    jobs: int,
    arch: tuple[str, ...],
    style: str,
    output: str | None,
) -> None:
    """List historical bugs and candidates, with the schedule that shows each.

    All of them, those of some architectures, or some by their ids.
    """
    from kvmarch.scenarios.catalogue import bug_names, bugs_table

    def progress(name: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{name}", err=True, nl=False)

    choose = choose_of(arch)
    plugins = load_plugins()
    if ids:
        known = bug_names(plugins, choose)
        for name in ids:
            if name not in known:
                raise UnknownNameError("bug", name, known)
    table = bugs_table(
        plugins, choose, check=check, jobs=jobs, progress=progress, names=ids
    )
    progress("")
    print_table(table, style, output)


@click.command()
@click.argument("numbers", metavar="[NUMBER...]", type=POST, nargs=-1)
@click.option("--check", is_flag=True, help="Search every kernel; 1 if one differs.")
@jobs_option
@arch_option
@output_options
def posts(
    numbers: tuple[int, ...],
    check: bool,
    jobs: int,
    arch: tuple[str, ...],
    style: str,
    output: str | None,
) -> None:
    """Answer the five posts that kvmarch began with, or some of them by number."""
    from kvmarch.scenarios.posts import posts_table

    choose = choose_of(arch)
    print_table(
        posts_table(load_plugins(), choose, numbers, check=check, jobs=jobs),
        style,
        output,
    )
