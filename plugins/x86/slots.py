"""What a change of the memslots means for the tables.

:Kernel: kvm_arch_prepare_memory_region(), kvm_arch_commit_memory_region(),
    kvm_arch_flush_shadow_memslot(), kvm_arch_memslots_updated(); fact sheet x86, 3.6,
    3.7 and 3.9.
"""

__all__ = [
    "CHOICES",
    "commit_memory_region",
    "memslots_updated",
    "prepare_memory_region",
]

from errno import EINVAL
from typing import TYPE_CHECKING

from kvmarch_x86.dirty_log import start_logging
from kvmarch_x86.mmio import mmio_generation_wrapped
from kvmarch_x86.rmap_mmu import (
    rmap_unmap_gfn_range,
    rmap_zap_all,
    rmap_zap_collapsible,
    rmap_zap_obsolete_pages,
)
from kvmarch_x86.tdp_unmap import unmap_now
from kvmarch_x86.tdp_zap import (
    invalidate_roots,
    tdp_zap_all,
    zap_invalidated_roots,
)

from kvmarch import (
    Choice,
    Flush,
    Memslot,
    Vm,
    kvm_flush_remote_tlbs,
    kvm_make_all_cpus_request,
    op,
)

if TYPE_CHECKING:
    from kvmarch_x86.state import X86Vm


