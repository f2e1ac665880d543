"""From a host address to a pinned page: the host's fault, and gfn_to_pfn.

Models mm/memory.c and hva_to_pfn() of virt/kvm/kvm_main.c; generic facts 2.14, 7.
"""

__all__ = [
    "CHOICES",
    "FaultIn",
    "faultin_pfn",
    "fixup_user_fault",
    "get_user_page",
    "handle_mm_fault",
    "host_mapping",
    "release_pfn",
    "wp_page_copy",
]

from typing import Any, NamedTuple

from kvmarch.changes import Choice
from kvmarch.kernel.huge_memory import split_huge
from kvmarch.kernel.memslots import READONLY, Memslot
from kvmarch.kernel.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
)
from kvmarch.kernel.vm import Vm
from kvmarch.machine.host import (
    DIRTY,
    EXEC,
    PFN_SHIFT,
    PRESENT,
    SOFT_DIRTY,
    SPECIAL,
    WRITE,
    YOUNG,
    Mm,
    Vma,
)
from kvmarch.machine.steps import BLOCKED, op

NO_MEMORY = -12
"""-ENOMEM, where a pfn is asked for."""
_TRIES = 64
"""Faults on one address before the model gives up: far more than any path needs."""


class FaultIn(NamedTuple):
    """A host page, found for a guest's fault and held by one reference.

    ``error`` is empty, or why there is none: ``fault`` (no VMA, or it forbids the
    access) or ``readonly`` (a write to a read-only slot).
    """

    pfn: int
    writable: bool
    error: str = ""


@op(name="fast gup")
def _gup_fast(mm: Mm, vpn: int, write: bool) -> int:
    """Take a reference if the PTE allows the access as it stands; -1 if not."""
    entry = mm.ptes.get(vpn, 0) or mm.pte(vpn)
    if not entry & PRESENT or (write and not entry & WRITE):
        return -1
    pfn = entry >> PFN_SHIFT
    mm.host.get(pfn)
    return pfn


wp_counts_huge_page = Choice(
    "wp_counts_huge_page", "whether the pages of a huge page count as sharing it"
)
wp_counts_huge_page.add(False)
wp_counts_huge_page.add(True, "wp-by-page-count")
wp_counts_huge_page.add(False, "wp-by-page-count", "anon-exclusive")


def _counts_others(mm: Mm, vpn: int, pfn: int) -> bool:
    """Return whether a page counts as shared since others of its huge page are mapped.

    :Kernel: do_wp_page(), v5.9 to v5.18: it counts the mappings of the whole huge
        page.
    """
    count = 1 << mm.host.pages[pfn].order
    if count == 1 or not mm.k.wp_counts_huge_page or vpn not in mm.ptes:
        return False
    head = pfn // count * count
    return sum(mm.host.pages[each].maps for each in range(head, head + count)) > 1


@op(name="host fault")
def _fault_in_place(mm: Mm, vpn: int, write: bool) -> Any:
    """Resolve a host fault as far as no notifier is needed.

    :returns: ``done``, ``cow`` (the page must be copied), ``split`` (so must a page
        of a huge mapping, which is split first), ``huge`` (a huge page takes the place
        of the huge zero page) or ``error``.
    """
    if mm.ptl.writer is not None:
        # The entry is only judged with the page-table lock held, so that nobody takes
        # one for empty that is being replaced.
        return BLOCKED
    vma = mm.find_vma(vpn << mm.page_shift)
    if vma is None or (write and not vma.write):
        return "error"
    entry = mm.pte(vpn)
    host = mm.host
    if not entry:
        if host.environment.short:
            # VM_FAULT_OOM: the caller sees an error, as of an access that is forbidden.
            return "error"
        _map_new(mm, vpn, write, vma)
        return "done"
    if not entry & PRESENT:
        # migration_entry_wait(): the page is on its way to another frame.
        return BLOCKED
    if not write or entry & WRITE:
        return "done"
    pfn = entry >> PFN_SHIFT
    page = host.pages[pfn]
    if page.kind == "anon" and page.maps == 1 and not _counts_others(mm, vpn, pfn):
        # Reuse: the only mapping of an anonymous page becomes writable in place. A
        # permission increase needs no notification (generic facts 2.14).
        # Simplified: kernels differ in whether extra references force a copy; no
        # reference but KVM's own short one exists here.
        _make_writable(mm, vpn)
        return "done"
    if vpn in mm.ptes:
        return "cow"
    return "huge" if page.kind == "zero" and mm.k.huge_over_zero else "split"


