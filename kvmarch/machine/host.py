"""Host memory: pages with their counts, and address spaces with their PTEs.

Only state lives here; what the host mm does with it are paths of the kernel.
"""

__all__ = ["HostMemory", "HostPte", "Mm", "Page", "Vma"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from kvmarch.errors import ModelError
from kvmarch.format.bits import EntryFormat, Field
from kvmarch.machine.environment import Environment
from kvmarch.machine.locks import Lock, LockClass
from kvmarch.machine.world import Part, World

MMAP_LOCK = LockClass("mmap_lock", rank=50, sleeps=True, shared=True)
PAGE_TABLE_LOCK = LockClass("ptl", rank=60)
PMD_TABLE_SHIFT = 30
"""Bytes that one table of huge pages is for, as a power of two.

Simplified: it is so with 4 KiB pages, and on ppc with 64 KiB. Elsewhere it is more.
"""


class HostPte(EntryFormat):
    """A host page-table entry, in a layout of the model's own.

    Architectures differ here too; what KVM takes over from the host PTE are these
    properties. 0 is an empty entry.
    """

    pfn = Field(63, 12, doc="page frame number")
    special = Field(6, doc="no struct page behind it (_PAGE_SPECIAL)")
    exec = Field(5, doc="executable")
    soft_dirty = Field(4, doc="software dirty tracking")
    dirty = Field(3, doc="written")
    young = Field(2, doc="accessed")
    write = Field(1, doc="writable")
    present = Field(0, doc="maps a page")


PRESENT, WRITE, YOUNG = HostPte.present.mask, HostPte.write.mask, HostPte.young.mask
DIRTY, SOFT_DIRTY = HostPte.dirty.mask, HostPte.soft_dirty.mask
SPECIAL, EXEC = HostPte.special.mask, HostPte.exec.mask
PFN_SHIFT = HostPte.pfn.low


class Page:
    """One page of host memory.

    ``kind`` is ``anon``, ``ksm``, ``zero`` or ``file``; ``content`` a value that
    stands for what is written in it, equal for equal pages. ``order`` is that of the
    compound page it belongs to, however it is mapped.
    """

    __slots__ = (
        "accessed",
        "content",
        "dirty",
        "freed",
        "kind",
        "maps",
        "order",
        "pfn",
        "refs",
    )
    variables = (
        "kind",
        "content",
        "refs",
        "maps",
        "freed",
        "order",
        "dirty",
        "accessed",
    )

    def __init__(self, pfn: int, kind: str, content: Any, order: int = 0) -> None:
        self.pfn = pfn
        self.order = order
        self.kind = kind
        self.content = content
        self.refs = 0
        self.maps = 0
        self.freed = False
        self.dirty = False
        self.accessed = False

    def key(self) -> tuple[str, int]:
        """Return the page's name."""
        return "page", self.pfn

    def freeze(self) -> tuple[Any, ...]:
        """Return the page as a hashable value."""
        return (
            self.kind,
            self.content,
            self.refs,
            self.maps,
            self.freed,
            self.order,
        )


class HostMemory(Part):
    """All pages of the host.

    :param reuse: give the page that was freed last to the next who asks; otherwise
        a freed page is not used again, so that whoever still uses it is seen.
    """

    variables = ("pages", "free_pages", "next_pfn", "huge_zero_pfn")

    def __init__(
        self, world: World, *, first: int = 0x1000, reuse: bool = False
    ) -> None:
        self.world = world
        self.reuse = reuse
        self.environment = Environment()
        self.pages: dict[int, Page] = {}
        self.free_pages: list[int] = []
        self._marks: list[Callable[[], None]] = []
        self.next_pfn = first
        self.zero_pfn = self.alloc("zero", 0)
        self.pages[self.zero_pfn].refs = 1
        self.huge_zero_pfn = -1
        """First page of the huge zero page; -1 as long as nobody has asked for it."""

    def alloc(self, kind: str, content: Any, *, count: int = 1, align: int = 1) -> int:
        """Return the pfn of the first of ``count`` new pages, aligned in pages."""
        if count == 1 and self.reuse and self.free_pages:
            pfn = self.free_pages.pop()
        else:
            pfn = -(-self.next_pfn // align) * align
            self.next_pfn = pfn + count
        pages = self.pages
        order = count.bit_length() - 1
        for each in range(pfn, pfn + count):
            pages[each] = Page(each, kind, content, order)
        return pfn

    def huge_zero(self, count: int) -> int:
        """Return the first page of the huge zero page, of so many pages.

        :Kernel: mm_get_huge_zero_page(). Simplified: it is never freed again.
        """
        if self.huge_zero_pfn < 0:
            self.huge_zero_pfn = self.alloc("zero", 0, count=count, align=count)
            for pfn in range(self.huge_zero_pfn, self.huge_zero_pfn + count):
                self.pages[pfn].refs = 1
        return self.huge_zero_pfn

    def is_zero(self, pfn: int) -> bool:
        """Return whether a page is the zero page, or of the huge one."""
        return self.pages[pfn].kind == "zero"

    def get(self, pfn: int) -> None:
        """Take a reference."""
        self.pages[pfn].refs += 1

    def put(self, pfn: int) -> None:
        """Give a reference back; the last one frees the page.

        :raises ModelError: there is none left to give back.
        """
        page = self.pages[pfn]
        if page.refs <= 0:
            raise ModelError(f"page {pfn:#x} has no reference to put")
        page.refs -= 1
        if not page.refs:
            page.freed = True
            self.free_pages.append(pfn)
            self.world.note("page_free", pfn=pfn)

    def touch(self, pfn: int, who: str) -> None:
        """Record a loss if somebody uses a page after it was freed."""
        page = self.pages.get(pfn)
        if page is not None and page.freed:
            self.world.violate("freed-page", f"{who} reaches page {pfn:#x}, freed")

    def mark(self, pfn: int, *, dirty: bool, accessed: bool, who: str) -> None:
        """Set page flags, as kvm_set_pfn_dirty() and kvm_set_pfn_accessed() do."""
        page = self.pages.get(pfn)
        if page is None:
            return
        if page.freed:
            self.world.violate(
                "freed-page", f"{who} marks page {pfn:#x} after it was freed"
            )
        page.dirty |= dirty
        page.accessed |= accessed

    def mark_run(self, mark: Callable[[], None]) -> None:
        """Mark many pages by calling a function, now or when settle_marks() is called.

        Later is as good while no page was ever freed, so that no mark can come too
        late, on a machine that keeps no events, so that nobody looks meanwhile.
        """
        if self.world.traced or self.free_pages:
            self.settle_marks()
            mark()
        else:
            self._marks.append(mark)

    def settle_marks(self) -> None:
        """Do the marks that were put off."""
        marks, self._marks = self._marks, []
        for mark in marks:
            mark()


@dataclass(frozen=True, slots=True)
class Vma:
    """A mapped range of addresses: ``start`` to ``end`` in bytes, end exclusive."""

    start: int
    end: int
    write: bool = True
    exec: bool = False
    huge: bool = False
    """May be backed by huge pages (MADV_HUGEPAGE)."""
    mergeable: bool = False
    """KSM may merge its pages (MADV_MERGEABLE)."""
    hugetlb: bool = False
    """Holds huge pages and no others (hugetlbfs), so that it tells their size."""
    anon: bool = False
    """Has had a page of its own (an anon_vma); the zero page is none."""


class Mm(Part):
    """One address space of the host.

    ``ptes`` maps a virtual page number to a :class:`HostPte` value; ``pmds`` does
    so for a huge page, by its first virtual page number.

    :param page_shift: bytes of a page, as a power of two.
    :param pmd_order: pages of a huge page, as a power of two; 0 for none.
    """

    variables = (
        "vmas",
        "ptes",
        "pmds",
        "pte_tables",
        "pmd_tables",
        "swapped",
        "ksm_seen",
        "mm_users",
        "mmap_lock",
        "ptl",
        "subscriptions",
        "forks",
    )

    def __init__(
        self,
        world: World,
        host: HostMemory,
        name: str,
        *,
        page_shift: int,
        pmd_order: int,
    ) -> None:
        self.world = world
        self.host = host
        self.name = name
        self.page_shift = page_shift
        self.pmd_order = pmd_order
        self.vmas: list[Vma] = []
        self.ptes: dict[int, int] = {}
        self.pmds: dict[int, int] = {}
        self.pte_tables: set[int] = set()
        """Where a table of base pages is, full or empty, by number of the huge page
        that it takes the place of."""
        self.pmd_tables: set[int] = set()
        """Where a table of huge pages is, full or empty, by number of the GiB."""
        self.swapped: dict[int, Any] = {}
        """Contents of pages that were swapped out, by virtual page number."""
        self.ksm_seen: dict[int, Any] = {}
        """What KSM saw when it scanned a virtual page last (rmap_item->oldchecksum)."""
        self.mm_users = 1
        self.forks = 0
        """How many children there are, of those that were made in advance."""
        self._children: tuple[Mm, ...] = ()
        self.mmap_lock = Lock(world, MMAP_LOCK, f"{name} mmap_lock")
        self.ptl = Lock(world, PAGE_TABLE_LOCK, f"{name} ptl")
        self.subscriptions: Any = None
        """Set by the kernel when the first notifier is registered."""
        self.k: Any = None
        """The kernel that this address space belongs to."""
        self.walkers: list[Callable[[int, int, int, int], object]] = []
        """Called with each change of an entry, in its step: page, pages, old and new.
        They are of guests that walk these very tables."""

    def find_vma(self, hva: int) -> Vma | None:
        """Return the VMA that holds an address."""
        for vma in self.vmas:
            if vma.start <= hva < vma.end:
                return vma
        return None

    def parts(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return what each VMA has of a range of hvas, by address: start and end."""
        return tuple(
            (max(vma.start, start), min(vma.end, end))
            for vma in self.vmas
            if vma.start < end and start < vma.end
        )

    def prepare_children(self, count: int) -> None:
        """Make address spaces for so many children, before the machine runs.

        A part cannot be made in a step that is explored: in the state before it there
        would be no such part. What is forked in a schedule comes from here.
        """
        self._children = tuple(self._child(f" {n + 1}") for n in range(count))

    def _child(self, number: str) -> "Mm":
        return Mm(
            self.world,
            self.host,
            f"{self.name} child{number}",
            page_shift=self.page_shift,
            pmd_order=self.pmd_order,
        )

    def new_child(self) -> "Mm":
        """Return the empty address space of a child."""
        if self.forks >= len(self._children):
            self._children = (*self._children, self._child(""))
        self.forks += 1
        return self._children[self.forks - 1]

    def family(self) -> tuple["Mm", ...]:
        """Return the address space and those of its children, oldest first."""
        return (self, *self._children[: self.forks])

    def add_vma(self, vma: Vma) -> None:
        """Map a range in which nothing is mapped yet."""
        if any(v.start < vma.end and vma.start < v.end for v in self.vmas):
            raise ModelError(f"hva {vma.start:#x}-{vma.end:#x} is mapped already")
        self.vmas.append(vma)
        self.vmas.sort(key=lambda v: v.start)

    def change_vmas(self, start: int, end: int, **changes: Any) -> None:
        """Change what VMAs say about a range, splitting them at its ends."""
        self.split_vmas(start, end)
        self.vmas = [
            replace(v, **changes) if start <= v.start and v.end <= end else v
            for v in self.vmas
        ]

    def merge_vmas(self, start: int, end: int) -> None:
        """Make one VMA of neighbours that say the same, from one end to the other.

        If one of them has had a page of its own, the VMA has.

        :Kernel: vma_merge(). Simplified: neighbours whose pages are of unlike origin
            (anon_vma) stay apart in the kernel.
        """
        merged: list[Vma] = []
        for vma in self.vmas:
            last = merged[-1] if merged else None
            if (
                last is not None
                and start <= vma.start <= end
                and last.end == vma.start
                and replace(vma, start=last.start, anon=last.anon)
                == replace(last, end=vma.end)
            ):
                anon = last.anon or vma.anon
                merged[-1] = replace(last, end=vma.end, anon=anon)
            else:
                merged.append(vma)
        self.vmas = merged

    def prepare_anon(self, vma: Vma) -> None:
        """Note that a VMA gets a page of its own.

        :Kernel: anon_vma_prepare().
        """
        if not vma.anon:
            self.vmas[self.vmas.index(vma)] = replace(vma, anon=True)

    def remove_vmas(self, start: int, end: int) -> None:
        """Unmap a range, splitting VMAs at its ends.

        Tables go whose addresses nothing may use any more, see free_pgtables().
        """
        self.split_vmas(start, end)
        self.vmas = [v for v in self.vmas if v.end <= start or end <= v.start]
        self._free_tables(self.pte_tables, self.page_shift + self.pmd_order, start, end)
        self._free_tables(self.pmd_tables, PMD_TABLE_SHIFT, start, end)

    def _free_tables(self, tables: set[int], shift: int, start: int, end: int) -> None:
        around = range(start >> shift, -(-end >> shift))
        for at in [number for number in tables if number in around]:
            first, last = at << shift, at + 1 << shift
            if not any(v.start < last and first < v.end for v in self.vmas):
                tables.discard(at)

    def split_vmas(self, start: int, end: int) -> None:
        """Make VMAs begin and end at the ends of a range."""
        split: list[Vma] = []
        for vma in self.vmas:
            edges = sorted(e for e in {start, end} if vma.start < e < vma.end)
            at = vma.start
            for edge in (*edges, vma.end):
                split.append(replace(vma, start=at, end=edge))
                at = edge
        self.vmas = split

    def pte(self, vpn: int) -> int:
        """Return the entry that maps a virtual page, as one of base page size."""
        entry = self.ptes.get(vpn, 0)
        if entry or not self.pmds:
            return entry
        first = vpn >> self.pmd_order << self.pmd_order
        huge = self.pmds.get(first, 0)
        return huge + (vpn - first << PFN_SHIFT) if huge else 0

    def level_pages(self, vpn: int) -> int:
        """Return how many pages the entry maps that maps a virtual page."""
        if not self.pmd_order or vpn in self.ptes:
            return 1
        first = vpn >> self.pmd_order << self.pmd_order
        return 1 << self.pmd_order if first in self.pmds else 1

    def set_pte(self, vpn: int, entry: int) -> None:
        """Store an entry of base page size; 0 takes it away."""
        self.set_entry(vpn, entry, 1)

    def set_entry(self, vpn: int, entry: int, pages: int) -> None:
        """Store the entry of a page, huge if it has several; 0 takes it away.

        Every change of an entry comes by here.
        """
        table = self.pmds if pages > 1 else self.ptes
        old = table.get(vpn, 0) if self.walkers else 0
        if not entry:
            table.pop(vpn, None)
        else:
            table[vpn] = entry
            if self.pmd_order:
                self.pmd_tables.add(vpn >> PMD_TABLE_SHIFT - self.page_shift)
            if pages > 1:
                self.pte_tables.discard(vpn >> self.pmd_order)
            elif self.pmd_order:
                self.pte_tables.add(vpn >> self.pmd_order)
        for changed in self.walkers:
            changed(vpn, pages, old, entry)

    def mapped(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield virtual page number, entry and pages of what maps a range of hvas."""
        first, stop = start >> self.page_shift, -(-end >> self.page_shift)
        if stop - first > len(self.ptes):
            found = [(v, e, 1) for v, e in self.ptes.items() if first <= v < stop]
        else:
            found = [
                (v, e, 1) for v in range(first, stop) if (e := self.ptes.get(v, 0))
            ]
        pages = 1 << self.pmd_order
        found.extend(
            (v, e, pages)
            for v, e in self.pmds.items()
            if v < stop and first < v + pages
        )
        yield from sorted(found)
