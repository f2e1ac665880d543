"""``kvmarch sweep``: what it says, and that no crash costs a finished cell."""

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from races import RACE, TIMES

KERNELS = ("--kernel", "v6.1..v6.6")


@pytest.fixture
def race(tmp_path):
    path = tmp_path / "race.toml"
    path.write_text(RACE, "utf-8")
    return str(path)


def untimed(text):
    return [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in csv.DictReader(io.StringIO(text))
    ]


# -- what it prints ------------------------------------------------------------------


def test_a_sweep_prints_its_rows_and_keeps_them(kvmarch, race):
    swept = kvmarch("sweep", race, "-k", "v6.1..v6.3", "-j", "1", "--format", "json")
    shown = kvmarch("sweep", "--show", "sweep.sqlite", "--format", "json")

    assert swept.exit_code == shown.exit_code == 0
    assert (
        swept.stderr == "sweep.sqlite: cells: 3, finished: 0; 3 left, in this process\n"
    )
    assert swept.stdout == shown.stdout
    rows = json.loads(shown.stdout)["rows"]
    assert [(r["arch"], r["kernel"], r["verdict"]) for r in rows] == [
        ("toy", "v6.1", "never"),
        ("toy", "v6.2", "never"),
        ("toy", "v6.3", "never"),
    ]
    assert {"changes", "property", "shortest", "states", "seconds", "schedule"} < set(
        rows[0]
    )


def test_resume_has_nothing_left(kvmarch, race):
    kvmarch("sweep", race, "-k", "v6.1", "-j1")

    again = kvmarch("sweep", race, "-k", "v6.1", "-j1", "--resume")

    assert again.exit_code == 0
    assert again.stderr == "sweep.sqlite: cells: 1, finished: 1; nothing is left\n"


def test_changes_are_toggled(kvmarch, race):
    swept = kvmarch(
        "sweep", race, "-k", "v6.1,v6.12", "-j1", "--toggle", "change-pte-removed",
        "--format", "csv",
    )  # fmt: skip

    assert [(row["kernel"], row["changes"]) for row in untimed(swept.stdout)] == [
        ("v6.1", ""),
        ("v6.1", "+change-pte-removed"),
        ("v6.12", ""),
        ("v6.12", "-change-pte-removed"),
    ]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ((), "give either SCENARIOs or --all"),
        (("ksm_cow", "--all"), "give either SCENARIOs or --all"),
        (("ksm_cow", "--show", "x"), "--show prints a file and takes no SCENARIO"),
        (("ksm_cow", "-j1", "--scheduler", "x"), "give either --jobs or --scheduler"),
        (("--show", "none.sqlite"), "none.sqlite: there is no such file"),
        (("--show", "text"), "text: is no SQLite file; it is left as it is"),
        (("ksm_cow", "-j1", "-r", "text", "--resume"), "text: is no SQLite file"),
        (("ksm_cow", "-j1", "-r", "a/b"), "a/b: there is no folder a"),
        (("ksm_cow", "-j1", "--toggle", "x"), "unknown change 'x'"),
        (("ksm_cow", "-j1", "-k", "v6.3..v6.1"), "v6.3 is later than v6.1"),
        (("no_such", "-j1"), "unknown scenario 'no_such'"),
    ],
)
def test_bad_input_is_one_line(kvmarch, tmp_path, args, why):
    (tmp_path / "text").write_text("what was there before\n", "utf-8")

    result = kvmarch("sweep", *args)

    lines = result.stderr.splitlines()
    assert result.exit_code == 2
    assert why in lines[-1]
    assert len(lines) == 1 or lines[0].startswith("Usage: ")
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
    assert (tmp_path / "text").read_text("utf-8") == "what was there before\n"


def test_a_sweep_of_other_cells_is_not_resumed(kvmarch, race):
    kvmarch("sweep", race, "-k", "v6.1", "-j1")
    before = Path("sweep.sqlite").read_bytes()

    other = kvmarch("sweep", race, "-k", "v6.2", "-j1", "--resume")
    anew = kvmarch("sweep", race, "-k", "v6.1", "-j1")

    assert (other.exit_code, anew.exit_code) == (2, 2)
    assert "sweep.sqlite: is of another sweep: cells there 1, here 1" in other.stderr
    assert "sweep.sqlite: has a sweep already; --resume goes on" in anew.stderr
    assert Path("sweep.sqlite").read_bytes() == before


def test_a_scenario_that_was_edited_is_not_resumed(kvmarch, race):
    kvmarch("sweep", race, "-k", "v6.1", "-j1")
    Path(race).write_text(RACE.replace("pages = 1 ", "pages = 2 "), "utf-8")

    result = kvmarch("sweep", race, "-k", "v6.1", "-j1", "--resume")

    assert result.exit_code == 2
    assert "of another version: scenario race has changed since" in result.stderr


