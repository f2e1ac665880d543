"""Run random sequences on two sides until enough steps agree, or one does not."""

__all__ = ["Difference", "Found", "Fuzz", "Tally"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kvmarch.errors import LabError, ModelError
from kvmarch.lab.fuzz.compare import Comparer, Difference
from kvmarch.lab.fuzz.generate import Program, Shape, program
from kvmarch.lab.fuzz.shrink import shrink
from kvmarch.lab.sides import Look, Side

LENGTH = 40
"""Steps of one process at most."""
TRIES = 400
"""Runs that shrinking one difference may take."""


class Seen(NamedTuple):
    """What the last line of a program showed, and the looks of both sides."""

    difference: Difference
    looks: tuple[Look, Look]


@dataclass(frozen=True, slots=True)
class Found:
    """A difference, and the shortest sequence that shows it at its last line.

    :param number: of the process in the seed's row.
    :param before: how many lines had been done when it was seen first.
    """

    number: int
    before: int
    program: Program
    seen: Seen


@dataclass(slots=True)
class Tally:
    """What was done so far.

    :param unlike: processes that were left because the host gave them other pages.
    """

    steps: int = 0
    processes: int = 0
    vms: int = 0
    unlike: int = 0


class Fuzz:
    """Two sides, and what is found between them.

    :param one: the side that is right: a real kernel.
    :param other: the side that is compared with it: the model.
    """

    def __init__(self, one: Side, other: Side, comparer: Comparer) -> None:
        self.one, self.other, self.comparer = one, other, comparer
        self.tally = Tally()
        self.doing: Program | None = None
        """What the sides are at, up to the line at hand; None between two."""
        self.watch: Callable[[int, str], None] = lambda _number, _line: None
        """Called after each line that agrees, with the number of the process."""

    def run(
        self, seed: int, steps: int, shape: Shape, first: int = 0
    ) -> Iterator[Found]:
        """Yield each difference, until so many steps are done.

        :param first: the number of the process to begin with.
        """
        number = first
        while self.tally.steps < steps:
            made = program(seed, number, LENGTH, shape)
            left = steps - self.tally.steps
            made = made._replace(lines=made.lines[:left])
            done, seen = self.attempt(made, number)
            self.tally.steps += done
            self.tally.processes += 1
            self.tally.vms += made.setup.vms
            self.tally.unlike += self.comparer.unlike
            if seen is not None:
                cut = made._replace(lines=made.lines[:done])
                yield self.shortest(number, cut, seen)
            number += 1

    def attempt(self, made: Program, number: int = -1) -> tuple[int, Seen | None]:
        """Run one program on both sides, as far as they agree.

        :param number: of the process; -1 if nobody is to hear of its steps.
        :returns: how many lines were done, and what the last one showed.
        """
        self.comparer.begin(made.setup)
        done, seen = self._compared(made, number)
        # Not so after Ctrl-C: a kernel that hangs ends no VM.
        self.one.end()
        self.other.end()
        if seen is None:
            self.doing = None
        return done, seen

    def _compared(self, made: Program, number: int) -> tuple[int, Seen | None]:
        """Run one program on both sides, and leave their VMs as they are then."""
        done = 0
        try:
            self.one.begin(made.setup)
            self.other.begin(made.setup)
            for done, line in enumerate(made.lines, 1):
                self.doing = made._replace(lines=made.lines[:done])
                looks = self.one.do(line), self.other.do(line)
                difference = self.comparer.compare(*looks)
                if difference is not None:
                    return done, Seen(difference, looks)
                if number >= 0:
                    self.watch(number, line)
                if self.comparer.unlike:
                    break
        except (LabError, ModelError) as error:
            # A process that dies or a path that waits for ever is a difference, too.
            text = str(error)
            kind = f"{type(error).__name__} {text.partition(':')[0]}"
            return done, Seen(Difference("end", kind, text), (Look(), Look()))
        return done, None

    def shortest(self, number: int, cut: Program, seen: Seen) -> Found:
        """Return a difference with the shortest sequence that shows it."""
        wanted, tries = seen.difference, 0

        def shows(smaller: Program) -> bool:
            nonlocal seen, tries
            tries += 1
            if tries > TRIES:
                return False
            done, now = self.attempt(smaller)
            if now is None or done != len(smaller.lines):
                return False
            if now.difference[:2] != wanted[:2]:
                return False
            seen = now
            return True

        best = shrink(cut, shows)
        return Found(number, len(cut.lines), best, seen)
