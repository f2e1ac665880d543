"""The command line: parse, one call, exit status."""

__all__ = ["command_line", "main"]

import errno
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
"""What may be wrong with a file that standard output goes to."""


INTERRUPTED = 130
"""The status of shells for what Ctrl-C has ended."""


def command_line() -> "click.Group":
    """Return the command group; most commands are imported when they are called."""
    from kvmarch.cli.commands import cli

    return cli


def main() -> None:
    """Run the command line; a usage error is one line, as every other is."""
    try:
        status = _status()
    except KeyboardInterrupt:
        # There may be no command yet that could say so.
        status = INTERRUPTED
    sys.exit(status)


def _status() -> int:
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
        status = INTERRUPTED
    except OSError as error:
        # Commands say themselves which of their files cannot be read or written.
        if error.errno not in _FULL:
            raise
        click.echo(f"kvmarch: standard output: {error.strerror}", err=True)
        # What could not be written is not tried once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 2
    return status if isinstance(status, int) else 0
