"""The verbs of scenario steps that use a gfn_to_pfn_cache."""

__all__ = ["SEQUENCE", "make_gpcs"]

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kvmarch.kernel.gpc import (
    Gpc,
    gpc_activate,
    gpc_deactivate,
    gpc_write,
    gpc_write_atomic,
)
from kvmarch.machine.steps import Path
from kvmarch.scenarios.verb import Context, verb

if TYPE_CHECKING:
    from kvmarch.scenarios.records import StepLine

SEQUENCE = 4
"""Values of the sequence count where invalidations never end."""


def make_gpcs(c: Context, lines: Iterable["StepLine"]) -> None:
    """Make every gfn_to_pfn_cache that the lines name: inactive and invalid.

    Where a line has a stream, the sequence count starts anew, see
    kvm_mmu_invalidate_end().
    """
    for line in lines:
        if line.verb == "stream":
            c.machine.vm.seq_modulus = SEQUENCE
        if line.verb.startswith("gpc_") and line.args["name"] not in c.gpcs:
            name = line.args["name"]
            c.gpcs[name] = Gpc(c.machine.vm, name)
            c.machine.gpcs.append(c.gpcs[name])
            c.machine.world.add(name, c.gpcs[name])


@verb(
    "Activate a gfn_to_pfn_cache for a page, or for an offset in it; if it is active, "
    "move it there.",
    name="name",
    gfn="int",
    offset="?int",
)
def gpc_map(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    gpa = (args["gfn"] << c.page_shift) + args.get("offset", 0)
    return gpc_activate(c.gpcs[args["name"]], gpa)


@verb(
    "Activate a gfn_to_pfn_cache for a host address.",
    name="name",
    memory="name",
    page="?int",
)
def gpc_map_hva(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return gpc_activate(c.gpcs[args["name"]], uhva=c.pages(args)[0])


@verb("Write through a gfn_to_pfn_cache.", name="name")
def gpc_store(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return gpc_write(c.gpcs[args["name"]])


@verb(
    "Write through a gfn_to_pfn_cache from where nobody may sleep: if it must be "
    "filled, give up.",
    name="name",
)
def gpc_store_atomic(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return gpc_write_atomic(c.gpcs[args["name"]])


@verb("Deactivate a gfn_to_pfn_cache.", name="name")
def gpc_unmap(c: Context, args: Mapping[str, Any]) -> Path[Any]:
    return gpc_deactivate(c.gpcs[args["name"]])
