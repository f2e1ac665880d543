"""The state of a machine as rows of text: group, label, value.

It is the state that :class:`~kvmarch.scenarios.states.States` follows, and who holds
which lock besides. Neighbours that say the same share a row.
"""

__all__ = ["GROUPS", "RowMaker", "Rows"]

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from kvmarch.kernel.checks import OpenRange
from kvmarch.kernel.gpc import Gpc
from kvmarch.kernel.mmu_notifier import Subscriptions
from kvmarch.kernel.vm import Vcpu, Vm
from kvmarch.machine.host import PFN_SHIFT, HostMemory, HostPte, Mm, Page, Vma
from kvmarch.machine.locks import Lock, Rcu, Srcu
from kvmarch.machine.tlb import Ledger, Tlb
from kvmarch.page.entries import Entries
from kvmarch.page.runs import Run, runs_of
from kvmarch.scenarios.states import States, short

GROUPS = ("entries", "TLBs", "counters", "locks", "caches", "host", "architecture")
"""In the order in which a page shows them."""

_BITS = (1 << PFN_SHIFT) - 1

Rows = dict[tuple[str, str], str]
"""By group and label, the value."""

_Told = list[tuple[tuple[str, str], str]]
"""Rows, in order."""

_OF: tuple[tuple[tuple[type, ...], str], ...] = (
    ((Tlb,), "TLBs"),
    ((Vm, Vcpu, Subscriptions, Ledger), "counters"),
    ((Gpc,), "caches"),
    ((Mm, HostMemory, Page, OpenRange), "host"),
)


class RowMaker:
    """Makes rows of what :class:`States` has seen, again and again.

    Most of a machine stays as it is from one step to the next; rows of what is as it
    was are not made again.
    """

    def __init__(self, entries: Mapping[str, Entries]) -> None:
        """Take what tells the entries of each VM, by the VM's name."""
        self.entries = entries
        self._known: dict[Any, tuple[Any, list[tuple[str, str]]]] = {}
        self._of: dict[str, tuple[Any, str | _Told]] = {}
        """By name, the values that were seen last, and what is said of them."""

    def rows_of(self, states: States) -> Rows:
        """Return everything that is known of a machine, as it was at the last look."""
        rows: Rows = {}
        pages: dict[str, str] = {}
        for name, taken in states.taken:
            known = self._of.get(name)
            if known is None or known[0] is not taken:
                known = self._of[name] = taken, self._tell(states, name, taken)
            told = known[1]
            if isinstance(told, str):
                pages[name] = told
            else:
                rows.update(told)
        for vm in states.machine.vms:
            made = self._made(_gfns, self.entries[vm.name], states.entries[vm.name])
            mark = "" if len(states.machine.vms) == 1 else f"{vm.name} "
            rows.update((("entries", mark + label), text) for label, text in made)
        made = self._made(_pages, pages)
        rows.update((("host", label), text) for label, text in made)
        rows.update((("locks", label), text) for label, text in _locks(states))
        return rows

    def _tell(
        self, states: States, name: str, taken: Mapping[tuple[str, str], Any]
    ) -> str | _Told:
        """Return what is said of a page, or the rows of a part or of another piece."""
        rows: _Told = []
        for (_name, variable), value in taken.items():
            kind = states.kinds[name, variable]
            if kind is Page:
                return _page(
                    {variable: value for (_, variable), value in taken.items()}
                )
            made = self._made(_flat, name, kind, variable, value)
            rows += [((_group(kind), label), text) for label, text in made]
        return rows

    def _made(
        self, make: Callable[..., Iterator[tuple[str, str]]], *what: Any
    ) -> list[tuple[str, str]]:
        """Return what a function makes of a value, the last of its arguments."""
        *about, value = what
        key = make, *about
        known = self._known.get(key)
        if known is None or known[0] != value:
            known = self._known[key] = value, list(make(*what))
        return known[1]


@cache
def _group(kind: Any) -> str:
    return next((group for kinds, group in _OF if issubclass(kind, kinds)), GROUPS[-1])


