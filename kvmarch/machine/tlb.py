"""TLBs, and the flush that is owed for them.

A flush owed is a value: the operation that made translations stale returns a
:class:`Flush`, and somebody pays it or forgives it by name. What is owed is also
kept in a :class:`Ledger`, so that a flush that was dropped silently is seen.
"""

__all__ = ["Flush", "Ledger", "Tlb", "Translation"]

from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from kvmarch.machine.world import Part, World


class Translation(NamedTuple):
    """What a TLB caches: ``pages`` base pages from ``gfn`` on, and what they allow.

    ``dirty`` says that hardware has nothing left to record on a write.
    """

    gfn: int
    pages: int
    pfn: int
    read: bool
    write: bool
    exec: bool
    dirty: bool = True

    def allows(self, access: str) -> bool:
        """Return whether an access needs no walk and no fault."""
        if access == "write":
            return self.write and self.dirty
        return self.read if access == "read" else self.exec


class Tlb(Part):
    """The translations that one vCPU may use, by tag.

    The tag is the architecture's: VMID, ASID, GuestID, LPID. An entry whose tag
    is no longer loaded stays cached and is unreachable.

    :param size: entries that fit; the oldest ones give way, a quarter at a time.
    """

    variables = ("entries", "spans")

    def __init__(self, size: int = 1536) -> None:
        self.size = size
        self.entries: dict[tuple[Any, int, int], Translation] = {}
        self.spans: tuple[int, ...] = (1,)

    def lookup(self, tag: Any, gfn: int) -> Translation | None:
        """Return the cached translation of a gfn under a tag."""
        entries = self.entries
        for span in self.spans:
            found = entries.get((tag, gfn & -span, span))
            if found is not None:
                return found
        return None

    def insert(self, tag: Any, translation: Translation) -> None:
        """Cache a translation, in place of an older one of the same span."""
        entries = self.entries
        span = translation.pages
        if span not in self.spans:
            self.spans = (*self.spans, span)
        entries[tag, translation.gfn, span] = translation
        if len(entries) > self.size:
            # The oldest quarter at once: taking the first one out of a dict again
            # and again would have to skip all that were taken before.
            for key in list(islice(entries, -(-self.size // 4))):
                del entries[key]

    def drop(self, tag: Any, start: int, end: int) -> None:
        """Forget what overlaps ``start`` to ``end`` (gfn, end exclusive)."""
        entries = self.entries
        if not entries:
            return
        if end - start == 1:
            for span in self.spans:
                entries.pop((tag, start & -span, span), None)
            return
        for key in [
            key
            for key in entries
            if key[0] == tag and key[1] < end and start < key[1] + key[2]
        ]:
            del entries[key]

    def drop_all(self, tag: Any = None) -> None:
        """Forget everything, or everything under a tag."""
        if tag is None:
            self.entries.clear()
        else:
            for key in [key for key in self.entries if key[0] == tag]:
                del self.entries[key]


@dataclass(frozen=True, slots=True)
class Flush:
    """Translations of ``start`` to ``end`` (gfn, end exclusive) that must go.

    :param due: ``unlock``, before mmu_lock is dropped; or ``return``, before the
        system call returns to user space.
    """

    start: int
    end: int
    due: str = "unlock"

    def __or__(self, other: "Flush | None") -> "Flush":
        """Return one flush that pays both."""
        if other is None:
            return self
        due = "unlock" if "unlock" in {self.due, other.due} else "return"
        return Flush(min(self.start, other.start), max(self.end, other.end), due)

    def __ror__(self, other: None) -> "Flush":
        return self


class Ledger(Part):
    """Which task owes which flushes."""

    variables = ("owed",)

    def __init__(self, world: World) -> None:
        self.world = world
        self.owed: dict[str, list[Flush]] = {}

    def owe(self, start: int, end: int, *, due: str = "unlock") -> Flush:
        """Enter a flush that the running task owes, and return it."""
        flush = Flush(start, end, due)
        self.owed.setdefault(self._me(), []).append(flush)
        self.world.note("flush_owed", start=start, end=end, due=due)
        return flush

    def pay(self, start: int, end: int, how: str) -> None:
        """Strike out what the running task owes inside a range."""
        me = self._me()
        mine = self.owed.get(me)
        if mine:
            rest = [f for f in mine if f.start < start or f.end > end]
            if rest:
                self.owed[me] = rest
            else:
                del self.owed[me]
        self.world.note("flush", how=how, start=start, end=end)

    def forgive(self, why: str) -> None:
        """Strike out all that the running task owes, for a stated reason."""
        if self.owed.pop(self._me(), None):
            self.world.note("flush_forgiven", why=why)

    def settle(self, at: str, *, due: str = "") -> None:
        """Record a loss if the running task still owes something.

        :param at: the moment, as ``unlock of mmu_lock``.
        :param due: look only at flushes that are due then; all if it is empty.
        """
        left = [f for f in self.owed.get(self._me(), ()) if not due or f.due == due]
        if left:
            ranges = ", ".join(f"gfn {f.start:#x}-{f.end - 1:#x}" for f in left)
            self.world.violate("flush-owed", f"{at}: a flush of {ranges} is still owed")
            del self.owed[self._me()]

    def _me(self) -> str:
        task = self.world.current
        return "" if task is None else str(task.name)
