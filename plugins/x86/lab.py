"""How the lab boots x86 kernels."""

__all__ = ["machine"]

from pathlib import Path

from kvmarch import LabMachine

_NONPRESENT = 1 << 63
KEPT = " && ".join(
    f"(old_spte != {empty:#x} || new_spte != {empty | frozen:#x})"
    for empty, frozen in ((0, 0x5A0), (_NONPRESENT, 0x5A0), (_NONPRESENT, 0x1A0))
)
"""A table that goes freezes all of its entries; the empty ones say nothing."""


def machine() -> LabMachine:
    """Return the machine: kvm-amd with nested paging, which QEMU emulates."""
    return LabMachine(
        qemu="qemu-system-x86_64",
        qemu_package="qemu-system-x86",
        machine="pc",
        cpu="max,+svm",
        console="ttyS0",
        ram_base=0,
        compiler="x86_64-linux-gnu-gcc",
        compiler_packages=("gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"),
        guest=str(Path(__file__).with_name("lab_guest.c")),
        debian="amd64",
        flavour="-amd64",
        magic=((0x202, b"HdrS"),),  # of a bzImage
        modules=("kvm-amd",),
        parameters=("kvm.tdp_mmu", "kvm_amd.npt"),
        filters={"kvmmmu/kvm_tdp_mmu_spte_changed": KEPT},
    )
