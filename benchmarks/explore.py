"""Measure the explorer, beside Spin on models of the same protocols.

    python benchmarks/explore.py            everything
    python benchmarks/explore.py --vcpus 2  up to so many vCPUs

Each protocol is explored by kvmarch, from the start of its process to the verdict, and
by Spin, from `spin -a` over gcc to the end of the run. The models in benchmarks/spin
take the same steps as the scenarios in benchmarks/scenarios; with the change that
brings the bug back, both must find it. Quote ratios of one run, not single times.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WHERE = ("--arch", "x86", "--kernel", "v6.12")
PROTOCOLS = {
    "gpc": (("--with", "gpc-retry-in-progress"), "-DPROGRESS"),
    "generation": (("--without", "generation-twice"), "-DONCE"),
}
"""By protocol, how the bug is brought back, in kvmarch and in the model."""
RACES = ("generation", "gpc_dontneed", "gpc_migrate", "gpc_refill")
LIMITS = {1: 1.0, 2: 1.0, 3: 3.0}
"""By number of vCPUs, how much longer than Spin kvmarch may take."""
ENV = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""Compiled modules are kept, as they are where kvmarch is installed."""
MEASURE = """
import sys
from kvmarch.explore.search import explore, peak_memory
from kvmarch.plugins import load
from kvmarch.scenarios.cells import cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as read
plugins = load()
scenario = read(find(sys.argv[1]))
cell = next(cells_of(scenario, plugins, Choose(("x86",), ("v6.12",))))[0]
program = cell.program(plugins)
before = peak_memory()
search = explore(program)
print(search.states, search.transitions, search.seconds, search.peak - before)
"""
"""Explores a scenario, and prints what it took; memory in KiB."""


def timed(command: list[str], folder: str = ".") -> tuple[float, str]:
    """Run a command; return its wall seconds and its output."""
    begun = time.perf_counter()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder, env=ENV
    )
    seconds = time.perf_counter() - begun
    # kvmarch says 1 where an expectation fails, and 3 where a search was cut.
    if done.returncode and not done.stdout:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return seconds, done.stdout


def kvmarch(scenario: str, *more: str) -> tuple[float, list[dict[str, Any]]]:
    """Explore a scenario in a new process; return its wall seconds and the rows."""
    command = [sys.executable, "-m", "kvmarch", "explore", scenario, *WHERE, *more]
    seconds, output = timed([*command, "--format", "json"])
    return seconds, json.loads(output)["rows"]


def spin(name: str, vcpus: int, *more: str) -> tuple[float, float, int, int]:
    """Run Spin from source to verdict.

    :returns: wall seconds, those of the run alone, states, errors.
    """
    model = str((HERE / "spin" / f"{name}.pml").resolve())
    with tempfile.TemporaryDirectory() as folder:
        making, _ = timed(["spin", f"-DN={vcpus}", *more, "-a", model], folder)
        compiling, _ = timed(["gcc", "-O2", "-o", "pan", "pan.c"], folder)
        running, output = timed(["./pan", "-m100000"], folder)
    states = re.search(r"(\d+) states, stored", output)
    errors = re.search(r"errors: (\d+)", output)
    assert states is not None
    assert errors is not None
    total = making + compiling + running
    return total, running, int(states[1]), int(errors[1])


def compare(name: str, vcpus: int, *, has_spin: bool) -> None:
    """Print what both took for one protocol."""
    path = str(HERE / "scenarios" / f"{name}_{vcpus}vcpu.toml")
    seconds, rows = kvmarch(path)
    lost = sorted({row["property"] for row in rows if row["verdict"] != "never"})
    states = rows[0]["states"]
    reduced, fewer = kvmarch(path, "--reduce")
    text = (
        f"{name}, {vcpus} vCPU: kvmarch {seconds:.2f} s, {states} states, "
        f"{'loses ' + ' '.join(lost) if lost else 'nothing is lost'}; "
        f"reduced {reduced:.2f} s, {fewer[0]['states']} states"
    )
    best = seconds
    if vcpus > 1:
        best, merged = kvmarch(path, "--symmetry")
        text += f"; symmetric {best:.2f} s, {merged[0]['states']} states"
    if has_spin:
        total, running, stored, errors = spin(name, vcpus)
        text += (
            f"; Spin {total:.2f} s (run alone {running:.2f} s), {stored} states, "
            f"{errors} errors; ratio {best / total:.2f} (at most {LIMITS[vcpus]:.0f}), "
            f"with every state {seconds / total:.2f}"
        )
    print(text, flush=True)


def agree(name: str, *, has_spin: bool) -> None:
    """Print whether both find the bug when it is brought back."""
    change, define = PROTOCOLS[name]
    path = str(HERE / "scenarios" / f"{name}_2vcpu.toml")
    _seconds, rows = kvmarch(path, *change)
    lost = sorted({row["property"] for row in rows if row["verdict"] != "never"})
    text = f"{name} {' '.join(change)}: kvmarch loses {', '.join(lost) or 'nothing'}"
    if has_spin:
        errors = spin(name, 2, define)[3]
        text += f"; Spin {define}: {'an error' if errors else 'none'}"
    print(text, flush=True)


def rates(vcpus: int) -> None:
    """Print states per second, and bytes of a state, of the search alone."""
    names = [f"{name}_{vcpus}vcpu" for name in PROTOCOLS]
    # Finding out what steps do costs the same whether many states follow or few.
    names += ["gpc_2vcpu_twice"] if vcpus == 2 else []
    for name in names:
        path = str(HERE / "scenarios" / f"{name}.toml")
        runs = [timed([sys.executable, "-c", MEASURE, path])[1] for _ in range(3)]
        measured = [tuple(map(float, output.split())) for output in runs]
        states, transitions, seconds, memory = min(measured, key=lambda run: run[2])
        print(
            f"{name}: {states:,.0f} states, {states / seconds:,.0f} states/s (at least "
            f"300,000 for gpc with 2), {transitions / seconds:,.0f} transitions/s, "
            f"{memory * 1024 / states:.0f} bytes a state (at most 400)",
            flush=True,
        )


def shortest() -> None:
    """Print how soon the shortest race is answered."""
    times = {}
    for name in RACES:
        times[name] = min(kvmarch(name)[0] for _ in range(3))
    name = min(times, key=lambda each: times[each])
    start = min(timed([sys.executable, "-c", "pass"])[0] for _ in range(3))
    print(
        f"shortest race, {name}: {times[name]:.2f} s from process start (at most "
        f"0.3); the interpreter alone {start:.2f} s"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vcpus", type=int, choices=sorted(LIMITS), default=3)
    most = parser.parse_args().vcpus
    load = os.getloadavg()[0]
    quiet = "quiet" if load < 1 else "NOT quiet: ratios only"
    print(f"load {load:.1f}: the machine is {quiet}")
    has_spin = bool(shutil.which("spin") and shutil.which("gcc"))
    if not has_spin:
        print("spin or gcc is not installed (Debian: apt-get install spin gcc)")
    shortest()
    rates(min(most, 2))
    for name in PROTOCOLS:
        agree(name, has_spin=has_spin)
    for vcpus in range(1, most + 1):
        for name in PROTOCOLS:
            compare(name, vcpus, has_spin=has_spin)


if __name__ == "__main__":
    main()
