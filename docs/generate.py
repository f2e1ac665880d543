"""Reference pages that are made of the package when the site is built."""

from collections.abc import Iterator
from typing import Any

import click

from kvmarch.cli import command_line
from kvmarch.scenarios.properties import ALWAYS_ON
from kvmarch.scenarios.verbs import VERBS


def on_startup(**_rest: Any) -> None:
    """Import every command: the reference shows those that the group has by then."""
    group = command_line()
    context = click.Context(group)
    for name in group.list_commands(context):
        group.get_command(context, name)


def on_page_markdown(markdown: str, **_rest: Any) -> str:
    """Put a page's generated part in the place of its mark."""
    for mark, rows in (("properties", properties), ("verbs", verbs)):
        place = f"<!-- generated: {mark} -->"
        if place in markdown:
            markdown = markdown.replace(place, "\n".join(rows()))
    return markdown


def properties() -> Iterator[str]:
    """Yield the table of properties that are always on."""
    yield "| property | what must hold | source |"
    yield "|---|---|---|"
    for each in ALWAYS_ON:
        yield f"| `{each.id}` | {each.sentence} | {each.source} |"


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
