"""Fences: the ring of requests, what they drop, VMIDs and CPUs."""

import pytest
from kvmarch import Translation

from kvmarch_riscv.geometry import Hgatp, HgatpMode
from kvmarch_riscv.hfence import (
    FLUSH,
    HFENCE,
    MAX_HFENCE,
    Hfence,
    hfence_gvma_vmid_gpa,
    hfence_process,
    local_hfence_gvma_vmid_gpa,
)

riscv = pytest.mark.kvmarch(arch="riscv", kernel="v5.19,v6.17,v7.2")
since_v6_17 = pytest.mark.kvmarch(arch="riscv", kernel="v6.17,v7.2")


def fill(kvm, *gfns, vmid=5):
    """Let the vCPU's CPU cache some pages under a VMID."""
    for gfn in gfns:
        kvm.vcpu.tlb.insert(vmid, Translation(gfn, 1, gfn, True, True, True))


def cached(kvm, vmid=5):
    return sorted(key[1] for key in kvm.vcpu.tlb.entries if key[0] == vmid)


@riscv
def test_a_fence_drops_each_page_of_its_range(kvm):
    fill(kvm, 1, 2, 3, 4)
    local_hfence_gvma_vmid_gpa(kvm.vcpu, 5, 2, 2, 0)

    assert cached(kvm) == [1, 4]


@riscv
def test_a_fence_in_large_steps_drops_what_covers_them_only(kvm):
    # Fact sheet 6, H4: one hfence.gvma at the base of the block.
    fill(kvm, 512, 513, 1024)
    local_hfence_gvma_vmid_gpa(kvm.vcpu, 5, 512, 512, 9)

    assert cached(kvm) == [513, 1024]


@riscv
@pytest.mark.parametrize(("pages", "left"), [(512, [600]), (513, [])])
def test_a_range_of_many_steps_drops_the_vmid(kvm, pages, left):
    fill(kvm, 3, 600)
    fill(kvm, 3, vmid=6)
    local_hfence_gvma_vmid_gpa(kvm.vcpu, 5, 0, pages, 0)

    assert cached(kvm) == left
    assert cached(kvm, 6) == [3]


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2")
def test_a_range_that_wraps_is_not_fenced_at_all(kvm):
    fill(kvm, 1)
    local_hfence_gvma_vmid_gpa(kvm.vcpu, 5, (1 << 52) - 1, 2, 0)

    assert cached(kvm) == [1]


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2", with_="riscv-hfence-wrap")
def test_a_range_that_wraps_drops_the_vmid_since_then(kvm):
    fill(kvm, 1)
    local_hfence_gvma_vmid_gpa(kvm.vcpu, 5, (1 << 52) - 1, 2, 0)

    assert cached(kvm) == []


@pytest.mark.kvmarch(arch="riscv", kernel="v5.16")
def test_before_the_ring_every_cpu_is_fenced_at_once(kvmarch_boot):
    kvm = kvmarch_boot(vcpus=2)
    kvm.vm.arch.vmid = 5
    for vcpu in kvm.vm.vcpus:
        vcpu.arch.hgatp_vmid = 5
        vcpu.tlb.insert(5, Translation(1, 1, 1, True, True, True))
    kvm.vm.arch.cpus.left[7] = (((5, 1, 1), Translation(1, 1, 1, True, True, True)),)
    kvm.do(_now(hfence_gvma_vmid_gpa, kvm.vm, 1, 0))

    assert all(not vcpu.tlb.entries for vcpu in kvm.vm.vcpus)
    assert kvm.vm.arch.cpus.left == {7: ()}


async def _now(function, *args):
    function(*args)


@riscv
def test_a_request_waits_in_each_ring(kvmarch_boot):
    kvm = kvmarch_boot(vcpus=2)
    kvm.vm.arch.vmid = 5
    kvm.do(_now(hfence_gvma_vmid_gpa, kvm.vm, 513, 1))

    for vcpu in kvm.vm.vcpus:
        (fence,) = vcpu.arch.hfence_queue
        assert fence[:3] == (512, 512, 9)
        assert vcpu.requests == {HFENCE}


@pytest.mark.kvmarch(arch="riscv", kernel="v6.16,v6.17")
def test_the_vmid_of_a_fence_is_that_of_the_request_since_v6_17(kvmarch_case, kvm):
    kvm.vm.arch.vmid = 5
    kvm.do(_now(hfence_gvma_vmid_gpa, kvm.vm, 1, 0))
    kvm.vm.arch.vmid = 9
    fill(kvm, 1)
    fill(kvm, 1, vmid=9)
    hfence_process(kvm.vcpu)

    carried = kvmarch_case.release >= (6, 17)
    assert (cached(kvm), cached(kvm, 9)) == (([], [1]) if carried else ([1], []))
    assert kvm.vcpu.arch.hfence_queue == ()


@since_v6_17
def test_a_full_ring_lets_all_flush_all(kvmarch_boot):
    kvm = kvmarch_boot(vcpus=2)
    one, other = kvm.vm.vcpus
    one.arch.hfence_queue = (Hfence(0, 1, 0, 5),) * MAX_HFENCE
    kvm.do(_now(hfence_gvma_vmid_gpa, kvm.vm, 1, 0))

    assert (one.requests, other.requests) == ({FLUSH}, {FLUSH})
    # What the other ring has been given stays there, though all is flushed.
    assert len(one.arch.hfence_queue) == MAX_HFENCE
    assert len(other.arch.hfence_queue) == 1


