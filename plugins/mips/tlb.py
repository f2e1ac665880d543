"""The TLB that software fills, and the ways to make it forget.

Models arch/mips/kvm/vz.c, tlb.c and trap_emul.c, and the generated refill handler
(fact sheet mips, sections 2, 5.2 and 7). A TLB entry holds an even and an odd page;
an absent one is cached as invalid. A flush renames: what is cached under the old
number stays, unreachable, until the numbers wrap.
"""

__all__ = [
    "CHOICES",
    "handle_request",
    "host_tlb_inv",
    "prepare_flush_shadow",
    "translate",
    "vcpu_load",
]

from typing import Any

from kvmarch_mips.gpa_table import find_pte
from kvmarch_mips.guestid import (
    get_new_asid,
    get_new_guestid,
    hardware_id,
    is_stale,
)
from kvmarch_mips.pte import EntryLo, Layout, mips3_tlbpfn_to_paddr, pte_to_entrylo
from kvmarch_mips.state import ID_MASK, MipsVcpu, MipsVm

from kvmarch import (
    Choice,
    Translation,
    Vcpu,
    Vm,
    flush_by_request,
    kvm_flush_remote_tlbs,
    op,
)

VPN2_SHIFT = 13
"""Lowest bit of EntryHi.VPN2: a pair of the smallest pages, 4 KiB each."""

MAX_SLOT_PAGES = (1 << 31) - 1
"""KVM_MEM_MAX_NR_PAGES. Who flushes more than that does not mean a memslot."""

# -------------------------------------------------------------------------
# Lookup and refill
# -------------------------------------------------------------------------


def half(layout: Layout, gfn: int, pte: int) -> Translation:
    """Return one half of a TLB entry as the refill handler loads it.

    Neither readable nor executable means V=0; DIRTY of an invalid half counts for
    nothing.
    """
    lo = pte_to_entrylo(layout, pte)
    valid = bool(lo & EntryLo.v.mask)
    return Translation(
        gfn,
        1,
        mips3_tlbpfn_to_paddr(lo) >> layout.page_shift,
        read=valid and not lo & EntryLo.ri.mask,
        write=valid and bool(lo & EntryLo.d.mask),
        exec=valid and not lo & EntryLo.xi.mask,
    )


def _refill(vcpu: Vcpu, gfn: int) -> Translation:
    """Load the pair of a gfn, absent halves too; return the half of the gfn.

    With VZ from the GPA page table, with trap and emulate from the GVA page table
    that is derived from it.

    :Kernel: kvm_mips_build_tlb_refill_exception(). No lock; interrupts are blocked.
    """
    # Simplified: reading both levels and loading the entry is one step, so that no
    # table can be freed in between (M7 of the fact sheet).
    vm = vcpu.vm
    vm_arch: MipsVm = vm.arch
    arch: MipsVcpu = vcpu.arch
    even = gfn & ~1
    if vm_arch.mmu == "te":
        ptes = arch.gva.get(even, 0), arch.gva.get(even | 1, 0)
    else:
        found = find_pte(vm, even)
        if found is None:
            ptes = 0, 0
        else:
            table, index = found
            ptes = table.get(index), table.get(index | 1)
    layout = vm_arch.layout
    # Simplified: the halves are cached, and give way, one by one. Harmless because
    # a half that is missed is filled again with the other one.
    pair = half(layout, even, ptes[0]), half(layout, even | 1, ptes[1])
    for each in pair:
        vcpu.tlb.insert(arch.tag, each)
    return pair[gfn & 1]


def translate(vcpu: Vcpu, gfn: int, access: str) -> Translation | str:
    """Look a gfn up in the TLB, refill it on a miss, and raise what hardware raises.

    An entry that is cached is not walked again, however much the tables allow by
    now. Hardware sets neither A nor D.

    :returns: the half of the entry; or ``invalid`` (V=0: absent, old, or a buddy that
        was absent), ``modified`` (D=0: clean or read-only), ``read-inhibit`` or
        ``exec-inhibit``.
    """
    found = vcpu.tlb.lookup(vcpu.arch.tag, gfn) or _refill(vcpu, gfn)
    if found.allows(access):
        return found
    if not found.read and not found.exec:
        return "invalid"
    return {"write": "modified", "read": "read-inhibit"}.get(access, "exec-inhibit")


mips_vpn2_mask = Choice(
    "mips_vpn2_mask", "which bits of a GPA a local TLB invalidation looks for"
)
mips_vpn2_mask.add((1 << 32) - (1 << VPN2_SHIFT))
mips_vpn2_mask.add(-(1 << VPN2_SHIFT), "mips-vpn2-mask")


