"""Shrink a sequence of steps that shows a difference, by running what is left of it.

Delta debugging (Zeller, Hildebrandt, 2002): parts are left out, of half the length
first and of one line last, as long as the same difference is still seen; then pairs
of lines, which may undo each other. Then vCPUs and memories that no line names go, and
before all this every VM but one, if one shows the difference alone.
"""

__all__ = ["shrink"]

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

from kvmarch.lab.fuzz.generate import Program
from kvmarch.lab.sides import code_memory
from kvmarch.scenarios.verbs import VERBS

Shows = Callable[[Program], bool]
"""Runs a program; returns whether it shows the same difference at its end."""


def shrink(program: Program, shows: Shows) -> Program:
    """Return a program of which no line can be left out.

    :param program: one that shows the difference at its last line.
    """
    for vm in range(program.setup.vms):
        if program.setup.vms > 1 and shows(_alone(program, vm)):
            program = _alone(program, vm)
    lines: list[str] | None = list(program.lines)
    while lines is not None:
        size = max(len(lines) // 2, 1)
        while size:
            shorter = _without_part(program, lines, size, shows)
            lines = shorter or lines
            size = size if shorter else size // 2
        program = program._replace(lines=tuple(lines))
        lines = _without_pair(program, lines, shows)
    return _smaller_setup(program, shows)


def _alone(program: Program, vm: int) -> Program:
    """Return a program with one of its VMs, which becomes the first one."""
    setup, mine = program.setup, f"vm={vm}"
    renamed = {f"memory={code_memory(vm)}": f"memory={code_memory(0)}", mine: ""}
    lines = []
    for line in program.lines:
        verb, *words = line.split()
        others = [word for word in words if word.startswith("vm=") and word != mine]
        if others or (vm and "vm" in VERBS[verb].params and mine not in words):
            continue
        lines.append(" ".join(filter(None, (renamed.get(w, w) for w in line.split()))))
    codes = [code_memory(number) for number in range(1, setup.vms)]
    rows = tuple(row for row in setup.memories if row.name not in codes)
    return Program(replace(setup, memories=rows, vms=1), tuple(lines))


def _without_part(
    program: Program, lines: list[str], size: int, shows: Shows
) -> list[str] | None:
    """Return the lines without the first part of a size that is not needed.

    The last line stays: it is where the difference is seen. Later parts are tried
    first, since what is far away matters less often.
    """
    for start in reversed(range(0, max(len(lines) - 1, 0), size)):
        left = lines[:start] + lines[min(start + size, len(lines) - 1) :]
        if shows(program._replace(lines=tuple(left))):
            return left
    return None


def _without_pair(program: Program, lines: list[str], shows: Shows) -> list[str] | None:
    """Return the lines without two that are not needed, if there are two."""
    for pair in combinations(range(len(lines) - 1), 2):
        left = [line for at, line in enumerate(lines) if at not in pair]
        if shows(program._replace(lines=tuple(left))):
            return left
    return None


def _last(what: str, words: set[str]) -> int:
    """Return the highest number of a VM or vCPU that a word names."""
    found = [word.partition("=") for word in words]
    return max((int(number) for name, _, number in found if name == what), default=0)


def _smaller_setup(program: Program, shows: Shows) -> Program:
    """Return the program without VMs, vCPUs and memories that no line names."""
    setup = program.setup
    words = {word for line in program.lines for word in line.split()}
    vms = _last("vm", words) + 1
    codes = set(map(code_memory, range(vms)))
    named = tuple(
        row
        for row in setup.memories
        if {f"memory={row.name}", f"to={row.name}"} & words or row.name in codes
    )
    vcpus = _last("vcpu", words) + 1
    for changes in ({"memories": named, "vms": vms}, {"vcpus": vcpus}):
        smaller = program._replace(setup=replace(program.setup, **changes))
        if smaller != program and shows(smaller):
            program = smaller
    return program
