"""The page: data, style and script in one file of HTML."""

__all__ = ["SCRIPTS", "STYLES", "page"]

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

SCRIPTS = (
    "base.js",
    "compare.js",
    "races.js",
    "formats.js",
    "tree.js",
    "player.js",
    "start.js",
)
"""In the order in which they are put together; each uses those before it."""

STYLES = ("base.css", "tables.css", "formats.css", "player.css", "media.css")

_CODES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}


def page(data: Mapping[str, Any], title: str) -> str:
    """Return a page as text.

    The browser is told to load nothing, and to run this one script only.

    :param data: plain values, as :func:`~kvmarch.page.collect.collect` makes them.
    """
    script, style = (
        "\n".join(_asset(name).strip("\n") for name in names)
        for names in (SCRIPTS, STYLES)
    )
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
