"""What a VM looks like while steps are made up for it, and what to choose of it.

Boundaries are chosen rather than what lies between: the ends of memories and slots,
huge pages, the page that was changed last.
"""

__all__ = [
    "EVERYTHING",
    "HAS_CODE",
    "MAPPED",
    "SLOT_IDS",
    "WRITABLE",
    "Chooser",
    "Program",
    "Shape",
    "Slot",
]

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from kvmarch.lab.sides import Memory, Setup, code_memory
from kvmarch.scenarios.verbs import LEAVE_GPA

CODE_GPA = 0xE000_0000
"""Where the page of the guest's code is, in bytes."""
TOP_GPA = 0xD000_0000
"""Slots that succeed end below it, so that every guest can reach them."""
SLOT_IDS = 7
MAPPED, WRITABLE, HAS_CODE = 1, 2, 4
EVERYTHING = MAPPED | WRITABLE | HAS_CODE
"""What a page of the host's memory may be: mapped, writable, code to fetch."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What of the machine decides which steps make sense.

    :param page_size: bytes.
    :param huge_pages: pages of a huge page; 1 if there are none.
    :param readonly: whether slots may be read-only.
    :param address_spaces: of memslots.
    :param vcpus: at most so many, of each VM.
    :param vms: at most so many, in one process.
    """

    page_size: int = 4096
    huge_pages: int = 512
    readonly: bool = True
    address_spaces: int = 1
    vcpus: int = 2
    vms: int = 2


class Program(NamedTuple):
    """A process with its VMs, and what is done with them."""

    setup: Setup
    lines: tuple[str, ...]


class Slot(NamedTuple):
    """A memslot as the generator believes it to be."""

    gfn: int
    pages: int
    memory: str
    page: int
    flags: str