# -- crashes -------------------------------------------------------------------------


def command(race, *more):
    return [sys.executable, "-m", "kvmarch", "sweep", race, *KERNELS, *more]


def finished(path):
    """Return when each finished cell was, with all its rows."""
    if not path.exists():
        return {}
    with closing(sqlite3.connect(path, timeout=60)) as base:
        if not base.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            return {}
        return {
            (place, when): base.execute(
                "SELECT * FROM result WHERE cell = ? ORDER BY position", (number,)
            ).fetchall()
            for number, place, when in base.execute(
                "SELECT number, place, finished FROM cell WHERE finished IS NOT NULL"
            ).fetchall()
        }


def children(pid):
    """Return the processes that a process has started, and theirs."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8")
    except OSError:
        return set()
    own = {int(word) for word in text.split()}
    return own.union(*(children(child) for child in own))


def is_running(pid):
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


def until(condition, process=None):
    """Wait until something holds, or the process has ended."""
    for _ in range(6000):
        if condition() or (process is not None and process.poll() is not None):
            return
        time.sleep(0.01)
    pytest.fail("it never came to that")


@contextmanager
def started(args, path):
    with subprocess.Popen(
        args, cwd=path.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The rows of the sweep, and its cells, if nothing disturbs it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "race.toml").write_text(RACE, "utf-8")
    ended = subprocess.run(
        command("race.toml", "-j2", "--format", "csv"),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return untimed(ended.stdout), len(finished(folder / "sweep.sqlite"))


@pytest.mark.parametrize("how", [("--jobs", "1"), ("--jobs", "2"), ()])
def test_a_sweep_that_is_killed_goes_on_where_it_was(race, tmp_path, whole, how):
    if not how:
        pytest.importorskip("distributed", reason="the extra 'cluster' is not there")
    path = tmp_path / "sweep.sqlite"
    rows, cells = whole
    assert cells > 20

    known = {}
    killed = 0
    # Before there is a file, once there is one, and then in the midst of it.
    for wanted in (-1, 0, 1, 8):
        with started(command(race, *how, "--resume"), path) as process:
            if wanted >= 0:
                until(path.exists, process)
                until(lambda n=wanted: len(finished(path)) >= n, process)
            helpers = children(process.pid)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        until(lambda pids=helpers: not any(map(is_running, pids)))
        now = finished(path)
        # Nothing is lost, and nothing was explored or written again.
        assert known.items() <= now.items()
        assert len({place for place, _when in now}) == len(now)
        known = now
    assert killed >= 2
    assert known

    last = subprocess.run(
        command(race, *how, "--resume", "--format", "csv"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"cells: {cells}, finished: {len(known)};" in last.stderr
    now = finished(path)
    assert known.items() <= now.items()
    assert len({place for place, _when in now}) == len(now) == cells
    assert untimed(last.stdout) == rows


def test_ctrl_c_ends_at_once_and_keeps_what_is_finished(race, tmp_path):
    path = tmp_path / "sweep.sqlite"
    with started(command(race, "-j2"), path) as process:
        until(lambda: len(finished(path)) >= 2, process)
        helpers = children(process.pid)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)

    if status != 0:  # it may have been done by then
        assert status == 130
        until(lambda: not any(map(is_running, helpers)))
        assert not path.with_name("sweep.sqlite.lock").exists()
    assert len(finished(path)) >= 2


def test_the_output_is_lines_where_nobody_watches(race, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "kvmarch", "sweep", race, "-k", "v6.1", "-j2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert ended.stderr.count("\n") == 1
    assert "in 2 processes" in ended.stderr
    assert "\r" not in ended.stderr


def test_progress_is_shown_to_a_person(race, tmp_path):
    master, slave = os.openpty()
    with os.fdopen(master, "rb", 0) as screen:
        subprocess.run(
            [sys.executable, "-m", "kvmarch", "sweep", race, "-k", "v6.1", "-j1"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=slave,
            check=True,
        )
        os.close(slave)
        shown = screen.read(100_000)

    assert b"####]" in shown


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("no://such:1", "is no address such as tcp://localhost:8786"),
        ("tcp://localhost", "is no address such as"),
        ("localhost:port", "is no address such as"),
        ("tcp://127.0.0.1:1", "nobody is there (Connection refused)"),
    ],
)
def test_a_cluster_that_is_not_there(kvmarch, race, address, why, monkeypatch):
    monkeypatch.setattr("kvmarch.sweep.cluster.is_installed", lambda: True)

    result = kvmarch("sweep", race, "--scheduler", address)

    assert result.exit_code == 2
    assert result.stderr.startswith(f"kvmarch: --scheduler {address}: {why}")
    assert not Path("sweep.sqlite").exists()