def _map_new(mm: Mm, vpn: int, write: bool, vma: Vma) -> None:
    host = mm.host
    bits = PRESENT | YOUNG | (EXEC if vma.exec else 0)
    swapped = vpn in mm.swapped
    content = mm.swapped.pop(vpn, 0)
    order = mm.pmd_order
    first = vpn >> order << order
    huge = bool(vma.huge and order and not swapped) and huge_range_fits(mm, first)
    if huge or write or swapped:
        mm.prepare_anon(vma)
    if not write and not swapped:
        # A read of untouched memory maps the zero page, a huge one if it fits.
        if huge:
            zero = host.huge_zero(1 << order)
            bits |= SPECIAL if mm.k.huge_zero_special else 0
            mm.set_entry(first, zero << PFN_SHIFT | bits, 1 << order)
        else:
            mm.set_pte(vpn, host.zero_pfn << PFN_SHIFT | bits | SPECIAL)
        return
    if vma.write:
        bits |= WRITE | DIRTY | SOFT_DIRTY
    if huge:
        map_huge(mm, first, bits)
        return
    pfn = host.alloc("anon", content)
    page = host.pages[pfn]
    page.refs = page.maps = 1
    mm.set_pte(vpn, pfn << PFN_SHIFT | bits)


def huge_range_fits(mm: Mm, first: int) -> bool:
    """Return whether a huge page fits at a virtual page number.

    It does not where there is a table of base pages, even an empty one.
    """
    pages = 1 << mm.pmd_order
    start, end = first << mm.page_shift, first + pages << mm.page_shift
    vma = mm.find_vma(start)
    if vma is None or vma.end < end:
        return False
    return first >> mm.pmd_order not in mm.pte_tables and not mm.pmds.get(first)


def map_huge(mm: Mm, first: int, bits: int) -> None:
    """Map a new huge page with these bits of a host PTE."""
    pages = 1 << mm.pmd_order
    pfn = mm.host.alloc("anon", 0, count=pages, align=pages)
    for each in range(pfn, pfn + pages):
        page = mm.host.pages[each]
        page.refs = page.maps = 1
    mm.set_entry(first, pfn << PFN_SHIFT | bits, pages)


def _make_writable(mm: Mm, vpn: int) -> None:
    bits = WRITE | DIRTY | YOUNG | SOFT_DIRTY
    if vpn in mm.ptes:
        mm.set_pte(vpn, mm.ptes[vpn] | bits)
    else:
        first = vpn >> mm.pmd_order << mm.pmd_order
        mm.set_entry(first, mm.pmds[first] | bits, 1 << mm.pmd_order)


@op(name="copy page")
def _copy(mm: Mm, vpn: int) -> tuple[int, int]:
    """Copy the page under a write fault, and hold the old one meanwhile.

    :returns: the entry that is to be replaced, and the copy's pfn; -1 if the page
        is no longer there, NO_MEMORY if there is none for a copy.
    """
    host = mm.host
    entry = mm.ptes.get(vpn, 0)
    if not entry & PRESENT:
        return 0, -1
    if host.environment.short:
        return 0, NO_MEMORY
    old = entry >> PFN_SHIFT
    host.get(old)
    vma = mm.find_vma(vpn << mm.page_shift)
    if vma is not None:
        mm.prepare_anon(vma)
    pfn = host.alloc("anon", host.pages[old].content)
    host.pages[pfn].refs = 1
    return entry, pfn


@op(name="pte_same?")
def _is_same(mm: Mm, vpn: int, entry: int, new: int) -> bool:
    """Return whether the PTE is still the one that was copied from.

    Then the copy counts as mapped at once (page_add_new_anon_rmap()): the page-table
    lock is held until it is, and whoever zaps it later takes the count back.
    """
    same = mm.ptes.get(vpn, 0) == entry
    if same:
        mm.host.pages[new].maps += 1
    return same


