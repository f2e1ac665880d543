"""What a scenario says, as records."""

__all__ = [
    "FIRST_HVA",
    "STATUSES",
    "VERDICTS",
    "Bug",
    "Column",
    "Expect",
    "Memory",
    "Scenario",
    "StepLine",
    "TaskLines",
    "Verdict",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIRST_HVA = 0x7F00_0000_0000
"""Where the first memory of a scenario is mapped, in bytes; 1 GiB for each."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A range of host memory.

    :param pages: of the machine's page size; or ``mib`` to give its size.
    :param contents: what the first pages hold; equal values may be merged by KSM.
        The pages after them hold values of their own.
    :param touched: written by the host before the scenario begins.
    :param hugetlb: huge pages of hugetlbfs, which are never split.
    """

    name: str
    pages: int = 0
    mib: int = 0
    contents: tuple[Any, ...] = ()
    touched: bool = True
    mergeable: bool = False
    huge: bool = False
    hugetlb: bool = False

    def size(self, page_size: int) -> int:
        """Return the size in bytes."""
        return self.mib << 20 if self.mib else self.pages * page_size


@dataclass(frozen=True, slots=True)
class StepLine:
    """One line of a task: a verb and its arguments, as text."""

    verb: str
    args: Mapping[str, str]
    text: str


@dataclass(frozen=True, slots=True)
class TaskLines:
    """One task: its name and its lines."""

    name: str
    steps: tuple[StepLine, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a comparison: its name, what it shows, with which arguments."""

    name: str
    show: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expect:
    """One expectation: in which cells which column has which value.

    Empty ``arch`` means every architecture; ``since`` and ``until`` (exclusive) are
    releases.

    :param keeps: a rule of the contract; kernels that deviate from it are not meant.
    """

    arch: str = ""
    since: str = ""
    until: str = ""
    mmu: str = ""
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    because: str = ""
    keeps: str = ""


VERDICTS = ("never", "sometimes", "always")
"""What can be said of a property over all interleavings: how often it is lost."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One expectation over all interleavings, at one kernel.

    Empty ``arch`` means every architecture that the release has.

    :param kernel: a release.
    :param settings: options of the machine.
    :param property: the id of a property; ``*`` for all of them, of which none may be
        lost.
    :param verdict: ``never``, ``sometimes`` or ``always`` lost.
    """

    kernel: str
    property: str
    verdict: str
    arch: tuple[str, ...] = ()
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    because: str = ""


STATUSES = ("fixed", "unmerged", "candidate")
"""Of a bug: it was in releases and is fixed; it would come with a patch or an order of
steps that no release has; it is open upstream."""


@dataclass(frozen=True, slots=True)
class Bug:
    """The bug that a scenario shows.

    :param subject: the fix's, in one line.
    :param fix: 12 digits of the fix's commit; empty if there is none.
    :param releases: in which releases it was, for people.
    :param status: see :data:`STATUSES`.
    :param confirm: what would confirm a candidate.
    """

    subject: str
    fix: str = ""
    releases: str = ""
    arch: str = ""
    status: str = "fixed"
    source: str = ""
    confirm: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario, checked.

    :param setup: lines that are run, one after the other, before any task begins.
    :param verdicts: what is expected over all interleavings.
    :param vms: how many VMs the process has, each with so many vCPUs and slots of its
        own; ``vm=1`` in a line means the second one.
    :param code: the gfn from which the guest fetches code in every run, or -1.
    :param watch: gfns whose entries are followed.
    """

    name: str
    title: str
    source: str
    tags: tuple[str, ...]
    vcpus: int
    code: int
    memory: tuple[Memory, ...]
    tasks: tuple[TaskLines, ...]
    watch: tuple[int, ...]
    columns: tuple[Column, ...]
    expects: tuple[Expect, ...]
    schedule: tuple[tuple[str, int], ...] = ()
    bad: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    setup: tuple[StepLine, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    bug: Bug | None = None
    vms: int = 1
