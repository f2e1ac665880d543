"""The contract between kvmarch and an architecture.

A plugin is a module named by an entry point of the group ``kvmarch``. It states
``KVMARCH_API`` and implements the hooks below with ``@hookimpl``. Hooks are called
in no step of a run: each operation is linked once, when a machine is made, to the
bare function behind its hook, or to the variant that the kernel's changes pick.

What an operation may be:

* a plain function: one atomic step. The locks that its hook names are held.
* a coroutine function (``async def``): a path of its own, in which every ``await``
  is a step. Use it where the kernel runs without mmu_lock held exclusively, or
  drops a lock in the middle.

An operation that is made differently by different releases is not implemented as
a hook but as a :class:`~kvmarch.Choice` of the operation's name (without the
prefix ``kvmarch_``) among those that :func:`kvmarch_choices` returns.

What an architecture may bring for tools, such as how its tables are walked, or folders
of scenarios, is in :mod:`kvmarch.toolspecs`.

Arguments that mean the same everywhere: ``vm`` and ``vcpu``; ``k``, the assembled
kernel, and ``options``, the machine's options; ``slot``, a memslot; ``gfn``, and
``start`` to ``end``, guest page numbers, the end exclusive; ``old`` and ``new``, a
memslot before and after a change, None if there is none; ``entry``, a value as the
CPU sees it, and ``level``, the architecture's own level number; ``access``, which is
``read``, ``write`` or ``exec``.

The tiers of an architecture, each including those before it:

1. formats: ``kvmarch formats`` works.
2. map, unmap, flush: faults and invalidation.
3. set_spte and aging: what change_pte and reclaim do.
4. write-protection, page sizes, memslots: dirty logging and slot changes.
5. teardown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

from kvmarch.tiers import OPTIONAL, PATHS, TIERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kvmarch.arch import (
        ArchInfo,
        EntryKind,
        FaultResult,
    )
    from kvmarch.changes import Change, Choice, Kernel
    from kvmarch.kernel.memslots import Memslot
    from kvmarch.kernel.vm import Vcpu, Vm
    from kvmarch.machine.steps import Path
    from kvmarch.machine.tlb import Flush, Translation

__all__ = ["API_VERSION", "OPTIONAL", "PATHS", "TIERS", "hookimpl", "hookspec"]

API_VERSION = (1, 3)
"""Major and minor number. A plugin needs the same major and no newer minor."""

hookspec = pluggy.HookspecMarker("kvmarch")
hookimpl = pluggy.HookimplMarker("kvmarch")

# -------------------------------------------------------------------------
# Who are you: called once, when the plugin is loaded
# -------------------------------------------------------------------------


@hookspec
def kvmarch_arch() -> ArchInfo:
    """Return what is true of the architecture in every release.

    :returns: name, title, options such as ``mmu``, page sizes, first release; see
        :class:`~kvmarch.ArchInfo`.
    """


@hookspec
def kvmarch_changes() -> Sequence[Change]:
    """Return the changes that this architecture adds to the table of changes.

    :returns: rows whose ``arch`` is this architecture's name. Changes of the
        generic core need not be repeated; a choice may need them by name.
    """


@hookspec
def kvmarch_choices() -> Sequence[Choice]:
    """Return the operations and values that depend on changes.

    A choice that has an operation's name is that operation. Others are found by
    the plugin's own code as attributes of ``vm.k``. Some names are the core's: it has a
    choice of that name, and the plugin's own one takes its place. Among them:

    * ``mmu_notifier``, false if KVM does not register one;
    * ``host_entry_changed``, if the guest walks the host's own tables: a plain function
      of ``vm``, first virtual page number, pages, old and new
      :class:`~kvmarch.HostPte`, called in the step that changes a host entry, for what
      the instruction that changes it does to the guest;
    * ``transparent_hugepage``, false if a process with a VM has no huge pages.
    """


@hookspec
def kvmarch_formats(k: Kernel, options: Mapping[str, Any]) -> Iterable[EntryKind]:
    """Return every kind of entry that this kernel writes.

    :param k: the assembled kernel; its choices pick among formats.
    :param options: the machine's options, complete, see ``ArchInfo.options``.
    :returns: :class:`~kvmarch.EntryKind` rows: level, name of the kind, format.
    """


@hookspec
def kvmarch_decode(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> tuple[str, Mapping[str, int]]:
    """Return what an entry is.

    :param entry: the value, as the CPU sees it.
    :param level: the architecture's own level number.
    :returns: the name of the kind, and the fields by name. A value that is no
        entry of any kind is named ``unknown``, with no fields.
    """


@hookspec
def kvmarch_entry_pfn(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int
) -> int | None:
    """Return the host page whose address an entry carries.

    :returns: pfn of the first page that the leaf maps; also of an entry that is not
        present but keeps an address; None if there is none, as in a table entry.
    """


@hookspec
def kvmarch_entry_repoint(
    k: Kernel, options: Mapping[str, Any], entry: int, level: int, pfn: int
) -> int:
    """Return the entry as it would be for another host page.

    :param entry: one for which :func:`kvmarch_entry_pfn` returns a page.
    :param pfn: the first page that the leaf shall map.
    """


# -------------------------------------------------------------------------
# Operations, tier 2: map, unmap, flush
# -------------------------------------------------------------------------


@hookspec
def kvmarch_vm_create(vm: Vm) -> Any:
    """Make what the architecture keeps per VM, at VM creation.

    :Kernel: kvm_arch_init_vm(), kvm_init_stage2_mmu(), kvm_mmu_init_vm().
    :returns: a :class:`~kvmarch.Part` with the architecture's variables; it becomes
        ``vm.arch``. Tables live in ``vm.tables``.
    """


@hookspec
def kvmarch_vcpu_create(vcpu: Vcpu) -> Any:
    """Make what the architecture keeps per vCPU, at vCPU creation.

    :Kernel: kvm_arch_vcpu_create().
    :returns: a :class:`~kvmarch.Part` or None; it becomes ``vcpu.arch``.
    """


@hookspec
def kvmarch_vcpu_load(vcpu: Vcpu) -> bool | None:
    """Prepare the guest's translation on the way into the guest.

    Called with requests handled and interrupts off, in the step that enters the
    guest: load or make a root, take a tag.

    :Kernel: kvm_mmu_reload(), kvm_arm_vmid_update(), kvm_vz_vcpu_load_tlb().
    :returns: true if the vCPU must not enter yet; ``vcpu_reload`` runs before it
        tries again.
    """


@hookspec
def kvmarch_vcpu_reload(vcpu: Vcpu) -> Path[None]:
    """Do what takes more than the step that enters the guest.

    Called with interrupts on, after ``vcpu_load`` has refused.

    :Kernel: update_vttbr() up to v5.17.
    """


@hookspec
def kvmarch_tlb_tag(vcpu: Vcpu) -> Any:
    """Return the tag under which this vCPU's translations are cached.

    VMID, LPID, GuestID, ASID and the like; translations of another tag are not
    found.
    """


@hookspec
def kvmarch_handle_request(vcpu: Vcpu, request: str) -> None:
    """Act on one vCPU request on the way into the guest.

    :Kernel: vcpu_enter_guest() and its likes; KVM_REQ_TLB_FLUSH is ``tlb_flush``.
    :param request: ``tlb_flush`` or a name of the architecture's own.
    """


@hookspec
def kvmarch_translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Walk the tables as hardware (or the TLB refill handler) does.

    Sets accessed and dirty bits where hardware does. One atomic step.

    :param access: ``read``, ``write`` or ``exec``.
    :returns: the translation to cache, or the reason of the fault: ``missing``,
        ``permission``, ``access`` (access flag clear), ``reserved`` (marked as
        MMIO), or one of the architecture's own.
    """


