"""Trace events, in the form that recordings have."""

__all__ = ["Event", "read_event"]

import re
from collections.abc import Mapping
from typing import NamedTuple

_LINE = re.compile(r"\s*(.+)-\d+\s+(?:\(.*?\)\s+)?\[\d+\]\s+\S+\s+[\d.]+: (\w+): (.*)$")
_ADDRESS = re.compile(r"(?:0x)?([0-9a-f]{12,16})")


class Event(NamedTuple):
    """One trace event: who, which, and what it says.

    :param more: without a name: how many events were cut off here.
    """

    task: str
    event: str
    text: str
    more: int = 0


def read_event(
    line: str, hvas: Mapping[int, tuple[int, int]], page_size: int
) -> Event | None:
    """Return the event of a line, None for a notifier's about foreign memory.

    Host addresses are written as a memory and a page: ``hva0+0x3p``.

    :param hvas: start and end of each memory of the process, by number.
    """
    found = _LINE.match(line)
    if found is None:
        return None
    task, name, text = found[1], found[2], found[3].strip()
    if not text.startswith("mmu notifier"):
        return Event(task, name, text)
    known = False

    def renamed(address: re.Match[str]) -> str:
        nonlocal known
        hva = int(address[1], 16)
        for number, (start, end) in hvas.items():
            if start <= hva <= end:
                known = True
                return f"hva{number}+{(hva - start) // page_size:#x}p"
        return address[0]

    text = _ADDRESS.sub(renamed, text)
    return Event(task, name, text) if known else None
