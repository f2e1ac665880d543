"""The commands for authors of architectures."""

__all__ = ["check_plugin", "new_arch"]

import re
from pathlib import Path
from typing import Any

import click

from kvmarch.cli.commands import load_plugins, print_table
from kvmarch.cli.shared import output_options, words
from kvmarch.cli.values import ARCH, RELEASE, Type, Value


class _Bytes(Type):
    """A number of bytes, which people write with a K behind it."""

    name = "bytes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the number."""
        found = re.fullmatch(r"(\d{1,9})(K|KB|KIB)?", str(value).upper())
        if found is None:
            self.fail(f"{value!r}: wanted bytes, such as 65536 or 64K", param, ctx)
        return int(found[1]) << (10 if found[2] else 0)


PAGE_SIZE = Value(
    "bytes",
    lambda _ctx: [(size, "") for size in ("4K", "16K", "64K")],
    base=_Bytes(),
)


@click.command("check-plugin")
@click.argument("name", type=ARCH)
@click.option(
    "--kernel",
    "-k",
    type=RELEASE,
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


@click.command("new-arch")
@click.argument("name")
@click.option(
    "--page-size",
    type=PAGE_SIZE,
    default="4K",
    show_default=True,
    help="Bytes of a page, and of a table.",
)
@click.option(
    "--levels", type=int, default=3, show_default=True, help="Levels of tables."
)
@click.option(
    "--tier",
    type=click.IntRange(1, 5),
    default=5,
    show_default=True,
    help="The highest tier to write.",
)
@click.option(
    "--output",
    "-o",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where to write it; kvmarch-NAME here, if it is left out.",
)
def new_arch(
    name: str, page_size: int, levels: int, tier: int, output: Path | None
) -> None:
    """Write a distribution with a new architecture that passes its tests at once."""
    from kvmarch.kit.write import Geometry, write_arch

    taken = load_plugins().loaded
    paths = write_arch(name, Geometry(page_size, levels), tier, output, taken)
    for path in paths:
        click.echo(path)
    folder = output or f"kvmarch-{name}"
    click.echo(
        f"\nNext: pip install -e '{folder}[test]'\n"
        f"      python -m pytest {folder}\n"
        f"      kvmarch check-plugin {name}\n"
        f"      kvmarch compare change_pte"
    )
