"""The TLB: what a refill caches, and which exception the guest's access raises.

Models the refill handler (lddir, ldpte on CSR.PGD) and the hardware page-table walker
(PTW) (fact sheet loongarch, 1, 2.1, 5). An entry holds an even and an odd page. The
software handler caches what it finds, valid or not; the hardware walker only what is
valid, and where W allows it sets D by itself.
"""

__all__ = ["translate"]

from typing import TYPE_CHECKING

from kvmarch import Translation, Vcpu, Vm

from kvmarch_loongarch.pte import D, V, W, pfn_of
from kvmarch_loongarch.table import Found, at_or_above

if TYPE_CHECKING:
    from kvmarch_loongarch.state import LoongarchVcpu, LoongarchVm


def _translation(vm: Vm, gfn: int, found: Found | None) -> Translation:
    """Return what the TLB makes of an entry; without V it allows nothing."""
    if found is None or not found.entry & V:
        return Translation(gfn, 1, 0, read=False, write=False, exec=False)
    geometry = vm.arch.geometry
    pages = geometry.pages(found.table.level)
    pfn = pfn_of(found.entry, geometry.page_shift)
    dirty = bool(found.entry & D)
    return Translation(gfn & -pages, pages, pfn, read=True, write=dirty, exec=True)


def _software(vcpu: Vcpu, gfn: int) -> Translation:
    """Load the pair of a gfn, absent pages too; return the half that is asked for.

    :Kernel: handle_tlb_refill; no lock, interrupts off.
    """
    # Simplified: the walk is one step, so that no table can be freed in between.
    vm = vcpu.vm
    for number in (gfn ^ 1, gfn):
        half = _translation(vm, number, at_or_above(vm, number, 0))
        vcpu.tlb.insert(vcpu.arch.gid, half)
    return half


def _hardware(vcpu: Vcpu, gfn: int, access: str) -> Translation:
    """Walk, set D where a store finds W, and cache what is valid.

    That an entry without V raises an exception although P is set is unverified (fact
    sheet, 3.4).
    """
    vm = vcpu.vm
    found = at_or_above(vm, gfn, 0)
    if found is not None and access == "write" and found.entry & (V | W | D) == V | W:
        found = found._replace(entry=found.entry | D)
        found.table.set(found.at, found.entry)
    half = _translation(vm, gfn, found)
    if half.read:
        vcpu.tlb.insert(vcpu.arch.gid, half)
    return half


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Look a gfn up, refill on a miss, and raise what hardware raises.

    What is cached is not walked again, however much the table allows by now.

    :returns: the translation; ``beyond`` the guest's addresses; ``invalid`` (V=0) or
        ``modified`` (D=0).
    """
    vm_arch: LoongarchVm = vcpu.vm.arch
    arch: LoongarchVcpu = vcpu.arch
    if gfn >= vm_arch.gfns:
        return "beyond"
    found = vcpu.tlb.lookup(arch.gid, gfn)
    if found is None:
        found = _hardware(vcpu, gfn, access) if vm_arch.ptw else _software(vcpu, gfn)
    if found.allows(access):
        return found
    return "modified" if found.read else "invalid"