@dataclass(slots=True)
class Chooser:
    """A process as whoever makes up steps for it believes it to be.

    :param state: by memory, what is true of each page.
    :param split: memories that are no longer one mapping.
    """

    shape: Shape
    rng: random.Random
    memories: dict[str, Memory] = field(default_factory=dict)
    state: dict[str, list[int]] = field(default_factory=dict)
    every: list[dict[tuple[int, int], Slot]] = field(default_factory=list)
    """Slots of each VM, by address space and number."""
    vm: int = 0
    """The VM that the step at hand is about, if it is about one."""
    split: set[str] = field(default_factory=set)
    doubtful: set[Slot] = field(default_factory=set)
    """Slots that some architectures refuse, for what they could not write to."""
    last: tuple[str, int] = ("", 0)
    """The page that the host has changed last: the guest likes to go there."""
    forks: int = 0
    vcpus: int = 1
    manual: set[int] = field(default_factory=set)
    """VMs that only KVM_CLEAR_DIRTY_LOG protects."""
    gone: set[int] = field(default_factory=set)
    """VMs that have been destroyed."""

    @property
    def slots(self) -> dict[tuple[int, int], Slot]:
        """Return the slots of the VM at hand."""
        return self.every[self.vm]

    # -- the VM ------------------------------------------------------------------------

    def begin(self) -> Setup:
        """Return the VMs, with memories of all kinds."""
        rng, huge = self.rng, self.shape.huge_pages
        contents = tuple(rng.choice((1, 1, 2, 3)) for _ in range(8))
        vms = rng.randint(1, self.shape.vms)
        self.every = [{} for _ in range(vms)]
        for vm in range(vms):
            self._memory(Memory(code_memory(vm), 1))
        self._memory(Memory("ram", 16, contents=contents))
        self._memory(Memory("rom", 8))
        self._memory(Memory("spare", 8, contents=None))
        has_huge = huge > 1 and rng.random() < 0.6
        large = has_huge and rng.random() < 0.5
        there = 2 * huge if large else 16
        self._memory(Memory("there", there, huge=large, contents=None))
        if has_huge:
            touched = None if rng.random() < 0.3 else ()
            count = rng.choice((huge, 2 * huge, 2 * huge))
            self._memory(Memory("big", count, huge=True, contents=touched))
        self.vcpus = rng.randint(1, self.shape.vcpus)
        code = CODE_GPA // self.shape.page_size
        return Setup(tuple(self.memories.values()), self.vcpus, code, vms)

    def _memory(self, row: Memory) -> None:
        self.memories[row.name] = row
        here = MAPPED | WRITABLE if row.contents is None else EVERYTHING
        self.state[row.name] = [here] * row.pages

    # -- choosing ----------------------------------------------------------------------

    def name(self) -> str:
        """Return a memory, but none with the code; often the one of last time."""
        if self.last[0] and self.rng.random() < 0.4:
            return self.last[0]
        codes = map(code_memory, range(len(self.every)))
        return self.rng.choice(sorted(self.memories.keys() - codes))

    def part(self, name: str) -> tuple[int, int]:
        """Return first page and number of pages, at an edge rather than between."""
        have, rng = self.memories[name].pages, self.rng
        edges = [0, 1, have // 2, have - 1]
        if self.memories[name].huge:
            huge = self.shape.huge_pages
            edges += [huge - 1, huge, huge // 2, have - huge]
        first = rng.choice([edge for edge in edges if 0 <= edge < have])
        if rng.random() < 0.5 and self.last[0] == name:
            first = self.last[1]
        left = have - first
        counts = [1, 1, 2, 3, left // 2, left, left]
        if self.memories[name].huge:
            counts += [self.shape.huge_pages]
        return first, rng.choice([count for count in counts if 1 <= count <= left])

    def slot(self) -> tuple[tuple[int, int], Slot] | None:
        """Return a slot that there should be."""
        if not self.slots:
            return None
        key = self.rng.choice(sorted(self.slots))
        return key, self.slots[key]

    def in_slot(self, slot: Slot) -> int:
        """Return a gfn of a slot, one at an edge rather than between."""
        last, rng = slot.pages - 1, self.rng
        near = [0, 1, last - 1, last, rng.randint(0, last), rng.randint(0, last)]
        huge = self.shape.huge_pages
        near += [-slot.gfn % huge, -slot.gfn % huge - 1] if huge > 1 else []
        return slot.gfn + rng.choice([at for at in near if 0 <= at <= last])

    def gfn(self, pages: int) -> int:
        """Return where a slot of some pages could begin, near others or boundaries."""
        rng, huge = self.rng, self.shape.huge_pages
        places = [0, 1, 16, 3 * huge, 4 * huge, 4 * huge + 1, 5 * huge - 1]
        places.append(0x4000_0000 // self.shape.page_size)
        for slot in self.slots.values():
            places += [
                slot.gfn + slot.pages,
                slot.gfn - pages,
                slot.gfn + slot.pages + 1,
            ]
        return rng.choice([gfn for gfn in places if gfn >= 0])

    def is_free(self, as_id: int, gfn: int, pages: int, but: int = -1) -> bool:
        """Return whether nothing is at some gfns, nor what must stay reachable."""
        size = self.shape.page_size
        if gfn < 0 or (gfn + pages) * size > TOP_GPA:
            return False
        if gfn <= LEAVE_GPA // size < gfn + pages:
            return False
        return not any(
            slot.gfn < gfn + pages and gfn < slot.gfn + slot.pages
            for (space, number), slot in self.slots.items()
            if space == as_id and number != but
        )

    def flag(self) -> str:
        """Return flags, as text."""
        every = ["", "", "log_dirty"]
        if self.shape.readonly:
            every += ["readonly", "log_dirty,readonly"]
        return self.rng.choice(every)

    def key(self) -> tuple[int, int]:
        """Return address space and number of a slot, the first space rather."""
        rng = self.rng
        as_id = 0
        if self.shape.address_spaces > 1 and rng.random() < 0.15:
            as_id = rng.randrange(1, self.shape.address_spaces)
        return as_id, rng.randint(1, SLOT_IDS)

    def forget(self, name: str, first: int, count: int, bits: int) -> None:
        """Note that pages have lost something."""
        state = self.state[name]
        for page in range(first, first + count):
            state[page] &= ~bits

    def all_have(self, name: str, first: int, count: int, bits: int) -> bool:
        """Return whether pages have something."""
        return all(s & bits == bits for s in self.state[name][first : first + count])
