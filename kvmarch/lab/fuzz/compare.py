"""Compare what two sides show after the same step.

What a kernel may choose by itself is let pass by these rules, and by nothing else:

- Which page a frame is. Page numbers of one side are put into the entries of the
  other; which pages are the same one is compared. Where KVM's tables lie does not
  count, see :func:`~kvmarch.recordings.surveys.alike_but_for_tables`.
- Whether a run that fails names an exit: the errno decides.
- What the warning says: there is one, or there is none.
- How long a TLB keeps what nobody flushed. The model's are emptied before each step,
  as those of emulators are whenever a guest is entered.
- Whether the host had a huge page to give. Where the second side's memory begins a
  run of pages as long and as aligned as a huge page, and the first side's does not,
  the rest of this process is not compared, and counted.
- A tree that nobody can find is not compared, and counted. Of several VMs each is
  compared for itself.
- Trace events are compared as those of recordings are, see
  :mod:`kvmarch.recordings.traces`: those that both kernels have. A page that KSM could
  not merge at once may be tried again, because somebody held it for a moment.
"""

__all__ = ["Comparer", "Difference"]

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmarch.errors import EntryError
from kvmarch.lab.sides import Leaf, Look, Setup, Tree
from kvmarch.recordings.surveys import compare_entries, compare_frames, exactly, tree_of
from kvmarch.recordings.traces import compare_traced

_EXIT_OF_FAILURE = re.compile(r"( rc=-\d+) exit=\d+")
_GPA = re.compile(r"\b(gpa|size|mmio|id)=\S+|\s(?!rc)[0-9a-f]+(?= errno)")


class Difference(NamedTuple):
    """What differs.

    :param what: ``answer``, ``kernel log``, ``host pages``, ``tree``, or what of the
        trace events: ``notifier events``, ``faults``, ``mmio entries``.
    :param kind: what must be the same for two differences to be the same one.
    :param text: both sides, in one line.
    """

    what: str
    kind: str
    text: str


class Comparer:
    """Compares the looks of one process with its VMs.

    :param huge_pages: pages of a huge page; 1 if there are none.
    :param repoint: returns an entry of the second side, at its level, with another
        page; see ``kvmarch_entry_repoint``.
    :param alike: whether entries of both sides are the same at a level.
    """

    def __init__(
        self,
        huge_pages: int,
        repoint: Callable[[int, int, int], int],
        alike: Callable[[int, int, int], bool] = exactly,
    ) -> None:
        self._huge_pages = huge_pages
        self._repoint = repoint
        self._alike = alike
        self._pages: dict[int, int] = {}
        self._huge: dict[str, int] = {}
        self.unlike = False
        """Whether the host has given this process other pages than the model's has."""
        self.not_walked = 0
        """Steps after which a side did not find a tree."""

    def begin(self, setup: Setup) -> None:
        """Begin with another process."""
        self._pages.clear()
        self._huge = {row.name: row.pages for row in setup.memories if row.huge}
        self.unlike = False

    def compare(self, real: Look, model: Look) -> Difference | None:
        """Return the first thing that differs after a step, None if nothing does."""
        theirs, ours = _answers(real), _answers(model)
        if theirs != ours:
            text = f"recorded {'; '.join(theirs)}, model {'; '.join(ours)}"
            return Difference("answer", _GPA.sub("", text), text)
        if bool(real.kernel_log) != bool(model.kernel_log):
            text = (
                f"recorded {'; '.join(real.kernel_log) or 'nothing'}, "
                f"model {'; '.join(model.kernel_log) or 'nothing'}"
            )
            return Difference("kernel log", "", text)
        if self.unlike or self._lacks_huge_page(real, model):
            self.unlike = True
            return None
        text = compare_frames(real.frames, model.frames, self._pages)
        if text:
            return Difference("host pages", "", text)
        return self._compare_trees(real, model) or _compare_events(real, model)

    def _compare_trees(self, real: Look, model: Look) -> Difference | None:
        self.not_walked += None in (*real.trees, *model.trees)
        moved = self._moved(model)
        for number, theirs, ours in _pairs(real, model):
            text = compare_entries(
                ((leaf.gfn, leaf.level, leaf.entry) for leaf in theirs),
                ((leaf.gfn, leaf.level, leaf.entry) for leaf in ours),
                moved,
                self._alike,
            )
            if text:
                return Difference("tree", "", f"{tree_of(number)}: {text}")
        return None

    def leaves(self, real: Look, model: Look) -> Iterator[tuple[int, Leaf, bool]]:
        """Yield the leaves that only one side has.

        :returns: the VM's number, the leaf, and whether it is the first side's.
        """
        moved = self._moved(model)
        for number, theirs, ours in _pairs(real, model):
            for leaf, first in self._only_one_has(theirs, ours, moved):
                yield number, leaf, first

    def _only_one_has(
        self, real: Tree, model: Tree, moved: Callable[[int, int], int]
    ) -> Iterator[tuple[Leaf, bool]]:
        theirs = {(leaf.gfn, leaf.level): leaf for leaf in real}
        ours = {(leaf.gfn, leaf.level): leaf for leaf in model}
        for place in sorted(theirs.keys() | ours.keys()):
            left, right = theirs.get(place), ours.get(place)
            if left and right:
                entry = moved(right.entry, right.level)
                if self._alike(left.entry, entry, left.level):
                    continue
            if left:
                yield left, True
            if right:
                yield right, False

    def _lacks_huge_page(self, real: Look, model: Look) -> bool:
        """Return whether the host had no huge page where the model's had one."""
        size = self._huge_pages
        for name, pages in self._huge.items():
            theirs, ours = real.frames.get(name, ()), model.frames.get(name, ())
            for first in range(0, pages - size + 1, size):
                part = slice(first, first + size)
                if _is_huge(ours[part], size) and not _is_huge(theirs[part], size):
                    return all(theirs[part])
        return False

    def _moved(self, look: Look) -> Callable[[int, int], int]:
        """Return what puts the first side's page into an entry of the second's."""
        frames = {
            (leaf.entry, leaf.level): leaf.pfn
            for tree in look.trees
            for leaf in tree or ()
        }

        def moved(entry: int, level: int) -> int:
            pfn = frames[entry, level]
            if pfn is None or pfn not in self._pages:
                return entry
            try:
                return self._repoint(entry, level, self._pages[pfn])
            except EntryError:
                # No entry of this level leads there, so the other side has none.
                return entry

        return moved


def _is_huge(pfns: tuple[int, ...], size: int) -> bool:
    """Return whether pages could be a huge one: aligned, and one after the other."""
    first = pfns[0] if pfns else 0
    return (
        bool(first) and not first % size and pfns == tuple(range(first, first + size))
    )


def _pairs(real: Look, model: Look) -> Iterator[tuple[int, Tree, Tree]]:
    """Yield number and trees of each VM whose tree both sides have found."""
    pairs = zip(real.trees, model.trees, strict=True)
    for number, (theirs, ours) in enumerate(pairs):
        if theirs is not None and ours is not None:
            yield number, theirs, ours


def _compare_events(real: Look, model: Look) -> Difference | None:
    if real.traced is None or model.traced is None:
        return None
    for row in compare_traced(real.traced, model.traced):
        if row.verdict == "differ":
            return Difference(row.what, "", row.detail)
    return None


def _answers(look: Look) -> list[str]:
    return [_EXIT_OF_FAILURE.sub(r"\1", answer) for answer in look.answers]
