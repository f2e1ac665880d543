"""The end: release of the mm, and destruction of the VM.

Models kvm_arch_flush_shadow_all() and kvm_arch_destroy_vm() of arch/mips/kvm/mips.c,
v4.11 on (fact sheet mips, sections 6.7 and 9, M1).
"""

__all__ = ["CHOICES", "destroy_vm"]

from typing import TYPE_CHECKING

from kvmarch_mips.gpa_table import kvm_mips_flush_gpa_pt

from kvmarch import Choice, Vm, op

if TYPE_CHECKING:
    from kvmarch_mips.state import MipsVm

flush_shadow_all = Choice("flush_shadow_all", "how the release of the mm drops all")


@op(name="find next table")
def _next(vm: Vm, pa: int, index: int) -> tuple[int, int] | None:
    """Return index and address of the next table below a directory."""
    directory = vm.tables.at(pa)
    for at, entry in directory.used(index, directory.size):
        return at, entry & vm.arch.geometry.pa_mask
    return None


@op(name="zap table")
def _zap(vm: Vm, pa: int) -> None:
    table = vm.tables.at(pa)
    table.fill(0, 0, table.size)
    vm.ledger.owe(table.base, table.base + table.size, due="return")


@op(name="unlink table")
def _unlink(vm: Vm, pa: int, index: int) -> None:
    directory = vm.tables.at(pa)
    directory.set(index, vm.arch.geometry.empty[directory.level - 1])


@op(name="free table")
def _free(vm: Vm, pa: int) -> None:
    vm.tables.free(vm.tables.live.get(pa) or vm.tables.freed[pa])


async def _flush_below(vm: Vm, pa: int, level: int) -> None:
    """Free every table below a directory, table by table.

    Without mmu_lock each step stands alone: two walks can find the same table.
    """
    found = await _next(vm, pa, 0)
    while found is not None:
        index, below = found
        if level == 2:
            await _zap(vm, below)
        else:
            await _flush_below(vm, below, level - 1)
        await _unlink(vm, pa, index)
        await _free(vm, below)
        found = await _next(vm, pa, index + 1)


@flush_shadow_all.when()
async def _flush_without_lock(vm: Vm) -> None:
    """Zap and free all without mmu_lock, then flush; may run twice at once (M1).

    :Kernel: kvm_arch_flush_shadow_all(), since v4.11.
    :Locking: a reader of kvm->srcu, nothing else.
    """
    arch: MipsVm = vm.arch
    await _flush_below(vm, arch.pgd, arch.geometry.levels)
    await vm.k.mips_flush_shadow(vm)


@op(name="zap all")
def _zap_all(vm: Vm) -> None:
    kvm_mips_flush_gpa_pt(vm, 0, -1)
    vm.ledger.owe(0, vm.arch.gfns)


@flush_shadow_all.when("mips-release-takes-mmu-lock")
async def _flush_locked(vm: Vm) -> None:
    """Hold mmu_lock, as the removal of a memslot does."""
    # Not merged: "Fix race conditions in kvm_arch_flush_shadow_all()", kvm list, May
    # 2026. That the flush is inside the lock is assumed.
    async with vm.mmu_lock.write():
        await _zap_all(vm)
        await vm.k.mips_flush_shadow(vm)


@op(name="free GPA page table")
def _free_gpa_pt(vm: Vm) -> None:
    """Zap what is left and free the root.

    :Kernel: kvm_mips_free_gpa_pt()
    """
    arch: MipsVm = vm.arch
    vm.warn(
        not kvm_mips_flush_gpa_pt(vm, 0, -1), "the GPA page table cannot be removed"
    )
    vm.tables.free(vm.tables.at(arch.pgd))
    arch.pgd = 0


async def destroy_vm(vm: Vm) -> None:
    """Free the GPA page table when no vCPU is left.

    :Kernel: kvm_arch_destroy_vm(), since v4.11.
    """
    await _free_gpa_pt(vm)


CHOICES = (flush_shadow_all,)