@pytest.mark.kvmarch(arch="riscv", kernel="v7.2", with_="riscv-hfence-fallback-alone")
def test_a_full_ring_lets_its_vcpu_flush_all_since_then(kvmarch_boot):
    kvm = kvmarch_boot(vcpus=2)
    one, other = kvm.vm.vcpus
    one.arch.hfence_queue = (Hfence(0, 1, 0, 5),) * MAX_HFENCE
    kvm.do(_now(hfence_gvma_vmid_gpa, kvm.vm, 1, 0))

    assert (one.requests, other.requests) == ({FLUSH}, {HFENCE})


# -- VMIDs -------------------------------------------------------------------------


@riscv
def test_the_first_vmid_begins_a_turn(kvm):
    arch = kvm.vm.arch
    assert (arch.vmid, arch.vmid_version, arch.vmids.vmid_version) == (0, 0, 1)
    kvm.access(1)

    assert (arch.vmid, arch.vmid_version, arch.vmids.vmid_next) == (1, 2, 2)
    assert kvm.vcpu.arch.hgatp_vmid == 1
    assert len(kvm.named("hfence_gvma_all")) == 1


@pytest.mark.kvmarch(arch="riscv", kernel="v6.1", vmid_bits=1)
def test_a_turn_that_ends_takes_all_vmids_away(kvm):
    other = kvm.machine.create_vm(kvm.vm.options)
    kvm.access(1)
    assert (kvm.vm.arch.vmid, kvm.vm.arch.vmids.vmid_next) == (1, 0)
    kvm.do(kvm.k.vcpu_reload(other.vcpus[0]))

    assert (other.arch.vmid, other.arch.vmid_version) == (1, 3)
    assert kvm.vm.arch.vmid_version == 2
    assert kvm.vcpu.tlb.entries == {}
    assert kvm.access(1) == "done"
    assert (kvm.vm.arch.vmid, kvm.vm.arch.vmid_version) == (1, 4)
    assert kvm.lost == []


@pytest.mark.kvmarch(arch="riscv", kernel="v6.1", vmid_bits=0)
def test_without_vmids_every_entry_drops_everything(kvm):
    kvm.access(1)
    fill(kvm, 3, vmid=0)
    kvm.access(1)
    kvm.vcpu.mode = "outside"
    kvm.access(2)

    assert kvm.vm.arch.vmid == 0
    assert 3 not in cached(kvm, 0)


@pytest.mark.kvmarch(arch="riscv", kernel="v6.1", vmid_bits=1)
def test_too_few_vmids_for_the_cpus_are_not_used(kvmarch_boot):
    assert kvmarch_boot(vcpus=2).vm.arch.vmids.bits == 1
    assert kvmarch_boot(vcpus=3).vm.arch.vmids.bits == 0


# -- CPUs --------------------------------------------------------------------------


@riscv
def test_a_move_takes_the_other_cpus_tlb(kvm):
    kvm.access(1)
    kvm.vcpu.mode = "outside"
    held = dict(kvm.vcpu.tlb.entries)
    kvm.do("riscv.move_vcpu vcpu=0 cpu=3")
    assert (kvm.vcpu.arch.cpu, kvm.vcpu.tlb.entries) == (3, {})
    kvm.do("riscv.move_vcpu vcpu=0 cpu=0")

    assert kvm.vcpu.tlb.entries == held


@riscv
def test_a_vcpu_on_another_cpu_drops_the_vmid(kvm):
    kvm.access(1)
    kvm.vcpu.mode = "outside"
    kvm.do("riscv.move_vcpu vcpu=0 cpu=3")
    fill(kvm, 9, vmid=kvm.vm.arch.vmid)
    kvm.access(2)

    assert 9 not in cached(kvm, kvm.vm.arch.vmid)


@riscv
def test_a_move_to_where_it_is_changes_nothing(kvm):
    kvm.access(1)
    kvm.vcpu.mode = "outside"
    held = dict(kvm.vcpu.tlb.entries)
    kvm.do("riscv.move_vcpu vcpu=0 cpu=0")

    assert kvm.vcpu.tlb.entries == held


@riscv
def test_a_cpu_is_taken_by_one_vcpu(kvmarch_boot):
    kvm = kvmarch_boot(vcpus=2)
    moving = kvm.actor("scheduler", "riscv.move_vcpu vcpu=0 cpu=1")
    assert moving.waits() == "move vCPU"
    kvm.do("riscv.move_vcpu vcpu=1 cpu=2")
    moving.end()

    assert [vcpu.arch.cpu for vcpu in kvm.vm.vcpus] == [1, 2]


@riscv
def test_the_register_names_mode_vmid_and_root(kvm):
    kvm.access(1)

    (event,) = kvm.named("hgatp")
    fields = Hgatp.unpack(event["value"])
    assert fields["mode"] == HgatpMode.SV57X4
    assert (fields["vmid"], fields["ppn"] << 12) == (1, kvm.vm.arch.pgd)
    assert fields["ppn"] % 4 == 0
