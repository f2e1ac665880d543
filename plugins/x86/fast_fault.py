"""Faults that need no lock: W is missing, or an aged entry is used again.

:Kernel: fast_page_fault(); fact sheet x86, 3.2.
"""

__all__ = ["fast_page_fault"]

from kvmarch_x86.spte import (
    fast_page_fault_spte,
    is_access_allowed,
    is_last_spte,
    is_shadow_present_pte,
)
from kvmarch_x86.state import X86Vm
from kvmarch_x86.tdp_tables import lowest, rcu_read_lock, rcu_read_unlock

from kvmarch import READING, Memslot, Table, Vcpu, Vm, op

TRIES = 4
"""How often a fast fault begins again after it lost a race."""


@op(name="lockless walk")
def _look(vcpu: Vcpu, gfn: int) -> tuple[Table, int, int, str]:
    """Walk to the lowest entry, and keep whoever frees tables waiting.

    The TDP MMU's tables are held by RCU; the others by the vCPU's mode.

    :Kernel: walk_shadow_page_lockless_begin(), kvm_tdp_mmu_fast_pf_get_last_sptep()
    :returns: table, index and entry, and the vCPU's mode from before.
    """
    vm, mode = vcpu.vm, vcpu.mode
    if vm.arch.is_tdp:
        rcu_read_lock(vm)
    else:
        vcpu.mode = READING
    return *lowest(vm, vcpu.arch.root_pa, gfn), mode


@op(name="leave lockless walk")
def _leave(vcpu: Vcpu, mode: str) -> None:
    vm = vcpu.vm
    if vm.arch.is_tdp:
        rcu_read_unlock(vm)
    else:
        vcpu.mode = mode


@op(name="read SPTE")
def _read(table: Table, index: int) -> int:
    return table.get(index)


@op(name="cmpxchg SPTE, fast fault")
def _cmpxchg(vm: Vm, table: Table, index: int, old: int, new: int) -> bool:
    # Is it still a table?
    vm.tables.at(table.pa)
    if table.get(index) != old:
        return False
    table.set(index, new)
    return True


@op(name="mark page dirty")
def _mark_dirty(vcpu: Vcpu, slot: Memslot, gfn: int) -> None:
    vcpu.vm.mark_page_dirty(slot, gfn)


@op(name="trace fast_page_fault")
def _trace(vcpu: Vcpu, gfn: int, old: int, new: int, how: str) -> None:
    vcpu.vm.world.note(
        "fast_page_fault",
        vcpu=vcpu.name,
        gfn=gfn,
        old=old,
        new=new,
        spurious=how == "spurious",
        fixed=how == "fixed",
    )


def _fixed_entry(arch: X86Vm, slot: Memslot, old: int, level: int, access: str) -> int:
    """Return what a fast fault makes of a leaf; the leaf itself if it gives up."""
    layout = arch.layout
    new = fast_page_fault_spte(layout, old, write=access == "write")
    gains_write = new & ~old & layout.writable_mask
    # A huge page under dirty logging must be split.
    if (
        gains_write
        and level > 1
        and (slot.logs_dirty or not arch.rules.fast_fault_huge)
    ):
        return old
    return new if is_access_allowed(layout, new, access) else old


async def fast_page_fault(vcpu: Vcpu, slot: Memslot, gfn: int, access: str) -> bool:
    """Try to give an entry the permission that it lacks, by cmpxchg.

    :returns: whether the fault is over.
    :Locking: none: RCU, or before it the vCPU's mode.
    """
    arch = vcpu.vm.arch
    layout = arch.layout
    how, new = "invalid", 0
    table, index, old, mode = await _look(vcpu, gfn)
    for _attempt in range(TRIES + 1):
        new = old
        if not is_shadow_present_pte(layout, old) or not is_last_spte(
            layout, old, table.level
        ):
            break
        if is_access_allowed(layout, old, access):
            how = "spurious"
            break
        new = _fixed_entry(arch, slot, old, table.level, access)
        if new == old:
            break
        done = await _cmpxchg(vcpu.vm, table, index, old, new)
        if done:
            how = "fixed"
            if new & ~old & layout.writable_mask:
                await _mark_dirty(vcpu, slot, gfn)
            break
        old = await _read(table, index)
    await _leave(vcpu, mode)
    await _trace(vcpu, gfn, old, new, how)
    return how != "invalid"
