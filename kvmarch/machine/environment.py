"""What the machine's surroundings decide, as state that explicit steps change."""

__all__ = ["Environment", "turn"]

from kvmarch.machine.steps import op
from kvmarch.machine.world import Part


class Environment(Part):
    """Choices that no path of the kernel makes.

    ``choice`` says which of several pages reclaim takes; ``short`` whether memory is
    short, so that an allocation fails. Whoever explores lets a task of its own turn
    them, at any moment: so every choice is met, and a schedule shows it as a step.
    """

    variables = ("choice", "short")

    def __init__(self) -> None:
        self.choice = 0
        self.short = 0


@op(name="the environment turns")
def turn(environment: Environment, what: str) -> None:
    """Change a choice.

    :param what: ``next`` page, memory ``short``, or ``plenty`` of it.
    """
    if what == "next":
        environment.choice += 1
    else:
        environment.short = int(what == "short")
