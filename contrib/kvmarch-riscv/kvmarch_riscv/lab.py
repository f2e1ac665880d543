"""How the lab boots RISC-V kernels."""

__all__ = ["machine"]

from pathlib import Path

from kvmarch import LabMachine


def machine() -> LabMachine:
    """Return the machine: a CPU with the H extension; KVM is a module."""
    return LabMachine(
        qemu="qemu-system-riscv64",
        qemu_package="qemu-system-misc",
        machine="virt",
        cpu="rv64,h=true",
        console="ttyS0",
        ram_base=0x8000_0000,
        compiler="riscv64-linux-gnu-gcc",
        compiler_packages=("gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross"),
        guest=str(Path(__file__).with_name("lab_guest.c")),
        debian="riscv64",
        flavour="-riscv64",
        magic=((0x12, b"\xf3\x00"), (0x38, b"RSC\x05")),  # EM_RISCV, or an Image
        modules=("kvm",),
    )