@hookspec
def kvmarch_page_fault(
    vcpu: Vcpu, gfn: int, access: str, why: str
) -> Path[FaultResult]:
    """Handle a guest's fault, from exit decoding to the mapped page.

    Always a coroutine. The vCPU is a reader of kvm->srcu. Snapshot of the sequence
    count, look-up, retry check and their locks are the architecture's; the core
    has them as steps, see :mod:`kvmarch.fault`. Where pages are allocated for tables,
    ``vm.out_of_tables`` says whether that fails, and the fault ends as it does then.

    :Kernel: kvm_mmu_page_fault(), kvm_handle_guest_abort(),
        kvmppc_book3s_radix_page_fault(), kvm_mips_map_page().
    :param why: what :func:`kvmarch_translate` returned.
    :returns: ``guest`` (enter again), ``mmio`` (emulate), ``exception`` (the guest gets
        one: there is no memory, and nothing to emulate) or ``error``.
    """


@hookspec
def kvmarch_unmap_gfn_range(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> Flush | None:
    """Clear every entry for ``start`` to ``end`` (gfn, end exclusive).

    :Kernel: kvm_unmap_gfn_range(), from v5.13; the per-hva walk of each
        architecture before.
    :Locking: mmu_lock held for write; dropped on the way only if ``may_block``.
    :param slot: the memslot, which may be marked INVALID.
    :returns: the flush still owed, or None. An architecture that flushes by itself
        has paid when it returns None.
    """


@hookspec
def kvmarch_flush_remote_tlbs(vm: Vm, start: int, end: int) -> None:
    """Make every vCPU forget ``start`` to ``end`` (gfn, end exclusive).

    The generic kvm_flush_remote_tlbs() asks for all gfns. Whatever this does
    counts as payment for the range.

    :Kernel: kvm_flush_remote_tlbs(), kvm_arch_flush_remote_tlbs().
    """


@hookspec
def kvmarch_entry(vm: Vm, gfn: int) -> tuple[int, int]:
    """Return the lowest entry that there is for a gfn, and its level.

    Looks only; used by traces and comparisons, never by a path.

    :returns: entry value and the architecture's level number.
    """


@hookspec
def kvmarch_leaf_table(vm: Vm, gfn: int, level: int) -> tuple[int, int] | None:
    """Return where the entry of a gfn at a level is.

    :returns: physical address in bytes of the table in ``vm.tables``, and the
        entry's index in it; None if no table is linked there.
    """


# -------------------------------------------------------------------------
# Operations, tier 3: change_pte and aging
# -------------------------------------------------------------------------


@hookspec
def kvmarch_set_spte_gfn(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Follow a host PTE that is about to change to another page.

    :Kernel: kvm_set_spte_gfn(), v5.13 to v6.9; kvm_set_spte_hva() before.
    :Locking: mmu_lock held for write.
    :param pte: the new host PTE, a :class:`~kvmarch.HostPte` value.
    :returns: the flush still owed, or None.
    """


@hookspec
def kvmarch_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Mark every entry in the range old; return whether one was young.

    :Kernel: kvm_age_gfn(), kvm_age_hva() before v5.13.
    :Locking: mmu_lock held for write, unless the kernel ages without it.
    """


@hookspec
def kvmarch_test_age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether an entry in the range is young; change nothing.

    :Kernel: kvm_test_age_gfn(), kvm_test_age_hva() before v5.13.
    :Locking: as for aging.
    """


# -------------------------------------------------------------------------
# Operations, tier 4: dirty logging, page sizes, memslots
# -------------------------------------------------------------------------


@hookspec
def kvmarch_prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Check and prepare a memslot change, before it is visible.

    A coroutine where it takes mmu_lock itself.

    :Kernel: kvm_arch_prepare_memory_region().
    :Locking: slots_lock.
    :param change: ``create``, ``delete``, ``move`` or ``flags_only``.
    :returns: 0 or an errno.
    """


@hookspec
def kvmarch_commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> Path[None]:
    """Finish a memslot change: write-protect, flush, free. A coroutine.

    :Kernel: kvm_arch_commit_memory_region(). Takes mmu_lock itself.
    :Locking: slots_lock.
    :param change: as for :func:`kvmarch_prepare_memory_region`.
    """


@hookspec
def kvmarch_flush_shadow_memslot(vm: Vm, slot: Memslot) -> Path[None]:
    """Remove every entry of a slot that is INVALID by now. A coroutine.

    :Kernel: kvm_arch_flush_shadow_memslot(). Takes mmu_lock itself.
    :Locking: slots_lock.
    """


@hookspec
def kvmarch_memslots_updated(vm: Vm, generation: int) -> Path[None]:
    """Hear of a new memslot generation before it becomes current. A coroutine.

    :Kernel: kvm_arch_memslots_updated().
    :Locking: slots_lock.
    :param generation: the final one, without the mark of an update.
    """


@hookspec
def kvmarch_dirty_log_masked(
    vm: Vm, slot: Memslot, gfn: int, mask: int
) -> Flush | None:
    """Make the next write to chosen pages visible again.

    :Kernel: kvm_arch_mmu_enable_log_dirty_pt_masked().
    :Locking: mmu_lock held for write.
    :param gfn: the gfn that bit 0 of the mask stands for.
    :param mask: 64 bits (the bits of one word of the bitmap).
    :returns: the flush owed, due at ``return``; None if nothing changed.
    """


@hookspec
def kvmarch_sync_dirty_log(vm: Vm, slot: Memslot) -> Path[int | None]:
    """Bring what hardware knows into the slot's dirty bitmap. A coroutine.

    :Kernel: kvm_arch_sync_dirty_log(); on ppc the harvest of C bits that replaces
        the generic log.
    :Locking: slots_lock.
    :returns: 0 or None; or the errno with which KVM_GET_DIRTY_LOG fails, where there
        is no dirty log.
    """


# -------------------------------------------------------------------------
# Operations, tier 5: teardown
# -------------------------------------------------------------------------


@hookspec
def kvmarch_flush_shadow_all(vm: Vm) -> Path[None]:
    """Drop all entries, at release of the mm or of the VM. A coroutine.

    May run twice and at once with other callbacks. The locks are the
    architecture's own.

    :Kernel: kvm_arch_flush_shadow_all().
    :Locking: a reader of kvm->srcu, nothing else.
    """


@hookspec
def kvmarch_destroy_vm(vm: Vm) -> Path[None]:
    """Free what is left when nobody uses the VM any more. A coroutine.

    :Kernel: kvm_arch_destroy_vm().
    """
