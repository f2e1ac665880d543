"""What a sequence of steps runs on: a real kernel or the model, and what is seen."""

__all__ = ["Leaf", "Look", "Memory", "Setup", "Side", "Tree", "code_memory"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from kvmarch.recordings.traces import Traced


@dataclass(frozen=True, slots=True)
class Memory:
    """One host mapping of the process that has the VM.

    :param contents: what the first pages hold; equal values may be merged by KSM. The
        pages after them hold values of their own. None: the host touches no page.
    """

    name: str
    pages: int
    huge: bool = False
    mergeable: bool = False
    contents: tuple[int, ...] | None = ()


@dataclass(frozen=True, slots=True)
class Setup:
    """A process with a VM or several, all of them without slots; slots are steps.

    :param vcpus: of each VM.
    :param code_gfn: from where guests fetch their code; the page of this number of
        the first memory holds it, or page 0 of the memories that :func:`code_memory`
        names.
    """

    memories: tuple[Memory, ...]
    vcpus: int
    code_gfn: int
    vms: int = 1


def code_memory(vm: int) -> str:
    """Return the name of the memory with a VM's code, if it has one of its own.

    VMs that fetch from pages of their own have trees that can be told apart.
    """
    return f"code{vm}" if vm else "code"


@dataclass(frozen=True, slots=True)
class Leaf:
    """An entry of a VM's tables that maps something, or says something.

    :param level: the architecture's own level number.
    :param pfn: the first page that it maps; None if it maps none.
    :param kind: the architecture's name of the kind.
    :param pages: how many pages it is for.
    """

    gfn: int
    level: int
    entry: int
    pfn: int | None
    kind: str
    pages: int


Tree: TypeAlias = tuple[Leaf, ...]
"""The whole tree of a VM by gfn."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen after one step.

    :param answers: results in the recordings' form, ``run ld gpa=10 rc=0 exit=5``.
    :param trees: of each VM, None if its tree could not be found.
    :param frames: by memory, the pfn of each page; 0 where there is none.
    :param events: a real kernel's trace events, as they are recorded.
    :param traced: what was traced, in the form that is compared; None if nothing is.
    :param kernel_log: warnings since the last step.
    :param counters: those of the kernel's that could be read.
    """

    answers: tuple[str, ...] = ()
    trees: tuple[Tree | None, ...] = ((),)
    frames: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    events: tuple[Any, ...] = ()
    traced: Traced | None = None
    kernel_log: tuple[str, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)


class Side(Protocol):
    """A real kernel or the model."""

    arch: str
    kernel: str
    page_size: int

    @property
    def options(self) -> Mapping[str, Any]:
        """Return the machine's options, as far as they are known."""
        ...

    def begin(self, setup: Setup) -> None:
        """Make the VMs in a new process."""

    def do(self, line: str) -> Look:
        """Do one line of a scenario, see ``kvmarch scenarios``."""

    def end(self) -> None:
        """Let the VMs and their process go."""
