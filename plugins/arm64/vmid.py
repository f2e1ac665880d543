"""VMIDs: what TLB entries of a guest are tagged with, and how they are handed out.

:Kernel: update_vttbr() of virt/kvm/arm/arm.c and its successors up to v5.17;
    arch/arm64/kvm/vmid.c since v5.18 (fact sheet arm64, 3.7).

VMIDs belong to the host: every VM of the machine draws on the same ones. A VM that dies
returns nothing, so its VMID is not used again before a rollover, which flushes all.
"""

__all__ = ["CHOICES", "Vmids"]

from typing import Any

from kvmarch import (
    Choice,
    Lock,
    LockClass,
    Part,
    Vcpu,
    Vm,
    kvm_make_all_cpus_request,
    op,
)

_PART = "vmids"
VMID_LOCK = LockClass("kvm_vmid_lock", rank=60, shared=True)


class Vmids(Part):
    """The allocator of the host.

    :param lock: kvm_vmid_lock.
    :param bits: of a VMID, 8 or 16.

    ``generation`` counts rollovers: from 1 in the old scheme, above the VMID's bits
    in the new one. ``next_vmid`` is where the search goes on; ``used`` is the bitmap.
    """

    variables = ("generation", "next_vmid", "used", "lock")

    def __init__(self, lock: Lock, bits: int, first_generation: int) -> None:
        self.bits = bits
        self.generation = first_generation
        self.next_vmid = 1
        self.used: set[int] = set()
        self.vms: list[Vm] = []
        self.lock = lock

    @classmethod
    def of(cls, vm: Vm) -> "Vmids":
        """Return the allocator of the host that a VM runs on, and register the VM."""
        world = vm.world
        vmids = world.parts.get(_PART)
        if not isinstance(vmids, cls):
            bits = vm.options["vmid_bits"]
            first = vm.k.arm64_first_generation.fn(bits)
            vmids = cls(Lock(world, VMID_LOCK), bits, first)
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
reload_vmid = Choice("vcpu_reload", "how a VMID is replaced that is too old")
waits = Choice(
    "arm64_vmid_waits", "whether a vCPU waits for those who are changing a VMID"
)
publish = Choice("arm64_publish_vmid", "in which order VMID and generation are stored")

first_generation.add(lambda bits: 1)
first_generation.add(lambda bits: 1 << bits, "arm64-vmid-bitmap")


_LOCKED = "arm64-vmid-generation-lock"
_ORDERED = "arm64-vmid-before-generation"

waits.add(False)
waits.add(True, _LOCKED)
waits.add(False, _LOCKED, _ORDERED)


@update_vmid.when()
def _by_generation(vcpu: Vcpu) -> bool:
    """Load the VMID if it is of the current generation; otherwise do not enter.

    :Kernel: need_new_vmid_gen(), and VTTBR_EL2 in __kvm_vcpu_run(), up to v5.17
    """
    # Simplified: update_vttbr() and the loop around the guest look one after the
    # other, which is one step here. What gets in between (up to v4.19) would take
    # another VM that uses up the VMIDs.
    mmu = vcpu.vm.arch
    vmids = mmu.vmids
    if mmu.vmid_id != vmids.generation:
        return True
    if vcpu.k.arm64_vmid_waits and vmids.lock.writer is not None:
        return True
    vcpu.arch.vmid = mmu.vmid
    return False


@op(name="need_new_vmid_gen, roll over")
def _needs_new(vcpu: Vcpu) -> bool:
    """Return whether the VM still needs a VMID; begin a generation if none is left."""
    vm = vcpu.vm
    vmids = vm.arch.vmids
    if vm.arch.vmid_id == vmids.generation:
        return False
    if not vmids.next_vmid:
        vmids.generation += 1
        vmids.next_vmid = 1
        for each in vmids.vms:
            # force_vm_exit(): an interrupt, here with a request that asks nothing.
            kvm_make_all_cpus_request.fn(each, "vmid_rollover")
        vmids.flush_vm_context(vm)
    return True


@op(name="kvm->arch.vmid_gen = kvm_vmid_gen")
def _store_generation(vcpu: Vcpu) -> None:
    mmu = vcpu.vm.arch
    mmu.vmid_id = mmu.vmids.generation


@op(name="kvm->arch.vmid = kvm_next_vmid")
def _store_vmid(vcpu: Vcpu) -> None:
    mmu = vcpu.vm.arch
    vmids = mmu.vmids
    mmu.vmid = vmids.next_vmid
    vmids.next_vmid = vmids.next_vmid + 1 & (1 << vmids.bits) - 1


@publish.when()
async def _generation_first(vcpu: Vcpu) -> None:
    """Say that the VMID is current before it is (fact sheet 6 row 3)."""
    await _store_generation(vcpu)
    await _store_vmid(vcpu)


@publish.when(_ORDERED)
async def _vmid_first(vcpu: Vcpu) -> None:
    """Store the VMID, and only then what lets others use it."""
    await _store_vmid(vcpu)
    await _store_generation(vcpu)


@reload_vmid.when()
async def _update_vttbr(vcpu: Vcpu) -> None:
    """Take the next VMID if the VM's is of an older generation.

    :Kernel: update_vttbr(), update_vmid(), up to v5.17
    """
    async with vcpu.vm.arch.vmids.lock.write():
        needed = await _needs_new(vcpu)
        if needed:
            await vcpu.k.arm64_publish_vmid(vcpu)


@op(name="need_new_vmid_gen")
def _is_old(vcpu: Vcpu) -> bool:
    mmu = vcpu.vm.arch
    return bool(mmu.vmid_id != mmu.vmids.generation)


@reload_vmid.when(_LOCKED)
async def _look_with_lock(vcpu: Vcpu) -> None:
    """Wait for those who are changing a VMID, then look (v4.17 to v4.19)."""
    async with vcpu.vm.arch.vmids.lock.read():
        old = await _is_old(vcpu)
    if old:
        await _update_vttbr(vcpu)


reload_vmid.add(_update_vttbr, _LOCKED, _ORDERED)


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
        own.vmid = mmu.vmid
        return
    if (mmu.vmid_id ^ vmids.generation) >> vmids.bits:
        mmu.vmid_id = _new_vmid(vmids, vcpu.vm)
        mmu.vmid = mmu.vmid_id & (1 << vmids.bits) - 1
    own.active_vmid = mmu.vmid_id
    own.vmid = mmu.vmid


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


CHOICES = (first_generation, update_vmid, reload_vmid, waits, publish)
