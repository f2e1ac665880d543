"""How the lab boots arm64 kernels."""

__all__ = ["machine"]

from pathlib import Path

from kvmarch import LabMachine


def machine() -> LabMachine:
    """Return the machine: a CPU with EL2; KVM is part of the kernel."""
    return LabMachine(
        qemu="qemu-system-aarch64",
        qemu_package="qemu-system-arm",
        machine="virt,virtualization=on,gic-version=3",
        cpu="cortex-a72",
        console="ttyAMA0",
        ram_base=0x4000_0000,
        compiler="aarch64-linux-gnu-gcc",
        compiler_packages=("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
        guest=str(Path(__file__).with_name("lab_guest.c")),
        debian="arm64",
        flavour="-arm64",
        magic=((0x38, b"ARMd"),),  # of an Image
    )
