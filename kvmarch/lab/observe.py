"""The whole tree of a VM after a step, read from the memory of the stopped machine."""

__all__ = ["BY_FRAMES", "Observer", "Seen", "candidates"]

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from kvmarch.arch import ArchInfo
from kvmarch.changes import Kernel
from kvmarch.errors import KvmarchError, WalkError
from kvmarch.format.walk import WalkLayout, WalkRule
from kvmarch.lab.root import Known, find_root
from kvmarch.lab.sides import Leaf
from kvmarch.walk.image import Image
from kvmarch.walk.names import Machine, Names, address_bits
from kvmarch.walk.path import UNKNOWN
from kvmarch.walk.tree import Tree, pages_of

BY_FRAMES = "from the leaves of known frames upwards"
"""How a root was found, for recordings."""


class Seen(NamedTuple):
    """A VM's tables at one moment.

    :param root: physical address in bytes, None if no tree was found.
    :param method: how the root was found; why not, if it was not.
    :param leaves: everything in the tree but tables and empty entries, by gfn.
    """

    root: int | None
    method: str
    leaves: tuple[Leaf, ...]


class _Raw(NamedTuple):
    """An entry before it has a name."""

    gfn: int
    level: int
    entry: int
    rule: WalkRule | None
    pfn: int | None
    pages: int


def candidates(
    k: Kernel, info: ArchInfo, given: Mapping[str, str]
) -> Iterator[Machine]:
    """Yield the machines that an unknown one may be, with what is given of it.

    What varies are the options that only entries can tell (``ArchInfo.inferred``) and
    those that decide the shape of the tables.

    :param given: options that are known, as text.
    """
    usual = info.settle(k.release, given)
    shape = _shape(_layout(k, usual))
    varied: dict[str, tuple[Any, ...]] = {}
    for name, option in info.options.items():
        if name in given:
            continue
        values = (usual[name], *option.available(k.release))
        shapes = {_shape(_layout(k, {**usual, name: value})) for value in values}
        if name in info.inferred or shapes - {shape, None}:
            varied[name] = tuple(dict.fromkeys(values))
    for chosen in product(*varied.values()):
        options = {**usual, **dict(zip(varied, chosen, strict=True))}
        layout = _layout(k, options)
        if layout is not None:
            yield Machine(k, options, layout)


def _layout(k: Kernel, options: Mapping[str, Any]) -> WalkLayout | None:
    """Return the walk of some options; None if they contradict each other."""
    try:
        layout: WalkLayout | None = k.walk.fn(k, options)
    except KvmarchError:
        return None
    return layout


def _shape(layout: WalkLayout | None) -> tuple[tuple[int, int], ...] | None:
    if layout is None:
        return None
    return tuple((level.shift, level.bits) for level in layout.levels)


