"""Completion of commands, options and names in a shell."""

__all__ = ["completion"]

import click
from click.shell_completion import get_completion_class

from kvmarch.cli.commands import cli


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete: eval "$(kvmarch completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "kvmarch", "_KVMARCH_COMPLETE").source())
