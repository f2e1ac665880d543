"""What differs between the MMUs behind one set of hooks.

:Kernel: struct kvmppc_ops, arch/powerpc/include/asm/kvm_ppc.h.
"""

__all__ = ["ALL", "Backend", "KvmppcOps", "always_old", "nothing"]

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

from kvmarch_ppc.layout import Layout

from kvmarch import (
    EntryFormat,
    FaultResult,
    Flush,
    Kernel,
    Memslot,
    Part,
    Path,
    Translation,
    Vcpu,
    Vm,
    op,
)

ALL = (1 << EntryFormat.width) - 1
"""Every bit of an entry."""


class KvmppcOps(NamedTuple):
    """The operations of one MMU; names as in the contract."""

    make_layout: Callable[[Kernel, Mapping[str, Any]], Layout]
    entry_pfn: Callable[[Layout, int, int], int | None]
    entry_repoint: Callable[[Layout, int, int, int], int]
    """Layout, entry, level and pfn."""
    vm_create: Callable[[Vm, Layout], "Backend"]
    vcpu_create: Callable[[Vcpu], Part | None]
    tlb_tag: Callable[[Vcpu], int]
    flush_tlb: Callable[[Vcpu], None]
    """Act on KVM_REQ_TLB_FLUSH."""
    translate: Callable[[Vcpu, int, str], Translation | str]
    page_fault: Callable[[Vcpu, int, str, str], Path[FaultResult]]
    entry: Callable[[Vm, int], tuple[int, int]]
    leaf_table: Callable[[Vm, int, int], tuple[int, int] | None]
    unmap_gfn_range: Callable[[Vm, Memslot, int, int], Awaitable[Flush | None]]
    set_spte_gfn: Callable[[Vm, Memslot, int, int], Awaitable[Flush | None]]
    age_gfn: Callable[[Vm, Memslot, int, int], Awaitable[bool]]
    test_age_gfn: Callable[[Vm, Memslot, int, int], Awaitable[bool]]
    prepare_memory_region: Callable[[Vm, Memslot | None, Memslot | None, str], int]
    commit_memory_region: Callable[
        [Vm, Memslot | None, Memslot | None, str], Path[None]
    ]
    flush_memslot: Callable[[Vm, Memslot], Path[None]]
    dirty_log_masked: Callable[[Vm, Memslot, int, int], Awaitable[Flush | None]]
    sync_dirty_log: Callable[[Vm, Memslot], Path[int]]
    """Returns 0 or the errno with which KVM_GET_DIRTY_LOG fails."""
    take_dirty_log: Callable[[Vm, Memslot], Path[int]]
    """Returns the bitmap, and begins anew."""
    destroy_vm: Callable[[Vm], Path[None]]


class Backend(Part):
    """What a VM keeps for its MMU; it becomes ``vm.arch``.

    :param layout: the bits of every entry.
    """

    ops: KvmppcOps
    """kvm->arch.kvm_ops"""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout


@op(name="nothing")
def nothing(vm: Vm, *_args: Any) -> None:
    """Do nothing: the body of a hook that an MMU leaves empty."""


@op(name="never young")
def always_old(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Say that no page was used, without a look (Book3S PR, e500)."""
    return False
