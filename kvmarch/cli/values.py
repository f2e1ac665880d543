"""What the values of arguments and options are, and which of them a shell offers.

Each is a click parameter type, so that a command only says what a value is; which
values there are is decided here, once. What is offered is a help: nothing refuses a
value here, and whatever fails (a plugin, a file) offers nothing and says nothing.
"""

__all__ = [
    "ARCH",
    "BUG",
    "CHANGE",
    "FILE",
    "FOLDER",
    "IMAGE",
    "POST",
    "PROPERTY",
    "RECORDING",
    "RELEASE",
    "SCENARIO",
    "SCHEDULE",
    "SETTING",
    "Value",
]

import contextlib
import importlib.metadata
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    Type = click.ParamType[Any]
else:
    # Generic since click 8.4 only.
    Type = click.ParamType

Offer = tuple[str, str]
"""A value, and what it is in a few words; those may be missing."""
Offers = Callable[[click.Context], Iterable[Offer]]

_TITLE = re.compile(r'^title\s*=\s*"(.*)"\s*$', re.MULTILINE)
_SEPARATORS = re.compile(r"^.*(?:,|\.\.)")


class Value(Type):
    """Text, and what a shell may offer for it.

    :param name: what it is, in one word.
    :param offers: the values, in the order in which they are offered, for what was
        given so far.
    :param files: a file may be named as well, with this ending; None if none may.
    :param several: values may follow one another with commas or two dots.
    :param base: what the text must be.
    """

    def __init__(
        self,
        name: str,
        offers: Offers,
        *,
        files: str | None = None,
        several: bool = False,
        base: Type = click.STRING,
    ) -> None:
        self.name = name
        self._offers = offers
        self._files = files
        self._several = several
        self._base = base

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the value; which there are is looked up where it is used."""
        return self._base.convert(value, param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,  # noqa: ARG002 - click's signature
        incomplete: str,
    ) -> "list[CompletionItem[str]]":
        """Return the values that begin so."""
        before = ""
        if self._several and (found := _SEPARATORS.match(incomplete)):
            before = found[0]
        given = re.split(r",|\.\.", before)
        items: dict[str, CompletionItem[str]] = {}
        # A plugin may print or fail when it is imported, and a folder may be closed.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.suppress(Exception),
        ):
            for value, told in self._offers(ctx):
                if (before + value).startswith(incomplete) and value not in given:
                    items[value] = CompletionItem(before + value, help=told or None)
        with contextlib.suppress(OSError, ValueError):
            if self._files:
                for path in _files(incomplete, self._files):
                    items.setdefault(path, CompletionItem(path))
        if not items and self._files is not None:
            return [CompletionItem(incomplete, type="file")]
        return list(items.values())


def _files(incomplete: str, ending: str) -> Iterator[str]:
    """Yield the files that begin so, written as what was typed."""
    folder, slash, start = incomplete.rpartition("/")
    for path in sorted(Path(folder + slash).iterdir()):
        if path.name.startswith(start) and path.name.endswith(ending):
            yield folder + slash + path.name


def _plugins(ctx: click.Context) -> Any:
    """Return the plugins that were asked for so far; all if none were."""
    from kvmarch.cli.shared import words
    from kvmarch.plugins import load

    arch = ctx.params.get("arch") or ()
    return load(only=words((arch,) if isinstance(arch, str) else arch))


def _archs(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import GROUP

    for point in sorted(importlib.metadata.entry_points(group=GROUP)):
        yield point.name, point.dist.name if point.dist else ""


def _releases(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.changes import RELEASES, show_release

    for release in reversed(RELEASES):
        yield show_release(release), ""


def _changes(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import all_changes

    for change in all_changes(_plugins(ctx)):
        yield change.name, change.subject


def _settings(ctx: click.Context) -> Iterator[Offer]:
    archs: dict[str, list[str]] = {}
    for arch in _plugins(ctx).loaded.values():
        for name, option in arch.info.options.items():
            for value in option.values:
                archs.setdefault(f"{name}={value}", []).append(arch.name)
    for setting, having in archs.items():
        yield setting, " ".join(having)


def _scenarios(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import load
    from kvmarch.scenarios.file import library

    for name, path in library(load().scenario_folders()).items():
        # Much quicker than to read the file, and of a broken one there is no title.
        found = _TITLE.search(path.read_text("utf-8", "replace"))
        yield name, found[1] if found else ""


def _given_scenario(ctx: click.Context) -> str:
    # While an option waits for its value, arguments before it are not sorted yet.
    return str(ctx.params.get("scenario") or "".join(ctx.args[:1]))


def _properties(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import load
    from kvmarch.scenarios.file import find, library
    from kvmarch.scenarios.file import load as read
    from kvmarch.scenarios.properties import ALWAYS_ON

    for each in ALWAYS_ON:
        yield each.id, each.sentence
    name = _given_scenario(ctx)
    if name:
        # Plugins take most of the time, and most scenarios are not theirs.
        folders = () if name in library() else load().scenario_folders()
        for own in read(find(name, folders)).bad:
            yield own, f"of {name}"


def _schedules(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import load
    from kvmarch.scenarios.found import recorded

    name = _given_scenario(ctx)
    for bug, found in recorded(load()).items():
        if found and name in {"", bug}:
            yield found["schedule"], f"loses {found['property']}"


def _bugs(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import load
    from kvmarch.scenarios.found import recorded

    # Something is recorded of each; to read every scenario takes three times as long.
    for name, found in recorded(load()).items():
        yield name, f"loses {found['property']}" if found else ""


def _posts(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.scenarios.posts import POSTS

    for tag, question in POSTS.items():
        yield tag.removeprefix("post-"), question


def _recordings(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.plugins import load
    from kvmarch.recordings.read import shipped

    for path in shipped(load().recording_folders(), everything=True):
        yield path.stem, ""


def _images(ctx: click.Context) -> Iterator[Offer]:
    from kvmarch.lab.kernels import cache_folder
    from kvmarch.lab.machines import machine_of

    archs = [a for a in _plugins(ctx).loaded.values() if "lab" in a.operations]
    wanted = {machine_of(arch).debian for arch in archs}
    for folder in sorted((cache_folder() / "kernels").iterdir()):
        if folder.name in wanted:
            for kernel in sorted(folder.iterdir()):
                yield kernel.name, "fetched"


SCENARIO = Value("scenario", _scenarios, files=".toml")
ARCH = Value("name", _archs, several=True)
RELEASE = Value("release", _releases, several=True)
CHANGE = Value("change", _changes, several=True)
SETTING = Value("setting", _settings)
PROPERTY = Value("property", _properties)
SCHEDULE = Value("schedule", _schedules)
BUG = Value("id", _bugs)
POST = Value("number", _posts, base=click.INT)
RECORDING = Value("recording", _recordings, files=".json")
IMAGE = Value("image", _images, files="")
FILE = click.Path(readable=False)
FOLDER = click.Path(file_okay=False, readable=False)
