"""Renderers: text, Markdown, JSON and CSV."""

__all__ = ["FORMATS", "render"]

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from kvmarch.report.table import Table

WIDTH = 100
"""Columns of text output."""


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _merged(table: Table) -> list[dict[str, str]]:
    """Return the rows as text; runs that differ only in one column become one."""
    rows: list[dict[str, str]] = []
    last: dict[str, str] = {}
    for row in table.rows:
        cells = {name: _cell(row.get(name)) for name in table.names()}
        rest = {name: text for name, text in cells.items() if name != table.merge}
        if table.merge and rows and rest == last:
            first = rows[-1][table.merge].partition("..")[0]
            rows[-1][table.merge] = f"{first}..{cells[table.merge]}"
        else:
            rows.append(cells)
        last = rest
    return rows


def _heading(name: str, width: int) -> str:
    """Break a column's name at underscores, to about the width of its values."""
    lines = [""]
    for word in name.replace("_", " ").split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > max(width, 8):
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _filled(text: str, width: int = WIDTH) -> str:
    """Return the text with lines that are too long broken at spaces."""
    return "\n".join(
        line
        if len(line) <= width
        else textwrap.fill(
            line,
            width,
            subsequent_indent=line[: len(line) - len(line.lstrip())],
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in text.split("\n")
    )


def _widths(rows: list[dict[str, str]], names: list[str]) -> dict[str, int]:
    """Return how much room each column takes, with the space after it."""
    widths: dict[str, int] = {}
    for name in names:
        body = _body(rows, name)
        lines = _heading(name, body).split("\n")
        widths[name] = max(body, *map(len, lines)) + 2
    return widths


def _body(rows: list[dict[str, str]], name: str) -> int:
    """Return the length of the longest line in a column."""
    return max((len(line) for row in rows for line in row[name].split("\n")), default=0)


def _broken(rows: list[dict[str, str]], names: list[str]) -> list[dict[str, str]]:
    """Return the rows with the widest column's cells broken into lines that fit."""
    widths = _widths(rows, names)
    over = sum(widths.values()) - 2 - WIDTH
    if over <= 0:
        return rows
    widest = max(names, key=lambda name: widths[name])
    room = max(widths[widest] - 2 - over, 8)
    return [{**row, widest: _filled(row[widest], room)} for row in rows]


def _blocks(
    table: Table, rows: list[dict[str, str]]
) -> tuple[list[list[str]], list[str]]:
    """Return the columns in blocks that fit into the width, and what was left out.

    Details are left out first. If the rest is still too wide, it is broken into
    blocks that all begin with the key columns.
    """
    widths = _widths(rows, table.names())

    def fits(names: list[str]) -> bool:
        return sum(widths[name] for name in names) - 2 <= WIDTH

    shown = table.names()
    left: list[str] = []
    for column in reversed(table.columns):
        empty = all(row[column.name] in {"", "-"} for row in rows)
        if column.detail and (empty or not fits(shown)):
            shown.remove(column.name)
            if not empty:
                left.insert(0, column.name)
    keys = shown[: table.keys]
    blocks = [list(keys)]
    for name in shown[table.keys :]:
        if len(blocks[-1]) > len(keys) and not fits([*blocks[-1], name]):
            blocks.append(list(keys))
        blocks[-1].append(name)
    return blocks, left


def _tabulated(table: Table, style: str) -> str:
    import tabulate as library

    rows = _merged(table)
    blocks: list[list[str]] = [table.names()]
    left: list[str] = []
    if style != "github":
        blocks, left = _blocks(table, rows)
    # Headings need no more room than their words; the library adds two columns.
    padding, library.MIN_PADDING = library.MIN_PADDING, 0
    parts = [table.title] if table.title else []
    for names in blocks if rows else ():
        headings = [
            name if style == "github" else _heading(name, _body(rows, name))
            for name in names
        ]
        shown = rows if style == "github" else _broken(rows, names)
        body = library.tabulate(
            [[row[name] for name in names] for row in shown],
            headers=headings,
            tablefmt=style,
            disable_numparse=True,
        )
        parts.append("\n".join(line.rstrip() for line in body.split("\n")))
    library.MIN_PADDING = padding
    notes = list(table.notes)
    if left:
        notes.append(f"left out to fit: {', '.join(left)} (see --format json)")
    if notes:
        parts.append("\n".join(notes))
    if style != "github":
        parts = [_filled(part) for part in parts]
    return "\n\n".join(parts) + "\n"


def _text(table: Table) -> str:
    return _tabulated(table, "simple")


def _markdown(table: Table) -> str:
    return _tabulated(table, "github")


def _json(table: Table) -> str:
    result: Mapping[str, Any] = {
        "title": table.title,
        "columns": table.names(),
        "rows": [{n: row.get(n) for n in table.names()} for row in table.rows],
        "notes": table.notes,
    }
    return json.dumps(result, indent=2) + "\n"


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.names())
    for row in table.rows:
        writer.writerow([_cell(row.get(name)) for name in table.names()])
    return out.getvalue()


FORMATS: Mapping[str, Callable[[Table], str]] = {
    "text": _text,
    "markdown": _markdown,
    "json": _json,
    "csv": _csv,
}
"""The renderers by the name that ``--format`` takes."""


def render(table: Table, style: str) -> str:
    """Return a table as text of one of :data:`FORMATS`."""
    return FORMATS[style](table)
