"""The command line: parse, one call, exit status."""

__all__ = ["main"]

import sys


def main() -> None:
    """Run the command line; a usage error is one line, as every other is."""
    import click

    # Importing a module registers its commands.
    from kvmarch.cli import catalogue, exploring, sweeping  # noqa: F401
    from kvmarch.cli.commands import cli

    try:
        status = cli.main(prog_name="kvmarch", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"kvmarch: {' '.join(error.format_message().split())}", err=True)
        status = 2
    except click.Abort:
        status = 130
    sys.exit(status if isinstance(status, int) else 0)
