"""On a Dask cluster: the same rows, and one line when the cluster goes away."""

import csv
import io
import json
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing

import pytest
from races import RACE

pytest.importorskip("distributed", reason="the extra 'cluster' is not there")

DIES = """
import os
import signal
from kvmarch.sweep.cluster import embedded

def die(item):
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * 10

if __name__ == "__main__":
    print(sorted(embedded(die, 2)([0, 1, 2]), key=lambda pair: pair[0]))
"""
KERNELS = ("-k", "v6.1..v6.6", "--format", "csv")


def python(*args, folder):
    return subprocess.run(
        [sys.executable, *args], cwd=folder, capture_output=True, text=True, check=False
    )


def verdicts(text):
    names = ("arch", "kernel", "property", "verdict", "states", "schedule")
    rows = csv.DictReader(io.StringIO(text))
    return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture
def start():
    """Start a process that ends with the test."""
    with ExitStack() as stack:

        def make(folder, *args):
            process = subprocess.Popen(
                [sys.executable, "-m", *args],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield make


@pytest.fixture
def cluster(start, tmp_path):
    """A scheduler, its address, and how to start a worker."""
    (tmp_path / "race.toml").write_text(RACE, "utf-8")
    told = tmp_path / "scheduler.json"
    scheduler = start(
        tmp_path,
        "distributed.cli.dask_scheduler",
        "--host=127.0.0.1",
        "--port=0",
        "--no-dashboard",
        f"--scheduler-file={told}",
    )
    until(told.exists)
    until(lambda: told.read_text("utf-8").rstrip().endswith("}"))
    address = json.loads(told.read_text("utf-8"))["address"]

    def worker():
        return start(
            tmp_path,
            "distributed.cli.dask_worker",
            address,
            "--nthreads=2",
            "--no-nanny",
            "--no-dashboard",
        )

    return scheduler, address, worker


def until(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came to that")


def count(path):
    """Return how many cells of a sweep's file are finished."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=60)) as base:
        try:
            text = "SELECT count(*) FROM cell WHERE finished IS NOT NULL"
            return base.execute(text).fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def test_a_cell_that_kills_its_workers_does_not_stop_the_others(tmp_path):
    (tmp_path / "dies.py").write_text(DIES, "utf-8")

    ended = python("dies.py", folder=tmp_path)

    assert ended.stdout == "[(0, 0), (1, None), (2, 20)]\n", ended.stderr


def test_a_cluster_gives_the_rows_of_one_process(tmp_path, cluster):
    _scheduler, address, worker = cluster
    worker()
    base = ("-m", "kvmarch", "sweep", "race.toml", *KERNELS)

    here = python(*base, "-j1", "-r", "here.sqlite", folder=tmp_path)
    there = python(*base, "--scheduler", address, folder=tmp_path)

    assert f"on the cluster at {address}" in there.stderr
    assert verdicts(there.stdout) == verdicts(here.stdout)
    assert len(verdicts(here.stdout)) > 20
    assert (here.returncode, there.returncode) == (0, 0)


def test_a_scheduler_that_goes_away_costs_no_finished_cell(tmp_path, cluster):
    scheduler, address, worker = cluster
    worker()
    path = tmp_path / "sweep.sqlite"
    base = ("-m", "kvmarch", "sweep", "race.toml", *KERNELS)
    with subprocess.Popen(
        [sys.executable, *base, "--scheduler", address],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as sweep:
        until(lambda: count(path) >= 3 or sweep.poll() is not None)
        scheduler.send_signal(signal.SIGKILL)
        _out, said = sweep.communicate()
    finished = count(path)

    last = python(*base, "-j2", "--resume", folder=tmp_path)

    assert sweep.returncode == 2
    assert len(said.splitlines()) == 2
    assert said.splitlines()[1] == (
        f"kvmarch: the scheduler is gone; {finished} of 24 cells are in sweep.sqlite, "
        "--resume goes on"
    )
    assert f"cells: 24, finished: {finished};" in last.stderr
    assert last.returncode == 0
