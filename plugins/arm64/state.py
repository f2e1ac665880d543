"""What KVM/arm64 keeps per VM and per vCPU, and what is fixed once a VM exists.

:Kernel: struct kvm_s2_mmu (struct kvm_arch before v5.9), struct kvm_pgtable, struct
    kvm_vcpu_arch.
"""

__all__ = ["CHOICES", "Arm64Vcpu", "Mmu", "find_layout"]

from collections.abc import Mapping
from functools import cache
from typing import Any

from kvmarch_arm64.changes import PARALLEL, PGTABLE
from kvmarch_arm64.formats import Descriptor, Leaf
from kvmarch_arm64.geometry import (
    KVM_PGTABLE_LAST_LEVEL,
    Geometry,
    kvm_init_ipa_range,
    kvm_ipa_limit,
    kvm_is_block_size_supported,
    kvm_mmu_cache_min_pages,
    make_geometry,
    make_old_geometry,
)
from kvmarch_arm64.layout import Layout, make_layout
from kvmarch_arm64.pte import stage2_set_prot_attr
from kvmarch_arm64.vmid import Vmids

from kvmarch import Choice, Kernel, KvmarchError, Match, Part, Vm

_VALID = Descriptor.valid.mask
_R = Leaf.r.mask
_W = Leaf.w.mask
_AF = Leaf.af.mask

# -------------------------------------------------------------------------
# What the release decides
# -------------------------------------------------------------------------

invalid_encoding = Choice("arm64_invalid", "what an entry without a mapping holds")
invalid_encoding.add("zero")
invalid_encoding.add("remains", PGTABLE)
invalid_encoding.add("owner63", PGTABLE, "arm64-unmap-stores-zero")
invalid_encoding.add(
    "owner9", PGTABLE, "arm64-unmap-stores-zero", "arm64-owner-in-low-bits"
)
invalid_encoding.add("locked", *PARALLEL)
invalid_encoding.add("typed", *PARALLEL, "arm64-typed-invalid")


def _flag(name: str, doc: str, *needs: str) -> Choice:
    """Return a choice that is true once all these changes are in."""
    choice = Choice(name, doc)
    choice.add(False)
    choice.add(True, *needs)
    return choice


_FLAGS = (
    _flag("arm64_has_fwb", "whether FEAT_S2FWB is used", "arm64-fwb"),
    _flag("arm64_has_haf", "whether hardware sets AF", "arm64-hardware-af"),
    _flag("arm64_xn_default", "whether memory starts as XN", "arm64-xn-default"),
    _flag("arm64_decodes_exec", "whether PX and UX are decoded", "arm64-typed-invalid"),
    _flag("arm64_has_xnx", "whether FEAT_XNX is used", PGTABLE, "arm64-xnx"),
    _flag(
        "arm64_has_tlbirange",
        "whether FEAT_TLBIRANGE is used",
        PGTABLE,
        "arm64-range-tlbi",
    ),
)

tables_of_release = Choice("arm64_geometry", "who decides how many levels there are")


@tables_of_release.when()
def _fixed(options: Mapping[str, Any]) -> Geometry:
    """Take 40 bits and the levels that go with the granule."""
    return make_old_geometry(options["page_size"])


@tables_of_release.when("arm64-dynamic-ipa")
def _by_vm_type(options: Mapping[str, Any]) -> Geometry:
    """Take the IPA size that the VM asks for, within the limit of the CPU."""
    page_size, lpa2 = options["page_size"], bool(options["lpa2"])
    limit = kvm_ipa_limit(page_size, options["parange"], lpa2=lpa2)
    ipa = kvm_init_ipa_range(options["ipa"], limit)
    if ipa < 0:
        raise KvmarchError(
            f"no VM with {options['ipa']} IPA bits: the limit is {limit} with parange="
            f"{options['parange']} and {page_size} byte pages"
        )
    return make_geometry(page_size, ipa, lpa2=lpa2)


defers_tables = Choice(
    "arm64_defers_tables", "whether the flush of an unmapped table is deferred too"
)
defers_tables.add(True)
defers_tables.add(False, "arm64-table-flush-at-once")

CHOICES = (invalid_encoding, tables_of_release, defers_tables, *_FLAGS)


def find_layout(k: Kernel, options: Mapping[str, Any]) -> Layout:
    """Return the layout of the entries of a machine."""
    return make_layout(
        options["page_size"],
        lpa2=bool(options["lpa2"]),
        fwb=bool(options["fwb"]) and k.arm64_has_fwb,
        dic=bool(options["dic"]) or not k.arm64_xn_default,
        xnx=bool(options["xnx"]) and k.arm64_has_xnx,
        invalid=k.arm64_invalid,
        decoded_exec=k.arm64_decodes_exec,
    )


# -------------------------------------------------------------------------
# Per VM
# -------------------------------------------------------------------------