def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse a memslot beyond what tables can address.

    :Kernel: kvm_arch_prepare_memory_region(); the test is of v5.18 or later (from
        memory), no guest of an older kernel could use such a slot either.
    """
    arch: X86Vm = vm.arch
    if change in {"create", "move"} and new is not None:
        last = new.end_gfn - 1
        if last >> min(arch.layout.mmio_gfn_bits or arch.gfn_bits, arch.gfn_bits):
            return EINVAL
    return 0


# -- zapping everything ------------------------------------------------------------


@op(name="toggle mmu_valid_gen")
def _next_generation(vm: Vm) -> None:
    """Make every table of the direct MMU obsolete, and its roots unfit for loads.

    :Kernel: kvm_mmu_zap_all_fast(); a count up to v5.0, 0 or 1 later.
    """
    arch: X86Vm = vm.arch
    arch.mmu_valid_gen += 1
    if not arch.is_tdp:
        arch.root_of.clear()


async def zap_all_fast(vm: Vm) -> None:
    """Make everything obsolete at once, and zap it bit by bit.

    Vcpus leave their roots on a request that is made with the lock still held. The TDP
    MMU zaps in v5.10 to v5.12 what is in its roots and keeps them; from v5.13 on it
    makes them invalid and zaps with mmu_lock for read.

    :Kernel: kvm_mmu_zap_all_fast(), kvm_mmu_invalidate_zap_all_pages() up to v5.0
    :Locking: slots_lock; takes mmu_lock.
    """
    arch = vm.arch
    rules = arch.rules
    async with vm.mmu_lock.write():
        await _next_generation(vm)
        if arch.is_tdp and rules.invalidates_roots:
            await invalidate_roots(vm)
        await kvm_make_all_cpus_request(vm, vm.k.x86_reload_request)
        if not arch.is_tdp:
            await rmap_zap_obsolete_pages(vm)
        elif not rules.invalidates_roots and not rules.zaps_all_shared:
            await tdp_zap_all(vm)
    if arch.is_tdp and rules.invalidates_roots:
        await zap_invalidated_roots(vm, rules.uses_rcu)
    elif arch.is_tdp and rules.zaps_all_shared:
        async with vm.mmu_lock.read(), vm.rcu.read():
            await tdp_zap_all(vm, shared=True)


# -- a memslot is deleted or moved -------------------------------------------------

flush_shadow_memslot = Choice(
    "flush_shadow_memslot", "what is zapped when a memslot is deleted or moved"
)


@flush_shadow_memslot.when()
async def _zap_everything(vm: Vm, slot: Memslot) -> None:
    """Zap everything, the fast way (to v5.0, again from v5.4).

    Other memslots are zapped too: assigned devices were seen to break otherwise.
    """
    await zap_all_fast(vm)


@op(name="zap memslot")
def _zap_slot(vm: Vm, slot: Memslot) -> Flush | None:
    start, end = slot.base_gfn, slot.end_gfn
    if vm.arch.is_tdp:
        return unmap_now.fn(vm, slot.as_id, start, end)
    return rmap_unmap_gfn_range(vm, slot, start, end)


async def _zap_slot_only(vm: Vm, slot: Memslot) -> None:
    async with vm.mmu_lock.write():
        owed = await _zap_slot(vm, slot)
        if owed is not None:
            await kvm_flush_remote_tlbs(vm)


@flush_shadow_memslot.when("x86-slot-only-zap")
async def _zap_only_slot(vm: Vm, slot: Memslot) -> None:
    """Zap the memslot's own pages (v5.1 and v5.2).

    Simplified: tables that mapped nothing else stay.

    :Kernel: kvm_mmu_invalidate_zap_pages_in_memslot()
    """
    await _zap_slot_only(vm, slot)


@flush_shadow_memslot.when("x86-yielding-zap-all")
async def _zap_all_yielding(vm: Vm, slot: Memslot) -> None:
    """Zap everything, beginning again after each yield (v5.3; D10).

    :Kernel: kvm_mmu_zap_all()
    """
    async with vm.mmu_lock.write():
        await rmap_zap_all(vm)


@flush_shadow_memslot.when("x86-slot-zap-quirk")
async def _zap_by_quirk(vm: Vm, slot: Memslot) -> None:
    """Zap everything, unless user space has turned the quirk off (v6.12 on).

    :Kernel: kvm_arch_flush_shadow_memslot(), kvm_mmu_zap_memslot()
    """
    if vm.arch.slot_zap_all:
        await zap_all_fast(vm)
    else:
        await _zap_slot_only(vm, slot)


# -- flags and generation ----------------------------------------------------------


@op(name="zap collapsible SPTEs of the direct MMU")
def _zap_collapsible(vm: Vm, slot: Memslot) -> Flush | None:
    return rmap_zap_collapsible(vm, slot)


async def _stop_logging(vm: Vm, slot: Memslot) -> None:
    """Let the memslot have huge pages again.

    :Kernel: kvm_mmu_zap_collapsible_sptes(), kvm_mmu_recover_huge_pages()
    :Locking: mmu_lock: for read in the TDP MMU, from v5.13 on.
    """
    arch = vm.arch
    lock = vm.mmu_lock
    if arch.is_tdp:
        shared = arch.shares_log
        async with lock.read() if shared else lock.write(), vm.rcu.read():
            await vm.k.x86_collapse(vm, slot)
    else:
        async with lock.write():
            owed = await _zap_collapsible(vm, slot)
            if owed is not None:
                await kvm_flush_remote_tlbs(vm)


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Follow a change of flags; other changes find no entries to change.

    Nor does anything in a read-only memslot have to change: its pages are not written.

    :Kernel: kvm_arch_commit_memory_region(), kvm_mmu_slot_apply_flags()
    """
    if change != "flags_only" or old is None or new is None or new.readonly:
        return
    if new.logs_dirty and not old.logs_dirty:
        await start_logging(vm, new)
    elif old.logs_dirty and not new.logs_dirty:
        await _stop_logging(vm, new)


async def memslots_updated(vm: Vm, generation: int) -> None:
    """Zap everything if old MMIO entries could match the new generation.

    :Kernel: kvm_arch_memslots_updated(), kvm_mmu_invalidate_mmio_sptes(). Simplified:
        it also kicks the vCPUs, so that they look at their steal time; harmless because
        they come back with what they had.
    """
    if mmio_generation_wrapped(vm.arch.layout, generation):
        await zap_all_fast(vm)


initially_set_log = Choice(
    "initially_set_log", "whether a dirty bitmap may start with every bit set"
)
initially_set_log.add(False)
initially_set_log.add(True, "log-initially-set")


CHOICES = (flush_shadow_memslot, initially_set_log)
