"""Shrink a sequence of steps that shows a difference, by running what is left of it.

Delta debugging (Zeller, Hildebrandt, 2002): parts are left out, of half the length
first and of one line last, as long as the same difference is still seen; then pairs
of lines, which may undo each other. Then vCPUs and memories that no line names go.
"""

__all__ = ["shrink"]

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

from kvmarch.lab.fuzz.generate import Program

Shows = Callable[[Program], bool]
"""Runs a program; returns whether it shows the same difference at its end."""


def shrink(program: Program, shows: Shows) -> Program:
    """Return a program of which no line can be left out.

    :param program: one that shows the difference at its last line.
    """
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


def _smaller_setup(program: Program, shows: Shows) -> Program:
    """Return the program without vCPUs and memories that no line names."""
    setup = program.setup
    words = {word for line in program.lines for word in line.split()}
    named = tuple(
        row
        for row in setup.memories
        if {f"memory={row.name}", f"to={row.name}"} & words or row.name == "code"
    )
    last = max(int(word[5:]) for word in ("vcpu=0", *words) if word.startswith("vcpu="))
    for changes in ({"memories": named}, {"vcpus": last + 1}):
        smaller = program._replace(setup=replace(program.setup, **changes))
        if smaller != program and shows(smaller):
            program = smaller
    return program
