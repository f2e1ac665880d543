"""Prefix pages: whoever takes one away waits for the vCPU to leave SIE."""

import pytest
from kvmarch import LOG_DIRTY_PAGES
from kvmarch.kernel.mmu_notifier import mmu_notifier_clear_flush_young
from kvmarch.kernel.vcpu import run_guest

from kvmarch_s390.prefix import pages_of, vcpu_load

pytestmark = pytest.mark.kvmarch(arch="s390")

RELEASES = pytest.mark.parametrize("release", [(6, 1), (6, 14), (7, 0), (7, 2)])


@RELEASES
def test_a_vcpu_enters_with_its_prefix_mapped_and_marked(kvmarch_bench, release):
    one = kvmarch_bench(release, prefix=True, vcpus=2)
    one.slot()

    assert vcpu_load(one.vcpu)
    assert one.access(5) == "done"
    assert not vcpu_load(one.vcpu)
    assert vcpu_load(one.vm.vcpus[1])
    assert [pages_of(vcpu) for vcpu in one.vm.vcpus] == [(0, 1), (2, 3)]


@RELEASES
@pytest.mark.parametrize(
    ("verb", "more"),
    [("migrate", ""), ("dontneed", " pages=1"), ("mprotect", " pages=1 prot=r")],
    ids=["migrate", "dontneed", "mprotect"],
)
def test_who_takes_it_away_makes_the_vcpu_leave(kvmarch_bench, release, verb, more):
    one = kvmarch_bench(release, prefix=True)
    one.slot()
    one.access(5)
    one.do(f"{verb} memory=ram page=4{more}")
    assert (one.vcpu.mode, one.vcpu.exits["kick"]) == ("in_guest", 0)

    one.do(f"{verb} memory=ram page=1{more}")

    assert (one.vcpu.mode, one.vcpu.exits["kick"]) == ("outside", 1)
    assert vcpu_load(one.vcpu)
    assert one.lost == []


@RELEASES
def test_the_prefix_is_refreshed_before_the_next_entry(kvmarch_bench, release):
    one = kvmarch_bench(release, prefix=True)
    one.slot()
    one.access(5)
    one.do("migrate memory=ram page=0")

    assert one.access(5) == "done"
    assert not vcpu_load(one.vcpu)
    assert one.lost == []


@pytest.mark.parametrize("inside", [True, False], ids=["in SIE", "outside"])
def test_aging_leaves_the_prefix_of_who_is_in_sie_alone(kvmarch_bench, inside):
    one = kvmarch_bench((7, 2), prefix=True)
    one.slot()
    one.do(run_guest(one.vcpu, (("read", 5),), "" if inside else "hlt"))
    before = one.entry(0)
    span = one.mm, one.at(0), one.at(1)

    assert one.do(mmu_notifier_clear_flush_young(*span))
    assert (one.entry(0) == before) is inside
    assert one.do(mmu_notifier_clear_flush_young(*span)) is inside


@RELEASES
def test_a_prefix_page_in_the_dirty_log(kvmarch_bench, release):
    one = kvmarch_bench(release, prefix=True)
    one.slot(flags=LOG_DIRTY_PAGES)
    one.access(5)
    logs = [one.do("dirty_get id=0")[1] & 0b11 for _ in range(2)]

    # From v7.0 on the page is left writable while its vCPU is in SIE.
    assert logs == ([3, 3] if release >= (7, 0) else [3, 0])
    assert one.access(5) == "done"
    assert one.lost == []


@pytest.mark.parametrize("release", [(6, 1), (7, 2)])
def test_a_guest_and_the_host_at_once(kvmarch_bench, release):
    one = kvmarch_bench(release, prefix=True)
    one.slot()
    accesses = tuple((how, gfn) for gfn in (0, 1, 5) for how in ("read", "write"))
    guest = one.actor("vcpu0", run_guest(one.vcpu, accesses, "hlt"))
    moving = one.actor("kcompactd", "migrate memory=ram page=0")
    zapping = one.actor("zap", "dontneed memory=ram page=1 pages=1")
    one.interleave(guest, moving, zapping, turn=3)

    assert guest.task.result == "hlt"
    assert one.lost == []
