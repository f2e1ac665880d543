"""What the commands share: options, output, errors."""

__all__ = [
    "LOADED",
    "REFUSED",
    "F",
    "Group",
    "arch_option",
    "change_options",
    "check_table_style",
    "choose_of",
    "choose_options",
    "emit",
    "jobs_option",
    "output_options",
    "settings_of",
    "trace_output_options",
    "with_options",
    "words",
]

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from kvmarch.cli.values import ARCH, CHANGE, FILE, RELEASE, SETTING
from kvmarch.errors import KvmarchError, UnknownNameError

F = TypeVar("F", bound=Callable[..., Any])

LOADED = "kvmarch.loaded"
"""Where a command notes the plugins that it works with."""
REFUSED = "kvmarch.refused"
"""Where a command notes that a plugin it meant was refused: its status is then 2."""


class Group(click.Group):
    """A group whose commands turn an error into one line and exit status 2."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; for an unknown one, say which have a similar name.

        :raises UnknownNameError: there is none.
        """
        name = args[0]
        # A shell that completes asks with what is typed so far.
        asks = ctx.resilient_parsing or name.startswith("-")
        if not asks and self.get_command(ctx, name) is None:
            raise UnknownNameError("command", name, self.list_commands(ctx))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a user's error is printed without a traceback."""
        try:
            return super().invoke(ctx)
        except KvmarchError as error:
            plugins = ctx.meta.get(LOADED)
            refused = {row.why for row in plugins.refused} if plugins else set()
            # Why a plugin was refused is said when it is loaded.
            if str(error) not in refused:
                click.echo(f"kvmarch: {error}", err=True)
            ctx.exit(2)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except BrokenPipeError:
            # The reader has gone; the interpreter must not try to flush to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except Exception as error:
            # Commands name a plugin's hook themselves where they know how to go on.
            told = _of_plugin(ctx.meta.get(LOADED), error) or _of_file(error)
            if told is None:
                raise
            click.echo(f"kvmarch: {told}", err=True)
            ctx.exit(2)


def _of_plugin(plugins: Any, error: Exception) -> Any:
    """Return an error of a plugin's code as one line; None if it is the core's."""
    if plugins is None:
        return None
    from kvmarch.blame import told

    return told(plugins.loaded.values(), error)


def _of_file(error: Exception) -> str | None:
    """Return as one line what is wrong with a file that was asked for; else None.

    Commands say so themselves where they open a file. Before, they ask whether there
    is one, and that fails too where a folder is closed or a name is too long.
    """
    if not isinstance(error, OSError) or error.filename is None:
        return None
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


TABLE_STYLES = ("text", "markdown", "json", "csv")
TRACE_STYLES = ("mermaid", "perfetto")
"""Formats of schedules only."""


def output_options(function: F, styles: tuple[str, ...] = TABLE_STYLES) -> F:
    """Add --format and --output."""
    function = click.option(
        "--output",
        "-o",
        type=FILE,
        metavar="FILE",
        help="Write to a file instead of standard output.",
    )(function)
    return click.option(
        "--format",
        "style",
        type=click.Choice(list(styles)),
        default="text",
        show_default=True,
        help="How the result is printed.",
    )(function)


def trace_output_options(function: F) -> F:
    """Add --format, with those that show schedules, and --output."""
    return output_options(function, TABLE_STYLES + TRACE_STYLES)


def check_table_style(style: str) -> None:
    """Refuse a format that shows schedules only.

    :raises KvmarchError: it is one.
    """
    if style in TRACE_STYLES:
        raise KvmarchError(
            f"--format {style} shows one schedule: use it with --replay or 'explain'"
        )


def with_options(function: F, *options: Callable[[F], F]) -> F:
    """Add options in the order in which they are to be listed."""
    for option in reversed(options):
        function = option(function)
    return function


arch_option = click.option(
    "--arch",
    "-a",
    type=ARCH,
    multiple=True,
    metavar="NAME",
    help="Architecture; several may be given, also with commas.",
)


jobs_option = click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that share the cells.",
)


def change_options(function: F) -> F:
    """Add --with, --without and --set."""
    return with_options(
        function,
        click.option(
            "--with",
            "plus",
            type=CHANGE,
            multiple=True,
            metavar="CHANGE",
            help="Add a change to the kernel (see 'kvmarch kernels').",
        ),
        click.option(
            "--without",
            "minus",
            type=CHANGE,
            multiple=True,
            metavar="CHANGE",
            help="Take a change away from the kernel.",
        ),
        click.option(
            "--set",
            "settings",
            type=SETTING,
            multiple=True,
            metavar="OPTION=VALUE",
            help="Set an option of the machine, for example mmu=tdp.",
        ),
    )


def choose_of(
    arch: tuple[str, ...],
    kernel: tuple[str, ...] = (),
    plus: tuple[str, ...] = (),
    minus: tuple[str, ...] = (),
    settings: tuple[str, ...] = (),
) -> Any:
    """Return what the shared options choose.

    :raises KvmarchError: a setting is no ``option=value``.
    """
    from kvmarch.scenarios.compare import Choose

    return Choose(
        words(arch), words(kernel), words(plus), words(minus), settings_of(settings)
    )


def choose_options(function: F) -> F:
    """Add --arch, --kernel, --with, --without and --set, passed on as ``choose``."""
    names = ("arch", "kernel", "plus", "minus", "settings")

    @wraps(function)
    def chosen(**given: Any) -> Any:
        choose = choose_of(*(given.pop(name) for name in names))
        return function(choose=choose, **given)

    return with_options(
        cast("F", chosen),
        arch_option,
        click.option(
            "--kernel",
            "-k",
            type=RELEASE,
            multiple=True,
            metavar="RELEASE",
            help="Release such as v6.1, or v5.4..v6.1; several may be given, also with "
            "commas.",
        ),
        change_options,
    )


def words(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return options that may be given several times or with commas."""
    return tuple(word for value in values for word in value.split(",") if word)


def settings_of(settings: tuple[str, ...]) -> dict[str, str]:
    """Return ``--set`` as a mapping.

    :raises KvmarchError: one of them is no ``option=value``.
    """
    given: dict[str, str] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise KvmarchError(f"--set {text}: wanted OPTION=VALUE, such as mmu=tdp")
        given[name] = value
    return given


def emit(text: str, output: str | None, status: int = 0) -> None:
    """Write a result and end with its status.

    A file is replaced only once the whole text is written beside it.

    :raises KvmarchError: the file cannot be written.
    """
    if output is None:
        click.echo(text, nl=False)
    else:
        from kvmarch.report.files import write_whole

        write_whole(Path(output), text)
    context = click.get_current_context()
    status = 2 if context.meta.get(REFUSED) else status
    if status:
        context.exit(status)
