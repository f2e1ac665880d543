"""What an architecture says about itself."""

from __future__ import annotations

__all__ = [
    "ArchInfo",
    "ArchVerb",
    "Deviation",
    "EntryKind",
    "FaultResult",
    "LabMachine",
    "Option",
]

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from kvmarch.changes import Release, show_release
from kvmarch.errors import KernelError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvmarch.format.bits import EntryFormat
    from kvmarch.kernel.vm import Vm
    from kvmarch.machine.steps import Path

FaultResult: TypeAlias = Literal["guest", "mmio", "exception", "error"]
"""How a page fault ends: enter the guest again, emulate, give the guest an exception
of its own, or fail the run."""


class EntryKind(NamedTuple):
    """One kind of entry at one level: its name, and the format that states its bits.

    ``maps`` says that it leads to a host page, even if hardware has to fault first.
    """

    level: int
    kind: str
    format: type[EntryFormat]
    maps: bool = False


class Deviation(NamedTuple):
    """What an architecture's kernels do otherwise than the contract has it.

    ``kvmarch check-plugin`` then wants to see that they do.

    :param rule: the rule of the contract, as ``check-plugin`` names it.
    :param source: who says so: a fact sheet, a recording, a kernel function.
    :param mmu: the kind of guest tables that it concerns; empty for all.
    :param until: the first release that keeps the rule.
    """

    rule: str
    source: str
    mmu: str = ""
    until: Release = (99, 0)


@dataclass(frozen=True, slots=True)
class LabMachine:
    """How the lab boots a kernel of the architecture, emulated, and drives its KVM.

    :param qemu: the emulator's program.
    :param qemu_package: what Debian calls the package that has it.
    :param machine: the argument of ``-machine``.
    :param cpu: the argument of ``-cpu``; one with the virtualization extensions.
    :param console: the serial console, as the kernel names it.
    :param ram_base: the physical address of the first byte of RAM.
    :param compiler: a C compiler for static programs of the architecture.
    :param compiler_packages: the packages that have it and its C library.
    :param guest: a C file with the functions of ``kvmarch/lab/probe/probe.h`` that are
        the architecture's: the guest's code and its registers.
    :param debian: Debian's name of the architecture.
    :param flavour: the end of the names of Debian's kernels, as ``-amd64``.
    :param modules: the modules to load for ``/dev/kvm``, if they are no part of the
        kernel; those that they need come along.
    :param parameters: parameters of modules that a recording states.
    :param append: more words for the kernel's command line.
    :param filters: of trace events that would drown the others, by event: which ones
        are kept, as the kernel's event filters say it.
    :param magic: what tells an image of the architecture: pairs of an offset and the
        bytes there, of which one must fit; nothing is checked if there are none.
    """

    qemu: str
    qemu_package: str
    machine: str
    cpu: str
    console: str
    ram_base: int
    compiler: str
    compiler_packages: tuple[str, ...]
    guest: str
    debian: str
    flavour: str
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    append: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    magic: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class ArchVerb:
    """Something that only this architecture can do, for the steps of scenarios.

    A scenario writes the architecture before it: ``x86.apicv_inhibit gfn=511``.

    :param name: a word of lower-case letters, digits and underscores.
    :param doc: one sentence that says what it does.
    :param run: gets the VM and the arguments by name, as values; returns a path.
    :param params: by name, the kind of each argument: ``int``, ``name`` (any word) or
        ``word:this|that``; with a question mark in front where it may be left out.
        An ``int`` that is called ``vcpu`` must be the number of one.
    """

    name: str
    doc: str
    run: Callable[[Vm, Mapping[str, Any]], Path[Any]]
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """A property of the machine or a module parameter that a user may set.

    :param values: what is accepted; the first one is the default. Values that look
        like numbers are numbers.
    :param since: by value, the first release that has it; others always had it.
    :param until: by value, the first release that has it no longer.
    """

    values: tuple[Any, ...]
    doc: str
    since: Mapping[Any, Release] = field(default_factory=dict)
    until: Mapping[Any, Release] = field(default_factory=dict)

    def available(self, release: Release) -> tuple[Any, ...]:
        """Return the values that a release has."""
        return tuple(
            value
            for value in self.values
            if self.since.get(value, release) <= release
            and (value not in self.until or release < self.until[value])
        )


