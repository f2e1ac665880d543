"""What the notifiers do to the table: unmap, change_pte and aging.

Models the hooks of arch/mips/kvm/mmu.c, v4.11 on (fact sheet mips, sections 2, 6.1,
6.2 and 6.4). The range functions want the last gfn and get the one after it: one
page too many is zapped or made old.
"""

__all__ = ["CHOICES", "age_gfn"]

from typing import TYPE_CHECKING

from kvmarch_mips.gpa_table import (
    find_pte,
    kvm_mips_flush_gpa_pt,
    kvm_mips_mkold_gpa_pt,
)
from kvmarch_mips.pte import (
    host_pte,
    pte_present,
    pte_young,
    set_spte_flush,
    set_spte_value,
)

from kvmarch import Choice, Flush, HostPte, Memslot, Vm, op

if TYPE_CHECKING:
    from kvmarch_mips.state import MipsVm

mips_past_end = Choice(
    "mips_past_end", "how far a notifier's end is past the last gfn that is meant"
)
mips_past_end.add(0)
mips_past_end.add(1, "mips-exclusive-end")

# -------------------------------------------------------------------------
# Unmap
# -------------------------------------------------------------------------


def _unmap(vm: Vm, start: int, end: int) -> Flush:
    """Zap a range, and owe a flush whether something was mapped or not."""
    arch: MipsVm = vm.arch
    last = end - arch.past_end
    kvm_mips_flush_gpa_pt(vm, start, last)
    return vm.ledger.owe(start, last + 1)


@op(name="zap range")
def _zap(vm: Vm, start: int, end: int) -> None:
    _unmap(vm, start, end)


unmap_gfn_range = Choice("unmap_gfn_range", "the unmap hook of the notifier")


@unmap_gfn_range.when()
async def _unmap_and_flush(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> None:
    """Zap, flush inside the hook, and ask for nothing.

    :Kernel: kvm_unmap_hva_range(), v4.11 to v5.12; returns 0.
    :Locking: mmu_lock.
    """
    # Simplified: one flush per memslot, and none if there is no memslot in the range;
    # the kernel flushes once after all of them, even after none.
    await _zap(vm, start, end)
    await vm.k.mips_flush_shadow(vm)


@unmap_gfn_range.when("mips-generic-flush")
def _unmap_and_ask(
    vm: Vm, slot: Memslot, start: int, end: int, may_block: bool
) -> Flush:
    """Zap, and always ask for a flush.

    :Kernel: kvm_unmap_gfn_range(), since v5.13.
    :Locking: mmu_lock.
    """
    return _unmap(vm, start, end)


# -------------------------------------------------------------------------
# change_pte
# -------------------------------------------------------------------------

mips_sets_absent = Choice(
    "mips_sets_absent", "whether change_pte stores into an entry that is absent"
)
mips_sets_absent.add(True)
mips_sets_absent.add(False, "mips-set-spte-present-only")


def _set_spte(vm: Vm, slot: Memslot, gfn: int, pte: int) -> Flush | None:
    """Store the host's entry, absent or not; nothing is done without a leaf table.

    :Kernel: kvm_set_spte_handler(), v4.11 to v5.12; kvm_set_spte_gfn(), v5.13 to
        v6.9.
    :Locking: mmu_lock.
    """
    arch: MipsVm = vm.arch
    layout = arch.layout
    found = find_pte(vm, gfn)
    if found is None:
        return None
    table, index = found
    old = table.get(index)
    if not arch.sets_absent and not pte_present(layout, old):
        return None
    new = host_pte(
        layout,
        HostPte.pfn.get(pte),
        write=bool(pte & HostPte.write.mask),
        dirty=bool(pte & HostPte.dirty.mask),
        young=bool(pte & HostPte.young.mask),
        executable=bool(pte & HostPte.exec.mask),
        special=bool(pte & HostPte.special.mask),
    )
    stored = set_spte_value(layout, old, new, slot.logs_dirty, slot.readonly)
    table.set(index, stored)
    if set_spte_flush(layout, old, stored):
        return vm.ledger.owe(gfn, gfn + 1)
    return None


@op(name="set_spte")
def _set_spte_op(vm: Vm, slot: Memslot, gfn: int, pte: int) -> bool:
    return _set_spte(vm, slot, gfn, pte) is not None


set_spte_gfn = Choice("set_spte_gfn", "the change_pte hook")


@set_spte_gfn.when()
async def _set_and_flush(vm: Vm, slot: Memslot, gfn: int, pte: int) -> None:
    """Store, flush inside the hook if that is needed, and ask for nothing.

    :Kernel: kvm_set_spte_hva(), v4.11 to v5.12; void, later an int that is 0.
    :Locking: mmu_lock.
    """
    flush = await _set_spte_op(vm, slot, gfn, pte)
    if flush:
        await vm.k.mips_flush_shadow(vm)


set_spte_gfn.add(_set_spte, "mips-generic-flush")

# -------------------------------------------------------------------------
# Aging
# -------------------------------------------------------------------------


async def age_gfn(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Make the range old; return whether an entry changed. No flush here.

    :Kernel: kvm_age_hva(), v4.11 to v5.12; kvm_age_gfn(), since v5.13.
    :Locking: mmu_lock.
    """
    return await kvm_mips_mkold_gpa_pt(vm, start, end - vm.arch.past_end)


test_age_gfn = Choice("test_age_gfn", "the test_young hook")


@test_age_gfn.when()
def _always_old(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Find nothing young, ever: the range that is looked at is empty (M3).

    :Kernel: kvm_test_age_hva(), v4.11 to v5.12.
    """
    return False


@test_age_gfn.when("mips-gfn-hooks")
def _test_age(vm: Vm, slot: Memslot, start: int, end: int) -> bool:
    """Return whether the first entry of the range is young.

    :Kernel: kvm_test_age_gfn(), since v5.13. One page is all that a caller asks for.
    """
    found = find_pte(vm, start)
    if found is None:
        return False
    table, index = found
    return pte_young(vm.arch.layout, table.get(index))


CHOICES = (
    mips_past_end,
    unmap_gfn_range,
    mips_sets_absent,
    set_spte_gfn,
    test_age_gfn,
)
