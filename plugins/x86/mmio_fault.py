"""Faults on entries that are marked as MMIO.

:Kernel: handle_mmio_page_fault(), handle_mmio_page_fault_common() in older releases;
    fact sheet x86, 1.6.
"""

__all__ = ["handle_mmio_page_fault"]

from typing import TYPE_CHECKING, Literal

from kvmarch_x86.mmio import (
    check_mmio_spte,
    is_mmio_spte,
    kvm_current_mmio_generation,
)
from kvmarch_x86.tdp_tables import lowest

from kvmarch import Vcpu, op

if TYPE_CHECKING:
    from kvmarch_x86.state import X86Vm


@op(name="look at MMIO cache")
def _is_cached(vcpu: Vcpu, gfn: int) -> bool:
    """Return whether the vCPU knows a gfn to be MMIO; it never knows it of gfn 0.

    :Kernel: vcpu_match_mmio_gpa()
    """
    return gfn != 0 and bool(vcpu.k.mmio_cache_hit.fn(vcpu, gfn))


@op(name="check MMIO SPTE")
def _check(vcpu: Vcpu, gfn: int) -> str:
    """Walk to the entry and compare its generation, as one step.

    :Kernel: get_mmio_spte(), check_mmio_spte(); without mmu_lock
    :returns: ``mmio`` if it is good, ``stale``, or ``guest`` if it is none any more.
    """
    vm = vcpu.vm
    arch: X86Vm = vm.arch
    layout = arch.layout
    _table, _index, spte = lowest(vm, vcpu.arch.root_pa, gfn)
    if not is_mmio_spte(layout, spte):
        return "guest"
    now = vcpu.k.generation_now.fn(vm, vcpu.as_id)
    read = arch.read_generation
    valid = check_mmio_spte(layout, spte, now, read=read)
    if not now & layout.mmio_gen_in_progress:
        vm.world.note(
            "check_mmio_spte",
            spte=spte,
            kvm_gen=kvm_current_mmio_generation(layout, now),
            spte_gen=read(layout, spte),
            valid=valid,
        )
    return "mmio" if valid else "stale"


async def handle_mmio_page_fault(
    vcpu: Vcpu, gfn: int
) -> Literal["mmio", "guest"] | None:
    """Decide about an access to an MMIO entry.

    Simplified: EPT's fast MMIO bus, which looks at no generation, has no devices here.

    :returns: ``mmio`` to emulate, ``guest`` to try again, None for the full fault.
    """
    cached = await _is_cached(vcpu, gfn)
    if cached:
        return "mmio"
    how = await _check(vcpu, gfn)
    if how == "mmio":
        await vcpu.k.mmio_cache_fill(vcpu, gfn)
        return "mmio"
    return "guest" if how == "guest" else None
