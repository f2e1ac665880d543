"""What the machine's surroundings decide, as state that explicit steps change."""

__all__ = ["Environment", "turn"]

from kvmarch.machine.steps import op
from kvmarch.machine.world import Part


class Environment(Part):
    """Choices that no path of the kernel makes.

    ``choice`` says which of several pages reclaim takes; ``short`` whether the host
    has no page for user space; ``no_tables`` whether the kernel gets none for page
    tables, which a limit of the VM's cgroup may decide apart. Whoever explores lets a
    task of its own turn them, at any moment: so every choice is met, and a schedule
    shows it as a step.
    """

    variables = ("choice", "short", "no_tables")

    def __init__(self) -> None:
        self.choice = 0
        self.short = 0
        self.no_tables = 0


@op(name="the environment turns")
def turn(environment: Environment, what: str) -> None:
    """Change a choice.

    :param what: ``next`` page, memory ``short``, ``no_tables``, or ``plenty`` of both.
    """
    if what == "next":
        environment.choice += 1
    elif what == "plenty":
        environment.short = environment.no_tables = 0
    else:
        setattr(environment, what, 1)
