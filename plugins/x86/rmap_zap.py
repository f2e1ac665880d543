"""Zapping tables of the direct MMU wholesale: obsolete ones, or all.

:Kernel: kvm_zap_obsolete_pages(), kvm_mmu_zap_all() in arch/x86/kvm/mmu.c, later
    arch/x86/kvm/mmu/mmu.c, v3.16 to v7.2; fact sheet x86, 3.9 and D10.
"""

__all__ = ["BATCH_ZAP_PAGES", "rmap_zap_all", "rmap_zap_obsolete_pages"]

from kvmarch_x86.rmap_pages import (
    Zapped,
    free_zapped_pages,
    is_obsolete_sp,
    prepare_zap_page,
)

from kvmarch import Vm, kvm_flush_remote_tlbs, kvm_make_all_cpus_request, op

BATCH_ZAP_PAGES = 10


@op(name="zap obsolete pages")
def _zap_batch(vm: Vm) -> tuple[int, ...]:
    """Zap up to a batch of obsolete tables, oldest first.

    Simplified: a batch is one step, though vCPUs walk without the lock meanwhile;
    harmless because what they reach is obsolete and they are about to reload.

    :returns: physical addresses of the tables to be freed; empty when none is left.
    """
    arch = vm.arch
    zapped: list[int] = []
    while arch.active_mmu_pages and len(zapped) < BATCH_ZAP_PAGES:
        table = vm.tables.at(arch.active_mmu_pages[-1])
        if not is_obsolete_sp(vm, table):
            # New tables are put at the other end: the walk stops at them (D10).
            break
        # No flush is owed for these leafs: whoever used them has been told to load
        # another root before it enters the guest, and flushes there.
        zapped.append(prepare_zap_page(vm, table).table_pa)
    return tuple(pa for pa in zapped if pa)


@op(name="obsolete pages left?")
def _obsolete_left(vm: Vm) -> bool:
    pages = vm.arch.active_mmu_pages
    return bool(pages) and is_obsolete_sp(vm, vm.tables.at(pages[-1]))


async def rmap_zap_obsolete_pages(vm: Vm) -> None:
    """Zap the tables of earlier generations, ten at a time.

    The generation was changed, and vCPUs were asked to reload, under the same lock.

    :Kernel: kvm_zap_obsolete_pages()
    :Locking: mmu_lock exclusively; dropped between batches.
    """
    pages = await _zap_batch(vm)
    left = await _obsolete_left(vm)
    while left:
        await vm.mmu_lock.drop_write()
        await vm.mmu_lock.take_write()
        more = await _zap_batch(vm)
        pages += more
        left = await _obsolete_left(vm)
    if pages:
        await kvm_flush_remote_tlbs(vm)
        await _free(vm, pages)


@op(name="zap page")
def _zap_newest(vm: Vm) -> Zapped | None:
    """Zap the newest table; None if there is none."""
    pages = vm.arch.active_mmu_pages
    if not pages:
        return None
    table = vm.tables.at(pages[0])
    zapped = prepare_zap_page(vm, table)
    if zapped.leafs:
        # The flush comes only when all is zapped, whatever the lock does until then.
        # Simplified: it is owed for all gfns at once; harmless because it is for all.
        vm.ledger.owe(0, 1 << 52, due="return")
    return zapped


@op(name="free zapped pages")
def _free(vm: Vm, pages: tuple[int, ...]) -> None:
    free_zapped_pages(vm, pages)


async def rmap_zap_all(vm: Vm) -> None:
    """Zap every table, and begin again whenever the lock was dropped.

    Roots that vCPUs have loaded are cleared and become invalid; their vCPUs must load
    another one. Faults add tables where this begins, so that it ends only if they do
    (D10): it is for a VM that runs no more, and was used otherwise in v5.2 and v5.3.

    :Kernel: kvm_mmu_zap_all()
    :Locking: mmu_lock exclusively; dropped after each table.
    """
    pages: tuple[int, ...] = ()
    flush = False
    zapped = await _zap_newest(vm)
    while zapped is not None:
        flush = True
        if zapped.table_pa:
            pages = (*pages, zapped.table_pa)
        if zapped.reload:
            await kvm_make_all_cpus_request(vm, vm.k.x86_reload_request)
        await vm.mmu_lock.drop_write()
        await vm.mmu_lock.take_write()
        zapped = await _zap_newest(vm)
    if flush:
        await kvm_flush_remote_tlbs(vm)
        await _free(vm, pages)
