"""How a tree of tables is walked: shape and address fields, as data.

An architecture states a :class:`WalkLayout`; whoever walks an image of memory, one
address in Python or all of them in numpy, needs nothing else of it.
"""

__all__ = ["ROLES", "Role", "WalkLayout", "WalkLevel", "WalkRule"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kvmarch.errors import FormatError
from kvmarch.format.bits import EntryFormat

Role: TypeAlias = Literal["table", "leaf", "kept", "note", "absent"]
"""What an entry may be to a walk, see :class:`WalkRule`."""
ROLES = ("table", "leaf", "kept", "note", "absent")
_NOWHERE = frozenset({"note", "absent"})


@dataclass(frozen=True, slots=True)
class WalkRule:
    """How one kind of entry is recognised, and where it keeps its address.

    :param role: ``table`` leads to the next lower level; ``leaf`` maps memory, and
        hardware may use it; ``kept`` still names a page, but hardware faults first
        (aged by clearing its permissions, invalidated for a while); ``note`` leads
        nowhere, but says something (MMIO, frozen, locked, an owner): it is listed;
        ``absent`` is empty and passed over.
    :param mask: the bits that are looked at; none of them means that every entry is
        of this kind.
    :param value: what they must be: ``entry & mask == value``.
    :param address: where the physical address of the table or of the first page is:
        pairs of a mask and the number of bits by which what is under it moves, left
        if positive, right if negative; the address is the sum. An address kept in
        place is ``((mask, 0),)``; a page number at bit 10 is
        ``((0x003f_ffff_ffff_fc00, 2),)``;
        arm64 with LPA2 has ``((0x0003_ffff_ffff_f000, 0), (0x300, 42))``.
    :param shift: log2 of the bytes that a leaf maps; those of one entry of its level
        if it is left out. More (a leaf repeated in several entries, such as Svnapot
        or a contiguous run): every entry of the run matches, and the low address
        bits, which are not the page's, must not be under a mask of ``address``.
    """

    role: Role
    mask: int
    value: int
    address: tuple[tuple[int, int], ...] = ()
    shift: int | None = None

    @classmethod
    def of(
        cls,
        fmt: type[EntryFormat],
        role: Role,
        name: str = "",
        unit: int = 0,
        *,
        exact: bool = False,
        shift: int | None = None,
    ) -> "WalkRule":
        """Return the rule for entries of a format.

        An entry matches if all fixed fields of the format are what they must be.

        :param name: the field that holds the address.
        :param unit: log2 of the bytes that the field counts: the page shift if it
            is a page number, 0 if it is an address.
        :param exact: the entry must have no bit that no field claims; always so for
            ``absent`` and ``note``, which often have no fixed field at all.
        """
        mask = fmt.kind_mask
        if exact or role in _NOWHERE:
            mask |= ((1 << fmt.width) - 1) & ~fmt.known
        moves = []
        if name:
            place = fmt.fields[name]
            at = place.shift + unit
            for top, low in place.parts:
                run = (2 << top) - (1 << low)
                moves.append((run, at - low))
                at += top - low + 1
        return cls(role, mask, fmt.kind_value & mask, tuple(moves), shift)

    def address_of(self, entry: int) -> int:
        """Return the physical address, in bytes, that an entry of this kind holds."""
        address = 0
        for mask, move in self.address:
            part = entry & mask
            address |= part << move if move >= 0 else part >> -move
        return address


@dataclass(frozen=True, slots=True)
class WalkLevel:
    """The tables of one level.

    :param level: the architecture's own number, as ``kvmarch_decode`` takes it.
    :param shift: log2 of the bytes that one entry covers, which is the lowest bit of
        a guest-physical address in the index of the table.
    :param bits: index bits: a table has ``1 << bits`` entries. A root of several
        pages, concatenated or enlarged, simply has more bits than others; a table
        smaller than a page has fewer.
    :param rules: the first that matches an entry counts. An entry that none matches
        is reported as unknown, and not followed.
    """

    level: int
    shift: int
    bits: int
    rules: tuple[WalkRule, ...]

    def leaf_shift(self, rule: WalkRule | None) -> int:
        """Return log2 of the bytes that a leaf of a rule maps."""
        return self.shift if rule is None or rule.shift is None else rule.shift


@dataclass(frozen=True, slots=True)
class WalkLayout:
    """A tree of tables.

    :param levels: from the root down; each begins where the next lower one ends:
        ``levels[i].shift == levels[i + 1].shift + levels[i + 1].bits``.
    :param page_shift: log2 of the bytes of a page: the unit of gfn and pfn.
    :param entry_bytes: bytes of an entry, 4 or 8.
    :param byteorder: of an entry in memory; ``machine`` means that it is that of the
        machine, which the architecture alone does not tell.
    :param permissions: the fields of leaves that say who may do what, by the name
        that they have in the plugin's formats; those that are not zero are shown.
    :param memory_type: the field of leaves that holds the memory type; empty if they
        have none.
    :param root_align: log2 of the alignment of the root, in bytes; that of its size,
        if it is left out.
    :raises FormatError: the parts do not fit together.
    """

    levels: tuple[WalkLevel, ...]
    page_shift: int
    entry_bytes: int = 8
    byteorder: Literal["little", "big", "machine"] = "little"
    permissions: tuple[str, ...] = ()
    memory_type: str = ""
    root_align: int | None = None
    by_level: Mapping[int, WalkLevel] = field(init=False, repr=False, compare=False)
    """The levels by their number."""

    def __post_init__(self) -> None:
        if not self.levels:
            raise FormatError("a walk needs a level")
        if self.entry_bytes not in {4, 8}:
            raise FormatError(f"no walk reads entries of {self.entry_bytes} bytes")
        full = (1 << 8 * self.entry_bytes) - 1
        for above, level in zip((None, *self.levels), self.levels, strict=False):
            if above is not None and above.shift != level.shift + level.bits:
                raise FormatError(
                    f"level {above.level} covers 2^{above.shift} bytes an entry, "
                    f"tables of level {level.level} 2^{level.shift + level.bits}"
                )
            for rule in level.rules:
                _check(rule, level, full)
        if any(rule.role == "table" for rule in self.levels[-1].rules):
            raise FormatError(f"level {self.levels[-1].level} has tables below it")
        by_level = {level.level: level for level in self.levels}
        if len(by_level) < len(self.levels):
            raise FormatError("two levels have the same number")
        # The way to fill a field of a frozen record.
        object.__setattr__(self, "by_level", by_level)

    @property
    def gpa_bits(self) -> int:
        """Return how many bits of a guest-physical address the tree tells apart."""
        return self.levels[0].shift + self.levels[0].bits

    @property
    def root_bytes(self) -> int:
        """Return the size of the root in bytes."""
        return self.entry_bytes << self.levels[0].bits

    @property
    def alignment(self) -> int:
        """Return of what the address of a root is a multiple, in bytes."""
        return self.root_bytes if self.root_align is None else 1 << self.root_align


def _check(rule: WalkRule, level: WalkLevel, full: int) -> None:
    where = f"level {level.level}, {rule.role}"
    if rule.role not in ROLES:
        raise FormatError(f"{where}: there is {', '.join(ROLES)}")
    if rule.value & ~rule.mask:
        raise FormatError(f"{where}: {rule.value:#x} has bits beside {rule.mask:#x}")
    if any(not 0 <= mask <= full for mask in (rule.mask, *dict(rule.address))):
        raise FormatError(f"{where}: a mask is wider than the entry")
    if (rule.role in _NOWHERE) == bool(rule.address):
        raise FormatError(
            f"{where}: an entry that leads somewhere has an address, others have none"
        )
    if rule.shift is not None and rule.shift < level.shift:
        raise FormatError(f"{where}: maps less than its entry covers")
