"""What Book3S PR and e500 share: they leave the memslot hooks empty.

:Kernel: kvmppc_core_flush_memslot_pr(), kvmppc_core_commit_memory_region_pr() and those
    of booke.c, v3.16 on; fact sheet ppc, 2 and 9 (L1).
"""

__all__ = ["CHOICES", "commit_memory_region", "flush_memslot"]

from kvmarch import Choice, Memslot, Vm, kvm_flush_remote_tlbs

denied = Choice(
    "ppc_shadow_denied", "how a fault ends for which the host has no page (PR, e500)"
)
denied.add("guest")
denied.add("error", "ppc-shadow-fault-fails")

drops_memslot = Choice(
    "ppc_shadow_drops_memslot", "whether PR and e500 forget a memslot that changes"
)
drops_memslot.add(False)
drops_memslot.add(True, "ppc-flush-memslot-everywhere")


async def flush_memslot(vm: Vm, slot: Memslot) -> None:
    """Do nothing: shadow entries outlive the slot, and their page's next unmapping.

    With a fix that nobody has made, everything is dropped.
    """
    if vm.k.ppc_shadow_drops_memslot:
        await kvm_flush_remote_tlbs(vm)


async def commit_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Do nothing: writable shadow entries stay so when dirty logging begins."""
    if change == "flags_only" and vm.k.ppc_shadow_drops_memslot:
        await kvm_flush_remote_tlbs(vm)


CHOICES = (denied, drops_memslot)