@op(name="put copy")
def _put_copy(mm: Mm, old: int, new: int) -> None:
    """Give up a copy, because somebody else changed the PTE meanwhile."""
    mm.host.put(new)
    mm.host.put(old)


@op(name="ptep_clear_flush")
def ptep_clear_flush(mm: Mm, vpn: int) -> int:
    """Clear a host PTE and the host's TLB; return the old entry."""
    entry = mm.pte(vpn)
    mm.set_pte(vpn, 0)
    return entry


@op(name="set PTE")
def set_pte_at(mm: Mm, vpn: int, entry: int) -> None:
    """Store a host PTE."""
    mm.set_pte(vpn, entry)


@op(name="put old page")
def _replaced(mm: Mm, old: int) -> None:
    """Give up the page whose place in one mapping another one took."""
    host = mm.host
    if not host.is_zero(old):
        host.pages[old].maps -= 1
        host.put(old)
    host.put(old)


async def wp_page_copy(mm: Mm, vpn: int, *, unshare: bool = False) -> bool:
    """Give a writer a copy of a shared page; return False if there is no memory.

    :param unshare: somebody wants the copy who does not write: it is clean, and not
        writable yet, and soft-dirty only if the shared page's PTE was.
    :Kernel: wp_page_copy(), mm/memory.c. The copy is made before the bracket; the
        old page is put after it.
    :Locking: mmap_lock for read.
    """
    before, new = await _copy(mm, vpn)
    if new < 0:
        return new != NO_MEMORY
    old = before >> PFN_SHIFT
    hva = vpn << mm.page_shift
    end = hva + (1 << mm.page_shift)
    await mm.k.change_pte_start(mm, hva, end)
    async with mm.ptl.write():
        same = await _is_same(mm, vpn, before, new)
        if same:
            await ptep_clear_flush(mm, vpn)
            bits = PRESENT | YOUNG | before & EXEC
            bits |= before & SOFT_DIRTY if unshare else WRITE | DIRTY | SOFT_DIRTY
            await mm.k.set_pte_at_notify(mm, vpn, new << PFN_SHIFT | bits)
    await mm.k.change_pte_end(mm, hva, end)
    if same:
        await _replaced(mm, old)
    else:
        await _put_copy(mm, old, new)
    return True


huge_zero_special = Choice(
    "huge_zero_special", "whether an entry of the huge zero page is marked special"
)
huge_zero_special.add(False)
huge_zero_special.add(True, "huge-zero-special")
huge_over_zero = Choice(
    "huge_over_zero", "whether a write to the huge zero page gets a huge page"
)
huge_over_zero.add(False)
huge_over_zero.add(True, "huge-over-zero")


@op(name="map huge page for the huge zero page")
def _map_over_zero(mm: Mm, first: int) -> None:
    entry = mm.pmds.get(first, 0)
    if entry and mm.host.is_zero(entry >> PFN_SHIFT):
        mm.set_entry(first, 0, 1 << mm.pmd_order)
        bits = PRESENT | WRITE | DIRTY | YOUNG | SOFT_DIRTY | entry & EXEC
        map_huge(mm, first, bits)


async def _huge_zero_wp(mm: Mm, vpn: int) -> None:
    """Give a writer a huge page in place of the huge zero page.

    :Kernel: do_huge_zero_wp_pmd() (event CLEAR).
    """
    first = vpn >> mm.pmd_order << mm.pmd_order
    start = first << mm.page_shift
    end = start + (1 << mm.pmd_order + mm.page_shift)
    await mmu_notifier_invalidate_range_start(mm, start, end)
    async with mm.ptl.write():
        await _map_over_zero(mm, first)
    await mmu_notifier_invalidate_range_end(mm, start, end)


async def handle_mm_fault(mm: Mm, vpn: int, write: bool) -> bool:
    """Resolve one host fault; return whether the access is allowed.

    :Kernel: handle_mm_fault().
    :Locking: mmap_lock for read.
    """
    how: str = await _fault_in_place(mm, vpn, write)
    if how == "cow":
        copied: bool = await wp_page_copy(mm, vpn)
        if not copied:
            return False
    elif how == "huge":
        await _huge_zero_wp(mm, vpn)
    elif how == "split":
        # do_huge_pmd_wp_page(): the fault is taken again on the page's own PTE.
        await split_huge(mm, vpn << mm.page_shift)
    return how != "error"