class Observer:
    """Reads the tables of VMs: of a process's, and of one process after the other.

    :param image: the machine's memory, as it is at each look.
    :param machines: those that it may be, the likeliest first.
    :raises WalkError: there is none.
    """

    def __init__(
        self, image: Image, machines: Iterable[Machine], byteorder: str = ""
    ) -> None:
        self._image, self._byteorder = image, byteorder
        self._machines = [(machine, Names(machine)) for machine in machines]
        if not self._machines:
            raise WalkError("no machine is known whose tables could be walked")
        self._layouts = dict.fromkeys(m.layout for m, _ in self._machines)
        self._kinds: dict[tuple[int, int, int], str] = {}
        self._roots: dict[int, tuple[int, WalkLayout]] = {}
        """By number of the VM, where its tables are."""
        self._layout: WalkLayout | None = None
        self._gfns: dict[int, set[int]] = {}
        self._best = 0

    @property
    def machine(self) -> Machine:
        """Return the machine whose entries were understood best so far."""
        return self._machines[self._best][0]

    def forget(self) -> None:
        """Begin with another process."""
        self._roots.clear()
        self._gfns.clear()

    def look(self, known: Known, vm: int = 0) -> Seen:
        """Return the tree of a VM as it is now.

        A known root is kept as long as its tree can be walked and maps what was
        touched to where it is; else it is looked for again. If nothing better is
        found, the tree is shown as it is: that it maps a page elsewhere may be what
        somebody wants to see. Of two trees that fit none is shown.
        """
        gfns = self._gfns.setdefault(vm, set())
        gfns.update(known.frames)
        root = self._roots.pop(vm, None)
        entries = None if root is None else self._read(*root, gfns)
        if entries is None or not _maps(entries, known):
            try:
                found = self._find(known)
            except WalkError as error:
                # Of two trees that fit, one is a dead VM's. The next page that is
                # touched tells them apart.
                return Seen(None, str(error), ())
            if found is not None:
                root, entries = found, self._read(*found, gfns)
        if entries is None or root is None:
            if known.touched:
                return Seen(None, "no tree maps what was touched", ())
            return Seen(None, "nothing is touched, so nothing tells the root", ())
        self._roots[vm] = root
        return Seen(root[0], BY_FRAMES, self._named(entries, root[1]))

    def _find(self, known: Known) -> tuple[int, WalkLayout] | None:
        """Look for the root: in the layout of the machine's other VMs, then in all.

        The roots of the process's other VMs are none.
        """
        usual = [layout for layout in self._layouts if layout == self._layout]
        rest = [layout for layout in self._layouts if layout != self._layout]
        taken = [root for root, _layout in self._roots.values()]
        for layouts in (usual, rest):
            found = find_root(self._image, layouts, known, self._byteorder, taken)
            if found is not None:
                self._layout = found[1]
                return found
        return None

    def _read(
        self, root: int, layout: WalkLayout, known: set[int]
    ) -> list[_Raw] | None:
        """Return the entries of a tree by gfn, None if it is none any more.

        :param known: the gfns that it may have.
        """
        entries: list[_Raw] = []
        page = layout.page_shift
        try:
            for found in Tree(self._image, layout, root, self._byteorder).find():
                pages = pages_of(found)
                pfns = (
                    [None] * len(found.gpa)
                    if pages is None
                    else (pages >> pages.dtype.type(page)).tolist()
                )
                gfns = (found.gpa >> found.gpa.dtype.type(page)).tolist()
                number, size = found.level.level, 1 << found.level.shift - page
                # What maps no page may be what is left of a table, for any of its gfns.
                if not known.issuperset(gfns) and (
                    pages is not None or not all(_meets(at, size, known) for at in gfns)
                ):
                    return None
                entries.extend(
                    _Raw(gfn, number, entry, found.rule, pfn, size)
                    for gfn, entry, pfn in zip(
                        gfns, found.entry.tolist(), pfns, strict=True
                    )
                )
        except WalkError:
            return None
        entries.sort(key=lambda raw: (raw.gfn, -raw.pages))
        return entries

    def _named(self, entries: list[_Raw], layout: WalkLayout) -> tuple[Leaf, ...]:
        """Return the entries with the plugin's kinds, by the machine that fits best."""
        fitting = [at for at, (m, _) in enumerate(self._machines) if m.layout == layout]
        order = sorted(fitting, key=lambda at: at != self._best)
        kinds: list[str] = []
        fewest = len(entries) + 1
        for at in order:
            tried = [self._kind(at, raw) for raw in entries]
            unknown = tried.count(UNKNOWN)
            if unknown < fewest:
                self._best, kinds, fewest = at, tried, unknown
            if not unknown:
                break
        return tuple(
            Leaf(raw.gfn, raw.level, raw.entry, self._pfn(raw), kind, raw.pages)
            for raw, kind in zip(entries, kinds, strict=True)
        )

    def _pfn(self, raw: _Raw) -> int | None:
        """Return the page of an entry, also of one that hardware finds empty."""
        if raw.pfn is not None:
            return raw.pfn
        k, options, _ = self.machine
        pfn: int | None = k.entry_pfn.fn(k, options, raw.entry, raw.level)
        return pfn

    def _kind(self, at: int, raw: _Raw) -> str:
        key = at, raw.level, raw.entry & ~address_bits(raw.rule)
        if key not in self._kinds:
            self._kinds[key] = self._machines[at][1].of(raw.entry, raw.level).kind
        return self._kinds[key]


def _meets(gfn: int, pages: int, known: set[int]) -> bool:
    """Return whether any page of a range is known."""
    if pages < len(known):
        return not known.isdisjoint(range(gfn, gfn + pages))
    return any(gfn <= one < gfn + pages for one in known)


def _maps(entries: list[_Raw], known: Known) -> bool:
    """Return whether everything that was touched is mapped to where it is."""
    mapped = [raw for raw in entries if raw.pfn is not None]
    for gfn in known.touched:
        at = bisect_right(mapped, gfn, key=lambda raw: raw.gfn) - 1
        if at < 0:
            return False
        raw = mapped[at]
        if gfn >= raw.gfn + raw.pages or raw.pfn is None:
            return False
        if raw.pfn + gfn - raw.gfn != known.frames.get(gfn):
            return False
    return True
