"""What RISC-V says about itself."""

__all__ = ["ARCH_INFO"]

from kvmarch import ArchInfo, Option

_SV57 = (5, 19)
"""The first release that looks for Sv57x4."""
_SVVPTC = (7, 2)

ARCH_INFO = ArchInfo(
    name="riscv",
    title="RISC-V",
    first=(5, 16),
    options={
        "page_size": Option((4096,), "bytes of a page"),
        "mmu": Option(("gstage",), "two-stage translation of the H extension"),
        "mode": Option(
            ("sv48x4", "sv57x4", "sv39x4"),
            "hgatp.MODE: the largest that the CPU has",
            since={"sv57x4": _SV57},
        ),
        "vmid_bits": Option((14, 7, 2, 1, 0), "bits of hgatp.VMID that the CPU has"),
        "adue": Option((1, 0), "the CPU sets A in entries by itself, or faults"),
        "svpbmt": Option((0, 1), "the CPU has Svpbmt (memory types of devices)"),
        "svvptc": Option((0, 1), "the CPU has Svvptc", since={1: _SVVPTC}),
        "eager_split": Option((1, 0), "kvm.eager_page_split"),
    },
    defaults={"mode": ((_SV57, "sv57x4"),)},
    pmd_order={4096: 9},
    leaves_by="mmio",
    recorded_as=("riscv64",),
    parameters={"kvm.eager_page_split": ("eager_split", {"Y": 1, "N": 0})},
)
