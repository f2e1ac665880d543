"""The state of a machine as names and values, and what differs between two.

Every part says which of its attributes are state; here they are written down under a
name that people know, and compared. A few kinds are told shorter than they are:
stage-2 entries as the architecture decodes them, host PTEs, TLBs, pages.
"""

__all__ = ["States", "decoded", "short"]

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, lru_cache
from typing import Any

from kvmarch.changes import Kernel
from kvmarch.explore.cells import ATOMS, Image
from kvmarch.format.table import SparseTable, TablePool
from kvmarch.kernel.checks import OpenRange
from kvmarch.kernel.gpc import Gpc
from kvmarch.kernel.mmu_notifier import Subscriptions
from kvmarch.kernel.vm import Vm
from kvmarch.machine.host import HostMemory, HostPte, Mm, Page, Vma
from kvmarch.machine.locks import Lock, Rcu, Srcu
from kvmarch.machine.tlb import Tlb
from kvmarch.scenarios.verbs import Context

WATCHED = 1024
"""Pages of each slot whose entries are followed."""
SHOWN = 8
"""Changes of one variable that are told one by one."""

_UNTOLD: Mapping[type, tuple[str, ...]] = {
    # Who holds a lock is told by the steps themselves.
    Lock: Lock.variables,
    Srcu: Srcu.variables,
    Rcu: Rcu.variables,
    # Entries are told as gfns, pages and tables one by one.
    SparseTable: SparseTable.variables,
    HostMemory: HostMemory.variables,
    TablePool: ("next_pa", "holes"),
    Tlb: ("spans",),
    Vm: ("next_key", "logging"),
    Page: ("content",),
    Gpc: ("turns",),
}
"""Variables that are left out, by kind."""


@cache
def _untold(kind: type) -> tuple[str, ...]:
    """Return the variables of a kind that are left out."""
    return next((told for of, told in _UNTOLD.items() if issubclass(kind, of)), ())


@dataclass(frozen=True, slots=True)
class _Name:
    """Stands for a part or a piece, which has its own values."""

    text: str

    def __str__(self) -> str:
        return self.text


def decoded(k: Kernel, options: Mapping[str, Any], entry: int, level: int) -> str:
    """Return a stage-2 entry as number, kind and fields."""
    kind, values = k.decode.fn(k, options, entry, level)
    found = next(
        (
            known.format
            for known in k.formats.fn(k, options)
            if (known.level, known.kind) == (level, kind)
        ),
        None,
    )
    if found is not None and found.accepts(entry):
        text = found.show(entry)
    else:
        text = " ".join(f"{name}={value:#x}" for name, value in values.items() if value)
    return f"{entry:#x} {kind}{f' ({text})' if text else ''}"


