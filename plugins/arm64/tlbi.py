"""TLB maintenance of stage 2. An instruction has been obeyed when its step is over.

:Kernel: arch/arm64/kvm/hyp/nvhe/tlb.c and vhe/tlb.c; arch/arm64/kvm/hyp/tlb.c and
    switch.c before v5.10 (fact sheet arm64, 3.6).

Every invalidation also drops the combined entries of the VMID. The model's TLB holds
translations from gfn to host page, which is what both kinds amount to here.
"""

__all__ = [
    "ALL_GFNS",
    "CHOICES",
    "kvm_flush_remote_tlbs",
    "kvm_tlb_flush_vmid",
    "kvm_tlb_flush_vmid_ipa",
    "kvm_tlb_flush_vmid_ipa_nsh",
    "kvm_tlb_flush_vmid_range",
    "stage2_flush_table",
]

from kvmarch import Choice, Vcpu, Vm, invalidate_tlbs

ALL_GFNS = 1 << 52


def kvm_tlb_flush_vmid(vm: Vm) -> None:
    """Drop all translations of the VM, on all CPUs.

    :Kernel: __kvm_tlb_flush_vmid(), TLBI VMALLS12E1IS
    """
    vm.world.note("tlb_invalidate", start=0, end=ALL_GFNS)
    vmid = vm.arch.vmid
    for vcpu in vm.vcpus:
        vcpu.tlb.drop_all(vmid)
        vcpu.arch.walk_cache.clear()


def kvm_tlb_flush_vmid_ipa(vm: Vm, gfn: int) -> None:
    """Drop the translation of one IPA, page or block, on all CPUs.

    :Kernel: __kvm_tlb_flush_vmid_ipa(), TLBI IPAS2E1IS
    """
    # Simplified: without the level hint (TTL); a leaf is always flushed with the
    # level that it had, so the hint never misses.
    invalidate_tlbs(vm, gfn, gfn + 1, vm.arch.vmid)


def kvm_tlb_flush_vmid_ipa_nsh(vcpu: Vcpu, gfn: int) -> None:
    """Drop the translation of one IPA on this CPU.

    :Kernel: __kvm_tlb_flush_vmid_ipa_nsh(), TLBI IPAS2E1, since v6.5
    """
    vcpu.vm.world.note("tlb_invalidate_local", vcpu=vcpu.name, start=gfn, end=gfn + 1)
    vcpu.tlb.drop(vcpu.vm.arch.vmid, gfn, gfn + 1)
    if vcpu.arch.stale == "left":
        vcpu.arch.stale = ""


def kvm_tlb_flush_vmid_range(vm: Vm, start: int, end: int) -> None:
    """Drop the translations of a range, on all CPUs; all without FEAT_TLBIRANGE.

    :Kernel: kvm_tlb_flush_vmid_range(), since v6.6
    """
    if vm.arch.tlbirange:
        invalidate_tlbs(vm, start, end, vm.arch.vmid)
        # Simplified: more than the range; harmless because walks only get longer.
        for vcpu in vm.vcpus:
            vcpu.arch.walk_cache.clear()
    else:
        kvm_tlb_flush_vmid(vm)


kvm_flush_remote_tlbs = Choice(
    "flush_remote_tlbs", "what a flush of the generic code drops"
)


@kvm_flush_remote_tlbs.when()
def _all(vm: Vm, start: int, end: int) -> None:
    """Drop all translations, whatever the range.

    :Kernel: kvm_flush_remote_tlbs(), kvm_arch_flush_remote_tlbs()
    """
    kvm_tlb_flush_vmid(vm)


@kvm_flush_remote_tlbs.when("arm64-range-tlbi")
def _range(vm: Vm, start: int, end: int) -> None:
    """Drop the range, unless all gfns are meant.

    :Kernel: kvm_arch_flush_remote_tlbs_range(), since v6.6
    """
    if end - start >= ALL_GFNS:
        kvm_tlb_flush_vmid(vm)
    else:
        kvm_tlb_flush_vmid_range(vm, start, end)


stage2_flush_table = Choice(
    "arm64_flush_table", "what is flushed when a table stops being one"
)


@stage2_flush_table.when()
def _table_by_vmid(vm: Vm, gfn: int, pages: int) -> None:
    """Flush the whole VMID, because entries of the table may be cached anywhere.

    :Kernel: stage2_try_break_pte(), v6.2 to v6.5; v5.10 with 3a0b870e3448. The old
        MMU has no such step: it unmaps the table first.
    """
    kvm_tlb_flush_vmid(vm)


@stage2_flush_table.when("arm64-pgtable")
def _table_by_ipa(vm: Vm, gfn: int, pages: int) -> None:
    """Flush one IPA only: other pages of the table stay cached (fact sheet 6 row 6)."""
    kvm_tlb_flush_vmid_ipa(vm, gfn)


stage2_flush_table.add(_table_by_vmid, "arm64-pgtable", "arm64-table-flush-vmid")


@stage2_flush_table.when("arm64-pgtable", "arm64-table-flush-vmid", "arm64-range-tlbi")
def _table_by_range(vm: Vm, gfn: int, pages: int) -> None:
    """Flush as far as the table reaches, but from where the walk stands (v6.6 on)."""
    kvm_tlb_flush_vmid_range(vm, gfn, gfn + pages)


@stage2_flush_table.when(
    "arm64-pgtable",
    "arm64-table-flush-vmid",
    "arm64-range-tlbi",
    "arm64-table-flush-aligned",
)
def _table_by_aligned_range(vm: Vm, gfn: int, pages: int) -> None:
    """Flush exactly what the table covers (v6.9 on)."""
    start = gfn & -pages
    kvm_tlb_flush_vmid_range(vm, start, start + pages)


CHOICES = (kvm_flush_remote_tlbs, stage2_flush_table)
