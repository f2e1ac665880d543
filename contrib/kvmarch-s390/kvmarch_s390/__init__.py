"""s390: gmap over the host's page tables up to v6.19, KVM's own tables from v7.0 on.

The hooks of kvmarch's contract; what they do is in the modules beside this one, mostly
twice: ``shared`` and ``own``. What is modelled, and what is not, is in the README.
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
    KvmarchError,
    Memslot,
    Option,
    Vcpu,
    Vm,
    flush_by_request,
    hookimpl,
    op,
)

from kvmarch_s390 import kinds, own, prefix, shared, slots, tables
from kvmarch_s390.changes import CHANGES
from kvmarch_s390.geometry import ROOTS, entries, pages

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


def _by_tables(name: str, doc: str, *, over: Any, with_own: Any) -> Choice:
    """Return a choice between the two designs."""
    choice = Choice(name, doc)
    choice.add(over)
    choice.add(with_own, "s390-own-tables")
    return choice


def _vm_create(create: Any, mmu: str) -> Any:
    def make(vm: Vm) -> Any:
        """Make the tables down to the root."""
        if vm.options["mmu"] != mmu:
            raise KvmarchError(
                f"s390: mmu={vm.options['mmu']} does not go with "
                f"{'' if mmu == 'own' else 'a kernel without '}s390-own-tables"
            )
        level = ROOTS[vm.options["root"]]
        return create(vm, level, pages(level) * entries(level))

    return make


@op(name="copy and clear bitmap")
def _take(vm: Vm, slot: Memslot) -> int:
    """Return the bitmap and begin anew; slots_lock keeps others out.

    A page that is marked between the two would be lost; the sync that marks pages has
    run just before, and nothing else does.
    """
    bitmap = vm.dirty_bitmaps[slot.bitmap]
    bits = int.from_bytes(bitmap, "little")
    bitmap[:] = bytes(len(bitmap))
    return bits


async def take_dirty_log(vm: Vm, slot: Memslot) -> int:
    """Take the bitmap that the sync has filled.

    :Kernel: kvm_vm_ioctl_get_dirty_log()
    """
    return await _take(vm, slot)


def _constant(name: str, doc: str, value: Any) -> Choice:
    choice = Choice(name, doc)
    choice.add(value)
    return choice


OPERATIONS = (
    _by_tables(
        "mmu_notifier",
        "whether KVM hears of what the host mm does",
        over=False,
        with_own=True,
    ),
    _by_tables(
        "host_entry_changed",
        "what a change of a host entry does to the guest",
        over=shared.entry_changed,
        with_own=None,
    ),
    _by_tables(
        "transparent_hugepage",
        "whether a process with a VM may have huge pages",
        over=False,
        with_own=True,
    ),
    _by_tables(
        "mmu_lock_kind",
        "whether mmu_lock has a read mode",
        over="spinlock",
        with_own="rwlock",
    ),
    _constant("generic_dirty_log", "whether GET_DIRTY_LOG flushes by itself", False),
    _constant("take_dirty_log", "how GET_DIRTY_LOG takes the bitmap", take_dirty_log),
    _by_tables(
        "vm_create",
        "the tables of a new VM",
        over=_vm_create(shared.vm_create, "shared"),
        with_own=_vm_create(tables.vm_create, "own"),
    ),
    _by_tables(
        "translate",
        "what hardware makes of an access",
        over=shared.translate,
        with_own=tables.translate,
    ),
    _by_tables(
        "s390_prefix_guarded",
        "whether a page of a prefix may be written and is marked",
        over=shared.prefix_guarded,
        with_own=own.prefix_guarded,
    ),
    _by_tables(
        "page_fault",
        "how a fault of the guest is handled",
        over=shared.page_fault,
        with_own=own.page_fault,
    ),
    _by_tables(
        "unmap_gfn_range",
        "the unmap hook",
        over=shared.no_hook,
        with_own=own.unmap_gfn_range,
    ),
    _by_tables("age_gfn", "the aging hook", over=shared.no_hook, with_own=own.age_gfn),
    _by_tables(
        "test_age_gfn",
        "the test_young hook",
        over=shared.no_hook,
        with_own=own.test_age_gfn,
    ),
    _constant(
        "set_spte_gfn", "the change_pte hook: none in any release", shared.no_hook
    ),
    _by_tables(
        "entry",
        "the lowest entry of a gfn",
        over=shared.entry_of,
        with_own=tables.entry_of,
    ),
    _by_tables(
        "leaf_table",
        "where an entry is",
        over=shared.leaf_table,
        with_own=tables.leaf_table,
    ),
    _by_tables(
        "prepare_memory_region",
        "what comes before a memslot is visible",
        over=shared.prepare_memory_region,
        with_own=slots.prepare_memory_region,
    ),
    _by_tables(
        "commit_memory_region",
        "what comes after a memslot is visible",
        over=shared.commit_memory_region,
        with_own=shared.no_path,
    ),
    _constant("flush_shadow_memslot", "the removal of an INVALID slot", shared.no_path),
    _constant("flush_shadow_all", "the release of the mm", shared.no_path),
    _constant(
        "dirty_log_masked", "the hook of a log that protects: none", shared.no_hook
    ),
    _by_tables(
        "sync_dirty_log",
        "how what was written is brought into the bitmap",
        over=shared.sync_dirty_log,
        with_own=own.sync_dirty_log,
    ),
    _by_tables(
        "destroy_vm",
        "the end of the tables",
        over=shared.destroy_vm,
        with_own=slots.destroy_vm,
    ),
)
"""What the two designs do differently, and what is the same in both."""


@hookimpl
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes of KVM/s390."""
    return CHANGES


@hookimpl
def kvmarch_choices() -> Sequence[Choice]:
    """Return what depends on changes: nearly everything."""
    return (
        *OPERATIONS,
        *kinds.CHOICES,
        *shared.CHOICES,
        *own.CHOICES,
        *slots.CHOICES,
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
