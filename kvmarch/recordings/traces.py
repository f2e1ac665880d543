"""What was traced of notifiers, faults and MMIO entries, in one form for both sides.

A real kernel's trace events and the model's own are brought into the same words, so
that recordings and fuzzing compare the same things in the same way.
"""

__all__ = ["COMPARED", "EVERY", "Compared", "Traced", "Tracer", "compare_traced"]

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvmarch.machine.world import Event

NOTIFIER_EVENTS = (
    "kvm_unmap_hva_range",
    "kvm_set_spte_hva",
    "kvm_age_hva",
    "kvm_test_age_hva",
)
FAULT_EVENTS = {
    "kvm_page_fault": re.compile(r"address (?:0x)?([0-9a-f]+)"),
    "kvm_guest_fault": re.compile(r"ipa (?:0x)?([0-9a-f]+)"),
}
"""Trace events of guest faults, and where they name the address."""
_PAGE = re.compile(r"hva(\d+)\+0x([0-9a-f]+)p")
_MMIO = {
    "mark_mmio_spte": (
        re.compile(r"gfn ([0-9a-f]+) access ([0-9a-f]+) gen ([0-9a-f]+)"),
        ("gfn", "access", "gen"),
    ),
    "check_mmio_spte": (
        re.compile(
            r"spte ([0-9a-f]+) kvm_gen ([0-9a-f]+) spte-gen ([0-9a-f]+) "
            r"valid ([0-9a-f]+)"
        ),
        ("spte", "kvm_gen", "spte_gen", "valid"),
    ),
}
"""Trace events of MMIO entries: the text, and what the model calls its values."""
COMPARED = (*NOTIFIER_EVENTS, *FAULT_EVENTS, *_MMIO)
"""Every trace event that is compared, by name."""
EVERY = frozenset(COMPARED)


@dataclass(frozen=True, slots=True)
class Traced:
    """What happened in one step or stage, in order.

    :param kinds: names of the events that this kernel traces.
    :param notifiers: calls of notifiers, with memory and pages: ``kvm_set_spte_hva 3``
        for page 3 of the first memory, ``kvm_unmap_hva_range 1:0-4`` for four pages of
        the second.
    :param faults: gfns at which a guest faulted.
    :param mmio: MMIO entries as they are marked and checked.
    :param omitted: events that were cut off at the end.
    :param merges: KSM was at work; known of the model only.
    """

    kinds: Collection[str]
    notifiers: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    mmio: tuple[str, ...] = ()
    omitted: int = 0
    merges: bool = False


class Compared(NamedTuple):
    """One kind of events that was compared, or could not be.

    :param verdict: ``agree``, ``differ`` or ``not compared``.
    """

    what: str
    verdict: str
    detail: str = ""


