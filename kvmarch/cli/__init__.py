"""The command line: parse, one call, exit status."""

__all__ = ["command_line", "main"]

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def command_line() -> "click.Group":
    """Return the command group with every command."""
    from kvmarch.cli.authors import check_plugin
    from kvmarch.cli.catalogue import bugs, posts
    from kvmarch.cli.commands import cli
    from kvmarch.cli.exploring import explain, explore
    from kvmarch.cli.sweeping import sweep
    from kvmarch.cli.walk import walk

    for command in (explore, explain, posts, bugs, sweep, walk, check_plugin):
        cli.add_command(command)
    return cli


def main() -> None:
    """Run the command line; a usage error is one line, as every other is."""
    import click

    try:
        status = command_line().main(prog_name="kvmarch", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"kvmarch: {' '.join(error.format_message().split())}", err=True)
        status = 2
    except click.Abort:
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
