"""Memslot changes of Book3S HV guests.

:Kernel: kvmppc_core_prepare_memory_region_hv(), _commit_memory_region_hv(),
    arch/powerpc/kvm/book3s_hv.c; fact sheet ppc, 3.9 and 4.8.
"""

__all__ = [
    "CHOICES",
    "commit_memory_region_hv",
    "prepare_memory_region",
    "prepare_memory_region_hash",
]

from kvmarch import LOG_DIRTY_PAGES, Choice, Memslot, Vm, op

flush_on_flags = Choice(
    "ppc_radix_flush_on_flags", "whether switching dirty logging flushes a radix guest"
)
flush_on_flags.add(False)
flush_on_flags.add(True, "ppc-radix-flush-on-flags")


def prepare_memory_region(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Refuse nothing."""
    return 0


def prepare_memory_region_hash(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> int:
    """Give a new slot an array of rmap words; other changes keep the one that is there.

    Simplified: the array belongs to the slot's number, and what is left in it when
    the slot goes is dropped when the next one comes.
    """
    if change == "create" and new is not None:
        vm.arch.rmap[new.id] = {}
    return 0


@op(name="mmio_update++")
def _mmio_update(vm: Vm) -> None:
    vm.arch.mmio_update += 1


async def commit_memory_region_hv(
    vm: Vm, old: Memslot | None, new: Memslot | None, change: str
) -> None:
    """Make MMIO caches stale; let leaves be made anew when dirty logging is switched.

    The new slot is visible by now: a fault may have met it and the old leaves. Hash
    guests get nothing flushed.
    """
    if change != "delete":
        await _mmio_update(vm)
    if (
        change == "flags_only"
        and vm.arch.layout.mmu == "radix"
        and vm.k.ppc_radix_flush_on_flags
        and old is not None
        and new is not None
        and (old.flags ^ new.flags) & LOG_DIRTY_PAGES
    ):
        await vm.arch.ops.flush_memslot(vm, old)


CHOICES = (flush_on_flags,)
