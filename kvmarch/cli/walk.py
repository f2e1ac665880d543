"""The command that walks images of memory."""

__all__ = ["walk"]

import click

from kvmarch.cli.commands import load_plugins, print_table
from kvmarch.cli.shared import change_options, choose_of, output_options
from kvmarch.cli.values import ARCH, FILE, RELEASE
from kvmarch.errors import KvmarchError

_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def _number(text: str) -> int:
    """Return an address or a size; K, M, G and T may follow it.

    :raises KvmarchError: it is none.
    """
    digits, shift = text, 0
    if text[-1:].upper() in _UNITS:
        digits, shift = text[:-1], _UNITS[text[-1].upper()]
    try:
        number = int(digits, 0) << shift
    except ValueError:
        number = -1
    if number < 0:
        raise KvmarchError(f"{text!r} is no address or size; wanted such as 0x40000000")
    return number


@click.command()
@click.argument("image", type=FILE, metavar="IMAGE")
@click.argument("gpa", required=False)
@click.option(
    "--arch",
    "-a",
    type=ARCH,
    required=True,
    metavar="NAME",
    help="Whose tables they are.",
)
@click.option(
    "--kernel", "-k", type=RELEASE, default="", metavar="RELEASE", help="Such as v6.1."
)
@click.option(
    "--root", required=True, metavar="PA", help="Physical address of the root table."
)
@click.option(
    "--ram",
    multiple=True,
    metavar="PA[:SIZE]",
    help="What a raw image holds, in the order of the file; from 0 on if left out.",
)
@click.option("--summary", is_flag=True, help="Count leaves instead of listing them.")
@click.option(
    "--byteorder",
    type=click.Choice(["little", "big"]),
    help="Of the machine, where neither architecture nor image tells it.",
)
@change_options
@output_options
def walk(
    image: str,
    gpa: str | None,
    arch: str,
    kernel: str,
    root: str,
    ram: tuple[str, ...],
    summary: bool,
    byteorder: str | None,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    settings: tuple[str, ...],
    style: str,
    output: str | None,
) -> None:
    """Walk a VM's tables in an image of the host's memory.

    IMAGE is raw (a memory backend's file) or an ELF core (dump-guest-memory). With a
    guest-physical address every entry on its way is shown, without one all leaves.
    """
    from kvmarch.walk.image import Region
    from kvmarch.walk.table import Asked, path_table, ranges_table, summary_table

    if gpa is not None and summary:
        raise KvmarchError("--summary is of the whole tree; leave the address out")
    regions: list[Region] = []
    offset = 0
    for text in ram:
        base, _, size = text.partition(":")
        if regions and regions[-1].size is None:
            raise KvmarchError("--ram: only the last region may go without a size")
        length = _number(size) if size else None
        regions.append(Region(_number(base), length, offset))
        offset += length or 0
    asked = Asked(image, _number(root), tuple(regions), byteorder or "")
    choose = choose_of((arch,), (kernel,) if kernel else (), plus, minus, settings)
    plugins = load_plugins(choose)
    if gpa is not None:
        table = path_table(plugins, choose, asked, _number(gpa))
    else:
        make = summary_table if summary else ranges_table
        table = make(plugins, choose, asked)
    print_table(table, style, output)
