"""Reference pages that are made of the package when the site is built."""

import re
from collections.abc import Iterator
from typing import Any

import click

from kvmarch.cli import command_line
from kvmarch.scenarios.columns import SHOWS
from kvmarch.scenarios.properties import ALWAYS_ON
from kvmarch.scenarios.verbs import VERBS

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>(~?)([\w.]+)</code>")
"""A name in a docstring, as Sphinx wants it; ``~`` asks for its last part only."""
_FIELD = re.compile(r"(<p>|\n):([A-Z]\w+): ")
"""A field of a docstring that Sphinx does not have, such as ``:Kernel:``."""


def on_startup(**_rest: Any) -> None:
    """Import every command: the reference shows those that the group has by then."""
    group = command_line()
    context = click.Context(group)
    for name in group.list_commands(context):
        group.get_command(context, name)


def on_page_markdown(markdown: str, **_rest: Any) -> str:
    """Put a page's generated part in the place of its mark."""
    made = {"columns": columns, "properties": properties, "verbs": verbs}
    for mark, rows in made.items():
        place = f"<!-- generated: {mark} -->"
        if place in markdown:
            markdown = markdown.replace(place, "\n".join(rows()))
    return markdown


def on_page_content(html: str, **_rest: Any) -> str:
    """Take out what the makers of the reference do not understand."""
    # Click marks an option without a default so, and mkdocs-click prints the mark.
    html = html.replace("<code>Sentinel.UNSET</code>", "")
    html = _FIELD.sub(_field, html)
    return _ROLE.sub(_name, html)


def _field(found: re.Match[str]) -> str:
    before = "<br>" if found[1] == "\n" else found[1]
    return f"{before}<strong>{found[2]}:</strong> "


def _name(found: re.Match[str]) -> str:
    name = found[2].rpartition(".")[2] if found[1] else found[2]
    return f"<code>{name}</code>"


def properties() -> Iterator[str]:
    """Yield the table of properties that are always on."""
    yield "| property | what must hold | source |"
    yield "|---|---|---|"
    for each in ALWAYS_ON:
        yield f"| `{each.id}` | {each.sentence} | {each.source} |"


def columns() -> Iterator[str]:
    """Yield the table of what a column of a comparison may show."""
    yield "| `show` | what | keys |"
    yield "|---|---|---|"
    for name, (function, keys) in sorted(SHOWS.items()):
        told = (function.__doc__ or "").partition("\n")[0]
        needed = [f"`{key}`" for key in keys if not key.startswith("?")]
        other = [f"`{key[1:]}`" for key in keys if key.startswith("?")]
        taken = ", ".join(needed) + (f" ({', '.join(other)})" if other else "")
        yield f"| `{name}` | {told.removeprefix('Show ').rstrip('.')} | {taken} |"


def verbs() -> Iterator[str]:
    """Yield what each verb means and takes."""
    for name, verb in sorted(VERBS.items()):
        yield f"## {name}"
        yield ""
        yield " ".join(verb.doc.split())
        yield ""
        if verb.params:
            yield "| argument | value |"
            yield "|---|---|"
        for argument, kind in verb.params.items():
            yield f"| `{argument}` | {_value(kind)} |"
        yield ""


def _value(kind: str) -> str:
    """Return in words what an argument takes."""
    optional = "; may be left out" if kind.startswith("?") else ""
    plain = kind.removeprefix("?")
    if plain.startswith("word:"):
        words = plain.removeprefix("word:").split("|")
        plain = " or ".join(f"`{word}`" for word in words)
    return {"int": "a number", "name": "a name", "flags": "flags of a memslot"}.get(
        plain, plain
    ) + optional
