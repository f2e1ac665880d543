"""What arm64 says about itself."""

__all__ = ["ARCH_INFO"]

from kvmarch import ArchInfo, Option

_DYNAMIC_IPA = (4, 20)

ARCH_INFO = ArchInfo(
    name="arm64",
    title="arm64",
    first=(3, 16),
    options={
        "page_size": Option((4096, 16384, 65536), "bytes of a page, and the granule"),
        "mmu": Option(("stage2",), "stage-2 translation"),
        "ipa": Option(
            (40, 32, 36, 42, 43, 44, 48, 52),
            "bits of an intermediate physical address",
            since=dict.fromkeys((32, 36, 42, 43, 44, 48, 52), _DYNAMIC_IPA),
        ),
        "parange": Option((44, 40, 42, 48, 52), "bits of a physical address"),
        "fwb": Option((0, 1), "the CPU has FEAT_S2FWB"),
        "dic": Option((0, 1), "the CPU needs no I-cache maintenance (CTR_EL0.DIC)"),
        "haf": Option((0, 1), "the CPU sets the access flag (FEAT_HAFDBS)"),
        "tlbirange": Option((0, 1), "the CPU has FEAT_TLBIRANGE"),
        "xnx": Option((0, 1), "the CPU has FEAT_XNX", since={1: (6, 19)}),
        "lpa2": Option((0, 1), "the CPU has FEAT_LPA2", since={1: (6, 8)}),
        "vmid_bits": Option((8, 16), "bits of a VMID"),
        "eager_split": Option(
            (0, 2 << 20, 32 << 20, 512 << 20, 1 << 30),
            "chunk of eager splitting in bytes, a block size; 0 is off",
            since=dict.fromkeys((2 << 20, 32 << 20, 512 << 20, 1 << 30), (6, 5)),
        ),
    },
    pmd_order={4096: 9, 16384: 11, 65536: 13},
    leaves_by="mmio",
    recorded_as=("aarch64",),
    inferred=("fwb", "lpa2", "dic"),
)