@dataclass(frozen=True, slots=True)
class ArchInfo:
    """What is true of an architecture in every release.

    :param name: as in ``--arch``; the name of the entry point.
    :param title: as people say it.
    :param first: the first release with these guest page tables and notifiers.
    :param options: what can be set, by name. ``page_size`` (bytes) and ``mmu`` are
        read by the core; the rest is the architecture's.
    :param defaults: option values that differ from the first one, from a release
        on: ``{"mmu": (((5, 15), "tdp"),)}``.
    :param pmd_order: by page size in bytes, how many pages (power of two) a host
        huge page has.
    :param leaves_by: how the recording's guest leaves after an access: ``hlt``, or
        ``mmio``, a store to an address without a slot.
    :param recorded_as: machine names of ``uname -m`` that mean this architecture.
    :param readonly_slots: whether KVM_MEM_READONLY is a valid flag.
    :param address_spaces: memslot address spaces (x86: 2, for SMM).
    :param private_slots: slots that the kernel keeps for itself.
    :param pfncache: whether gfn_to_pfn_cache is built (HAVE_KVM_PFNCACHE).
    :param inferred: options that say what the hardware is and that a recording does
        not state; they may be inferred from the first entries that it shows.
    :param parameters: module parameters of recordings that set an option:
        ``{"kvm.tdp_mmu": ("mmu", {"Y": "tdp", "N": "rmap"})}``.
    """

    name: str
    title: str
    first: Release
    options: Mapping[str, Option]
    defaults: Mapping[str, tuple[tuple[Release, Any], ...]] = field(
        default_factory=dict
    )
    pmd_order: Mapping[int, int] = field(default_factory=lambda: {4096: 9})
    leaves_by: Literal["hlt", "mmio"] = "mmio"
    recorded_as: tuple[str, ...] = ()
    readonly_slots: bool = True
    address_spaces: int = 1
    private_slots: int = 0
    pfncache: bool = False
    inferred: tuple[str, ...] = ()
    parameters: Mapping[str, tuple[str, Mapping[str, Any]]] = field(
        default_factory=dict
    )

    def parse(self, name: str, text: str) -> Any:
        """Return the value of an option that a text means; None if there is none."""
        return _find(text, self.options[name].values)

    def settle(self, release: Release, given: Mapping[str, str]) -> dict[str, Any]:
        """Return a value for every option.

        :param given: what the user set, as text.
        :raises UnknownNameError: no such option, or the option has no such value.
        :raises KernelError: the release does not have the value.
        """
        for name in given:
            if name not in self.options:
                raise UnknownNameError(f"option of {self.name}", name, self.options)
        settled: dict[str, Any] = {}
        for name, option in self.options.items():
            available = option.available(release)
            if name in given:
                value = _find(given[name], option.values)
                if value is None:
                    raise UnknownNameError(
                        f"value of {self.name} option {name}",
                        given[name],
                        map(str, option.values),
                    )
                if value not in available:
                    raise KernelError(
                        f"{self.name} has no {name}={value} in {show_release(release)}"
                    )
            else:
                value = available[0]
                for since, default in self.defaults.get(name, ()):
                    if since <= release:
                        value = default
            settled[name] = value
        return settled


def _find(text: str, values: tuple[Any, ...]) -> Any:
    """Return the value that a text means; sizes may end in K."""
    number: int | None = None
    if text[:1].isdigit():
        try:
            number = int(text[:-1]) * 1024 if text[-1] in "kK" else int(text, 0)
        except ValueError:
            number = None
    for value in values:
        if isinstance(value, int) and not isinstance(value, bool):
            if value == number:
                return value
        elif str(value) == text:
            return value
    return None
