"""VMIDs: who gets which, and what a rollover does."""

import pytest

from kvmarch.machine.tlb import Translation

SCHEMES = (
    pytest.param((4, 4), id="v4.4"),
    pytest.param((5, 17), id="v5.17"),
    pytest.param((5, 18), id="v5.18"),
    pytest.param((7, 2), id="v7.2"),
)


def vms(m, count):
    """Return so many VMs, each of which has entered its guest once."""
    more = [m.machine.create_vm(m.vm.options) for _ in range(count - 1)]
    for vm in (m.vm, *more):
        enter(m, vm)
    return [m.vm, *more]


def enter(m, vm, vcpu=0):
    while m.k.vcpu_load.fn(vm.vcpus[vcpu]):
        m.do(m.k.vcpu_reload(vm.vcpus[vcpu]))


def cache(vm, gfn=0):
    """Put a translation into the TLB of a VM's CPU."""
    vm.vcpus[0].tlb.insert(vm.arch.vmid, Translation(gfn, 1, 1, True, True, True))


@pytest.mark.parametrize("release", SCHEMES)
def test_vcpus_of_a_vm_share_one(machine, release):
    m = machine(release, vcpus=2)

    enter(m, m.vm, 0)
    first = m.mmu.vmid
    enter(m, m.vm, 1)
    assert first == m.mmu.vmid == 1
    assert m.k.tlb_tag.fn(m.vm.vcpus[1]) == 1


@pytest.mark.parametrize("release", SCHEMES)
def test_vms_have_different_ones(machine, release):
    m = machine(release)

    assert [vm.arch.vmid for vm in vms(m, 5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("release", SCHEMES)
def test_rollover_flushes_everything(machine, release):
    m = machine(release)
    all_vms = vms(m, 255)
    assert all_vms[-1].arch.vmid == 255
    cache(all_vms[3])
    for vm in all_vms:
        # Nobody runs, so that nothing is reserved.
        vm.vcpus[0].arch.active_vmid = 0

    one_more = m.machine.create_vm(m.vm.options)
    enter(m, one_more)
    assert one_more.arch.vmid == 1
    assert all_vms[3].vcpus[0].tlb.entries == {}
    assert len(m.named("kvm_flush_vm_context")) == 1
    enter(m, all_vms[0])
    assert all_vms[0].arch.vmid not in {0, 1} or release >= (5, 18)
    assert all_vms[0].arch.vmid != one_more.arch.vmid


@pytest.mark.parametrize(
    ("release", "kept"),
    [
        pytest.param((5, 17), False, id="v5.17 gives all anew"),
        pytest.param((5, 18), True, id="v5.18 reserves what is active"),
    ],
)
def test_running_guests_in_a_rollover(machine, release, kept):
    m = machine(release)
    all_vms = vms(m, 255)
    for vm in all_vms:
        vm.vcpus[0].arch.active_vmid = 0
    runs = all_vms[6]
    enter(m, runs)
    runs.vcpus[0].mode = "in_guest"

    enter(m, m.machine.create_vm(m.vm.options))
    assert runs.vcpus[0].exits["kick"] == (not kept)
    enter(m, runs)
    assert (runs.arch.vmid == 7) is kept


@pytest.mark.parametrize("release", SCHEMES)
def test_number_of_a_dead_vm_is_not_used_again_before_a_rollover(machine, release):
    m = machine(release)
    dead = vms(m, 2)[1]
    m.do(m.k.flush_shadow_all(dead))

    assert dead.arch.vmid == 2
    third = m.machine.create_vm(m.vm.options)
    enter(m, third)
    assert third.arch.vmid == 3


def test_sixteen_bits(machine):
    m = machine((6, 12), vmid_bits=16)

    enter(m, m.vm)
    assert m.mmu.vmid_id == 1 << 16 | 1
    assert m.mmu.vmid == 1


@pytest.mark.parametrize(
    ("release", "until", "vmid"),
    [
        pytest.param((4, 16), "vmid", 0, id="v4.16 generation first"),
        pytest.param((4, 17), "vmid", None, id="v4.17 waits"),
        pytest.param((4, 20), "vmid_gen", None, id="v4.20 VMID first"),
    ],
)
def test_entry_while_a_vmid_is_published(machine, release, until, vmid):
    """Fact sheet 6 row 3."""
    m = machine(release, vcpus=2)
    task = m.task("vcpu0", m.k.vcpu_reload(m.vm.vcpus[0]))
    source = {"vmid": "kvm_next_vmid", "vmid_gen": "kvm_vmid_gen"}[until]
    m.advance(task, f"kvm->arch.{until} = {source}")

    refused = m.k.vcpu_load.fn(m.vm.vcpus[1])
    assert refused is (vmid is None)
    if not refused:
        assert m.k.tlb_tag.fn(m.vm.vcpus[1]) == vmid
    m.finish(task)
    enter(m, m.vm, 1)
    assert m.k.tlb_tag.fn(m.vm.vcpus[1]) == 1
