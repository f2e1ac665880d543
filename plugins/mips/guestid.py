"""GuestIDs and root ASIDs: numbers that are renamed instead of flushed.

Models the numbers of arch/mips/kvm/vz.c (v4.12 on) and arch/mips/mm/context.c (fact
sheet mips, section 7). Each CPU has one counter. Its low bits are what the hardware
tags TLB entries with, the bits above count how often they wrapped: the version. Who
holds a number of an older version takes a new one before it enters the guest; what
is cached under the old number stays in the TLB, unreachable, until the wrap.

A mask is the low bits as hardware reports them: 2^n - 1.
"""

__all__ = [
    "NewId",
    "first_version",
    "get_new_asid",
    "get_new_guestid",
    "hardware_id",
    "is_stale",
    "version",
]

from typing import NamedTuple


class NewId(NamedTuple):
    """A number taken from a CPU's counter, which has the same value now.

    ``flush`` says that the low bits wrapped: before the number is used, this CPU
    erases what is cached under any older one.
    """

    number: int
    flush: bool


def first_version(mask: int) -> int:
    """Return what a CPU's counter holds before the first number is taken.

    :Kernel: GUESTID_FIRST_VERSION, asid_first_version().
    """
    return mask + 1


def hardware_id(mask: int, number: int) -> int:
    """Return the part of a number that tags TLB entries."""
    return number & mask


def version(mask: int, number: int) -> int:
    """Return the part of a number that says how often the counter wrapped, in place.

    :Kernel: GUESTID_VERSION_MASK, asid_version_mask().
    """
    return number & ~mask


def is_stale(mask: int, number: int, counter: int) -> bool:
    """Return whether a number is of another version than the CPU's counter.

    0 is stale under every counter; that is how a number is given up.

    :Kernel: kvm_vz_vcpu_load_tlb() for GuestIDs, check_mmu_context() for ASIDs.
    """
    return (number ^ counter) & ~mask != 0


def get_new_guestid(mask: int, counter: int) -> NewId:
    """Take the next GuestID of a CPU.

    ID 0 is root's own and never handed out. The wrap erases all guests' root TLB
    entries and the guest TLB of this CPU.

    :Kernel: kvm_vz_get_new_guestid(), since v4.12.
    :Steps: plain; the kernel has interrupts off.
    """
    # Simplified: the counter is not cut to 64 bits; no machine takes that many.
    number = counter + 1
    if number & mask:
        return NewId(number, flush=False)
    return NewId(number + 1, flush=True)


def get_new_asid(mask: int, counter: int) -> NewId:
    """Take the next root ASID of a CPU.

    ASID 0 is a number like any other. The wrap erases the CPU's whole root TLB, the
    host's own entries with it.

    :Kernel: get_new_mmu_context()
    :Steps: plain; the kernel has interrupts off.
    """
    number = counter + 1
    return NewId(number, flush=not number & mask)
