"""Memslot updates on a bench, by addresses in bytes."""

from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.testing.bench import HVA

PAGE = 4096


def region(slot=0, flags=0, gpa=0, size=4 * PAGE, hva=HVA):
    return Region(slot, flags, gpa, size, hva)


def apply(one, *args, **fields):
    """Update a memslot; return 0 or the errno."""
    return one.do(set_memory_region(one.vm, region(*args, **fields)))


def generation(one, as_id=0):
    return one.k.generation_now.fn(one.vm, as_id)
