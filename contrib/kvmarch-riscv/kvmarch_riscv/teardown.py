"""The end of the G-stage, at release of the mm.

:Kernel: kvm_arch_flush_shadow_all(), kvm_riscv_mmu_free_pgd(), since v6.17;
    kvm_riscv_gstage_free_pgd(), kvm_riscv_stage2_free_pgd() before (fact sheet riscv,
    3.3).

The root is freed, and the tables below it are not: nobody frees them any more.
"""

__all__ = ["CHOICES"]

from typing import TYPE_CHECKING

from kvmarch import Choice, Table, Vm, kvm_flush_remote_tlbs, op

from kvmarch_riscv.pte import is_table, table_pa
from kvmarch_riscv.ranges import unmap_now

if TYPE_CHECKING:
    from kvmarch_riscv.state import RiscvVm


@op(name="unmap all, pgd = NULL")
def _take_root(vm: Vm) -> tuple[int, bool]:
    """Unmap everything and leave no root behind; return it, and what is owed.

    Blocking is not allowed here, so mmu_lock is kept.
    """
    arch: RiscvVm = vm.arch
    pgd = arch.pgd
    if pgd is None:
        return 0, False
    owes = unmap_now(vm, pgd, 0, arch.gfns)
    arch.pgd = None
    return pgd, owes


@op(name="free the root")
def _free_root(vm: Vm, pgd: int) -> None:
    vm.tables.free(vm.tables.at(pgd))


free_tables = Choice("riscv_free_tables", "what is freed besides the root")


@free_tables.when()
async def _nothing_more(vm: Vm, pgd: int) -> None:
    """Leave the tables, which nothing leads to any more."""


@op(name="free the tables below the root")
def _free_below(vm: Vm, pgd: int) -> None:
    _free_children(vm, vm.tables.at(pgd))


def _free_children(vm: Vm, table: Table) -> None:
    for _index, entry in list(table.used(0, table.size)):
        if is_table(entry):
            below = vm.tables.at(table_pa(entry))
            _free_children(vm, below)
            vm.tables.free(below)


@free_tables.when("riscv-frees-tables")
async def _those_below(vm: Vm, pgd: int) -> None:
    """Free them (never posted)."""
    await _free_below(vm, pgd)


# -------------------------------------------------------------------------
# Pages set aside for eager splitting, since v7.3
# -------------------------------------------------------------------------

free_split_cache = Choice(
    "riscv_free_split_cache", "how the pages set aside for splitting are freed"
)


@op(name="read pgd_split_page_cache")
def _split_cache(vm: Vm) -> int:
    pages: int = vm.arch.split_page_cache
    return pages


@op(name="free pgd_split_page_cache")
def _free_cached(vm: Vm, pages: int) -> None:
    if vm.arch.split_page_cache < pages:
        vm.world.violate("table-memory", "pgd_split_page_cache is freed twice")
    vm.arch.split_page_cache = 0


async def _free_split_pages(vm: Vm) -> None:
    pages = await _split_cache(vm)
    if pages:
        await _free_cached(vm, pages)


@free_split_cache.when()
async def _no_cache(vm: Vm) -> None:
    """Have none (to v7.2)."""


@free_split_cache.when("riscv-eager-split")
async def _without_lock(vm: Vm) -> None:
    """Free them under no lock (v7.3 on; fact sheet 5, bug 15)."""
    await _free_split_pages(vm)


@free_split_cache.when("riscv-eager-split", "riscv-split-cache-locked")
async def _with_lock(vm: Vm) -> None:
    """Free them with mmu_lock held, as whoever fills the cache has it."""
    async with vm.mmu_lock.write():
        await _free_split_pages(vm)


# -------------------------------------------------------------------------
# The hook
# -------------------------------------------------------------------------

flush_shadow_all = Choice("flush_shadow_all", "what the release of the mm does")


@flush_shadow_all.when()
async def _free_pgd(vm: Vm) -> None:
    """Unmap all and free the root; may run twice, also at once."""
    async with vm.mmu_lock.write():
        pgd, owes = await _take_root(vm)
    if owes:
        await kvm_flush_remote_tlbs(vm)
    if pgd:
        await vm.k.riscv_free_tables(vm, pgd)
        await _free_root(vm, pgd)
    await vm.k.riscv_free_split_cache(vm)


CHOICES = (free_tables, free_split_cache, flush_shadow_all)
