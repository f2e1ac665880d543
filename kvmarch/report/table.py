"""A result: typed columns, rows, a title, notes."""

__all__ = ["Column", "Table"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    :param detail: may be left out of text output that would get too wide.
    """

    name: str
    detail: bool = False


@dataclass(slots=True)
class Table:
    """What a command returns: one row is a value for each column, by name.

    :param keys: how many of the first columns say what a row is about; they are
        repeated when a table is broken into blocks.
    :param merge: the column in which neighbouring rows that are otherwise equal are
        drawn together when people read the table.
    :param failed: expectations that failed: where, at which release, and what.
    :param status: the command's exit status.
    """

    title: str
    columns: tuple[Column, ...]
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    merge: str = ""
    keys: int = 1
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    status: int = 0

    def names(self) -> list[str]:
        """Return the names of the columns."""
        return [column.name for column in self.columns]
