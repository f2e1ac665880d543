"""Counters of struct kvm, read by a probe point in the running kernel.

A kprobe at the entry of kvm_vm_ioctl() follows the file's private_data to the VM and
fetches them; the program with the VM makes an ioctl that does nothing whenever they
are wanted. Where the members are is taken from the kernel's BTF, so nothing is assumed
of its configuration. A kernel without BTF or without kprobes has no counters here.
"""

__all__ = ["definition", "read_counters"]

import re

from kvmarch.lab.btf import Types

GROUP = "kvmarch/counters"
_VM = "kvm_vm_ioctl"
_MEMBERS = {
    "mmu_invalidate_seq": ("mmu_invalidate_seq", "mmu_notifier_seq"),
    "mmu_invalidate_in_progress": ("mmu_invalidate_in_progress", "mmu_notifier_count"),
}
"""By counter, what the member has been called, v5.19 and before in the second place."""
_PAIR = re.compile(r"(\w+)=(\d+)")


def definition(types: Types) -> str | None:
    """Return the line for kprobe_events; None if the members are not described.

    :param types: of the module with struct kvm, or of the kernel if it is built in.
    """
    data = types.offset("file", "private_data")
    slots = types.offset("kvm", "memslots")
    generation = types.offset("kvm_memslots", "generation")
    if data is None:
        return None
    kvm = f"+{data}($arg1)"
    words = []
    for counter, names in _MEMBERS.items():
        places = [types.offset("kvm", name) for name in names]
        place = next((at for at in places if at is not None), None)
        if place is not None:
            words.append(f"{counter}=+{place}({kvm}):u64")
    if slots is not None and generation is not None:
        # Of address space 0, whose pointer comes first.
        words.append(f"generation=+{generation}(+{slots}({kvm})):u64")
    return f"p:{GROUP} {_VM} {' '.join(words)}" if words else None


def read_counters(line: str) -> dict[str, int]:
    """Return the counters in a line of the trace."""
    found = {name: int(value) for name, value in _PAIR.findall(line)}
    return {
        name: value
        for name, value in found.items()
        if name in _MEMBERS or name == "generation"
    }