@op(name="invalidate pair in local TLB")
def host_tlb_inv(vcpu: Vcpu, gfn: int) -> None:
    """Drop the pair of a gfn from this CPU's TLB; other CPUs take a spurious fault.

    :Kernel: kvm_vz_host_tlb_inv(), kvm_mips_host_tlb_inv(). Before 5816c76dea11 the
        former masked the GPA to 32 bits and missed every pair above 4 GiB (M11).
    """
    # Simplified: a pair that was missed stays, where hardware gives its place away by
    # chance and so ends the guest's loop.
    vm_arch: MipsVm = vcpu.vm.arch
    even = gfn & (~1 if vm_arch.mmu == "te" else vm_arch.pairs)
    tag = vcpu.arch.tag
    vcpu.tlb.drop(tag, even, even + 1)
    vcpu.tlb.drop(tag, even + 1, even + 2)


# -------------------------------------------------------------------------
# Numbers
# -------------------------------------------------------------------------


def vcpu_load(vcpu: Vcpu) -> None:
    """Make sure that the number of this vCPU on this CPU is valid, and use it.

    :Kernel: kvm_vz_vcpu_load_tlb(); check_mmu_context() with trap and emulate.
    """
    vm_arch: MipsVm = vcpu.vm.arch
    arch: MipsVcpu = vcpu.arch
    if vcpu.number in vm_arch.asid_flush_mask:
        vm_arch.asid_flush_mask.discard(vcpu.number)
        arch.context = 0
    if is_stale(ID_MASK, arch.context, arch.cache):
        get_new = get_new_guestid if vm_arch.mmu == "guestid" else get_new_asid
        taken = get_new(ID_MASK, arch.cache)
        if taken.flush:
            vcpu.tlb.drop_all()
        arch.context = arch.cache = taken.number
        arch.tag = hardware_id(ID_MASK, taken.number)
        if vm_arch.mmu == "guestid":
            vcpu.vm.world.note(
                "kvm_guestid_change", vcpu=vcpu.name, guestid=taken.number
            )


def handle_request(vcpu: Vcpu, request: str) -> None:
    """Give the number up, so that the next load takes another one.

    Without GuestID nothing is done: being kicked makes the vCPU look at
    ``asid_flush_mask``. With trap and emulate everything that was derived from the
    GPA page table goes too.

    :Kernel: kvm_vz_check_requests(), kvm_trap_emul_check_requests().
    """
    vm_arch: MipsVm = vcpu.vm.arch
    if vm_arch.mmu == "rad":
        return
    vcpu.arch.context = 0
    vcpu.arch.gva.clear()


# -------------------------------------------------------------------------
# Flushes of the whole VM
# -------------------------------------------------------------------------


@op(name="prepare_flush_shadow")
def prepare_flush_shadow(vm: Vm) -> None:
    """Say that a new root ASID is needed on every CPU, without GuestID.

    :Kernel: cpumask_setall() in kvm_vz_flush_shadow_all() up to v5.12 and in
        kvm_vz_prepare_flush_shadow() from v5.13. Must precede the request.
    """
    vm_arch: MipsVm = vm.arch
    if vm_arch.mmu == "rad":
        vm_arch.asid_flush_mask.update(vcpu.number for vcpu in vm.vcpus)


flush_remote_tlbs = Choice("flush_remote_tlbs", "what a remote TLB flush does")
mips_flush_shadow = Choice("mips_flush_shadow", "how KVM/MIPS flushes a VM by itself")


@flush_remote_tlbs.when()
def _request(vm: Vm, start: int, end: int) -> Any:
    """Make the request alone; without GuestID that is no flush (M2, to v5.12).

    A memslot, after its dirty log was fetched, is flushed by the flavour's callback,
    which prepares.

    :Kernel: kvm_flush_remote_tlbs(); kvm_arch_flush_remote_tlbs_memslot() and its
        forerunners.
    """
    if end - start <= MAX_SLOT_PAGES:
        prepare_flush_shadow.fn(vm)
    return flush_by_request(vm, start, end)


@flush_remote_tlbs.when("mips-generic-flush")
def _prepare_and_request(vm: Vm, start: int, end: int) -> Any:
    """Prepare, then make the request: kvm_arch_flush_remote_tlbs() (v5.13 on)."""
    prepare_flush_shadow.fn(vm)
    return flush_by_request(vm, start, end)


@mips_flush_shadow.when()
async def flush_shadow(vm: Vm) -> None:
    """Prepare, then flush.

    :Kernel: the callbacks flush_shadow_all and flush_shadow_memslot, to v5.12.
    """
    await prepare_flush_shadow(vm)
    await kvm_flush_remote_tlbs(vm)


mips_flush_shadow.add(kvm_flush_remote_tlbs, "mips-generic-flush")

CHOICES = (mips_vpn2_mask, flush_remote_tlbs, mips_flush_shadow)
