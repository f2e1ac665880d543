"""A group of commands, of which each is imported when it is called."""

__all__ = ["LATER", "LazyGroup"]

from importlib import import_module

import click

from kvmarch.cli.shared import Group

LATER = {
    "bugs": "catalogue",
    "check-plugin": "authors",
    "new-arch": "authors",
    "completion": "completion",
    "explain": "exploring",
    "explore": "exploring",
    "lab": "lab",
    "posts": "catalogue",
    "report": "report",
    "sweep": "sweeping",
    "walk": "walk",
}
"""By name of a command, the module of this package that has it; its function there has
the command's name, with an underscore for a hyphen."""


class LazyGroup(Group):
    """A group that finds in :data:`LATER` the commands that it does not have."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *LATER})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None if there is none of that name."""
        if cmd_name in LATER and cmd_name not in self.commands:
            module = import_module(f"kvmarch.cli.{LATER[cmd_name]}")
            self.add_command(getattr(module, cmd_name.replace("-", "_")))
        return super().get_command(ctx, cmd_name)
