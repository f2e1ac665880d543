"""An executable model of how Linux KVM manages guest memory.

The names below are the public ones: a plugin imports them from here and nothing
else of kvmarch.
"""

__all__ = [
    "API_VERSION",
    "BLOCKED",
    "INVALID",
    "IN_GUEST",
    "LOG_DIRTY_PAGES",
    "READING",
    "READONLY",
    "RELEASES",
    "ArchInfo",
    "ArchVerb",
    "Change",
    "Choice",
    "Deviation",
    "EntryError",
    "EntryFormat",
    "EntryKind",
    "FaultIn",
    "FaultResult",
    "Field",
    "Flush",
    "FormatError",
    "HostPte",
    "Kernel",
    "KvmarchError",
    "LabMachine",
    "Lock",
    "LockClass",
    "Match",
    "Memslot",
    "Op",
    "Option",
    "Part",
    "Path",
    "Step",
    "Table",
    "TablePool",
    "Translation",
    "Vcpu",
    "Vm",
    "WalkLayout",
    "WalkLevel",
    "WalkRule",
    "age_without_lock",
    "faultin_pfn",
    "fixup_user_fault",
    "flush_by_request",
    "forgive_flush",
    "gfn_to_memslot",
    "hookimpl",
    "host_mapping",
    "invalidate_tlbs",
    "kvm_flush_remote_tlbs",
    "kvm_flush_remote_tlbs_memslot",
    "kvm_flush_remote_tlbs_range",
    "kvm_make_all_cpus_request",
    "kvm_make_vcpus_request_mask",
    "kvm_mmu_invalidate_begin",
    "kvm_mmu_invalidate_end",
    "mmu_invalidate_retry",
    "mmu_invalidate_retry_gfn",
    "mmu_invalidate_retry_gfn_unsafe",
    "mmu_invalidate_retry_hva",
    "op",
    "release_pfn",
    "slot_of",
    "snapshot_mmu_seq",
    "take_dirty_log_protect",
]

from typing import TYPE_CHECKING

from kvmarch.arch import (
    ArchInfo,
    ArchVerb,
    Deviation,
    EntryKind,
    FaultResult,
    LabMachine,
    Option,
)
from kvmarch.changes import RELEASES, Change, Choice, Kernel
from kvmarch.errors import EntryError, FormatError, KvmarchError
from kvmarch.format.bits import EntryFormat, Field
from kvmarch.format.table import Match, Table, TablePool
from kvmarch.format.walk import WalkLayout, WalkLevel, WalkRule
from kvmarch.kernel.dirty_log import take_dirty_log_protect
from kvmarch.kernel.flush import (
    flush_by_request,
    forgive_flush,
    invalidate_tlbs,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_memslot,
    kvm_flush_remote_tlbs_range,
    kvm_make_all_cpus_request,
    kvm_make_vcpus_request_mask,
)
from kvmarch.kernel.gup import (
    FaultIn,
    faultin_pfn,
    fixup_user_fault,
    host_mapping,
    release_pfn,
)
from kvmarch.kernel.memslots import (
    INVALID,
    LOG_DIRTY_PAGES,
    READONLY,
    Memslot,
    gfn_to_memslot,
)
from kvmarch.kernel.notifier import (
    age_without_lock,
    kvm_mmu_invalidate_begin,
    kvm_mmu_invalidate_end,
)
from kvmarch.kernel.retry import (
    mmu_invalidate_retry,
    mmu_invalidate_retry_gfn,
    mmu_invalidate_retry_gfn_unsafe,
    mmu_invalidate_retry_hva,
    snapshot_mmu_seq,
)
from kvmarch.kernel.vcpu import slot_of
from kvmarch.kernel.vm import IN_GUEST, READING, Vcpu, Vm
from kvmarch.machine.host import HostPte
from kvmarch.machine.locks import Lock, LockClass
from kvmarch.machine.steps import BLOCKED, Op, Path, Step, op
from kvmarch.machine.tlb import Flush, Translation
from kvmarch.machine.world import Part

if TYPE_CHECKING:
    from kvmarch.hookspecs import API_VERSION, hookimpl
else:

    def __getattr__(name: str) -> object:
        """Load the contract, and pluggy with it, when a plugin asks for it."""
        if name not in {"API_VERSION", "hookimpl"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from kvmarch import hookspecs

        return getattr(hookspecs, name)
