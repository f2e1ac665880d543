"""Tier 2: what is mapped translates, what is unmapped does not."""

__all__ = [
    "test_a_flush_is_made_exactly_when_a_mapping_goes",
    "test_a_new_slot_is_seen_where_there_was_mmio",
    "test_every_entry_of_a_table_is_of_a_known_kind",
    "test_no_vcpu_reaches_a_page_after_it_went",
    "test_the_entry_names_the_page_and_can_be_repointed",
    "test_what_is_mapped_translates",
    "test_what_is_unmapped_does_not_translate",
    "test_what_the_host_forbids_the_guest_cannot_write",
]

from typing import Any

import pytest

from kvmarch.kernel.mmap import (
    madvise_dontneed,
    mprotect,
    munmap,
)
from kvmarch.kernel.vcpu import guest_access
from kvmarch.testing.bench import Bench
from kvmarch.testing.cases import Case
from kvmarch.testing.contract.looks import flushes, maps, nowhere, translate

TIER = pytest.mark.kvmarch(tier=2)


@TIER
@pytest.mark.parametrize("access", ["read", "write", "exec"])
def test_what_is_mapped_translates(kvm: Bench, access: str) -> None:
    how = kvm.access(3, access)

    found = translate(kvm, 3, access)
    assert how == "done"
    assert found is not None
    assert found.pfn + 3 - found.gfn == kvm.pfn(3)
    assert maps(kvm, 3)
    assert kvm.lost == []


@TIER
def test_the_entry_names_the_page_and_can_be_repointed(kvm: Bench) -> None:
    kvm.access(3, "write")
    entry, level = kvm.k.entry.fn(kvm.vm, 3)
    rest = kvm.k, kvm.vm.options

    pfn = kvm.k.entry_pfn.fn(*rest, entry, level)
    other = kvm.k.entry_repoint.fn(*rest, entry, level, pfn + 0x100)

    assert pfn == kvm.pfn(3)
    assert kvm.k.entry_pfn.fn(*rest, other, level) == pfn + 0x100
    assert kvm.k.entry_repoint.fn(*rest, other, level, pfn) == entry
    assert (
        kvm.k.decode.fn(*rest, other, level)[0]
        == (kvm.k.decode.fn(*rest, entry, level)[0])
    )


@TIER
def test_every_entry_of_a_table_is_of_a_known_kind(kvm: Bench) -> None:
    for gfn in (0, 3, 15):
        kvm.access(gfn, "write")
    kvm.access(5)

    for gfn in range(16):
        entry, level = kvm.k.entry.fn(kvm.vm, gfn)
        kind, _fields = kvm.k.decode.fn(kvm.k, kvm.vm.options, entry, level)
        assert kind != "unknown", f"gfn {gfn:#x}: {entry:#x} at level {level}"


@TIER
def test_what_is_unmapped_does_not_translate(kvm: Bench) -> None:
    for gfn in range(4):
        kvm.access(gfn, "write")
    kvm.do(munmap(kvm.mm, kvm.at(1), kvm.at(3)))

    # More may go than what was asked for, never less.
    assert [translate(kvm, gfn) for gfn in (1, 2)] == [None, None]
    assert "done" not in {kvm.access(gfn) for gfn in (1, 2)}
    assert [kvm.access(gfn) for gfn in (0, 3)] == ["done", "done"]
    assert kvm.lost == []


@TIER
def test_a_flush_is_made_exactly_when_a_mapping_goes(
    kvmarch_case: Case, kvm: Bench
) -> None:
    kvm.access(3, "write")
    span = kvm.at(3), kvm.at(4)

    mapped = flushes(kvm, madvise_dontneed(kvm.mm, *span))
    again = flushes(kvm, madvise_dontneed(kvm.mm, *span))

    assert mapped
    assert again is not kvmarch_case.keeps("flushes-only-what-goes")
    assert kvm.lost == []


@TIER
def test_no_vcpu_reaches_a_page_after_it_went(kvmarch_boot: Any) -> None:
    one = kvmarch_boot(vcpus=2)
    for vcpu in one.vm.vcpus:
        one.do(guest_access(vcpu, 3, "write"), vcpu.name)
    old = one.pfn(3)

    one.do(madvise_dontneed(one.mm, one.at(3), one.at(4)))
    for vcpu in one.vm.vcpus:
        assert one.do(guest_access(vcpu, 3, "read"), vcpu.name) == "done"

    assert one.host.pages[old].freed
    assert one.pfn(3) not in {0, old}
    assert one.lost == []


@TIER
def test_a_new_slot_is_seen_where_there_was_mmio(
    kvmarch_case: Case, kvm: Bench
) -> None:
    before = [kvm.access(65) for _ in range(2)]
    kvm.slot(slot=1, gfn=64)

    keeps = kvmarch_case.keeps("forgets-mmio")
    assert before == [nowhere(kvmarch_case)] * 2
    assert kvm.access(65) == ("done" if keeps else nowhere(kvmarch_case))
    assert kvm.lost == ([] if keeps else ["stale-mmio"])


@TIER
def test_what_the_host_forbids_the_guest_cannot_write(kvm: Bench) -> None:
    kvm.access(1, "write")
    kvm.do(mprotect(kvm.mm, kvm.at(1), kvm.at(2), write=False))

    assert translate(kvm, 1, "write") is None
    assert kvm.access(1, "write") != "done"
    assert kvm.lost == []
