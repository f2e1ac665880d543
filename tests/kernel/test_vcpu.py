"""A vCPU: accesses, faults, exits, requests, the MMIO cache, and its checks."""

import pytest

from kvmarch.errors import ModelError
from kvmarch.kernel.flush import (
    ALL_GFNS,
    flush_by_request,
    forgive_flush,
    invalidate_tlbs,
    kvm_flush_remote_tlbs,
    kvm_flush_remote_tlbs_memslot,
    kvm_flush_remote_tlbs_range,
    kvm_make_all_cpus_request,
)
from kvmarch.kernel.memory_region import Region, set_memory_region
from kvmarch.kernel.memslots import gfn_to_memslot
from kvmarch.kernel.mmap import munmap
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.vcpu import FAULT_BOUND, guest_access, run_guest
from kvmarch.kernel.vm import IN_GUEST, OUTSIDE, READING
from kvmarch.machine.steps import op
from kvmarch.machine.tlb import Flush, Translation

HVA = 0x7F00_0000_0000
PAGE = 4096


@pytest.fixture
def one(bench):
    made = bench(vcpus=2)
    made.slot()
    return made


# -- accesses ----------------------------------------------------------------------


def test_a_guest_runs_until_it_leaves(one):
    accesses = (("exec", 3), ("read", 0), ("write", 2))

    how = one.do(run_guest(one.vcpu, accesses, "hlt"))

    assert how == "hlt"
    assert one.vcpu.mode == OUTSIDE
    assert dict(one.vcpu.exits) == {"missing": 3, "hlt": 1}
    assert one.host.pages[one.pfn(2)].content[:2] == ("vcpu0", 2)
    assert one.host.pages[one.pfn(0)].content == ("fresh", one.vpn(0))
    assert one.lost == []


def test_a_guest_may_stay(one):
    assert one.do(run_guest(one.vcpu, (("read", 0),), "")) == "in guest"
    assert one.vcpu.mode == IN_GUEST


def test_an_access_that_user_space_emulates_ends_the_run(one):
    accesses = (("read", 0x1000), ("read", 0))

    assert one.do(run_guest(one.vcpu, accesses, "hlt")) == "mmio"
    assert dict(one.vcpu.exits) == {"missing": 1, "mmio": 1}
    assert one.named("kvm_userspace_exit")[-1]["gfn"] == 0x1000


def test_an_access_to_a_slot_without_memory_fails(one):
    one.do(munmap(one.mm, HVA, one.at(16)))

    assert one.access(0) == "error"


def test_a_cached_translation_needs_no_walk(one):
    one.access(0, "write")
    exits = sum(one.vcpu.exits.values())
    one.access(0, "write")
    one.access(0, "read")

    assert sum(one.vcpu.exits.values()) == exits


def test_each_vcpu_has_a_tlb_of_its_own(one):
    one.access(0)
    first, second = one.vm.vcpus

    assert first.tlb.entries
    assert not second.tlb.entries
    assert one.do(guest_access(second, 0, "read")) == "done"
    assert sum(second.exits.values()) == 0


def test_a_permission_that_was_only_added_needs_no_flush(one):
    read_only = Translation(0, 1, one.pfn(0), True, False, True)
    one.access(0, "write")
    one.vcpu.tlb.insert(0, read_only)
    exits = sum(one.vcpu.exits.values())

    assert one.access(0, "write") == "done"
    assert sum(one.vcpu.exits.values()) == exits


def test_a_fault_that_never_resolves_is_a_livelock(bench):
    async def retry(vcpu, gfn, access, why):
        return "guest"

    one = bench(replaced={"page_fault": retry})
    one.slot()

    assert one.access(0) == "livelock"
    assert one.vcpu.exits["missing"] == FAULT_BOUND


def test_faults_run_inside_srcu_and_under_the_mutex(one):
    held = []

    async def look(vcpu, gfn, access, why):
        return await op(name="look")(
            lambda: (
                held.extend(lock.name for lock, _ in one.world.current.held) or "mmio"
            )
        )()

    one.vm.k.choices["page_fault"] = look
    one.do(run_guest(one.vcpu, (("read", 0x1000),), "hlt"))

    assert held == ["vcpu0->mutex", "kvm->srcu"]


# -- requests and flushes ----------------------------------------------------------