class Tracer:
    """Brings the events of one process with its VMs into one form.

    :param page_shift: bytes of a page as a power of two.
    :param ranges: where the model has mapped each memory, in bytes. Of a real kernel's
        memories as many count.
    """

    def __init__(self, page_shift: int, ranges: Sequence[range]) -> None:
        self._shift = page_shift
        self._ranges = ranges

    def of_kernel(
        self,
        kinds: Collection[str],
        events: Iterable[tuple[str, str]],
        omitted: int = 0,
    ) -> Traced:
        """Return what a real kernel traced.

        :param kinds: names of the events that it traces.
        :param events: name and text; host addresses as ``hva0+0x3p``.
        """
        notifiers: list[str] = []
        faults: list[str] = []
        mmio: list[str] = []
        for name, text in events:
            if name in NOTIFIER_EVENTS:
                places = _PAGE.findall(text)
                if places and int(places[0][0]) < len(self._ranges):
                    pages = "-".join(page for _memory, page in places)
                    notifiers.append(f"{name} {_memory_name(int(places[0][0]))}{pages}")
            elif name in FAULT_EVENTS:
                found = FAULT_EVENTS[name].search(text)
                if found:
                    faults.append(f"{int(found[1], 16) >> self._shift:x}")
            elif name in _MMIO:
                found = _MMIO[name][0].search(text)
                if found:
                    mmio.append(" ".join([name, *found.groups()]))
        return Traced(kinds, tuple(notifiers), tuple(faults), tuple(mmio), omitted)

    def of_model(self, events: Iterable[Event]) -> Traced:
        """Return what the model made visible."""
        notifiers: list[str] = []
        faults: list[str] = []
        mmio: list[str] = []
        merges = False
        for event in events:
            name, data = event.name, event.data
            if name in NOTIFIER_EVENTS:
                start = data.get("start", data.get("hva", 0))
                ends = [start, *([data["end"]] if "end" in data else [])]
                notifiers.extend(self._notified(name, ends))
            elif name == "guest_fault":
                faults.append(f"{data['gfn']:x}")
            elif name in _MMIO:
                values = (f"{int(data[key]):x}" for key in _MMIO[name][1])
                mmio.append(" ".join([name, *values]))
            elif name == "step":
                merges = merges or data["text"].startswith("ksm_merge")
        made = tuple(notifiers), tuple(faults), tuple(mmio)
        return Traced(EVERY, *made, merges=merges)

    def _notified(self, name: str, hvas: Sequence[int]) -> Iterator[str]:
        """Yield the call of a notifier, unless it is about foreign memory."""
        for number, place in enumerate(self._ranges):
            if hvas[0] in place:
                pages = "-".join(
                    f"{hva - place.start >> self._shift:x}" for hva in hvas
                )
                yield f"{name} {_memory_name(number)}{pages}"


def _memory_name(number: int) -> str:
    """Return what stands before the pages of a memory: nothing for the first."""
    return f"{number}:" if number else ""


def compare_traced(real: Traced, model: Traced) -> Iterator[Compared]:
    """Compare what was traced; events that a kernel does not trace are said so.

    :param real: of a real kernel, whose end may be cut off.
    """
    yield _notifiers(real, model)
    yield _faults(real, model)
    if real.mmio or model.mmio:
        yield _same("mmio entries", list(real.mmio), list(model.mmio))


def _same(what: str, real: Any, model: Any) -> Compared:
    if real == model:
        return Compared(what, "agree")
    return Compared(what, "differ", f"recorded {real}, model {model}")


def _notifiers(real: Traced, model: Traced) -> Compared:
    """Compare the notifiers' calls in order, by memory and page."""
    what = "notifier events"
    both = {name for name in real.kinds if name in model.kinds}
    if not both.intersection(NOTIFIER_EVENTS):
        why = "this kernel traces no notifier events"
        return Compared(what, "not compared", why)
    theirs, ours = (
        [text for text in side.notifiers if text.partition(" ")[0] in both]
        for side in (real, model)
    )
    if real.omitted:
        if ours[: len(theirs)] == theirs:
            verdict = "agree" if len(ours) == len(theirs) else "not compared"
            why = f"{real.omitted} events were cut from the recording"
            return Compared(what, verdict, why)
        ours = ours[: len(theirs)]
    given_up = len(theirs) - len(ours)
    if model.merges and given_up > 0 and theirs[given_up:] == ours:
        tried = set(ours)
        if all(event in tried for event in theirs[:given_up]):
            # Whether somebody holds a page while KSM tries is the host's choice; what
            # was given up is tried again until it works.
            return Compared(what, "agree", f"after {given_up} events of vain attempts")
    return _same(what, theirs, ours)


def _faults(real: Traced, model: Traced) -> Compared:
    """Compare which gfns faulted, in order."""
    what = "faults"
    if not any(name in real.kinds and name in model.kinds for name in FAULT_EVENTS):
        return Compared(what, "not compared", "this kernel traces no guest faults")
    theirs, ours = real.faults, model.faults
    if real.omitted and ours[: len(theirs)] == theirs and len(ours) > len(theirs):
        why = f"{real.omitted} events were cut from the recording"
        return Compared(what, "not compared", why)
    return _same(what, " ".join(theirs), " ".join(ours))
