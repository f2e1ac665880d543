"""What an architecture may bring for tools, besides the operations of its model.

Hooks of the contract that :mod:`kvmarch.hookspecs` begins, implemented with the same
``@hookimpl`` in the same module of a plugin. All are optional. They are asked when
a plugin is loaded or when a command needs the answer, and never in a run; an argument
that they share with other hooks means the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmarch.hookspecs import hookspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvmarch.arch import ArchVerb, Deviation, LabMachine
    from kvmarch.changes import Kernel
    from kvmarch.format.walk import WalkLayout

__all__ = [
    "kvmarch_deviations",
    "kvmarch_lab",
    "kvmarch_recordings",
    "kvmarch_scenarios",
    "kvmarch_verbs",
    "kvmarch_walk",
]


@hookspec
def kvmarch_walk(k: Kernel, options: Mapping[str, Any]) -> WalkLayout | None:
    """Return how the tables of a VM are walked, as data.

    With it images of memory can be walked and dumped (``kvmarch walk``), and the tree
    of a stopped VM be found. State what hardware reads, not all that the kernel
    knows: what an entry is called, and whether it has stray bits, is asked of
    :func:`kvmarch_decode`, with the same level numbers. :class:`~kvmarch.WalkLayout`
    documents each part; ``WalkRule.of`` makes a rule from a format.

    A tree of three levels whose leaves may stand in the two lower ones::

        def rules(level):
            by_kind = {row.kind: row.format for row in rows if row.level == level}
            yield WalkRule.of(by_kind["none"], "absent")
            if "leaf" in by_kind:
                yield WalkRule.of(by_kind["leaf"], "leaf", "pfn", 12)
            if "table" in by_kind:
                yield WalkRule.of(by_kind["table"], "table", "pfn", 12)

        WalkLayout(
            levels=(
                WalkLevel(2, 30, 11, tuple(rules(2))),  # a root of 16 KiB
                WalkLevel(1, 21, 9, tuple(rules(1))),
                WalkLevel(0, 12, 9, tuple(rules(0))),
            ),
            page_shift=12,
            permissions=("r", "w", "x"),
            memory_type="pbmt",
        )

    :param options: complete; the number of levels, page size and the like are among
        them.
    :returns: the layout, or None if this MMU keeps no tree, as a hash table is none.
    """


@hookspec
def kvmarch_lab() -> LabMachine:
    """Return how the lab boots and drives a kernel of the architecture, as data.

    With it ``kvmarch lab`` runs scenarios on real kernels under QEMU's emulation. The
    row names a C file with four small functions: the guest's code and its registers;
    see :class:`~kvmarch.LabMachine`, and ``plugins/*/lab_guest.c`` for examples.
    """


@hookspec
def kvmarch_deviations() -> Sequence[Deviation]:
    """Return what kernels of this architecture do otherwise than the contract has it.

    :returns: a tuple of :class:`~kvmarch.Deviation` rows; each is tried to be one.
    """


@hookspec
def kvmarch_recordings() -> Sequence[str]:
    """Return folders, as paths, that hold recordings of the architecture's kernels.

    ``kvmarch conform`` compares them with the model, as it does those of its own; those
    of a folder ``lab`` inside only with ``--all``.
    """


@hookspec
def kvmarch_scenarios() -> Sequence[str]:
    """Return folders, as paths, that hold scenario files of the plugin's own."""


@hookspec
def kvmarch_verbs() -> Sequence[ArchVerb]:
    """Return what only this architecture can do, for the steps of scenarios.

    A line of a scenario names it with the architecture in front, so that no other
    plugin's verb and none of the core's is taken for it::

        ArchVerb(
            "apicv_inhibit",
            "APICv is inhibited; pages are emulated from now on.",
            lambda vm, args: inhibit_apicv(vm, args["gfn"]),
            {"gfn": "int"},
        )

    is ``x86.apicv_inhibit gfn=511``.

    :returns: a tuple of :class:`~kvmarch.ArchVerb` rows, each with a name of its own.
    """
