"""Manual pages, made of the commands.

``pytest tests/test_site.py --promote`` writes those in docs/man.
"""

import importlib.metadata
from pathlib import Path

import click
from click_man.core import write_man_pages

from kvmarch.cli import command_line

FOLDER = Path(__file__).parent / "man"


def write(folder: Path) -> None:
    """Write a page for the program and one for each of its commands."""
    lazy = command_line()
    context = click.Context(lazy)
    commands = {
        name: command
        for name in lazy.list_commands(context)
        if (command := lazy.get_command(context, name)) is not None
    }
    program = click.Group("kvmarch", commands, help=lazy.help, params=lazy.params)
    version = importlib.metadata.version("kvmarch")
    # Pages of one version are the same whenever they are made.
    write_man_pages(
        "kvmarch", program, version=version, target_dir=str(folder), date=version
    )