def test_a_request_kicks_who_is_in_the_guest(one):
    one.access(0)
    first, second = one.vm.vcpus

    one.do(kvm_make_all_cpus_request(one.vm, "tlb_flush"))

    assert (first.mode, first.exits["kick"], second.exits["kick"]) == (OUTSIDE, 1, 0)
    assert first.requests == second.requests == {"tlb_flush"}
    assert first.tlb.entries
    one.access(1)
    assert [gfn for _, gfn, _ in first.tlb.entries] == [1]
    assert first.requests == set()


def test_a_request_waits_for_a_vcpu_that_reads_page_tables(one):
    one.vcpu.mode = READING
    asking = one.actor("asker", kvm_make_all_cpus_request(one.vm, "tlb_flush"))

    assert asking.waits() == "make request of all vCPUs"
    one.vcpu.mode = OUTSIDE
    asking.end()


def test_a_kicked_guest_makes_its_access_again(one):
    guest = one.actor("vcpu0", guest_access(one.vcpu, 0, "read")).to("guest access")
    one.do(op(flush_by_request)(one.vm, 0, ALL_GFNS))

    assert guest.end() == "done"
    assert one.lost == []


def test_invalidation_reaches_every_tlb_at_once(one):
    one.access(0)
    one.access(5)
    one.do(guest_access(one.vm.vcpus[1], 0, "read"))

    one.do(op(invalidate_tlbs)(one.vm, 0, 1))

    assert [sorted(g for _, g, _ in v.tlb.entries) for v in one.vm.vcpus] == [[5], []]
    assert one.vcpu.mode == IN_GUEST


def test_invalidation_of_a_tag_leaves_others(one):
    for tag in (0, 1):
        one.vcpu.tlb.insert(tag, Translation(0, 1, 1, True, True, True))

    one.do(op(lambda: invalidate_tlbs(one.vm, 0, 1, tag=1))())

    assert [tag for tag, _, _ in one.vcpu.tlb.entries] == [0]


@pytest.mark.parametrize(
    ("flush", "left"),
    [
        pytest.param(kvm_flush_remote_tlbs, [], id="all"),
        pytest.param(
            lambda vm: kvm_flush_remote_tlbs_range(vm, 0, 4),
            [Flush(8, 9), Flush(40, 41)],
            id="range",
        ),
        pytest.param(
            lambda vm: kvm_flush_remote_tlbs_memslot(vm, gfn_to_memslot(vm, 0)),
            [Flush(40, 41)],
            id="memslot",
        ),
        pytest.param(lambda vm: forgive_flush(vm, "a reason"), [], id="forgiven"),
    ],
)
def test_what_a_flush_pays(one, flush, left):
    async def path():
        for gfn in (2, 8, 40):
            await op(one.vm.ledger.owe)(gfn, gfn + 1)
        step = flush(one.vm)
        await step

    one.do(path())

    assert one.vm.ledger.owed.get("main", []) == left


def test_whoever_enters_the_guest_owes_nothing(one):
    async def path():
        await op(one.vm.ledger.owe)(2, 3)
        await guest_access(one.vcpu, 0, "read")

    one.do(path())

    assert one.lost[0] == "flush-owed"
    assert "guest entry of vcpu0" in one.world.violations[0].sentence


# -- the MMIO cache of a vCPU ------------------------------------------------------


def cache(one, gfn):
    return one.do(one.k.mmio_cache_fill(one.vcpu, gfn))


def hits(one, gfn):
    return one.do(one.k.mmio_cache_hit(one.vcpu, gfn))


@pytest.mark.parametrize(
    ("release", "after_update"), [((3, 16), True), ((3, 17), False), ((6, 1), False)]
)
def test_the_mmio_cache_and_a_new_memslot(bench, release, after_update):
    one = bench(release)
    cache(one, 0x100)
    before = (hits(one, 0x100), hits(one, 0x101))
    one.slot(gfn=0x100)

    assert before == (True, False)
    assert hits(one, 0x100) is after_update


@pytest.mark.parametrize(
    ("release", "publish", "cached"),
    [
        pytest.param((5, 0), "publish memslots", True, id="v5.0"),
        pytest.param((5, 1), "publish memslots", False, id="v5.1"),
        pytest.param(
            (6, 1), "publish memslots unless an invalidation began", False, id="v6.1"
        ),
    ],
)
def test_the_mmio_cache_while_memslots_change(bench, release, publish, cached):
    one = bench(release)
    region = Region(0, 0, 0, 4 * PAGE, HVA)
    updating = one.actor("vmm", set_memory_region(one.vm, region)).past(publish)

    cache(one, 0x100)

    assert hits(one, 0x100) is cached
    updating.end()
    assert not hits(one, 0x100)


# -- checks at every access --------------------------------------------------------


