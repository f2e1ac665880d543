"""The commands for authors of architectures."""

__all__ = ["check_plugin"]

import click

from kvmarch.cli.commands import load_plugins, print_table
from kvmarch.cli.shared import output_options, words


@click.command("check-plugin")
@click.argument("name")
@click.option(
    "--kernel",
    "-k",
    multiple=True,
    metavar="RELEASE",
    help="Release to try; several may be given, also with commas.",
)
@output_options
def check_plugin(
    name: str, kernel: tuple[str, ...], style: str, output: str | None
) -> None:
    """Run the contract suite on an architecture; say what fails and its tier."""
    from kvmarch.testing.check import check_table, run_contract

    arch = load_plugins().get(name)
    print_table(check_table(arch, run_contract(name, words(kernel))), style, output)
