"""The command line: parse, one call, exit status."""

__all__ = ["command_line", "main"]

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def command_line() -> "click.Group":
    """Return the command group; most commands are imported when they are called."""
    from kvmarch.cli.commands import cli

    return cli


def main() -> None:
    """Run the command line; a usage error is one line, as every other is."""
    import click

    if asked := os.environ.get("_KVMARCH_COMPLETE"):
        from kvmarch.cli.completion import answer

        sys.exit(answer(asked))
    try:
        status = command_line().main(prog_name="kvmarch", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"kvmarch: {' '.join(error.format_message().split())}", err=True)
        status = 2
    except click.Abort:
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
