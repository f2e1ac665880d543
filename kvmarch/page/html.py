"""The page: data, style and script in one file of HTML."""

__all__ = ["SCRIPTS", "STYLES", "page"]

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

SCRIPTS = (
    "base.js",
    "states.js",
    "tree.js",
    "lanes.js",
    "player.js",
    "filter.js",
    "compare.js",
    "races.js",
    "formats.js",
    "start.js",
)
"""Modules in the order in which they are put together; each imports from those before
it only. Their names share one scope, so that no two may define the same."""

STYLES = ("base.css", "tables.css", "formats.css", "player.css", "media.css")

_MODULE_WORDS = re.compile(r"^(?:import [^;]*;\n|export )", re.MULTILINE)
"""What makes a module of a script: gone when the modules are one script."""

_CODES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def page(
    data: Mapping[str, Any], title: str, *, command: str = "", day: str = ""
) -> str:
    """Return a page as text.

    The browser is told to load nothing, and to run this one script only.

    :param data: plain values, as :func:`~kvmarch.page.collect.collect` makes them.
    :param command: what makes the page again.
    :param day: when this one was made.
    """
    modules, style = (
        "\n".join(_asset(name).strip("\n") for name in names)
        for names in (SCRIPTS, STYLES)
    )
    script = '"use strict";\n' + _MODULE_WORDS.sub("", modules)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"script-src {_digest(script)}; style-src {_digest(style)}"
    )
    return Template(_asset("page.html")).substitute(
        policy=html.escape(policy),
        version=html.escape(str(data["version"])),
        title=html.escape(title),
        style=style,
        script=script,
        command=f" by <code>{html.escape(command)}</code>" if command else "",
        day=f' on <time datetime="{day}">{day}</time>' if day else "",
        data=as_json(data),
    )


def as_json(data: Mapping[str, Any]) -> str:
    """Return data as JSON that no browser takes for an end of the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_CODES)


def _asset(name: str) -> str:
    return (resources.files("kvmarch.page") / "assets" / name).read_text("utf-8")


def _digest(inside: str) -> str:
    """Return the policy's source for an element, from what is between its tags."""
    digest = hashlib.sha256(f"\n{inside}\n".encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
