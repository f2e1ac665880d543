"""Memslot changes and the dirty log.

Models arch/mips/kvm/mips.c and mmu.c, v4.11 on (fact sheet mips, sections 6.5 and
6.6). Here the last gfn of a range is right.
"""

__all__ = ["commit_memory_region", "dirty_log_masked", "flush_shadow_memslot"]

from kvmarch_mips.gpa_table import kvm_mips_flush_gpa_pt, kvm_mips_mkclean_gpa_pt

from kvmarch import Flush, Memslot, Vm, op


@op(name="mkclean memslot")
def _mkclean(vm: Vm, slot: Memslot) -> bool:
    if not kvm_mips_mkclean_gpa_pt(vm, slot.base_gfn, slot.end_gfn - 1):
        return False
    vm.ledger.owe(slot.base_gfn, slot.end_gfn)
    return True


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Make a slot clean when its dirty log is switched on.

    Nothing is undone when it is switched off: a page becomes dirty again by an
    ordinary fault.

    :Kernel: kvm_arch_commit_memory_region(), since v4.11.
    :Locking: slots_lock; takes mmu_lock, under which it flushes.
    """
    if change != "flags_only" or old is None or new is None:
        return
    if new.logs_dirty and not old.logs_dirty:
        async with vm.mmu_lock.write():
            cleaned = await _mkclean(vm, new)
            if cleaned:
                await vm.k.mips_flush_shadow(vm)


@op(name="zap memslot")
def _zap(vm: Vm, slot: Memslot) -> None:
    kvm_mips_flush_gpa_pt(vm, slot.base_gfn, slot.end_gfn - 1)
    vm.ledger.owe(slot.base_gfn, slot.end_gfn)


async def flush_shadow_memslot(vm: Vm, slot: Memslot) -> None:
    """Zap a slot that is INVALID by now, and flush the VM.

    :Kernel: kvm_arch_flush_shadow_memslot(), since v4.11.
    :Locking: slots_lock; takes mmu_lock, under which it flushes.
    """
    async with vm.mmu_lock.write():
        await _zap(vm, slot)
        await vm.k.mips_flush_shadow(vm)


def dirty_log_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Make everything from the lowest to the highest page of the mask clean.

    Pages between them are made clean too. Either their bit stays in the bitmap, or
    they were clean.

    :Kernel: kvm_arch_mmu_enable_log_dirty_pt_masked(), since v4.11.
    :Locking: mmu_lock; the flush comes after it, under slots_lock.
    """
    lowest, highest = (mask & -mask).bit_length() - 1, mask.bit_length() - 1
    if not kvm_mips_mkclean_gpa_pt(vm, gfn + lowest, gfn + highest):
        return None
    return vm.ledger.owe(gfn + lowest, gfn + highest + 1, due="return")
