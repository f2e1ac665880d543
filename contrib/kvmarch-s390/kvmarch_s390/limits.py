"""What a memslot must keep to be accepted."""

__all__ = ["prepare_slot"]

import errno

from kvmarch import Memslot, Vm

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
