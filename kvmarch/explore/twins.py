"""Tasks that can be exchanged: what is their own, and how they are put in order."""

__all__ = ["SORTED", "TIED", "Plan", "TwinClass", "Twins"]

from collections.abc import Iterable, Sequence
from types import FunctionType, MethodType
from typing import Any, NamedTuple

from kvmarch.errors import NotSymmetricError
from kvmarch.explore.cells import ATOMS, Cells
from kvmarch.explore.node import DIGIT, FIELD, NUMBER


class Twins(NamedTuple):
    """Tasks that can be exchanged.

    :param tasks: their numbers.
    :param things: by task, the objects that are its own, position by position: its
        vCPU, the lines that it runs.
    """

    tasks: tuple[int, ...]
    things: tuple[tuple[Any, ...], ...]


class _Own:
    """What stands for a twin's own object or name, whichever twin it is."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"own{self.number}"


class Plan(NamedTuple):
    """How a state is brought into an order.

    :param change: of the standpoints.
    :param order: by place, the twin that comes there.
    :param shifts: of the digits, in pairs: where they come, and from where.
    :param renames: what changes in the cells that name twins, by what they hold.
    """

    change: int
    order: tuple[int, ...]
    shifts: tuple[tuple[int, int], ...]
    renames: dict[int, int]


SORTED = Plan(0, (), (), {})
"""Nothing has to be done."""
TIED = Plan(0, (), (), {})
"""The cells decide, not the standpoints."""


def _attributes(thing: Any) -> dict[str, Any]:
    found = dict(getattr(thing, "__dict__", {}))
    for base in type(thing).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                found[name] = getattr(thing, name)
    return found


class TwinClass:
    """One set of twins: their objects, paired, and where their digits are."""

    def __init__(self, twins: Twins, names: Sequence[str], cells: Cells) -> None:
        self.tasks = twins.tasks
        self.size = len(self.tasks)
        self.shifts = tuple(FIELD * i for i in self.tasks)
        self.identity = tuple(range(self.size))
        self.of_id: dict[int, tuple[int, _Own]] = {}
        """By id of an object: whose it is, and what stands for it."""
        self.of_name: dict[str, tuple[int, _Own]] = {}
        self.members: list[tuple[Any, ...]] = []
        """By number of what stands for it, each twin's own object or name."""
        self.mask = 0
        """The digits of the first twin's cells; the others' stand beside them."""
        self.by_places: dict[int, Plan] = {}
        """By standpoints, how the twins are sorted."""
        self.tied: dict[tuple[tuple[int, ...], int], Plan] = {}
        self.renames: dict[tuple[int, ...], dict[int, int]] = {}
        """By order and contents of the cells that name twins, how these change."""
        self._note(tuple(names[i] for i in self.tasks))
        self._pair(tuple(zip(*twins.things, strict=True)))
        self.orbits = self._orbits(cells)

    def _note(self, owned: tuple[Any, ...]) -> None:
        own = _Own(len(self.members))
        self.members.append(owned)
        for member, thing in enumerate(owned):
            if isinstance(thing, str):
                self.of_name[thing] = member, own
            else:
                self.of_id[id(thing)] = member, own

    def _pair(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Pair the twins' objects, and what each of them leads to."""
        queue = list(rows)
        while queue:
            row = queue.pop()
            first = row[0]
            if isinstance(first, ATOMS) or all(thing is first for thing in row):
                continue
            kind = type(first)
            if id(first) in self.of_id or any(type(thing) is not kind for thing in row):
                continue
            if isinstance(first, list | tuple) and not hasattr(first, "_fields"):
                if len({len(thing) for thing in row}) == 1:
                    queue.extend(zip(*row, strict=True))
                continue
            if isinstance(first, FunctionType):
                continue
            if isinstance(first, MethodType):
                queue.append(tuple(thing.__self__ for thing in row))
                continue
            self._note(row)
            inside = [_attributes(thing) for thing in row]
            for name, value in inside[0].items():
                values = tuple(held.get(name) for held in inside)
                if name == "name" and isinstance(value, str):
                    if len(set(values)) == self.size and value not in self.of_name:
                        self._note(values)
                else:
                    queue.append(values)

    def _orbits(self, cells: Cells) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for row in self.members:
            kind = type(row[0])
            if not hasattr(kind, "variables") or hasattr(kind, "key"):
                continue
            found.extend(
                tuple(cells.cell(thing, name) for thing in row)
                for name in kind.variables
            )
        return found

    def plan(self, order: tuple[int, ...], places: int) -> "Plan":
        """Return what has to be done to have the twins in an order.

        :param order: by place, the twin that comes there.
        """
        shifts = self.shifts
        change = sum(
            (places >> shifts[member] & NUMBER) - (places >> shifts[place] & NUMBER)
            << shifts[place]
            for place, member in enumerate(order)
        )
        digits = tuple(
            (DIGIT * place, DIGIT * member)
            for place, member in enumerate(order)
            if place != member
        )
        return Plan(change, order, digits, self.renames.setdefault(order, {}))

    def permute(self, value: Any, to: Sequence[int]) -> Any:
        """Return a frozen value with every twin put in the place of another.

        :param to: by twin, in whose place it comes.
        """

        def place(member: int, own: _Own) -> Any:
            return self.members[own.number][to[member]]

        return self._replace(value, place)

    def view(self, member: int, value: Any) -> Any:
        """Return a frozen value as it is for a twin, whichever it is.

        :raises NotSymmetricError: the value names another twin.
        """

        def place(whose: int, own: _Own) -> Any:
            if whose != member:
                raise NotSymmetricError(
                    f"{self.members[0][member]} keeps {self.members[own.number][whose]}"
                )
            return own

        return self._replace(value, place)

    def names_one(self, value: Any) -> bool:
        """Return whether a frozen value names any of the twins."""
        found = []

        def place(whose: int, own: _Own) -> Any:
            found.append(whose)
            return own

        self._replace(value, place)
        return bool(found)

    def _replace(self, value: Any, place: Any) -> Any:
        kind = type(value)
        if kind is str:
            mine = self.of_name.get(value)
            return value if mine is None else place(*mine)
        if kind is frozenset:
            return frozenset([self._replace(item, place) for item in value])
        if kind is not tuple:
            return self._replace_object(value, place)
        if len(value) == 2 and type(value[1]) is int and type(value[0]) is str:
            mine = self.of_id.get(value[1])
            if mine is not None:
                put = place(*mine)
                return value[0], put if isinstance(put, _Own) else id(put)
        inside = [self._replace(item, place) for item in value]
        if inside and inside[0] == "dict" and value[0] == "dict":
            inside[1:] = sorted(inside[1:], key=repr)
        return tuple(inside)

    def _replace_object(self, value: Any, place: Any) -> Any:
        """Replace an operation that is bound to a twin's own lock, as of its mutex."""
        bound = getattr(getattr(value, "fn", None), "__self__", None)
        mine = None if bound is None else self.of_id.get(id(bound))
        if mine is None:
            return value
        put = place(*mine)
        return "op", value.fn.__func__, put if isinstance(put, _Own) else id(put)