def stale(one, gfn, pfn, *, write=True):
    """Leave a translation in the TLB that nobody has flushed."""
    one.access(gfn)
    one.vcpu.tlb.insert(0, Translation(gfn, 1, pfn, True, write, True))


def test_reaching_a_freed_page_is_reported(one):
    pfn = one.pfn(0)
    one.access(0)
    one.do(munmap(one.mm, HVA, one.at(1)))
    one.vcpu.requests.clear()
    one.vcpu.tlb.insert(0, Translation(0, 1, pfn, True, True, True))
    one.access(0)

    assert one.lost == ["freed-page", "stale-permission"]


def test_reaching_another_page_than_the_host_maps_is_reported(one):
    stale(one, 0, one.pfn(1))
    one.access(0)

    assert one.lost == ["stale-permission"]


def test_writing_what_the_host_has_read_only_is_reported(one):
    stale(one, 0, one.pfn(0))
    one.mm.ptes[one.vpn(0)] &= ~0b10
    one.access(0, "read")
    fine = list(one.lost)
    one.access(0, "write")

    assert fine == []
    assert one.lost == ["stale-permission"]


def test_reaching_a_gfn_without_a_slot_is_reported(one):
    stale(one, 0, one.pfn(0))
    one.vcpu.tlb.insert(0, Translation(0x100, 1, one.pfn(0), True, True, True))
    one.access(0x100)

    assert one.lost == ["no-slot"]


def test_reaching_the_old_page_after_start_is_reported(bench):
    one = bench(replaced={"unmap_gfn_range": op(lambda *_: None)})
    one.slot()
    one.access(0)
    zapping = one.actor("zap", munmap(one.mm, HVA, one.at(1)))
    zapping.to("start has returned")
    one.access(0)
    before = list(one.lost)
    zapping.step()
    one.access(0)

    assert before == []
    assert one.lost == ["touched-after-start"]


def test_a_page_faulted_in_after_end_is_not_charged_to_the_next_start(one):
    async def bracket(first, end):
        await mmu_notifier_invalidate_range_start(one.mm, one.at(first), one.at(end))
        await mmu_notifier_invalidate_range_end(one.mm, one.at(first), one.at(end))

    one.slot()
    one.access(0)
    ending = one.actor("A", bracket(0, 1))
    ending.to("close range")
    one.access(0)
    starting = one.actor("B", bracket(1, 2))
    starting.to("start has returned")
    one.access(0)

    assert one.vm.mmu_invalidate_in_progress == 1
    assert one.lost == []


def test_answering_a_gfn_with_a_slot_as_mmio_is_reported(bench):
    async def emulate(vcpu, gfn, access, why):
        return "mmio"

    one = bench(replaced={"page_fault": emulate})
    one.slot()
    one.access(0x100)
    before = list(one.lost)
    one.access(0)

    assert before == []
    assert one.lost == ["stale-mmio"]


def test_an_access_from_before_the_end_of_an_update_may_be_answered_as_mmio(bench):
    async def emulate(vcpu, gfn, access, why):
        return "mmio"

    one = bench(replaced={"page_fault": emulate})
    region = Region(0, 0, 0, 4 * PAGE, HVA)
    updating = one.actor("vmm", set_memory_region(one.vm, region))
    updating.to("generation becomes final")
    faulting = one.actor("vcpu0", guest_access(one.vcpu, 0, "read"))
    faulting.to("emulate")
    updating.end()
    faulting.end()

    assert one.lost == []


def test_without_a_trace_nothing_is_checked(bench):
    one = bench(traced=False)
    one.slot()
    stale(one, 0, one.pfn(1))
    one.access(0)

    assert one.lost == []


def test_a_vcpu_that_reads_tables_for_ever_is_an_error(one):
    one.vcpu.mode = READING

    with pytest.raises(ModelError, match="stuck at make request"):
        one.do(kvm_make_all_cpus_request(one.vm, "tlb_flush"))


# -- faults that have to wait for others --------------------------------------------


def test_a_vcpu_lets_an_invalidation_finish_first(one):
    zapper = one.actor("zapper", munmap(one.mm, one.at(1), one.at(2)))
    zapper.past("mmu_invalidate_in_progress++").to("clear PTEs")

    fault = one.actor("vcpu0", guest_access(one.vcpu, 2, "read"))
    waits = fault.waits()
    zapper.end()

    assert waits == "refault while others are at it"
    assert fault.end() == "done"
    assert sum(one.vcpu.exits.values()) < FAULT_BOUND // 10