class States:
    """Looks at a machine now and then, and tells what has changed.

    :param watch: gfns whose entries are followed; those of all slots if it is empty.
    """

    def __init__(
        self, context: Context, fixed: tuple[type, ...], watch: Iterable[int] = ()
    ) -> None:
        self.context = context
        self.machine = context.machine
        self.watch = tuple(watch)
        self._gfns: dict[str, set[int]] = {}
        self._names: dict[int, str] = {}
        image = Image([context], fixed)
        parts = [
            thing
            for thing in image.objects.values()
            if hasattr(type(thing), "variables") and not hasattr(type(thing), "key")
        ]
        self._keep = image.objects
        for name, part in self.machine.world.parts.items():
            self._name(part, name)
        for part in parts:
            self._name(part, type(part).__name__.lower())
        self.parts = parts
        self.values: dict[tuple[str, str], Any] = {}
        self.taken: list[tuple[str, dict[tuple[str, str], Any]]] = []
        """Names of parts and pieces, with the values of each.

        What is made of atoms only is the same object as long as it stays as it is.
        """
        self.entries: dict[str, dict[int, tuple[int, int]]] = {}
        """By VM and gfn, its lowest entry and the level."""
        self._taken: dict[str, tuple[list[Any], dict[tuple[str, str], Any]]] = {}
        self.kinds: dict[tuple[str, str], Any] = {}
        self.look()

    def name_of(self, part: Any) -> str:
        """Return the name under which a part is told."""
        return self._names[id(part)]

    def _name(self, part: Any, name: str) -> None:
        """Name a part, and those inside it after it."""
        if id(part) in self._names or not hasattr(type(part), "variables"):
            return
        name = getattr(part, "name", name)
        self._names[id(part)] = name
        for variable in type(part).variables:
            inside = getattr(part, variable)
            if isinstance(inside, list | tuple):
                for number, item in enumerate(inside):
                    self._name(item, f"{name}.{variable}[{number}]")
            elif not hasattr(type(inside), "key"):
                self._name(inside, f"{name}.{variable}")

    def look(self) -> list[str]:
        """Look at the machine; return what has changed since the last look."""
        world = self.machine.world
        losses = len(world.violations)
        before, self.values = self.values, {}
        self.taken = []
        self._pieces: dict[str, Any] = {}
        for part in self.parts:
            self._take(self._names[id(part)], part)
        while self._pieces:
            pieces, self._pieces = self._pieces, {}
            for name, piece in pieces.items():
                if (name, piece.variables[0]) not in self.values:
                    self._take(name, piece)
        for vm in self.machine.vms:
            self._take_entries(vm)
        # To look at a machine that is broken must not break it more.
        del world.violations[losses:]
        if not before:
            return []
        return list(self._told(before))

    def _take(self, name: str, owner: Any) -> None:
        kind: Any = type(owner)
        raw = [getattr(owner, variable) for variable in kind.variables]
        known = self._taken.get(name)
        if known is not None and known[0] == raw:
            self.values.update(known[1])
            self.taken.append((name, known[1]))
            return
        untold = _untold(kind)
        taken = {}
        for variable, item in zip(kind.variables, raw, strict=True):
            value = self._frozen(item)
            if variable not in untold:
                taken[name, variable] = value
                self.kinds[name, variable] = kind
        self.values.update(taken)
        self.taken.append((name, taken))
        if all(isinstance(item, ATOMS) for item in raw):
            # Most of a machine is pages, and most pages stay as they are.
            self._taken[name] = raw, taken

    def _take_entries(self, vm: Vm) -> None:
        known = self._gfns.setdefault(vm.name, set(self.watch))
        if not self.watch:
            for memslots in vm.memslots:
                for slot in memslots.slots:
                    known.update(
                        range(slot.base_gfn, slot.base_gfn + min(slot.npages, WATCHED))
                    )
        entries = self.entries[vm.name] = {}
        for gfn in sorted(known):
            entry, level = vm.k.entry.fn(vm, gfn)
            entries[gfn] = entry, level
            self.values[vm.name, f"gfn {gfn:#x}"] = entries[gfn]
            self.kinds[vm.name, f"gfn {gfn:#x}"] = _Name

    def _frozen(self, value: Any) -> Any:
        """Return a value that stays as it is when the machine goes on."""
        if isinstance(value, ATOMS):
            return value
        kind = type(value)
        if hasattr(kind, "variables"):
            if not hasattr(kind, "key"):
                return _Name(self._names.get(id(value), kind.__name__.lower()))
            name = _piece_name(value.key())
            self._pieces[name.text] = value
            return name
        if isinstance(value, dict):
            return {key: self._frozen(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return value
        if isinstance(value, list | tuple):
            return tuple(self._frozen(item) for item in value)
        if isinstance(value, set | frozenset):
            return frozenset(value)
        if isinstance(value, bytearray | array):
            return bytes(value)
        if is_dataclass(value):
            return value
        if hasattr(value, "slots") and hasattr(value, "generation"):
            # A set of memslots.
            return {
                "generation": value.generation,
                "in_progress": value.in_progress,
                "slots": frozenset(value.slots),
            }
        return _Name(str(getattr(value, "name", kind.__name__)))

    # -- telling -------------------------------------------------------------------

    def _told(self, before: Mapping[tuple[str, str], Any]) -> Iterator[str]:
        entries: dict[tuple[str, Any, Any], list[int]] = {}
        for (name, variable), new in self.values.items():
            old = before.get((name, variable), ...)
            if old == new:
                continue
            kind = self.kinds[name, variable]
            if kind is _Name:
                gfn = int(variable.split()[1], 16)
                entries.setdefault((name, old, new), []).append(gfn)
            elif old is ...:
                if variable == kind.variables[0] and kind is not OpenRange:
                    yield f"{name} is new"
            else:
                label = f"{name} {variable}" if " " in name else f"{name}.{variable}"
                tell = _TOLD.get((kind, variable), _differences)
                lines = list(tell(label, old, new))
                yield from lines[:SHOWN]
                if len(lines) > SHOWN:
                    yield f"{name}: {len(lines) - SHOWN} more"
        for (name, old, new), gfns in entries.items():
            if old is not ...:
                for text in _ranges(gfns):
                    yield self._entry(name, text, old, new)

    def _entry(self, name: str, gfns: str, old: Any, new: Any) -> str:
        vm = next(vm for vm in self.machine.vms if vm.name == name)
        was, now = (decoded(vm.k, vm.options, *entry) for entry in (old, new))
        if old[1] != new[1]:
            was, now = f"level {old[1]} {was}", f"level {new[1]} {now}"
        place = f"gfn {gfns}" if len(self.machine.vms) == 1 else f"{name} gfn {gfns}"
        return f"{place}: {was} -> {now}"


@lru_cache(maxsize=1 << 16)
def _piece_name(key: Any) -> _Name:
    kind, *rest = key
    return _Name(
        " ".join(
            (str(kind), *(f"{n:#x}" if isinstance(n, int) else str(n) for n in rest))
        )
    )


def _ranges(numbers: list[int]) -> Iterator[str]:
    """Yield numbers as ranges of neighbours."""
    first = last = numbers[0]
    for number in (*numbers[1:], None):
        if number != last + 1:
            yield f"{first:#x}" if first == last else f"{first:#x}-{last:#x}"
            first = number  # type: ignore[assignment]
        last = number  # type: ignore[assignment]


def short(value: Any) -> str:
    """Return a value as people read it."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:#x}" if value > 9 else str(value)
    if isinstance(value, bytes):
        return f"0x{value[::-1].hex()}"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(short, value))})"
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        inside = (f"{f.name}={short(getattr(value, f.name))}" for f in fields(value))
        return f"{type(value).__name__}({', '.join(inside)})"
    return str(value)


def _differences(label: str, old: Any, new: Any) -> Iterator[str]:
    """Yield how two values differ, one line each."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if key in old and key in new:
                inside = f"{label}[{short(key)}]" if type(key) is not str else key
                inside = inside if inside is not key else f"{label}.{key}"
                yield from _differences(inside, old[key], new[key])
            elif key in new:
                yield f"{label} + {short(key)}: {short(new[key])}"
            else:
                yield f"{label} - {short(key)}"
    elif isinstance(old, frozenset) and isinstance(new, frozenset):
        yield from (f"{label} - {short(x)}" for x in sorted(old - new, key=repr))
        yield from (f"{label} + {short(x)}" for x in sorted(new - old, key=repr))
    elif _are_lists(old, new):
        if len(old) == len(new):
            for number, (was, now) in enumerate(zip(old, new, strict=True)):
                yield from _differences(f"{label}[{number}]", was, now)
        else:
            yield from (f"{label} - {short(x)}" for x in old if x not in new)
            yield from (f"{label} + {short(x)}" for x in new if x not in old)
    else:
        yield f"{label} {short(old)} -> {short(new)}"


def _are_lists(old: Any, new: Any) -> bool:
    return all(isinstance(x, tuple) and not hasattr(x, "_fields") for x in (old, new))


def _host_ptes(label: str, old: dict[int, int], new: dict[int, int]) -> Iterator[str]:
    what = "host PMD" if label.endswith("pmds") else "host PTE"

    def shown(entry: int) -> str:
        return HostPte.show(entry) or f"{entry:#x}" if entry else "none"

    for vpn in sorted({**old, **new}):
        was, now = old.get(vpn, 0), new.get(vpn, 0)
        if was != now:
            yield f"{what} of vpn {vpn:#x}: {shown(was)} -> {shown(now)}"


def _tlb(label: str, old: dict[Any, Any], new: dict[Any, Any]) -> Iterator[str]:
    who = label.partition(".")[0]

    def shown(key: Any, at: Any) -> str:
        rights = "".join(
            letter if has else "-"
            for letter, has in zip("rwx", (at.read, at.write, at.exec), strict=True)
        )
        pages = f"-{at.gfn + at.pages - 1:#x}" if at.pages > 1 else ""
        return (
            f"gfn {at.gfn:#x}{pages} to pfn {at.pfn:#x} {rights}, tag {short(key[0])}"
        )

    for key in {**old, **new}:
        was, now = old.get(key), new.get(key)
        if was != now and was is not None:
            yield f"{who} TLB - {shown(key, was)}"
        if was != now and now is not None:
            yield f"{who} TLB + {shown(key, now)}"


def _vmas(label: str, old: tuple[Vma, ...], new: tuple[Vma, ...]) -> Iterator[str]:
    def shown(vma: Vma) -> str:
        says = [f.name for f in fields(vma) if getattr(vma, f.name) is True]
        return " ".join((f"VMA {vma.start:#x}-{vma.end - 1:#x}", *says))

    yield from (f"- {shown(vma)}" for vma in old if vma not in new)
    yield from (f"+ {shown(vma)}" for vma in new if vma not in old)


def _open_ranges(
    label: str, old: tuple[Any, ...], new: tuple[Any, ...]
) -> Iterator[str]:
    yield from (f"{piece} is closed" for piece in old if piece not in new)
    yield from (f"{piece} is open" for piece in new if piece not in old)


Tell = Callable[[str, Any, Any], Iterator[str]]

_TOLD: Mapping[tuple[type, str], Tell] = {
    (Mm, "ptes"): _host_ptes,
    (Mm, "pmds"): _host_ptes,
    (Mm, "vmas"): _vmas,
    (Tlb, "entries"): _tlb,
    (Subscriptions, "open_ranges"): _open_ranges,
}
"""What is told in its own way, by kind and variable."""
