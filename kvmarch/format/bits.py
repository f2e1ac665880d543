"""Entry formats: each bit stated once; pack, unpack, print and check derive from it.

An entry is a plain int. A format is a class used as a namespace and never
instantiated; its fields are its attributes.
"""

__all__ = ["EntryFormat", "Field"]

from collections.abc import Iterator
from enum import IntEnum
from types import MappingProxyType
from typing import Any, ClassVar

from kvmarch.errors import EntryError, FormatError


class Field:
    """A run of bits of an entry.

    :param high: the highest bit, counted from 0 at the least significant bit.
    :param low: the lowest bit; the highest one if it is left out.
    :param fixed: the only value that the format allows here. A fixed field says
        what kind of entry this is, and ``pack`` fills it in.
    :param parts: bits that continue the field above its highest bit, as
        ``(high, low)`` pairs, for formats that split a number.
    :param enum: names of the values; a value without a name is refused.
    :param shift: low bits of the number that are not stored because they are zero,
        as in the frame number of a huge page. ``get`` and ``set`` speak the number.
    :param doc: one phrase about what the field means.
    """

    __slots__ = (
        "doc",
        "enum",
        "fixed",
        "low",
        "mask",
        "name",
        "named",
        "parts",
        "shift",
        "width",
    )

    def __init__(
        self,
        high: int,
        low: int | None = None,
        *,
        fixed: int | None = None,
        parts: tuple[tuple[int, int], ...] = (),
        enum: type[IntEnum] | None = None,
        shift: int = 0,
        doc: str = "",
    ) -> None:
        low = high if low is None else low
        runs = ((high, low), *parts)
        self.name = ""
        self.low = low
        self.parts = runs
        self.width = 0
        self.mask = 0
        for top, bottom in runs:
            if not 0 <= bottom <= top:
                raise FormatError(f"bits {top}:{bottom} are no run of bits")
            width = top - bottom + 1
            run = ((1 << width) - 1) << bottom
            if self.mask & run:
                raise FormatError(f"bits {top}:{bottom} are claimed twice in a field")
            self.mask |= run
            self.width += width
        self.fixed = fixed
        self.enum = enum
        self.named = None if enum is None else frozenset(map(int, enum))
        self.shift = shift
        self.doc = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Field({self.name} {self.bits})"

    @property
    def bits(self) -> str:
        """Return the bit numbers as documents print them, for example ``47:12``."""
        return "+".join(
            f"{top}" if top == bottom else f"{top}:{bottom}"
            for top, bottom in reversed(self.parts)
        )

    def get(self, entry: int) -> int:
        """Return the field's value in an entry."""
        if len(self.parts) == 1:
            return (entry & self.mask) >> self.low << self.shift
        value, at = 0, 0
        for top, bottom in self.parts:
            width = top - bottom + 1
            value |= (entry >> bottom & (1 << width) - 1) << at
            at += width
        return value << self.shift

    def set(self, entry: int, value: int) -> int:
        """Return the entry with the field set to a value.

        :raises EntryError: the value does not fit into the field.
        """
        return entry & ~self.mask | self.place(value)

    def place(self, value: int) -> int:
        """Return the value at its place, all other bits zero.

        :raises EntryError: the value does not fit into the field, or has one of the
            bits that are not stored.
        """
        if value & (1 << self.shift) - 1:
            raise EntryError(
                f"{self.name}: {value:#x} is no multiple of {1 << self.shift:#x}"
            )
        value >>= self.shift
        if not 0 <= value < 1 << self.width:
            raise EntryError(
                f"{self.name}: {value:#x} does not fit into {self.width} bits"
            )
        if len(self.parts) == 1:
            return value << self.low
        entry = 0
        for top, bottom in self.parts:
            width = top - bottom + 1
            entry |= (value & (1 << width) - 1) << bottom
            value >>= width
        return entry

    def names(self) -> str:
        """Return the values that have a name, for messages."""
        return ", ".join(f"{e.name}({e.value:#x})" for e in self.enum or ())

    def show(self, value: int) -> str:
        """Return the value as people read it: a name, a bit or hexadecimal."""
        if self.enum is not None and self.named and value in self.named:
            return f"{self.enum(value).name}({value:#x})"
        return str(value) if self.width == 1 else f"{value:#x}"


