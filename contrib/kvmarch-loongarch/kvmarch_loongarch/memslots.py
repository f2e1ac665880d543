"""Memslot changes and the dirty log.

Models arch/loongarch/kvm/mmu.c, v6.8 on (fact sheet loongarch, 3.5, 3.7).
"""

__all__ = [
    "CAPABLE",
    "CHOICES",
    "INCAPABLE",
    "commit_memory_region",
    "dirty_log_masked",
    "prepare_memory_region",
    "supports_huge",
]

import errno
from typing import TYPE_CHECKING

from kvmarch import Choice, Flush, Memslot, Vm, kvm_flush_remote_tlbs, op

from kvmarch_loongarch.state import slot_key
from kvmarch_loongarch.table import mkclean_range

if TYPE_CHECKING:
    from kvmarch_loongarch.state import LoongarchVm

CAPABLE = 1 << 0
"""KVM_MEM_HUGEPAGE_CAPABLE: every part may be mapped by huge pages."""
INCAPABLE = 1 << 1
"""KVM_MEM_HUGEPAGE_INCAPABLE: none may, because gpa and hva lie differently."""

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

loongarch_spare_gpa_bits = Choice(
    "loongarch_spare_gpa_bits", "how many bits of an address the guest may not use"
)
loongarch_spare_gpa_bits.add(1)
loongarch_spare_gpa_bits.add(0, "loongarch-full-gpa-size")

loongarch_keeps_slot_flags = Choice(
    "loongarch_keeps_slot_flags", "whether a slot's arch flags survive FLAGS_ONLY"
)
loongarch_keeps_slot_flags.add(False)
loongarch_keeps_slot_flags.add(True, "loongarch-slot-flags-kept")

loongarch_protects_readonly = Choice(
    "loongarch_protects_readonly", "whether a read-only slot is cleaned for its log"
)
loongarch_protects_readonly.add(True)
loongarch_protects_readonly.add(False, "loongarch-readonly-not-logged")

loongarch_initially_set = Choice(
    "loongarch_initially_set",
    "whether nothing is cleaned if all pages count as dirty in the beginning",
)
loongarch_initially_set.add(False)
loongarch_initially_set.add(True, "loongarch-initially-all-set")

# -------------------------------------------------------------------------
# Flags of slots, and huge pages
# -------------------------------------------------------------------------


def slot_flags(vm: Vm, slot: Memslot) -> int:
    """Return what a new memslot says about huge pages.

    :Kernel: kvm_arch_prepare_memory_region(), for CREATE and MOVE.
    """
    block = vm.arch.geometry.pages(1) << vm.page_shift
    size = slot.npages << vm.page_shift
    gpa = slot.base_gfn << vm.page_shift
    offset = gpa % block
    if not (size % block or offset or slot.userspace_addr % block):
        return CAPABLE
    if offset != slot.userspace_addr % block:
        return INCAPABLE
    return INCAPABLE if size + (offset or block) < 2 * block else 0


def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse what is beyond the guest's addresses, and note the slot's flags.

    With FLAGS_ONLY the new slot has no flags at all, up to v7.1 (fact sheet, bug 2).

    :Kernel: kvm_arch_prepare_memory_region(), since v6.8.
    """
    arch: LoongarchVm = vm.arch
    if new is None:
        return 0
    if change == "flags_only":
        if old is not None and vm.k.loongarch_keeps_slot_flags:
            arch.slot_flags[slot_key(new)] = arch.slot_flags.get(slot_key(old), 0)
        return 0
    if new.end_gfn > arch.gfns:
        return errno.ENOMEM
    arch.slot_flags[slot_key(new)] = slot_flags(vm, new)
    return 0


def supports_huge(vm: Vm, slot: Memslot, gfn: int, write: bool) -> bool:
    """Return whether a fault may map a huge page, as far as the slot is concerned.

    :Kernel: fault_supports_huge_mapping()
    """
    if slot.logs_dirty and write:
        return False
    flags = vm.arch.slot_flags.get(slot_key(slot), 0)
    if flags & (CAPABLE | INCAPABLE):
        return bool(flags & CAPABLE)
    block = vm.arch.geometry.pages(1) << vm.page_shift
    hva = slot.hva(gfn, vm.page_shift)
    first = -(-slot.userspace_addr // block) * block
    stop = slot.hva(slot.end_gfn, vm.page_shift) // block * block
    return bool(first <= hva < stop)


# -------------------------------------------------------------------------
# The dirty log
# -------------------------------------------------------------------------


@op(name="mkclean memslot")
def _mkclean(vm: Vm, slot: Memslot) -> bool:
    changed = mkclean_range(vm, slot.base_gfn, slot.end_gfn)
    if changed:
        vm.ledger.owe(slot.base_gfn, slot.end_gfn, due="return")
    return changed


@op(name="forget flags of old slot")
def _forget(vm: Vm, old: Memslot, new: Memslot | None) -> None:
    if new is None or slot_key(old) != slot_key(new):
        vm.arch.slot_flags.pop(slot_key(old), None)


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Make a slot clean when its dirty log is switched on.

    :Kernel: kvm_arch_commit_memory_region(), since v6.8.
    :Locking: slots_lock; takes mmu_lock, and flushes after it.
    """
    if old is not None:
        await _forget(vm, old, new)
    if change != "flags_only" or old is None or new is None:
        return
    if new.readonly and not vm.k.loongarch_protects_readonly:
        return
    if not new.logs_dirty or old.logs_dirty:
        return
    if vm.initially_set and vm.k.loongarch_initially_set:
        return
    async with vm.mmu_lock.write():
        cleaned = await _mkclean(vm, new)
    if cleaned:
        await kvm_flush_remote_tlbs(vm)


def dirty_log_masked(vm: Vm, slot: Memslot, gfn: int, mask: int) -> Flush | None:
    """Make the pages of a mask clean; a huge leaf that it meets as a whole.

    :Kernel: kvm_arch_mmu_enable_log_dirty_pt_masked(), since v6.8.
    :Locking: mmu_lock; the flush comes after it, under slots_lock.
    """
    low, high = (mask & -mask).bit_length() - 1, mask.bit_length()
    if not mkclean_range(vm, gfn + low, gfn + high, mask >> low):
        return None
    return vm.ledger.owe(gfn + low, gfn + high, due="return")


CHOICES = (
    loongarch_spare_gpa_bits,
    loongarch_keeps_slot_flags,
    loongarch_protects_readonly,
    loongarch_initially_set,
)