async def get_user_page(mm: Mm, vpn: int, write: bool) -> int:
    """Return the pfn behind a virtual page with a reference taken; -1 if none may be.

    :Kernel: get_user_pages_unlocked().
    """
    _spins = 0
    while _spins < _TRIES:
        _spins += 1
        pfn = await _gup_fast(mm, vpn, write)
        if pfn >= 0:
            return pfn
        async with mm.mmap_lock.read():
            allowed = await handle_mm_fault(mm, vpn, write)
        if not allowed:
            return -1
    return -1


@op(name="ptep_set_access_flags")
def _set_access_flags(mm: Mm, vpn: int, write: bool) -> bool:
    """Make the entry young, for a write dirty; return whether it allows the access."""
    entry = mm.pte(vpn)
    if not entry & PRESENT or (write and not entry & WRITE):
        return False
    pages = mm.level_pages(vpn)
    first = vpn & -pages
    entry = mm.pte(first)
    if not entry & YOUNG:
        mm.set_entry(first, entry | YOUNG, pages)
    if write:
        # Stored even if it stays as it is: an architecture may have protected the entry
        # in a way that the model's entry does not show.
        mm.set_entry(first, entry | YOUNG | DIRTY | SOFT_DIRTY, pages)
    return True


async def fixup_user_fault(vm: Vm, hva: int, write: bool) -> bool:
    """Let the host's own entry of an address allow an access, and take no page.

    For a guest that walks the host's tables.

    :Kernel: fixup_user_fault(): the entry is made young, and for a write dirty.
    :param hva: in bytes.
    :returns: False if no VMA allows the access.
    """
    mm = vm.mm
    vpn = hva >> vm.page_shift
    _spins = 0
    while _spins < _TRIES:
        _spins += 1
        there = False
        async with mm.mmap_lock.read():
            allowed = await handle_mm_fault(mm, vpn, write)
            if allowed:
                there = await _set_access_flags(mm, vpn, write)
        if there or not allowed:
            return there
    return False


async def faultin_pfn(vm: Vm, slot: Memslot, gfn: int, write: bool) -> FaultIn:
    """Find the host page for a guest's fault.

    A read is also tried as a write, without faulting, so that a page which the
    host has writable is mapped writable at once.

    :Kernel: __gfn_to_pfn_memslot(), hva_to_pfn(); __kvm_faultin_pfn() from v6.13.
    :returns: the page, with one reference that release_pfn() gives back.
    """
    readonly = slot.flags & READONLY
    if write and readonly:
        return FaultIn(-1, writable=False, error="readonly")
    mm = vm.mm
    vpn = slot.hva(gfn, vm.page_shift) >> vm.page_shift
    if not readonly:
        pfn = await _gup_fast(mm, vpn, True)
        if pfn >= 0:
            return FaultIn(pfn, writable=True)
    pfn = await get_user_page(mm, vpn, write)
    if pfn < 0:
        return FaultIn(-1, writable=False, error="fault")
    if write:
        return FaultIn(pfn, writable=True)
    if not readonly:
        again = await _gup_fast(mm, vpn, True)
        if again >= 0:
            await release_pfn(vm, pfn)
            return FaultIn(again, writable=True)
    return FaultIn(pfn, writable=False)


@op(name="release page")
def release_pfn(vm: Vm, pfn: int) -> None:
    """Give back the reference of a page that was faulted in.

    :Kernel: kvm_release_pfn_clean(), kvm_release_faultin_page() from v6.13.
    """
    vm.host.put(pfn)


@op(name="read host PTE")
def host_mapping(vm: Vm, slot: Memslot, gfn: int) -> tuple[int, int]:
    """Look at the host PTE behind a gfn.

    :returns: the :class:`~kvmarch.HostPte` value (0 if there is none) as of base
        page size, and the pages that the host maps with one entry there.
    """
    vpn = slot.hva(gfn, vm.page_shift) >> vm.page_shift
    return vm.mm.pte(vpn), vm.mm.level_pages(vpn)


CHOICES = (huge_over_zero, huge_zero_special, wp_counts_huge_page)