class EntryFormat:
    """One kind of entry: a namespace of :class:`Field`.

    A subclass states its fields as attributes and inherits those of its base
    classes. Overlapping fields and fields beyond :attr:`width` are refused when
    the class is made; bits that no field claims are refused by :meth:`unpack`.
    """

    width: ClassVar[int] = 64
    """Bits of an entry."""
    fields: ClassVar[MappingProxyType[str, Field]] = MappingProxyType({})
    """The fields by name, highest bit first."""
    enums: ClassVar[tuple[Field, ...]] = ()
    """The fields whose values have names."""
    known: ClassVar[int] = 0
    """All bits that a field claims."""
    kind_mask: ClassVar[int] = 0
    """The bits of all fixed fields."""
    kind_value: ClassVar[int] = 0
    """What an entry of this kind holds in :attr:`kind_mask`."""
    live_changes: ClassVar[int] = 0
    """Bits that may change while hardware can use the entry, see may_change()."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        rows: dict[str, Field] = {}
        for base in reversed(cls.__mro__):
            for name, value in vars(base).items():
                if isinstance(value, Field):
                    rows[name] = value
                elif name in rows:
                    # A subclass drops an inherited field by assigning None.
                    del rows[name]
        known = kind_mask = kind_value = 0
        for field in sorted(rows.values(), key=lambda f: f.mask):
            if field.mask >= 1 << cls.width:
                raise FormatError(
                    f"{cls.__name__}.{field.name}: bits {field.bits} are beyond "
                    f"the {cls.width} bits of an entry"
                )
            if known & field.mask:
                other = next(
                    f.name
                    for f in rows.values()
                    if f is not field and f.mask & field.mask
                )
                raise FormatError(
                    f"{cls.__name__}.{field.name}: bits {field.bits} overlap {other}"
                )
            known |= field.mask
            if field.fixed is not None:
                kind_mask |= field.mask
                kind_value |= field.place(field.fixed)
        ordered = sorted(rows.values(), key=lambda f: f.mask, reverse=True)
        cls.fields = MappingProxyType({f.name: f for f in ordered})
        cls.enums = tuple(f for f in ordered if f.named is not None)
        cls.known, cls.kind_mask, cls.kind_value = known, kind_mask, kind_value

    @classmethod
    def pack(cls, **values: int) -> int:
        """Return the entry with these fields; the others are zero, fixed ones fixed.

        :raises EntryError: a field is unknown, too small, or fixed otherwise.
        """
        entry = cls.kind_value
        for name, value in values.items():
            field = cls.fields.get(name)
            if field is None:
                known = ", ".join(cls.fields)
                raise EntryError(
                    f"{cls.__name__} has no field {name}; there is {known}"
                )
            if field.fixed is not None and value != field.fixed:
                raise EntryError(
                    f"{cls.__name__}.{name} is always {field.fixed:#x}, not {value:#x}"
                )
            if field.named is not None and value not in field.named:
                raise EntryError(
                    f"{cls.__name__}.{name}: {value:#x} has no name; "
                    f"there is {field.names()}"
                )
            entry |= field.place(value)
        return entry

    @classmethod
    def unpack(cls, entry: int) -> dict[str, int]:
        """Return the fields of an entry by name, highest bit first.

        :raises EntryError: the value is no entry, not of this kind, or has a bit
            that no field claims.
        """
        cls.check(entry)
        return {name: field.get(entry) for name, field in cls.fields.items()}

    @classmethod
    def check(cls, entry: int) -> None:
        """Refuse what is not an entry of this kind.

        :raises EntryError: with the bits or the field at fault.
        """
        if not 0 <= entry < 1 << cls.width:
            raise EntryError(f"{entry:#x} is no {cls.width}-bit value")
        stray = entry & ~cls.known
        if stray:
            bits = ", ".join(str(b) for b in range(cls.width) if stray >> b & 1)
            raise EntryError(f"{entry:#x}: {cls.__name__} does not know bit {bits}")
        if entry & cls.kind_mask != cls.kind_value:
            wrong = next(
                f
                for f in cls.fields.values()
                if f.fixed is not None and f.get(entry) != f.fixed
            )
            raise EntryError(
                f"{entry:#x}: {cls.__name__}.{wrong.name} is always {wrong.fixed:#x}"
            )
        for field in cls.enums:
            value = field.get(entry)
            if field.named is not None and value not in field.named:
                raise EntryError(
                    f"{entry:#x}: {cls.__name__}.{field.name} is {value:#x}; "
                    f"there is {field.names()}"
                )

    @classmethod
    def accepts(cls, entry: int) -> bool:
        """Return whether the value is an entry of this kind without stray bits."""
        return (
            0 <= entry < 1 << cls.width
            and not entry & ~cls.known
            and entry & cls.kind_mask == cls.kind_value
            and all(f.named is None or f.get(entry) in f.named for f in cls.enums)
        )

    @classmethod
    def show(cls, entry: int) -> str:
        """Return the fields in one line; fields that are zero are left out."""
        return " ".join(
            f"{name}={field.show(value)}"
            for name, field in cls.fields.items()
            if (value := field.get(entry)) and field.fixed is None
        )

    @classmethod
    def rows(cls) -> Iterator[tuple[str, str, str]]:
        """Yield bits, name and meaning of each field, highest bit first."""
        for field in cls.fields.values():
            fixed = f"always {field.fixed:#x}" if field.fixed is not None else ""
            yield field.bits, field.name, "; ".join(t for t in (field.doc, fixed) if t)

    @classmethod
    def may_change(cls, old: int, new: int) -> bool:
        """Return whether a live entry may change so without break-before-make.

        The law of a format without one of its own: only :attr:`live_changes` may
        differ. An architecture whose hardware allows any change sets it to all
        ones.
        """
        return not (old ^ new) & ~cls.live_changes
