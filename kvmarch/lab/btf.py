"""Where members of the kernel's structures are, by the BTF that describes them."""

__all__ = ["Types", "kernel_types", "module_types"]

import struct
from array import array
from collections.abc import Iterator

from kvmarch.errors import LabError
from kvmarch.walk.image import Image
from kvmarch.walk.scan import filled

MAGIC = 0xEB9F
_HEADER = "HBBIIIII"
_HEAD = 12
_OUTER = frozenset({4, 5})
"""Kinds with members: struct and union."""
_QUALIFIERS = frozenset({8, 9, 10, 11, 18})
"""Kinds that stand for another type: typedef, volatile, const, restrict, tag."""

_KINDS = 19
_ONCE = [{1: 4, 3: 12, 14: 4, 17: 4}.get(kind, 0) for kind in range(_KINDS + 1)]
"""Bytes that follow a type, by kind..."""
_EACH = [
    {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}.get(kind, 0)
    for kind in range(_KINDS + 1)
]
"""...and that follow for each of its members."""


class Types:
    """The types of a kernel, or of one of its modules.

    :param data: begins with a header; more may follow.
    :param base: the kernel's, for a module.
    :raises LabError: it is no such description.
    """

    def __init__(self, data: bytes, base: "Types | None" = None) -> None:
        order = "<" if data[:2] == MAGIC.to_bytes(2, "little") else ">"
        try:
            magic, version, _flags, length, *parts = struct.unpack_from(
                order + _HEADER, data
            )
        except struct.error:
            raise LabError("a description of types is cut off") from None
        type_off, type_len, str_off, str_len = parts
        if magic != MAGIC or version != 1:
            raise LabError("there is no description of types")
        self._order, self._base = order, base
        self._names = data[length + str_off : length + str_off + str_len]
        self._data = data[length + type_off : length + type_off + type_len]
        if len(self._names) < str_len or len(self._data) < type_len:
            raise LabError("a description of types is cut off")
        self._first = 1 if base is None else base.end
        self._names_from = 0 if base is None else base.names_end
        self._places = array("Q")
        """Where each type begins."""
        self._structs: dict[int, list[int]] = {}
        """By place of the name, where structures begin."""
        self._index()

    @property
    def end(self) -> int:
        """Return the number behind the last type."""
        return self._first + len(self._places)

    @property
    def names_end(self) -> int:
        """Return the place behind the last name."""
        return self._names_from + len(self._names)

    def _index(self) -> None:
        """Note where everything is; there are a hundred thousand types."""
        data, unpack = self._data, struct.Struct(self._order + "II").unpack_from
        note = self._places.append
        at, end = 0, len(data) - _HEAD
        while at <= end:
            name, info = unpack(data, at)
            kind = info >> 24 & 0x1F
            if not 0 < kind <= _KINDS:
                raise LabError(f"a description of types has kind {kind}, not known")
            note(at)
            if kind in _OUTER and name:
                self._structs.setdefault(name, []).append(at)
            at += _HEAD + _ONCE[kind] + _EACH[kind] * (info & 0xFFFF)

    def place_of(self, name: str) -> int | None:
        """Return the place of a name, which is there once."""
        word = name.encode("ascii") + b"\0"
        if self._names.startswith(word):
            # A module's names continue the kernel's: the first has no end before it.
            return self._names_from
        at = self._names.find(b"\0" + word)
        if at >= 0:
            return self._names_from + at + 1
        return None if self._base is None else self._base.place_of(name)

    def offset(self, structure: str, member: str) -> int | None:
        """Return where a member begins, in bytes; None if there is none.

        Members of nameless structures inside count as the outer one's. Of a name that
        several structures have, they must all say the same.
        """
        outer, wanted = self.place_of(structure), self.place_of(member)
        if outer is None or wanted is None:
            return None
        places = {self.member_at(at, wanted) for at in self._structs.get(outer, ())}
        if self._base is not None:
            inherited = self._base.offset(structure, member)
            places |= set() if inherited is None else {inherited}
        return places.pop() if len(places) == 1 else None

    def member_at(self, at: int, wanted: int) -> int | None:
        """Return where a member begins in the structure described at a place."""
        row = struct.Struct(self._order + "III")
        _name, info, _size = row.unpack_from(self._data, at)
        for number in range(info & 0xFFFF):
            name, kind, offset = row.unpack_from(self._data, at + _HEAD + number * 12)
            byte = (offset & 0xFFFFFF if info >> 31 else offset) // 8
            if name == wanted:
                return int(byte)
            if not name:
                inner = self.resolve(kind)
                found = None if inner is None else inner[0].member_at(inner[1], wanted)
                if found is not None:
                    return int(byte) + found
        return None

    def resolve(self, number: int) -> "tuple[Types, int] | None":
        """Return a structure by its number: who describes it, and where."""
        if number < self._first:
            return None if self._base is None else self._base.resolve(number)
        at = self._places[number - self._first]
        _name, info, refers = struct.unpack_from(self._order + "III", self._data, at)
        kind = info >> 24 & 0x1F
        if kind in _QUALIFIERS:
            return self.resolve(refers)
        return (self, at) if kind in _OUTER else None


def kernel_types(image: Image) -> Types | None:
    """Return the description that a running kernel keeps of itself, found in memory.

    It is part of the kernel's image, which lies in memory in one piece, and larger
    than that of any module. What looks like its header may be a copy without the rest.
    """
    for size, at in sorted(_headers(image), reverse=True):
        try:
            return Types(bytes(image.buffer[at : at + size]))
        except LabError:
            continue
    return None


def _headers(image: Image) -> Iterator[tuple[int, int]]:
    """Yield size and place in the file of everything that begins like a description."""
    for order in "<>":
        # Version 1, no flags, a header of 24 bytes, and the types right behind it.
        mark = struct.pack(order + "HBBII", MAGIC, 1, 0, 24, 0)
        for start, end in filled(image):
            at = image.buffer.find(mark, start, end)
            while at >= 0:
                types, names_at, names = struct.unpack_from(
                    order + "III", image.buffer, at + len(mark)
                )
                if types == names_at and types and names:
                    yield 24 + names_at + names, at
                at = image.buffer.find(mark, at + 1, end)


def module_types(module: bytes, base: Types) -> Types | None:
    """Return the description in a module's file; None if it has none.

    :param module: an ELF file's plain contents.
    :param base: the kernel's own.
    """
    order = ">" if module[5:6] == b"\2" else "<"
    try:
        (table,) = struct.unpack_from(order + "Q", module, 40)
        size, count, names = struct.unpack_from(order + "HHH", module, 58)
        rows = [
            struct.unpack_from(order + "I20xQQ", module, table + at * size)
            for at in range(count)
        ]
        _, strings, _ = rows[names]
        for name, offset, length in rows:
            start = strings + name
            if module[start : module.index(b"\0", start)] == b".BTF":
                return Types(module[offset : offset + length], base)
    except (struct.error, IndexError, ValueError):
        raise LabError("a module's file is torn") from None
    return None
