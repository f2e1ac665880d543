"""Tier 3: change_pte and aging."""

__all__ = [
    "test_a_guest_and_the_host_at_once",
    "test_aging_twice_finds_it_old",
    "test_an_invalidation_is_heard_of_or_meets_the_guest_itself",
    "test_asking_changes_nothing",
    "test_change_pte_loses_nothing",
    "test_what_the_host_does_loses_nothing",
    "test_what_was_never_used_is_not_young",
]


import pytest

from kvmarch.kernel.ksm import ksm_scan
from kvmarch.kernel.mmap import fork, madvise_dontneed, mprotect, touch_pages
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_clear_flush_young,
    mmu_notifier_test_young,
)
from kvmarch.kernel.reclaim import migrate, reclaim
from kvmarch.kernel.vcpu import run_guest
from kvmarch.testing.bench import Bench
from kvmarch.testing.cases import Case
from kvmarch.testing.contract.looks import translate

TIER = pytest.mark.kvmarch(tier=3)


@TIER
def test_aging_twice_finds_it_old(kvm: Bench) -> None:
    kvm.access(3)
    span = kvm.at(3), kvm.at(4)

    first = kvm.do(mmu_notifier_clear_flush_young(kvm.mm, *span))
    second = kvm.do(mmu_notifier_clear_flush_young(kvm.mm, *span))
    asked = kvm.do(mmu_notifier_test_young(kvm.mm, *span))

    assert first in {True, False}
    assert (second, asked) == (False, False)
    assert kvm.access(3) == "done"
    assert kvm.lost == []


@TIER
def test_asking_changes_nothing(kvm: Bench) -> None:
    kvm.access(3)
    span = kvm.at(3), kvm.at(4)
    before = kvm.k.entry.fn(kvm.vm, 3)

    asked = [kvm.do(mmu_notifier_test_young(kvm.mm, *span)) for _ in range(2)]

    assert asked[0] == asked[1]
    assert kvm.k.entry.fn(kvm.vm, 3) == before
    assert kvm.lost == []


@TIER
def test_what_was_never_used_is_not_young(kvm: Bench) -> None:
    span = kvm.at(3), kvm.at(4)

    assert kvm.do(mmu_notifier_clear_flush_young(kvm.mm, *span)) is False
    assert kvm.do(mmu_notifier_test_young(kvm.mm, *span)) is False


@TIER
@pytest.mark.parametrize("access", ["read", "write"])
def test_change_pte_loses_nothing(kvm: Bench, access: str) -> None:
    kvm.do(touch_pages(kvm.mm, kvm.hva, (7, 7)))
    for gfn in (0, 1, 2):
        kvm.access(gfn, access)
    kvm.do(touch_pages(kvm.mm, kvm.hva, (7, 7)))

    merged = kvm.do(ksm_scan(kvm.mm))

    assert merged == 1
    assert kvm.pfn(0) == kvm.pfn(1)
    for gfn in (0, 1, 2):
        assert kvm.access(gfn) == "done"
        found = translate(kvm, gfn)
        assert found is not None
        assert found.pfn + gfn - found.gfn == kvm.pfn(gfn)
    assert kvm.access(0, "write") == "done"
    assert kvm.pfn(0) != kvm.pfn(1)
    assert kvm.access(1) == "done"
    assert kvm.lost == []


async def protected_for_a_while(one: Bench) -> None:
    await mprotect(one.mm, one.at(0), one.at(2), write=False)
    await mprotect(one.mm, one.at(0), one.at(2), write=True)


@TIER
def test_what_the_host_does_loses_nothing(kvm: Bench) -> None:
    for path in (
        lambda: migrate(kvm.mm, kvm.at(1)),
        lambda: reclaim(kvm.mm, kvm.at(1)),
        lambda: protected_for_a_while(kvm),
        lambda: madvise_dontneed(kvm.mm, kvm.at(1), kvm.at(2)),
        lambda: fork(kvm.mm),
    ):
        kvm.access(1, "write")
        kvm.do(path())
        assert kvm.access(1) == "done"
        assert kvm.access(1, "write") == "done"

    assert kvm.lost == []


@TIER
@pytest.mark.parametrize("turn", [1, 3, 7])
def test_a_guest_and_the_host_at_once(
    kvmarch_case: Case, kvm: Bench, turn: int
) -> None:
    kvm.do(touch_pages(kvm.mm, kvm.hva, (7, 7)))
    accesses = tuple(
        (how, gfn) for gfn in (0, 1, 2) for how in ("read", "write", "read")
    )
    guest = kvm.actor("vcpu0", run_guest(kvm.vcpu, accesses, "hlt"))
    merging = kvm.actor("ksmd", ksm_scan(kvm.mm))
    zapping = kvm.actor("zap", madvise_dontneed(kvm.mm, kvm.at(2), kvm.at(3)))
    moving = kvm.actor("kcompactd", migrate(kvm.mm, kvm.at(1)))

    kvm.interleave(guest, merging, zapping, moving, turn=turn)

    keeps = kvmarch_case.keeps("maps-nothing-before-end")
    assert guest.task.result == "hlt"
    assert set(kvm.lost) <= (set() if keeps else {"touched-after-start"})


@TIER
def test_an_invalidation_is_heard_of_or_meets_the_guest_itself(
    kvmarch_case: Case, kvm: Bench
) -> None:
    kvm.access(3)

    kvm.do(madvise_dontneed(kvm.mm, kvm.at(3), kvm.at(4)))

    heard = bool(kvm.named("kvm_unmap_hva_range"))
    assert heard is kvmarch_case.keeps("hears-of-the-host")
    assert translate(kvm, 3) is None
