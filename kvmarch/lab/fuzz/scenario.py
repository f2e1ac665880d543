"""A VM and lines as a scenario, which model and recordings take."""

__all__ = ["scenario_of"]

from collections.abc import Iterable

from kvmarch.lab.sides import Memory, Setup
from kvmarch.lab.steps import line_of
from kvmarch.scenarios import records
from kvmarch.scenarios.records import Scenario, TaskLines


def scenario_of(
    setup: Setup,
    lines: Iterable[str],
    name: str = "fuzz",
    title: str = "",
    source: str = "",
) -> Scenario:
    """Return a scenario of one task that does some lines."""
    memory = tuple(_memory(row) for row in setup.memories)
    known = {row.name: row for row in memory}
    steps = tuple(line_of(line, known, setup.vcpus, setup.vms) for line in lines)
    return Scenario(
        name=name,
        title=title,
        source=source,
        tags=("fuzz",),
        vcpus=setup.vcpus,
        code=setup.code_gfn,
        memory=memory,
        tasks=(TaskLines("vmm", steps),),
        watch=(),
        columns=(),
        expects=(),
        vms=setup.vms,
    )


def _memory(row: Memory) -> records.Memory:
    return records.Memory(
        row.name,
        row.pages,
        contents=row.contents or (),
        touched=row.contents is not None,
        mergeable=row.mergeable,
        huge=row.huge,
    )
