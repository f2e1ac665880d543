"""s390: gmap over the host's page tables up to v6.19, KVM's own tables from v7.0 on.

The hooks of kvmarch's contract. ``designs`` says which operation is which function of
``shared`` and ``own``; what is modelled, and what is not, is in the README.
"""

__all__ = ["KVMARCH_API"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kvmarch import (
    ArchInfo,
    Change,
    Choice,
    Deviation,
    Option,
    Vcpu,
    Vm,
    flush_by_request,
    hookimpl,
)

from kvmarch_s390 import (
    designs,
    kinds,
    own,
    own_slots,
    prefix,
    shared,
    shared_tables,
)
from kvmarch_s390.changes import CHANGES

KVMARCH_API = (1, 3)

OWN = (7, 0)
"""The first release with tables of KVM's own."""


@hookimpl
def kvmarch_arch() -> ArchInfo:
    """Return what is true of s390 in every release."""
    return ArchInfo(
        name="s390",
        title="s390",
        first=(4, 11),
        options={
            "page_size": Option((4096,), "bytes of a page"),
            "mmu": Option(
                ("shared", "own"),
                "whose page tables the guest walks: the host process's, or KVM's",
                since={"own": OWN},
                until={"shared": OWN},
            ),
            "root": Option(
                ("region3", "segment", "region2", "region1"),
                "type of the root, from the guest's limit of memory: up to 4 TiB, "
                "2 GiB, 8 PiB, more",
            ),
            "huge": Option((True, False), "whether 1 MiB may be mapped (v7.0 on)"),
            "prefix": Option(
                (False, True),
                "whether vCPUs have prefix pages: two each, from gfn 0 on",
            ),
            "align": Option(
                (False, True),
                "whether memslots are refused that are not aligned to 1 MiB, as they "
                "are up to v7.0",
            ),
        },
        pmd_order=MappingProxyType({4096: 8}),
        recorded_as=("s390x",),
        readonly_slots=False,
    )


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/s390."""
    return CHANGES


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return what depends on changes: nearly everything."""
    return (
        *designs.CHOICES,
        *kinds.CHOICES,
        *shared_tables.CHOICES,
        *shared.CHOICES,
        *own.CHOICES,
        *own_slots.CHOICES,
    )


@hookimpl
def kvmarch_deviations() -> Sequence[Deviation]:
    """Return what is otherwise: no notifier up to v6.19, and no MMIO ever."""
    return (
        Deviation("hears-of-the-host", "s390 facts 1", "", OWN),
        Deviation("emulates-mmio", "s390 facts 3.4"),
    )


@hookimpl
def kvmarch_scenarios() -> Sequence[str]:
    """Return the folder of the bugs that the fact sheet has a schedule for."""
    return [str(Path(__file__).parent / "scenarios")]


@hookimpl
def kvmarch_decode(
    k: Any, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is, and its fields."""
    return kinds.decode(k, options, entry, level)


kvmarch_entry_pfn = hookimpl(kinds.entry_pfn)
kvmarch_entry_repoint = hookimpl(kinds.entry_repoint)
kvmarch_walk = hookimpl(kinds.walk_layout)


@hookimpl
def kvmarch_tlb_tag(vcpu: Vcpu) -> int:
    """Return the ASCE of the guest."""
    asce: int = vcpu.vm.arch.asce
    return asce


kvmarch_vcpu_load = hookimpl(prefix.vcpu_load)
kvmarch_vcpu_reload = hookimpl(prefix.vcpu_reload)


@hookimpl
def kvmarch_handle_request(vcpu: Vcpu, request: str) -> None:
    """Purge the guest's TLB at the next entry, if that was asked (ihcpu = 0xffff)."""
    if request == "tlb_flush":
        vcpu.tlb.drop_all()


@hookimpl
def kvmarch_flush_remote_tlbs(vm: Vm, start: int, end: int) -> Any:
    """Ask every vCPU for a purge. Rare: what changes an entry flushes by itself."""
    return flush_by_request(vm, start, end)
