"""The end of stage 2: at release of the mm, and when the VM is destroyed.

:Kernel: kvm_arch_flush_shadow_all(), kvm_free_stage2_pgd(),
    kvm_uninit_stage2_mmu(), kvm_arch_destroy_vm() (fact sheet arm64, 3.8).
"""

__all__ = ["CHOICES"]

from typing import TYPE_CHECKING

from kvmarch_arm64.changes import PGTABLE
from kvmarch_arm64.pgtable import free_chunk, kvm_pgtable_stage2_destroy
from kvmarch_arm64.ranges import unmap_stage2_range

from kvmarch import Choice, Vm, op

if TYPE_CHECKING:
    from kvmarch_arm64.state import Mmu

# -------------------------------------------------------------------------
# Steps
# -------------------------------------------------------------------------


@op(name="read kvm->arch.pgd")
def _read_pgd(vm: Vm) -> int:
    return vm.arch.pgt or 0


@op(name="take kvm->arch.pgd")
def _take_pgd(vm: Vm) -> int:
    """Read the root and leave none behind."""
    mmu: Mmu = vm.arch
    pgd, mmu.pgt = mmu.pgt, None
    return pgd or 0


@op(name="free the tables")
def _free_tables(vm: Vm, pgd: int) -> None:
    kvm_pgtable_stage2_destroy(vm, pgd)


@op(name="free a chunk of the tables")
def _free_chunk(vm: Vm, pgd: int) -> bool:
    return free_chunk(vm, pgd)


@op(name="kvm->arch.pgd = NULL")
def _reset_pgd(vm: Vm) -> None:
    vm.arch.pgt = None


@op(name="check for leaked tables")
def _check_leaks(vm: Vm) -> None:
    left = len(vm.tables.live) + len(vm.tables.retired)
    if left and vm.arch.pgt is None:
        vm.world.violate("table-memory", f"{left} tables are never freed")


# -------------------------------------------------------------------------
# The tables
# -------------------------------------------------------------------------

free_stage2_pgd = Choice("arm64_free_stage2_pgd", "how the tables are torn down")


@free_stage2_pgd.when()
async def _without_lock(vm: Vm) -> None:
    """Unmap all, free the root and forget it, under no lock (up to v4.10)."""
    pgd = await _read_pgd(vm)
    if pgd:
        await unmap_stage2_range(vm, 0, vm.arch.end_gfn, True)
        await _free_tables(vm, pgd)
        await _reset_pgd(vm)


@free_stage2_pgd.when("arm64-teardown-lock")
async def _unmap_with_lock(vm: Vm) -> None:
    """Unmap under mmu_lock; free and forget the root outside of it (v4.11)."""
    pgd = await _read_pgd(vm)
    if pgd:
        async with vm.mmu_lock.write():
            await unmap_stage2_range(vm, 0, vm.arch.end_gfn, True)
        await _free_tables(vm, pgd)
        await _reset_pgd(vm)


@free_stage2_pgd.when("arm64-teardown-lock", "arm64-pgd-reset-locked")
async def _reset_with_lock(vm: Vm) -> None:
    """Unmap and take the root under mmu_lock; free it outside (v4.12 to v5.9)."""
    async with vm.mmu_lock.write():
        await unmap_stage2_range(vm, 0, vm.arch.end_gfn, True)
        pgd = await _take_pgd(vm)
    if pgd:
        await _free_tables(vm, pgd)


_NEW = ("arm64-teardown-lock", "arm64-pgd-reset-locked", PGTABLE)


@free_stage2_pgd.when(*_NEW)
async def _destroy(vm: Vm) -> None:
    """Take the root under mmu_lock, and free all without a TLBI (v5.10 on)."""
    async with vm.mmu_lock.write():
        pgd = await _take_pgd(vm)
    if pgd:
        await _free_tables(vm, pgd)


@free_stage2_pgd.when(*_NEW, "arm64-chunked-destroy")
async def _destroy_in_chunks(vm: Vm) -> None:
    """Free what hangs below one root entry at a time, then the root (v6.19 on)."""
    async with vm.mmu_lock.write():
        pgd = await _take_pgd(vm)
    more = pgd != 0
    while more:
        more = await _free_chunk(vm, pgd)


# -------------------------------------------------------------------------
# The hooks
# -------------------------------------------------------------------------

flush_shadow_all = Choice("flush_shadow_all", "what the release of the mm does")
destroy_vm = Choice("destroy_vm", "what the destruction of the VM does")


@flush_shadow_all.when()
async def _nothing_at_release(vm: Vm) -> None:
    """Leave stage 2 as it is until the VM is destroyed (before 293f293637b5)."""


@flush_shadow_all.when("arm64-free-at-release")
async def _free_at_release(vm: Vm) -> None:
    """Tear stage 2 down; may run twice, also at once."""
    await vm.k.arm64_free_stage2_pgd(vm)


@flush_shadow_all.when("arm64-free-at-release", PGTABLE, "arm64-eager-split")
async def _uninit_at_release(vm: Vm) -> None:
    """Free what is set aside for splitting, and tear stage 2 down (v6.5 on).

    :Kernel: kvm_uninit_stage2_mmu(); two at once free the cache twice (fact sheet
        6 row 22)
    """
    await vm.k.arm64_free_split_cache(vm)
    await vm.k.arm64_free_stage2_pgd(vm)


@destroy_vm.when()
async def _free_at_destruction(vm: Vm) -> None:
    """Tear stage 2 down here (before 293f293637b5)."""
    await vm.k.arm64_free_stage2_pgd(vm)
    await _check_leaks(vm)


@destroy_vm.when("arm64-free-at-release")
async def _nothing_left(vm: Vm) -> None:
    """Find that stage 2 is gone."""
    await _check_leaks(vm)


@destroy_vm.when("arm64-free-at-release", "arm64-destroy-uninits")
async def _uninit_again(vm: Vm) -> None:
    """Tear stage 2 down once more, for VMs that were never released (v7.1 on)."""
    await vm.k.flush_shadow_all(vm)
    await _check_leaks(vm)


CHOICES = (free_stage2_pgd, flush_shadow_all, destroy_vm)
