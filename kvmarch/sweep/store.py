"""The file of a sweep: an SQLite database that is whole at every moment.

A cell is written in one transaction once it is explored. SQLite's rollback journal
keeps a file whole through a crash; the file may be read while the sweep runs.
"""

__all__ = ["Store"]

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from kvmarch.errors import SweepError
from kvmarch.scenarios.outcome import COLUMNS, Outcome

APPLICATION = 0x6B766D61
"""What tells our files from other SQLite files: ``kvma``."""

SCHEMA = 1
"""Version of the tables; a file of another one is refused."""

NAMES = tuple(column.name for column in COLUMNS)

TABLES = (
    "CREATE TABLE definition (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE cell (
        number INTEGER PRIMARY KEY,
        place TEXT NOT NULL UNIQUE,
        finished REAL,
        rows INTEGER NOT NULL DEFAULT 0,
        status INTEGER NOT NULL DEFAULT 0,
        failed TEXT NOT NULL DEFAULT '[]',
        notes TEXT NOT NULL DEFAULT '[]',
        error TEXT NOT NULL DEFAULT ''
    )""",
    f"""CREATE TABLE result (
        cell INTEGER NOT NULL REFERENCES cell (number),
        position INTEGER NOT NULL,
        {", ".join(NAMES)},
        PRIMARY KEY (cell, position)
    )""",
)


class Store:
    """One sweep's file, open. Make it with :meth:`begin`, :meth:`resume` or
    :meth:`look`.
    """

    def __init__(self, path: Path, lock: int = -1, *, create: bool = False) -> None:
        self.path = path
        self._lock = lock
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        try:
            with self._told():
                self._db = sqlite3.connect(
                    uri, timeout=60, isolation_level=None, uri=True
                )
                # Rows of a finished cell must be on the disk, not on their way to it.
                self._db.execute("PRAGMA synchronous = FULL")
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_why: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let others have it."""
        self._db.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._lock >= 0:
            # Taken away while it is still held: nobody can have it meanwhile.
            _lock_path(self.path).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    # -- opening ---------------------------------------------------------------

    @classmethod
    def begin(
        cls,
        path: Path,
        definition: Mapping[str, str],
        places: Sequence[str],
        *,
        resume: bool = False,
    ) -> Self:
        """Open the file to write to; make it if there is none.

        :param resume: go on with what is there; otherwise no finished cell may be.
        :raises SweepError: the file is no sweep's, or another sweep's; it is left as
            it is.
        """
        if not path.parent.is_dir():
            raise SweepError(f"{path}: there is no folder {path.parent}")
        if path.exists() and not path.is_file():
            raise SweepError(f"{path}: is no file")
        store = cls(path, _lock(path), create=True)
        try:
            if store._is_empty():
                store._make(definition, places)
            else:
                store._check()
                store._go_on(resume=resume)
                store._compare(definition, places)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def look(cls, path: Path) -> Self:
        """Open the file of a sweep, which may be under way, to read what it has.

        :raises SweepError: there is none, or it is no sweep's.
        """
        if not path.is_file():
            raise SweepError(f"{path}: there is no such file")
        store = cls(path)
        try:
            store._check()
        except BaseException:
            store.close()
            raise
        return store

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what SQLite says into one line."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise SweepError(f"{self.path}: {error}") from None
        except sqlite3.DatabaseError as error:
            if "not a database" in str(error):
                raise SweepError(
                    f"{self.path}: is no SQLite file; it is left as it is"
                ) from None
            raise self._torn(str(error)) from None

    def _torn(self, why: str) -> SweepError:
        return SweepError(
            f"{self.path}: is torn or damaged ({' '.join(why.split())}); it is left as "
            "it is; begin anew with another file"
        )

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(f"PRAGMA {pragma}").fetchone()[0])

    def _is_empty(self) -> bool:
        with self._told():
            tables = self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return not tables[0] and not self._number("application_id")

    def _make(self, definition: Mapping[str, str], places: Sequence[str]) -> None:
        with self._told(), self._transaction():
            for table in TABLES:
                self._db.execute(table)
            self._db.executemany(
                "INSERT INTO definition VALUES (?, ?)", definition.items()
            )
            self._db.executemany(
                "INSERT INTO cell (number, place) VALUES (?, ?)", enumerate(places)
            )
            self._db.execute(f"PRAGMA application_id = {APPLICATION}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    def _check(self) -> None:
        """Refuse a file that is no sweep's, or damaged."""
        with self._told():
            if self._number("application_id") != APPLICATION:
                raise SweepError(
                    f"{self.path}: is an SQLite file, but no sweep's; it is left as it "
                    "is"
                )
            version = self._number("user_version")
            if version != SCHEMA:
                raise SweepError(
                    f"{self.path}: has tables of version {version}; this kvmarch reads "
                    f"version {SCHEMA}"
                )
            said = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if said != "ok":
                raise self._torn(said)
            lacking = self._db.execute(
                "SELECT place FROM cell WHERE finished IS NOT NULL AND rows !="
                " (SELECT count(*) FROM result WHERE result.cell = cell.number)"
            ).fetchone()
            if lacking:
                raise self._torn(f"rows of {lacking[0]} are lost")

    def _go_on(self, *, resume: bool) -> None:
        """Refuse to go on with a sweep that has begun, unless that is meant."""
        if self.finished() and not resume:
            raise SweepError(
                f"{self.path}: has a sweep already; --resume goes on with it, or name "
                "another file with --results"
            )

    def _compare(self, definition: Mapping[str, str], places: Sequence[str]) -> None:
        """Refuse to go on with a sweep that was defined otherwise."""
        there = self.definition()
        cells = self.places()
        for name in dict.fromkeys((*there, *definition)):
            old, new = there.get(name), definition.get(name)
            if old == new:
                continue
            if name == "kvmarch":
                why = f"made by kvmarch {old}; this is {new}"
            elif old is None or new is None:
                why = f"of another sweep: {name} is only {'here' if new else 'there'}"
            elif name == "the search":
                why = f"of another sweep: it searches with {old}"
            elif name == "the cells":
                more = set(cells) ^ set(places)
                which = f", such as {min(more)}" if more else ""
                why = (
                    f"of another sweep: cells there {len(cells)}, here "
                    f"{len(places)}{which}"
                )
            else:
                why = f"of another version: {name} has changed since"
            raise SweepError(f"{self.path}: is {why}; name another file")

    # -- reading ---------------------------------------------------------------

    def definition(self) -> dict[str, str]:
        """Return what the sweep was defined by."""
        with self._told():
            return dict(self._db.execute("SELECT name, value FROM definition"))

    def places(self) -> list[str]:
        """Return the cells by number."""
        with self._told():
            found = self._db.execute("SELECT place FROM cell ORDER BY number")
            return [place for (place,) in found]

    def finished(self) -> set[int]:
        """Return the numbers of the cells that are finished."""
        with self._told():
            found = self._db.execute(
                "SELECT number FROM cell WHERE finished IS NOT NULL"
            )
            return {number for (number,) in found}

    def outcomes(self) -> Iterator[tuple[str, Outcome]]:
        """Yield the finished cells in order, each with what came out."""
        with self._told():
            cells = self._db.execute(
                "SELECT number, place, status, failed, notes, error FROM cell"
                " WHERE finished IS NOT NULL ORDER BY number"
            ).fetchall()
            for number, place, status, failed, notes, error in cells:
                rows = self._db.execute(
                    f"SELECT {', '.join(NAMES)} FROM result"  # noqa: S608 - own names
                    " WHERE cell = ? ORDER BY position",
                    (number,),
                )
                yield (
                    place,
                    Outcome(
                        [dict(zip(NAMES, row, strict=True)) for row in rows],
                        [(where, at, what) for where, at, what in json.loads(failed)],
                        json.loads(notes),
                        status,
                        error,
                    ),
                )

    # -- writing ---------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def finish(self, number: int, outcome: Outcome) -> None:
        """Write what came out of a cell, all at once.

        :raises SweepError: the cell is finished already, or the file cannot be
            written.
        """
        rows: list[tuple[Any, ...]] = [
            (number, position, *(row[name] for name in NAMES))
            for position, row in enumerate(outcome.rows)
        ]
        marks = ", ".join("?" * (len(NAMES) + 2))
        with self._told(), self._transaction():
            done = self._db.execute(
                "UPDATE cell SET finished = ?, rows = ?, status = ?, failed = ?,"
                " notes = ?, error = ? WHERE number = ? AND finished IS NULL",
                (
                    time.time(),
                    len(rows),
                    outcome.status,
                    json.dumps(outcome.failed),
                    json.dumps(outcome.notes),
                    outcome.error,
                    number,
                ),
            ).rowcount
            if done != 1:
                raise SweepError(f"{self.path}: cell {number} is finished already")
            self._db.executemany(
                f"INSERT INTO result VALUES ({marks})",  # noqa: S608 - own marks
                rows,
            )


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _lock(path: Path) -> int:
    """Take the file for this process alone; return the handle that holds it.

    Whoever is killed lets go. A file beside is locked, as SQLite has locks of its own
    on the sweep's that readers wait for.

    :raises SweepError: another process has it.
    """
    beside = _lock_path(path)
    while True:
        try:
            handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise SweepError(f"{beside}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise SweepError(f"{path}: another sweep is writing to it") from None
        # Its last holder may have taken it away between the two calls.
        with suppress(FileNotFoundError):
            if beside.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)