class Mmu(Part):
    """Stage 2 of one VM; it becomes ``vm.arch``.

    gfns, not addresses, are the coordinates of the model: :attr:`shifts` are the
    geometry's without PAGE_SHIFT.

    ``pgt`` is the physical address of the root; None once it is gone.
    ``vmid`` tags TLB entries; ``vmid_id`` is the number with its generation.
    ``split_page_cache`` counts pages set aside for eager splitting.
    """

    variables = ("pgt", "vmid", "vmid_id", "split_page_cache")

    def __init__(self, vm: Vm) -> None:
        k, options = vm.k, vm.options
        self.layout = layout = find_layout(k, options)
        self.geometry = geometry = k.arm64_geometry.fn(options)
        self.vmids = Vmids.of(vm)
        self.vmid = 0
        self.vmid_id = 0
        self.split_page_cache = 0
        shift = geometry.page_shift
        self.start_level: int = geometry.start_level
        self.shifts = tuple(s - shift for s in geometry.shifts[:-1])
        self.entries: int = geometry.index_mask + 1
        self.index_mask: int = geometry.index_mask
        self.end_gfn = 1 << geometry.ia_bits - shift
        self.pmd_pages = 1 << self.shifts[KVM_PGTABLE_LAST_LEVEL - 1]
        self.level_of = {
            1 << self.shifts[level]: level
            for level in range(geometry.min_block_level, KVM_PGTABLE_LAST_LEVEL + 1)
        }
        """Level by pages of a leaf."""
        self.cache_min_pages = kvm_mmu_cache_min_pages(geometry)
        self.attrs = _attributes(layout)
        self.read_only = self.attrs[0]
        """What change_pte asks for: R alone, XN even with DIC."""
        self.exec_mask, self.exec_values = _execute_bits(layout)
        self.young = Match(_VALID | _AF)
        self.writable = Match(_VALID | _W)
        self.valid = Match(_VALID)
        self.locked = layout.locked
        self.leaves_remains = layout.invalid == "remains"
        self.haf = bool(options["haf"]) and k.arm64_has_haf
        self.tlbirange = bool(options["tlbirange"]) and k.arm64_has_tlbirange
        self.defers = self.tlbirange and layout.fwb
        """stage2_unmap_defer_tlb_flush(): leaves are flushed at the end of a call."""
        self.chunk = 1 << self.shifts[k.arm64_walk_chunk.fn(geometry)]
        """Pages after which a walk over a range may drop mmu_lock."""
        self.resched = k.arm64_resched
        self.rechecks_pgd = k.arm64_rechecks_pgd
        self.caches_walks = self.defers and k.arm64_defers_tables
        """Walk caches can go wrong in this kernel, so they are modelled."""
        self.split_chunk = _split_chunk(geometry, options["eager_split"])
        root = vm.tables.alloc(self.entries * geometry.root_pages, self.start_level, 0)
        root.refs = 1
        self.pgt: int | None = root.pa
        # The range operations clear these bits in live entries, many at a time.
        assert not (_W | _AF) & ~layout.live_mask


@cache
def _attributes(layout: Layout) -> tuple[int, ...]:
    """Return the attributes of a leaf of memory by ``w | x << 1``; all are readable."""
    return tuple(
        stage2_set_prot_attr(layout, True, bool(n & 1), bool(n & 2)) for n in range(4)
    )


@cache
def _execute_bits(layout: Layout) -> tuple[int, frozenset[int]]:
    """Return the execute bits, and which of their values let EL1 execute."""
    mask = layout.perms_mask & ~(_R | _W)
    privileged = (layout.xn_by_exec[1], layout.xn_by_exec[3])
    return mask, frozenset(v for v in privileged if v is not None)


def _split_chunk(geometry: Geometry, size: int) -> int:
    """Return the pages of a chunk of eager splitting; 0 if it is off.

    :Kernel: KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE, since v6.5
    :raises KvmarchError: no block has that size.
    """
    if size and not kvm_is_block_size_supported(geometry.page_shift, size):
        raise KvmarchError(f"eager_split: {size:#x} is no block size of this granule")
    return size >> geometry.page_shift


# -------------------------------------------------------------------------
# Per vCPU
# -------------------------------------------------------------------------


class Arm64Vcpu(Part):
    """What a vCPU has of its own; it becomes ``vcpu.arch``.

    ``mmu_page_cache`` counts table pages set aside for faults; ``fault_level`` is the
    level that the syndrome of the last fault names; ``vmid`` is that of the
    last entry into the guest; ``active_vmid`` and ``reserved_vmid`` are those of the
    CPU that the vCPU runs on, as is ``walk_cache``: address of the last table by the
    gfns that it covers.
    ``stale`` is ``left`` once a permission fault has ended without a flush, and ``hit``
    once the translation that caused it has caused another one.
    """

    variables = (
        "mmu_page_cache",
        "fault_level",
        "vmid",
        "active_vmid",
        "reserved_vmid",
        "walk_cache",
        "stale",
    )

    def __init__(self) -> None:
        self.mmu_page_cache = 0
        self.fault_level = KVM_PGTABLE_LAST_LEVEL
        self.vmid = 0
        self.active_vmid = 0
        self.reserved_vmid = 0
        self.walk_cache: dict[int, int] = {}
        self.stale = ""
