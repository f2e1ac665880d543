"""What is the same with the host's tables and with KVM's own."""

__all__ = ["no_hook", "no_path", "prepare_slot", "take_dirty_log"]

import errno
from typing import Any

from kvmarch import Memslot, Vm, op

MIB = 1 << 20


def prepare_slot(vm: Vm, new: Memslot | None, change: str, *, strict: bool) -> int:
    """Return 0, or why a memslot is refused.

    :Kernel: kvm_arch_prepare_memory_region(): the end of memory, and, up to v7.0, that
        address and size are multiples of 1 MiB.
    :param strict: demand the alignment. Simplified: left to an option, so that what
        small guests do can be compared with other architectures.
    """
    if new is None or change == "flags_only":
        return 0
    if new.end_gfn > vm.arch.gfns:
        return errno.EINVAL
    size = new.npages << vm.page_shift
    if strict and (new.userspace_addr | size) % MIB:
        return errno.EINVAL
    return 0


@op(name="copy and clear bitmap")
def _take(vm: Vm, slot: Memslot) -> int:
    """Return the bitmap and begin anew; slots_lock keeps others out.

    A page that is marked between the two would be lost; the sync that marks pages has
    run just before, and nothing else does.
    """
    bitmap = vm.dirty_bitmaps[slot.bitmap]
    bits = int.from_bytes(bitmap, "little")
    bitmap[:] = bytes(len(bitmap))
    return bits


async def take_dirty_log(vm: Vm, slot: Memslot) -> int:
    """Take the bitmap that the sync has filled.

    :Kernel: kvm_vm_ioctl_get_dirty_log()
    """
    return await _take(vm, slot)


def no_hook(*_what: Any) -> None:
    """Stand for a hook that does nothing, or is called by nobody."""


async def no_path(*_what: Any) -> None:
    """Stand for an empty one: kvm_arch_flush_shadow_all(), _memslot()."""
