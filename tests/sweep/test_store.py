"""A sweep's file: whole at every moment, and every wrong one refused and kept."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from kvmarch.errors import SweepError
from kvmarch.scenarios.outcome import COLUMNS, Outcome
from kvmarch.sweep.store import SCHEMA, Store

DEFINITION = {
    "kvmarch": "1.0",
    "the model": "0123",
    "scenario race": "4567",
    "the search": "order breadth",
    "the cells": "89ab",
}
PLACES = ["race@toy-v6.1", "race@toy-v6.12"]


def outcome(verdict="never", **rest):
    row = {column.name: "" for column in COLUMNS}
    return Outcome([{**row, "verdict": verdict, "states": 7, "seconds": 0.5}], **rest)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.sqlite"


@pytest.fixture
def begun(path):
    """A file with one finished cell of two."""
    with Store.begin(path, DEFINITION, PLACES) as store:
        store.finish(1, outcome("sometimes", status=1, notes=["FAILED"]))
    return path


def test_what_is_written_is_read(begun):
    with Store.look(begun) as store:
        assert store.definition() == DEFINITION
        assert store.places() == PLACES
        assert store.finished() == {1}
        ((place, read),) = store.outcomes()

    assert place == "race@toy-v6.12"
    assert read == outcome("sometimes", status=1, notes=["FAILED"])


def test_a_failed_expectation_is_kept(path):
    failed = [("race toy", "v6.1", "never was expected")]
    with Store.begin(path, DEFINITION, PLACES) as store:
        store.finish(0, outcome(failed=failed))

        assert next(store.outcomes())[1].failed == failed


def test_resume_goes_on(begun):
    with Store.begin(begun, DEFINITION, PLACES, resume=True) as store:
        assert store.finished() == {1}
        store.finish(0, outcome())
        assert store.finished() == {0, 1}


def test_resume_begins_where_nothing_is(path):
    with Store.begin(path, DEFINITION, PLACES, resume=True) as store:
        assert store.finished() == set()


@pytest.mark.parametrize("resume", [False, True])
def test_an_empty_file_is_begun(path, resume):
    path.touch()

    with Store.begin(path, DEFINITION, PLACES, resume=resume) as store:
        assert store.places() == PLACES


def test_a_file_in_which_nothing_is_finished_is_begun_again(path):
    Store.begin(path, DEFINITION, PLACES).close()

    with Store.begin(path, DEFINITION, PLACES) as store:
        assert store.finished() == set()


def test_no_cell_is_finished_twice(begun):
    with Store.begin(begun, DEFINITION, PLACES, resume=True) as store:
        with pytest.raises(SweepError, match="cell 1 is finished already"):
            store.finish(1, outcome("always"))

        assert next(store.outcomes())[1].rows[0]["verdict"] == "sometimes"


def test_rows_that_cannot_be_written_leave_the_cell_unfinished(begun):
    bad = outcome()
    bad.rows[0]["schedule"] = object()

    with Store.begin(begun, DEFINITION, PLACES, resume=True) as store:
        with pytest.raises(SweepError):
            store.finish(0, bad)
        assert store.finished() == {1}
        store.finish(0, outcome())


def text(path):
    path.write_text("the results of last year\n" * 99, "utf-8")


def other_database(path):
    path.unlink()
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE mine (a)")
    base.close()


def later_tables(path):
    base = sqlite3.connect(path)
    base.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    base.close()


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def cut_in_a_page(path):
    os.truncate(path, path.stat().st_size - 1000)


def overwritten(path):
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * 8192)


def lost_rows(path):
    base = sqlite3.connect(path)
    base.execute("DELETE FROM result")
    base.commit()
    base.close()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (text, "is no SQLite file; it is left as it is"),
        (other_database, "is an SQLite file, but no sweep's; it is left as it is"),
        (later_tables, f"has tables of version {SCHEMA + 1}; this kvmarch reads"),
        (cut_short, "is torn or damaged"),
        (cut_in_a_page, "is torn or damaged"),
        (overwritten, "is torn or damaged"),
        (lost_rows, "is torn or damaged .rows of race@toy-v6.12 are lost"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_and_kept(begun, harm, why):
    harm(begun)
    before = begun.read_bytes()

    with pytest.raises(SweepError, match=why) as resumed:
        Store.begin(begun, DEFINITION, PLACES, resume=True)
    with pytest.raises(SweepError, match=why):
        Store.look(begun)

    assert "\n" not in str(resumed.value)
    assert begun.read_bytes() == before
    assert [file.name for file in begun.parent.iterdir()] == [begun.name]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("kvmarch", "2.0", "is made by kvmarch 1.0; this is 2.0; name another file"),
        ("the model", "x", "is of another version: the model has changed since"),
        ("scenario race", "x", "of another version: scenario race has changed since"),
        ("scenario new", "x", "is of another sweep: scenario new is only here"),
        ("the search", "x", "is of another sweep: it searches with order breadth"),
        ("the cells", "x", "cells there 2, here 3, such as more@toy-v6.1"),
    ],
)
def test_another_sweep_is_refused_and_kept(begun, name, value, why):
    before = begun.read_bytes()

    with pytest.raises(SweepError, match=why):
        Store.begin(
            begun, {**DEFINITION, name: value}, [*PLACES, "more@toy-v6.1"], resume=True
        )

    assert begun.read_bytes() == before


def test_a_sweep_that_is_there_is_not_overwritten(begun):
    with pytest.raises(SweepError, match="has a sweep already; --resume goes on"):
        Store.begin(begun, DEFINITION, PLACES)


def test_files_that_cannot_be(tmp_path):
    with pytest.raises(SweepError, match="there is no folder"):
        Store.begin(tmp_path / "no" / "file", DEFINITION, PLACES)
    with pytest.raises(SweepError, match="is no file"):
        Store.begin(tmp_path, DEFINITION, PLACES)
    with pytest.raises(SweepError, match="there is no such file"):
        Store.look(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_do_not_share_a_file(begun):
    with Store.begin(begun, DEFINITION, PLACES, resume=True):
        with pytest.raises(SweepError, match="another sweep is writing to it"):
            Store.begin(begun, DEFINITION, PLACES, resume=True)
        with Store.look(begun) as reader:
            assert reader.finished() == {1}

    Store.begin(begun, DEFINITION, PLACES, resume=True).close()


def test_a_transaction_that_was_cut_off_is_undone(begun):
    """A process is killed between its rows and the end of their transaction."""
    script = (
        "import os, signal, sqlite3, sys\n"
        "base = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "base.execute('PRAGMA cache_size = 1')\n"
        "base.execute('BEGIN IMMEDIATE')\n"
        "base.execute('UPDATE cell SET finished = 1, rows = 999 WHERE number = 0')\n"
        "base.executemany('INSERT INTO result (cell, position, schedule)'\n"
        "    ' VALUES (0, ?, ?)', ((n, 'a' * 900) for n in range(999)))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    size = begun.stat().st_size

    ended = subprocess.run([sys.executable, "-c", script, str(begun)], check=False)

    assert ended.returncode == -signal.SIGKILL
    assert begun.stat().st_size > size, "it must have reached the file"
    with Store.begin(begun, DEFINITION, PLACES, resume=True) as store:
        assert store.finished() == {1}
        store.finish(0, outcome())
