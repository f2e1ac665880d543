"""What x86 says about itself, and the entries of a machine with given options."""

__all__ = ["ARCH_INFO", "machine_layout"]

from collections.abc import Mapping
from typing import Any

from kvmarch_x86.layout import Layout, make_layout

from kvmarch import ArchInfo, Kernel, Option

L1TF_CACHE_BITS = 46
"""x86_cache_bits of the processors that the option ``l1tf`` means."""

ARCH_INFO = ArchInfo(
    name="x86",
    title="x86",
    first=(3, 16),
    options={
        "page_size": Option((4096,), "bytes of a page"),
        "mmu": Option(
            ("rmap", "tdp"),
            "the direct MMU with reverse maps, or the TDP MMU (kvm.tdp_mmu)",
            since={"tdp": (5, 10)},
        ),
        "paging": Option(("ept", "npt"), "Intel's or AMD's second level of paging"),
        "levels": Option((4, 5), "levels of the tables", since={5: (4, 14)}),
        "ad": Option((1, 0), "the processor sets A and D; NPT always does"),
        "pml": Option((0, 1), "the processor logs pages whose D it sets (EPT, A/D)"),
        "exec_only": Option((1, 0), "EPT allows execute without read"),
        "nx_huge_pages": Option(
            (0, 1), "huge pages are not executable", since={1: (5, 4)}
        ),
        "maxphyaddr": Option(
            (46, 36, 39, 40, 43, 48, 52), "bits of a host-physical address"
        ),
        "eager_page_split": Option(
            (1, 0), "split huge pages of the TDP MMU when dirty logging begins"
        ),
        "mmio_caching": Option((1, 0), "make MMIO entries", since={0: (4, 11)}),
        "l1tf": Option((0, 1), "the processor has the L1TF bug (EPT)"),
        "slot_zap_all": Option(
            (1, 0),
            "KVM_X86_QUIRK_SLOT_ZAP_ALL: deleting a memslot zaps everything",
            since={0: (6, 12)},
        ),
    },
    defaults={"mmu": (((5, 15), "tdp"),)},
    pmd_order={4096: 9},
    leaves_by="hlt",
    recorded_as=("x86_64",),
    readonly_slots=True,
    address_spaces=2,
    private_slots=3,
    pfncache=True,
    parameters={
        "kvm.tdp_mmu": ("mmu", {"Y": "tdp", "N": "rmap", "1": "tdp", "0": "rmap"}),
        "kvm_amd.npt": ("paging", {"Y": "npt", "1": "npt"}),
        "kvm_intel.ept": ("paging", {"Y": "ept", "1": "ept"}),
        "kvm_intel.eptad": ("ad", {"Y": 1, "N": 0, "1": 1, "0": 0}),
        "kvm_intel.pml": ("pml", {"Y": 1, "N": 0, "1": 1, "0": 0}),
        "kvm.nx_huge_pages": (
            "nx_huge_pages",
            {"Y": 1, "N": 0, "1": 1, "0": 0, "force": 1, "off": 0},
        ),
        "kvm.eager_page_split": (
            "eager_page_split",
            {"Y": 1, "N": 0, "1": 1, "0": 0},
        ),
        "kvm.mmio_caching": ("mmio_caching", {"Y": 1, "N": 0, "1": 1, "0": 0}),
    },
)


def machine_layout(k: Kernel, options: Mapping[str, Any]) -> Layout:
    """Return the layout of a kernel's entries on a machine.

    :param options: complete, see ``ArchInfo.settle``. What contradicts itself is
        read in favour of ``paging``: NPT has A/D, and L1TF is a matter of EPT.
    """
    ept = options["paging"] == "ept"
    l1tf = ept and options["l1tf"] and k.x86_l1tf
    return make_layout(
        k.x86_layout,
        options["paging"],
        ad=bool(options["ad"]) or not ept,
        exec_only=bool(options["exec_only"]),
        nx_huge_pages=bool(options["nx_huge_pages"]),
        maxphyaddr=options["maxphyaddr"],
        l1tf_cache_bits=L1TF_CACHE_BITS if l1tf else None,
        mmio_caching=bool(options["mmio_caching"]),
        generation=k.x86_generation,
    )
