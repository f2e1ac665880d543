"""VMIDs: what TLB entries of a guest are tagged with, and how they are handed out.

:Kernel: update_vttbr() of virt/kvm/arm/arm.c and its successors up to v5.17;
    arch/arm64/kvm/vmid.c since v5.18 (fact sheet arm64, 3.7).

VMIDs belong to the host: every VM of the machine draws on the same ones. A VM that dies
returns nothing, so its VMID is not used again before a rollover, which flushes all.
"""

__all__ = ["CHOICES", "Vmids"]

from typing import Any

from kvmarch import Choice, Part, Vcpu, Vm, kvm_make_all_cpus_request

_PART = "vmids"


class Vmids(Part):
    """The allocator of the host.

    :param bits: of a VMID, 8 or 16.

    ``generation`` counts rollovers: from 1 in the old scheme, above the VMID's bits
    in the new one. ``next_vmid`` is where the search goes on; ``used`` is the bitmap.
    """

    variables = ("generation", "next_vmid", "used")

    def __init__(self, bits: int, first_generation: int) -> None:
        self.bits = bits
        self.generation = first_generation
        self.next_vmid = 1
        self.used: set[int] = set()
        self.vms: list[Vm] = []

    @classmethod
    def of(cls, vm: Vm) -> "Vmids":
        """Return the allocator of the host that a VM runs on, and register the VM."""
        world = vm.world
        vmids = world.parts.get(_PART)
        if not isinstance(vmids, cls):
            bits = vm.options["vmid_bits"]
            vmids = cls(bits, vm.k.arm64_first_generation.fn(bits))
            world.add(_PART, vmids)
        vmids.vms.append(vm)
        return vmids

    def vcpus(self) -> list[Vcpu]:
        """Return every vCPU of the host; each one has a CPU of its own."""
        return [vcpu for vm in self.vms for vcpu in vm.vcpus]

    def flush_vm_context(self, vm: Vm) -> None:
        """Drop the translations of all guests on all CPUs.

        :Kernel: __kvm_flush_vm_context(), TLBI ALLE1IS
        """
        vm.world.note("kvm_flush_vm_context", generation=self.generation)
        for vcpu in self.vcpus():
            vcpu.tlb.drop_all()
            vcpu.arch.walk_cache.clear()


first_generation = Choice("arm64_first_generation", "the generation at boot")
update_vmid = Choice("vcpu_load", "how a VM gets its VMID on the way into the guest")

first_generation.add(lambda bits: 1)
first_generation.add(lambda bits: 1 << bits, "arm64-vmid-bitmap")


@update_vmid.when()
def _by_generation(vcpu: Vcpu) -> None:
    """Take the next VMID if the VM's is of an older generation.

    :Kernel: update_vttbr(), need_new_vmid_gen(), up to v5.17
    """
    # Simplified: entry is one step, so that VMID and generation are published
    # together; the order of the two stores (fact sheet 6 row 3) cannot go wrong.
    mmu = vcpu.vm.arch
    vmids = mmu.vmids
    if mmu.vmid_id == vmids.generation:
        return
    if not vmids.next_vmid:
        vmids.generation += 1
        vmids.next_vmid = 1
        for vm in vmids.vms:
            # force_vm_exit(): an interrupt, here with a request that asks nothing.
            kvm_make_all_cpus_request.fn(vm, "vmid_rollover")
        vmids.flush_vm_context(vcpu.vm)
    mmu.vmid = vmids.next_vmid
    mmu.vmid_id = vmids.generation
    vmids.next_vmid = vmids.next_vmid + 1 & (1 << vmids.bits) - 1


@update_vmid.when("arm64-vmid-bitmap")
def _by_bitmap(vcpu: Vcpu) -> None:
    """Keep the VMID if its generation is current, or find one.

    :Kernel: kvm_arm_vmid_update(), since v5.18
    """
    # Simplified: fast path and locked slow path are one step. A vCPU that is put
    # leaves its VMID active, so that it is reserved in the next rollover.
    mmu = vcpu.vm.arch
    vmids = mmu.vmids
    own = vcpu.arch
    if own.active_vmid and mmu.vmid_id ^ vmids.generation < 1 << vmids.bits:
        own.active_vmid = mmu.vmid_id
        return
    if (mmu.vmid_id ^ vmids.generation) >> vmids.bits:
        mmu.vmid_id = _new_vmid(vmids, vcpu.vm)
        mmu.vmid = mmu.vmid_id & (1 << vmids.bits) - 1
    own.active_vmid = mmu.vmid_id


def _new_vmid(vmids: Vmids, vm: Vm) -> int:
    """Return generation and VMID: the old number if it is free, or the next free one.

    :Kernel: new_vmid(), check_update_reserved_vmid()
    """
    size = 1 << vmids.bits
    old: int = vm.arch.vmid_id
    if old:
        number = old & size - 1
        reserved = [v for v in vmids.vcpus() if v.arch.reserved_vmid == old]
        if reserved:
            for vcpu in reserved:
                vcpu.arch.reserved_vmid = vmids.generation | number
            return vmids.generation | number
        if number not in vmids.used:
            vmids.used.add(number)
            return vmids.generation | number
    number = _find_free(vmids, vmids.next_vmid)
    if number == size:
        vmids.generation += size
        _rollover(vmids, vm)
        number = _find_free(vmids, 1)
    vmids.used.add(number)
    vmids.next_vmid = number
    return vmids.generation | number


def _find_free(vmids: Vmids, start: int) -> int:
    """Return the first free number from a start on; VMID 0 is the host's."""
    number = start
    while number in vmids.used:
        number += 1
    return number


def _rollover(vmids: Vmids, vm: Vm) -> None:
    """Begin a new generation: only VMIDs that are active now keep their numbers.

    :Kernel: flush_context()
    """
    vmids.used.clear()
    for vcpu in vmids.vcpus():
        own: Any = vcpu.arch
        if own.active_vmid:
            own.reserved_vmid = own.active_vmid
            own.active_vmid = 0
        vmids.used.add(own.reserved_vmid & (1 << vmids.bits) - 1)
    vmids.used.discard(0)
    vmids.flush_vm_context(vm)


CHOICES = (first_generation, update_vmid)