def _flat(
    name: str, kind: type, variable: str, value: Any
) -> Iterator[tuple[str, str]]:
    """Yield label and text of what is inside a value."""
    label = f"{name} {variable}" if " " in name else f"{name}.{variable}"
    if issubclass(kind, Tlb):
        yield from _tlb(name.partition(".")[0], value)
    elif issubclass(kind, Mm) and variable in {"ptes", "pmds"}:
        yield from _host_ptes("PMD" if variable == "pmds" else "PTE", value)
    elif issubclass(kind, Mm) and variable == "vmas":
        for vma in value:
            yield f"VMA {vma.start:#x}-{vma.end - 1:#x}", _rights(vma)
    elif issubclass(kind, Subscriptions) and variable == "open_ranges":
        return  # each of them has rows of its own
    else:
        yield from _plain(label, value)


def _plain(label: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            inside = f"{label}.{key}" if type(key) is str else f"{label}[{short(key)}]"
            yield from _plain(inside, item)
    elif isinstance(value, frozenset):
        yield label, ", ".join(sorted(map(short, value))) or "none"
    elif isinstance(value, tuple) and not hasattr(value, "_fields"):
        if all(map(_is_part, value)):
            return
        for number, item in enumerate(value):
            yield from _plain(f"{label}[{number}]", item)
    elif not _is_part(value):
        yield label, short(value)


def _is_part(value: Any) -> bool:
    """Return whether a value only names a part, which has rows of its own."""
    return type(value).__name__ == "_Name"


def _rights(vma: Vma) -> str:
    names = ("write", "exec", "mergeable", "huge", "hugetlb")
    return " ".join(n for n in names if getattr(vma, n, False)) or "read only"


def _tlb(who: str, entries: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for (tag, _gfn, _span), at in entries.items():
        rights = "".join(
            letter if has else "-"
            for letter, has in zip("rwx", (at.read, at.write, at.exec), strict=True)
        )
        run = Run(at.gfn, at.gfn + at.pages - 1)
        label = f"{who} gfn {run}, tag {short(tag)}"
        yield label, f"pfn {at.pfn:#x} {rights}{'' if at.dirty else ', clean'}"


def _host_ptes(what: str, ptes: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Yield the entries of the host; a page after the other is one row."""
    numbered = sorted((vpn, pte) for vpn, pte in ptes.items() if pte)
    first = dict(numbered)
    same = ((vpn, (pte & _BITS, (pte >> PFN_SHIFT) - vpn)) for vpn, pte in numbered)
    for run, _same in runs_of(same):
        text = HostPte.show(first[run.first]) or f"{first[run.first]:#x}"
        if run.last > run.first:
            text = text.replace(" ", "… ", 1)
        yield f"{what} of vpn {run}", text


def _gfns(
    entries: Entries, found: Mapping[int, tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    def pattern(gfn: int, entry: int, level: int) -> Any:
        pages = entries.pages_at(level)
        return entries.pattern(gfn // pages, pages, entry, level)

    same = ((gfn, pattern(gfn, *entry)) for gfn, entry in sorted(found.items()))
    for run, _same in runs_of(same):
        entry, level = found[run.first]
        number, kind, fields = entries.tell(entry, level)
        goes_on = "…" if found[run.last][0] != entry else ""
        inside = f" ({fields})" if fields else ""
        yield f"gfn {run}", f"{number}{goes_on} {kind}{inside}, level {level}"


def _page(values: Mapping[str, Any]) -> str:
    """Return what a page of the host is, and who refers to it."""
    says = [str(values["kind"])]
    says += [f"{n} {values[n]}" for n in ("refs", "maps") if n in values]
    says += [n for n in ("dirty", "accessed", "freed") if values.get(n)]
    return ", ".join(says)


def _pages(pages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the host's pages by name; those that say the same share a row."""
    numbered = ((int(name[5:], 16), text) for name, text in pages.items())
    for run, text in runs_of(sorted(numbered)):
        yield f"page {run}", text


def _locks(states: States) -> Iterator[tuple[str, str]]:
    """Yield who holds which lock; one that nobody holds is free."""
    for part in states.parts:
        name = states.name_of(part)
        if isinstance(part, Lock):
            holders = [f"{part.writer} (write)"] if part.writer else []
            holders += [f"{reader} (read)" for reader in part.readers]
        elif isinstance(part, Srcu):
            holders = [
                f"{reader} (reader {index})"
                for index, readers in enumerate(part.readers)
                for reader in readers
            ]
            holders += ["a grace period is on"] * part.synchronizing
        elif isinstance(part, Rcu):
            holders = [f"{reader} (reader)" for reader in part.readers]
            holders += [f"{len(part.queue)} to run later"] * bool(part.queue)
        else:
            continue
        yield name, ", ".join(holders) or "free"
