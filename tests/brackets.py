"""Brackets of invalidation on a bench, by pages: opened, closed, and heard of."""

from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.testing.bench import HVA

PAGE = 4096


def hvas(first, stop):
    """Return the host addresses of small pages of the bench's memory."""
    return HVA + first * PAGE, HVA + stop * PAGE


def start(one, first=0, stop=1):
    return one.do(mmu_notifier_invalidate_range_start(one.mm, *hvas(first, stop)))


def end(one, first=0, stop=1):
    return one.do(mmu_notifier_invalidate_range_end(one.mm, *hvas(first, stop)))


def brackets(one):
    """Return the pages of every range that KVM was told of."""
    return [
        ((d["start"] - one.hva) // PAGE, (d["end"] - one.hva) // PAGE)
        for d in one.named("kvm_unmap_hva_range")
    ]


def counts(one):
    """Return what KVM counts of invalidations."""
    vm = one.vm
    return (
        vm.mmu_invalidate_seq,
        vm.mmu_invalidate_in_progress,
        vm.mn_active_invalidate_count,
    )
