"""What PowerPC says about itself."""

__all__ = ["ARCH_INFO"]

from kvmarch import ArchInfo, Option

ARCH_INFO = ArchInfo(
    name="ppc",
    title="PowerPC",
    first=(3, 16),
    options={
        "page_size": Option(
            (65536, 4096),
            "bytes of a page; real e500 kernels have 4096, and with 65536 each page is "
            "one TLB entry of that size",
        ),
        "mmu": Option(
            ("hash", "radix", "pr", "e500"),
            "Book3S HV with a hash or a radix guest, Book3S PR, or e500mc",
            since={"radix": (4, 11)},
        ),
        "cpu": Option(
            ("power8", "power9"),
            "layout of HPTEs in memory; radix guests need POWER9 in any case",
            since={"power9": (4, 11)},
        ),
        "rc": Option(
            ("hardware", "interrupt", "delayed"),
            "R and C are set by hardware at the walk; by KVM, upon DSISR_SET_RC "
            "(radix); or C at the latest by the tlbie (hash)",
        ),
    },
    defaults={"mmu": (((4, 11), "radix"),)},
    pmd_order={65536: 5, 4096: 9},
    leaves_by="mmio",
    recorded_as=("ppc64le", "ppc64"),
    readonly_slots=False,
)
