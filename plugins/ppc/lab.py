"""How the lab boots ppc kernels."""

__all__ = ["machine"]

from pathlib import Path

from kvmarch import LabMachine


def machine() -> LabMachine:
    """Return the machine: kvm-hv under a nested hypervisor, which QEMU plays; radix."""
    return LabMachine(
        qemu="qemu-system-ppc64",
        qemu_package="qemu-system-ppc",
        machine="pseries,cap-nested-hv=on",
        cpu="power9",
        console="hvc0",
        ram_base=0,
        compiler="powerpc64le-linux-gnu-gcc",
        compiler_packages=("gcc-powerpc64le-linux-gnu", "libc6-dev-ppc64el-cross"),
        guest=str(Path(__file__).with_name("lab_guest.c")),
        debian="ppc64el",
        flavour="-powerpc64le",
        magic=((0x12, b"\x15\x00"),),  # EM_PPC64 of a little-endian ELF file
        modules=("kvm-hv",),
    )
