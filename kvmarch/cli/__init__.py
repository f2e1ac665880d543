"""The command line: parse, one call, exit status."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from kvmarch.cli.commands import cli

    cli(prog_name="kvmarch")
