"""The host's own PTE behind a page of the guest, read as faults of Book3S HV do.

:Kernel: find_kvm_host_pte(), arch/powerpc/include/asm/kvm_book3s_64.h, v5.8 on;
    __find_linux_pte() in the fault handlers before. Fact sheet ppc, 3.5 step 6, 4.7
    and P9 to P11.
"""

__all__ = ["CHOICES", "NO_PTE", "HostMapping", "find_kvm_host_pte"]

from typing import NamedTuple

from kvmarch import (
    Choice,
    HostPte,
    Memslot,
    Vm,
    host_mapping,
    mmu_invalidate_retry,
    op,
)

PRESENT = HostPte.present.mask


class HostMapping(NamedTuple):
    """What was found.

    :param pte: a :class:`~kvmarch.HostPte` value.
    :param pages: base pages that the host maps with this entry.
    :param usable: whether the fault goes on; if not, the guest faults again.
    """

    pte: int
    pages: int
    usable: bool = True


NO_PTE = HostMapping(0, 0, usable=False)

find_host_pte = Choice("ppc_find_host_pte", "how a fault reads the host's PTE")
null_host_pte = Choice(
    "ppc_null_host_pte_checked", "whether a walk that ends above the PTE is expected"
)
null_host_pte.add(False)
null_host_pte.add(True, "ppc-radix-null-host-pte")


@op(name="__find_linux_pte returns NULL?")
def _is_null(vm: Vm, slot: Memslot, gfn: int) -> bool:
    """Return whether there is no PTE table, as while a huge page is collapsed."""
    mm = vm.mm
    size = 1 << mm.pmd_order + mm.page_shift
    start = slot.hva(gfn, vm.page_shift) & -size
    if next(mm.mapped(start, start + size), None) is not None or any(
        start <= vpn << mm.page_shift < start + size for vpn in mm.swapped
    ):
        return False
    return not vm.warn(
        not vm.k.ppc_null_host_pte_checked,
        f"the host's page table has no PTE for gfn {gfn:#x}, and NULL is dereferenced",
    )


@find_host_pte.when()
async def _unlocked(vm: Vm, slot: Memslot, gfn: int, seq: int) -> HostMapping:
    """Walk with interrupts off; take what is there, present or not (to v5.6)."""
    pte, pages = await host_mapping(vm, slot, gfn)
    if not pte:
        null = await _is_null(vm, slot, gfn)
        if null:
            return NO_PTE
    return HostMapping(pte, pages)


@find_host_pte.when("ppc-host-pte-present")
async def _unlocked_present(vm: Vm, slot: Memslot, gfn: int, seq: int) -> HostMapping:
    """Walk with interrupts off; take a present PTE only (v5.7)."""
    pte, pages = await host_mapping(vm, slot, gfn)
    return HostMapping(pte, pages, pte & PRESENT != 0)


@find_host_pte.when("ppc-host-pte-present", "ppc-host-pte-locked")
async def find_kvm_host_pte(vm: Vm, slot: Memslot, gfn: int, seq: int) -> HostMapping:
    """Walk under mmu_lock, unless an invalidation is under way (v5.8 on)."""
    found = NO_PTE
    async with vm.mmu_lock.write():
        stale = await mmu_invalidate_retry(vm, seq)
        if not stale:
            pte, pages = await host_mapping(vm, slot, gfn)
            found = HostMapping(pte, pages, pte & PRESENT != 0)
    return found


CHOICES = (find_host_pte, null_host_pte)
