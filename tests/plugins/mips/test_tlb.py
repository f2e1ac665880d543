import pytest
from kvmarch_mips.state import ID_MASK

from kvmarch.kernel.mmap import madvise_dontneed
from kvmarch.kernel.vcpu import guest_access
from kvmarch.machine.run import run

FOUR_GIB = 1 << 32 - 12


def flush(one):
    """Change something, so that the VM is flushed."""
    one.do(madvise_dontneed(one.mm, one.hva(8), one.hva(9)))


# -- GuestID: fact sheet mips, 7.1 -------------------------------------------------


def test_a_flush_renames_and_erases_nothing(machine):
    one = machine()
    one.slot()
    one.access(0)
    old = one.vcpu.arch.tag
    flush(one)
    one.access(0)
    entries = one.vcpu.tlb.entries

    assert one.vcpu.arch.tag == old + 1
    assert (old, 0, 1) in entries
    assert (old + 1, 0, 1) in entries


def test_the_wrap_erases(machine):
    one = machine()
    one.slot()
    one.access(0)
    one.vcpu.arch.cache |= ID_MASK
    flush(one)
    one.access(2)

    # ID 0 is root's own.
    assert one.vcpu.arch.tag == 1
    assert {key[0] for key in one.vcpu.tlb.entries} == {1}
    assert {key[1] for key in one.vcpu.tlb.entries} == {2, 3}


def test_each_vcpu_has_ids_of_its_own(machine):
    one = machine(boot={"vcpus": 2})
    one.slot()
    one.access(0, vcpu=0)
    flush(one)
    one.access(0, vcpu=0)
    one.access(0, vcpu=1)

    assert [vcpu.arch.tag for vcpu in one.vm.vcpus] == [2, 1]
    assert [e["guestid"] for e in one.named("kvm_guestid_change")] == [
        ID_MASK + 2,
        ID_MASK + 3,
        ID_MASK + 2,
    ]


# -- root ASID: 7.2 ----------------------------------------------------------------


@pytest.mark.parametrize("release", [(5, 12), (5, 13)], ids=str)
def test_the_mask_says_which_cpus_take_a_new_asid(machine, release):
    one = machine(release, mmu="rad", boot={"vcpus": 2})
    one.slot()
    one.access(0, vcpu=0)
    one.access(0, vcpu=1)
    flush(one)
    after_flush = set(one.vm.arch.asid_flush_mask)
    one.access(0, vcpu=1)

    assert after_flush == {0, 1}
    assert one.vm.arch.asid_flush_mask == {0}
    assert [vcpu.arch.tag for vcpu in one.vm.vcpus] == [1, 2]


def test_a_request_alone_keeps_the_asid(machine):
    one = machine((5, 12), mmu="rad")
    one.slot()
    one.access(0)
    tag = one.vcpu.arch.tag
    one.do(one.k.flush_remote_tlbs(one.vm, 0, 1 << 52))
    one.access(0)

    assert one.vcpu.arch.tag == tag


# -- trap and emulate: 5.2, 7.3 ----------------------------------------------------


@pytest.mark.parametrize("release", [(4, 11), (5, 12)], ids=str)
def test_the_gva_table_has_the_pair_and_clean_pages_protected(machine, release):
    one = machine(release, mmu="te")
    one.slot()
    one.access(1, "write")
    one.access(0)
    gva, layout = one.vcpu.arch.gva, one.layout

    assert gva == {0: one.entry(0) & ~layout.write, 1: one.entry(1)}


def test_a_flush_empties_the_gva_table(machine):
    one = machine((5, 12), mmu="te")
    one.slot()
    one.access(0)
    one.access(4)
    tag = one.vcpu.arch.tag
    flush(one)
    left = one.faults(4)

    assert left == ["invalid"]
    assert sorted(one.vcpu.arch.gva) == [4, 5]
    assert one.vcpu.arch.tag == tag + 1


def test_a_flush_before_the_gva_table_is_written(machine):
    """It is written after mmu_lock was dropped; the request is seen before entry."""
    one = machine((5, 12), mmu="te")
    one.slot()
    one.access(3)
    vcpu = one.task("vcpu0", guest_access(one.vcpu, 0, "read"))
    one.advance(vcpu, "write GVA page table")
    one.do(madvise_dontneed(one.mm, one.hva(0), one.hva(1)))
    one.step(vcpu)
    stale = one.vcpu.arch.gva[0]
    one.finish(vcpu)

    assert stale >> one.layout.pfn_shift != one.pfn(0)
    assert one.entry(0) >> one.layout.pfn_shift == one.host.zero_pfn
    assert one.lost == []


# -- local invalidation: M11 -------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "mmu", "gfn", "how"),
    [
        pytest.param((5, 7), "guestid", FOUR_GIB, "livelock", id="v5.7-guestid"),
        pytest.param((4, 12), "rad", FOUR_GIB, "livelock", id="v4.12-rad"),
        pytest.param((5, 7), "te", FOUR_GIB, "done", id="v5.7-te"),
        pytest.param((5, 7), "guestid", FOUR_GIB - 16, "done", id="v5.7-below"),
        pytest.param((5, 8), "guestid", FOUR_GIB, "done", id="v5.8-guestid"),
        pytest.param((5, 8), "rad", FOUR_GIB, "done", id="v5.8-rad"),
    ],
)
def test_a_pair_above_4_gib(machine, release, mmu, gfn, how):
    one = machine(release, mmu=mmu)
    one.slot(gfn=gfn)

    assert one.access(gfn) == how
    assert one.mapped(gfn) == [gfn]


# -- the order of prepare, request and kick ----------------------------------------


async def reads(vcpu, count):
    for _ in range(count):
        await guest_access(vcpu, 0, "read")


@pytest.mark.parametrize("mmu", ["guestid", "rad"])
@pytest.mark.parametrize("release", [(4, 12), (5, 12), (5, 13), (7, 2)], ids=str)
def test_a_running_guest_never_reaches_a_page_that_went(machine, release, mmu):
    """The guest runs on after each of the steps in which the host takes the page."""
    taken = 0
    whole = False
    while not whole:
        one = machine(release, mmu=mmu)
        one.slot()
        one.access(0, "write")
        host = one.task("mm", madvise_dontneed(one.mm, one.hva(0), one.hva(1)))
        guest = one.task("vcpu0", reads(one.vcpu, 4))
        moved = sum(one.step(host) for _ in range(taken) if not host.done)
        whole = moved < taken
        outcome = run(one.world, [guest, host])

        assert outcome.end == "done"
        assert one.lost == [], f"after {taken} steps of the host"
        taken += 1

    assert taken > 20
