"""Build a machine: host, one process, its VMs with their vCPUs."""

__all__ = ["CHOICES", "Machine", "boot", "destroy_vm"]

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kvmarch.changes import Choice, Kernel
from kvmarch.kernel.mmu_notifier import (
    Subscription,
    mmu_notifier_register,
    mmu_notifier_unregister,
)
from kvmarch.kernel.vm import Vcpu, Vm
from kvmarch.machine.host import HostMemory, Mm
from kvmarch.machine.run import run_path
from kvmarch.machine.steps import op
from kvmarch.machine.world import World

if TYPE_CHECKING:
    from kvmarch.kernel.gpc import Gpc


class Machine:
    """A host that runs one kernel, with a process that owns one VM or several."""

    def __init__(self, world: World, k: Kernel, host: HostMemory, mm: Mm) -> None:
        self.world = world
        self.k = k
        self.host = host
        self.mm = mm
        self.vms: list[Vm] = []
        self.subscriptions: dict[str, Subscription] = {}
        self.gpcs: list[Gpc] = []

    @property
    def vm(self) -> Vm:
        """Return the first VM."""
        return self.vms[0]

    def create_vm(
        self, options: Mapping[str, Any], *, vcpus: int = 1, dense: bool = False
    ) -> Vm:
        """Create a VM with its vCPUs and register its notifier, if it has one.

        :Kernel: kvm_create_vm().
        """
        vm = Vm(
            self.world,
            self.k,
            self.mm,
            options,
            number=len(self.vms),
            address_spaces=self.k.arch_info.address_spaces,
            dense=dense,
        )
        for number in range(vcpus):
            Vcpu(vm, number)
        self.vms.append(vm)
        self.world.add(vm.name, vm)
        subscription = Subscription(vm.name, vm)
        self.subscriptions[vm.name] = subscription
        if self.k.mmu_notifier:
            registers = mmu_notifier_register(self.mm, subscription)
            run_path(self.world, registers, "create")
        if self.k.host_entry_changed is not None:
            self.mm.walkers.append(partial(self.k.host_entry_changed.fn, vm))
        return vm


def boot(
    k: Kernel,
    options: Mapping[str, Any],
    *,
    vcpus: int = 1,
    dense: bool = False,
    reuse: bool = False,
    traced: bool = True,
) -> Machine:
    """Return a running machine with one VM.

    :param options: every option of the architecture, see ``ArchInfo.settle``.
    :param dense: keep page tables as arrays, for guests of many pages.
    :param reuse: let the host use a freed page again.
    :param traced: keep events.
    """
    world = World(traced=traced)
    host = HostMemory(world, reuse=reuse)
    page_size = options["page_size"]
    pmd_order = k.arch_info.pmd_order.get(page_size, 0)
    mm = Mm(
        world,
        host,
        "mm",
        page_shift=page_size.bit_length() - 1,
        pmd_order=pmd_order if k.transparent_hugepage else 0,
    )
    mm.k = k
    world.add("host", host)
    world.add("mm", mm)
    machine = Machine(world, k, host, mm)
    machine.create_vm(options, vcpus=vcpus, dense=dense)
    return machine


@op(name="users_count--")
def _last_user(vm: Vm) -> None:
    vm.users_count -= 1


check_counts = Choice(
    "check_counts", "what destroying a VM makes of invalidations that are still open"
)


@check_counts.when()
def _look_at_nothing(vm: Vm) -> None:
    """Leave the counts as they are (to v5.14)."""


@check_counts.when("mn-active-count")
def _forget_starts(vm: Vm) -> None:
    """Let go of starts whose end unregistering has cut off (v5.15 on)."""
    vm.mn_active_invalidate_count = 0


@check_counts.when("mn-active-count", "destroy-checks-balance")
def _forget_or_warn(vm: Vm) -> None:
    """Let go of such starts; if there is none, the counts must balance (v6.8 on).

    :Kernel: kvm_destroy_vm(), d497a0fab8b8.
    """
    if vm.mn_active_invalidate_count:
        vm.mn_active_invalidate_count = 0
    else:
        vm.warn(
            vm.mmu_invalidate_in_progress > 0,
            "VM is destroyed while an invalidation is in progress",
        )


@check_counts.when(
    "mn-active-count", "destroy-checks-balance", "destroy-forgives-nothing"
)
def _forget_and_warn(vm: Vm) -> None:
    """Warn of every invalidation in progress, whoever cut its end off (not merged)."""
    vm.mn_active_invalidate_count = 0
    vm.warn(
        vm.mmu_invalidate_in_progress > 0,
        "VM is destroyed while an invalidation is in progress",
    )


async def destroy_vm(vm: Vm, subscription: Subscription) -> None:
    """Destroy a VM when its last file descriptor is closed.

    :Kernel: kvm_destroy_vm(): notifier first, then the architecture.
    """
    await _last_user(vm)
    if vm.k.mmu_notifier:
        await mmu_notifier_unregister(vm.mm, subscription)
    await vm.k.check_counts(vm)
    await vm.k.destroy_vm(vm)


# -- guests that walk the host's own tables ----------------------------------------

mmu_notifier = Choice("mmu_notifier", "whether KVM hears of what the host mm does")
mmu_notifier.add(True)
host_entry_changed = Choice(
    "host_entry_changed",
    "what a change of a host entry does by itself to a guest that walks it",
)
host_entry_changed.add(None)
transparent_hugepage = Choice(
    "transparent_hugepage", "whether a process with a VM may have huge pages"
)
transparent_hugepage.add(True)

CHOICES = (check_counts, mmu_notifier, host_entry_changed, transparent_hugepage)
