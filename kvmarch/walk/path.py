"""One address, one entry after the other, in plain Python."""

__all__ = ["UNKNOWN", "Visit", "Walker", "check_gpa", "check_root", "entry_order"]

import struct
from typing import NamedTuple

from kvmarch.errors import WalkError
from kvmarch.format.walk import WalkLayout, WalkRule
from kvmarch.walk.image import Image

_new = tuple.__new__
"""Makes a named tuple in half the time; the fields are given in order."""

UNKNOWN = "unknown"
"""The role of an entry that no rule matches."""


class Visit(NamedTuple):
    """One entry of a walk.

    :param table: physical address of its table, in bytes.
    :param at: its index in the table.
    :param rule: what it matches; None if nothing.
    """

    level: int
    table: int
    at: int
    entry: int
    rule: WalkRule | None

    @property
    def role(self) -> str:
        """Return what the entry is to the walk."""
        return UNKNOWN if self.rule is None else self.rule.role


def entry_order(image: Image, layout: WalkLayout, byteorder: str = "") -> str:
    """Return the byte order of entries: ``little`` or ``big``.

    :param byteorder: of the machine, if the user knows better than the image.
    """
    if layout.byteorder != "machine":
        return layout.byteorder
    return byteorder or image.byteorder or "little"


def check_root(image: Image, layout: WalkLayout, root: int) -> None:
    """Refuse an address at which no root can be.

    :raises WalkError: it is not aligned, or not in the image.
    """
    if root % layout.alignment:
        raise WalkError(
            f"root {root:#x} is no multiple of {layout.alignment:#x}, which roots of "
            "this architecture, page size and number of levels are"
        )
    if image.offset(root, layout.root_bytes) is None:
        raise WalkError(f"root {root:#x} is outside the image ({image.span})")


def check_gpa(layout: WalkLayout, gpa: int) -> None:
    """Refuse an address that the tree cannot tell from a lower one.

    :raises WalkError: it is beyond.
    """
    if not 0 <= gpa < 1 << layout.gpa_bits:
        raise WalkError(
            f"address {gpa:#x} is beyond the tree, which tells {layout.gpa_bits} bits "
            "apart"
        )


class Walker:
    """Walks below one root, an address at a time.

    :param byteorder: of the machine, where neither layout nor image tells it.
    :raises WalkError: no root can be there.
    """

    def __init__(
        self, image: Image, layout: WalkLayout, root: int, byteorder: str = ""
    ) -> None:
        check_root(image, layout, root)
        self.image, self.layout, self.root = image, layout, root
        little = entry_order(image, layout, byteorder) == "little"
        self._size = layout.entry_bytes
        wide = self._size == struct.calcsize("=Q")
        read = struct.Struct(("<" if little else ">") + ("Q" if wide else "I"))
        self._fetch = read.unpack_from
        self._near = image.region(root)
        self._bits = layout.gpa_bits
        self._levels = tuple(
            (
                level.level,
                level.shift,
                (1 << level.bits) - 1,
                self._size << level.bits,
                tuple((r.mask, r.value, r, _in_place(r)) for r in level.rules),
            )
            for level in layout.levels
        )

    def follow(self, gpa: int) -> list[Visit]:
        """Return the entries of a walk, from the root down to where it ends.

        :param gpa: guest-physical address in bytes.
        :raises WalkError: the address is beyond the tree, or a table outside the
            image or already behind the walk.
        """
        if gpa >> self._bits:
            check_gpa(self.layout, gpa)
        fetch, buffer, size = self._fetch, self.image.buffer, self._size
        start, end, move = self._near
        table = self.root
        visits: list[Visit] = []
        for number, shift, mask, length, rules in self._levels:
            if start <= table <= end - length:
                offset = table + move
            else:
                offset = self._far(table, length, visits)
            at = gpa >> shift & mask
            (entry,) = fetch(buffer, offset + at * size)
            for bits, value, rule, leads_to in rules:
                if entry & bits == value:
                    visits.append(_new(Visit, (number, table, at, entry, rule)))
                    table = entry & leads_to
                    break
            else:
                visits.append(Visit(number, table, at, entry, None))
                return visits
            if not table:
                if rule.role != "table":
                    break
                table = rule.address_of(entry)
        if len({visit[1] for visit in visits}) < len(visits):
            raise _loop(visits)
        return visits

    def _far(self, table: int, length: int, visits: list[Visit]) -> int:
        """Return where in the file a table is that is not in the root's region.

        :raises WalkError: it is not in the image.
        """
        offset = self.image.offset(table, length)
        if offset is None:
            last = visits[-1]
            raise WalkError(
                f"the table at {table:#x}, to which entry {last.at:#x} at "
                f"{last.table:#x} (level {last.level}) leads, is outside the image "
                f"({self.image.span})"
            )
        return offset


def _in_place(rule: WalkRule) -> int:
    """Return the bits of a table's address that is kept in place; else 0."""
    if rule.role == "table" and len(rule.address) == 1 and not rule.address[0][1]:
        return rule.address[0][0]
    return 0


def _loop(visits: list[Visit]) -> WalkError:
    """Return the error for a walk that comes to one table twice."""
    seen: set[int] = set()
    last = visits[0]
    for visit in visits:
        if visit.table in seen:
            break
        seen.add(visit.table)
        last = visit
    return WalkError(
        f"a loop: entry {last.at:#x} of level {last.level} at {last.table:#x} leads "
        f"back to the table at {visit.table:#x}"
    )
