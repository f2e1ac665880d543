"""Scenario lines as commands of the probe, and which guest pages they are about.

Numbers in commands are hexadecimal. What a VM has of slots is followed here, so that
whoever looks at its tables knows which page should be behind which gfn.
"""

__all__ = [
    "ACCESSES",
    "Board",
    "Order",
    "check_verb",
    "content_of",
    "gpa_of",
    "line_of",
]

import mmap
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvmarch.errors import LabError, ScenarioError
from kvmarch.lab.sides import Memory, Setup, code_memory
from kvmarch.scenarios import records
from kvmarch.scenarios.verbs import VERBS, check_line, values

ACCESS_OFFSET = 0x10
"""Where in a page the guest reads and writes, in bytes."""
CODE_OFFSET = 0x80
"""Where in a page the guest's code to leave is, in bytes."""
NO_MEMORY = 0xFFFF
_PROT = {"r": mmap.PROT_READ, "rw": mmap.PROT_READ | mmap.PROT_WRITE}
ACCESSES = {"read": "ld", "write": "st", "exec": "ex"}
"""What the guest does, by verb, as answers have it."""
_WORD = 64


class Slot(NamedTuple):
    """What a memslot maps: pages from a page of a memory on."""

    gfn: int
    pages: int
    memory: int
    page: int


def line_of(
    text: str, memories: Mapping[str, records.Memory], vcpus: int, vms: int = 1
) -> records.StepLine:
    """Return a checked line.

    :raises ScenarioError: with what would be accepted.
    """
    verb, _, rest = text.partition(" ")
    words = rest.split()
    if not all("=" in word for word in words):
        raise ScenarioError(f"{text!r}: arguments are written name=value")
    args = dict(word.split("=", 1) for word in words)
    why = check_line(verb, args, memories, vcpus, vms)
    if why:
        raise ScenarioError(f"{text!r}: {why}")
    return records.StepLine(verb, args, text)


def gpa_of(verb: str, args: Mapping[str, Any], shift: int) -> int:
    """Return the address, in bytes, that the guest accesses at a line's page."""
    offset = CODE_OFFSET if verb == "exec" else ACCESS_OFFSET
    gpa: int = args["gpa"] if "gpa" in args else (args["gfn"] << shift) + offset
    return gpa


@dataclass(frozen=True, slots=True)
class Order:
    """What to tell the probe for one line.

    :param command: empty if there is nothing to do.
    :param gfn: the page that the guest accesses; -1 if it does not run.
    :param vm: the number of the VM that it is about.
    """

    command: str
    gfn: int = -1
    vm: int = 0


class Board:
    """A process as the lab knows it: its memories, and the slots of its VMs."""

    def __init__(self, setup: Setup, page_size: int) -> None:
        self.setup = setup
        self.shift = page_size.bit_length() - 1
        self.names = {row.name: at for at, row in enumerate(setup.memories)}
        self.rows = {
            row.name: records.Memory(row.name, row.pages) for row in setup.memories
        }
        self.slots: list[dict[tuple[int, int], Slot]] = [{} for _ in range(setup.vms)]
        """Of each VM, by address space and number."""
        self.reached: list[set[int]] = [set() for _ in range(setup.vms)]
        """The gfns that the guest of each VM has accessed, with a slot or without."""
        self._pending: tuple[int, tuple[int, int], Slot | None] | None = None

    def begin(self) -> Iterator[str]:
        """Yield the commands that make the VM and its memory."""
        code = self.setup.code_gfn << self.shift
        yield f"begin {self.setup.vcpus:x} {code:x} {self.setup.vms:x}"
        for at, row in enumerate(self.setup.memories):
            yield self._memory(at, row)

    def _memory(self, at: int, row: Memory) -> str:
        own = "code" in self.names
        code = 0
        if row.name in map(code_memory, range(self.setup.vms)):
            code = 1
        elif not own and at == 0 and self.setup.code_gfn < row.pages:
            code = self.setup.code_gfn + 1
        touched = row.contents is not None
        head = (row.pages, row.huge, row.mergeable, touched, code)
        return " ".join(["memory", *(f"{n:x}" for n in (*head, *(row.contents or ())))])

    def order(self, line: records.StepLine) -> Order:
        """Return the command for a line.

        :raises LabError: nobody can make a real kernel do it from outside.
        """
        self._pending = None
        check_verb(line)
        args = values(VERBS[line.verb], line.args)
        if line.verb in ACCESSES:
            return self.access(line.verb, args)
        return Order(_ORDERS[line.verb](self, args), vm=args.get("vm", 0))

    def settle(self, succeeded: bool) -> None:
        """Take over what the last order did to the slots, if it did it."""
        if self._pending is not None and succeeded:
            vm, key, slot = self._pending
            if slot is None:
                self.slots[vm].pop(key, None)
            else:
                self.slots[vm][key] = slot
        self._pending = None

    def frames_by_gfn(
        self, frames: Mapping[str, tuple[int, ...]], vm: int = 0
    ) -> dict[int, int]:
        """Return the pfn behind each gfn that a VM's slot has; 0 where there is none.

        Guests run in the first address space; slots of others are not theirs.
        """
        lists = [frames.get(row.name, ()) for row in self.setup.memories]
        return {
            slot.gfn + i: pfn
            for (as_id, _), slot in self.slots[vm].items()
            if not as_id
            for i, pfn in enumerate(
                lists[slot.memory][slot.page : slot.page + slot.pages]
            )
        }

    def frames_around(
        self, frames: Mapping[str, tuple[int, ...]], vm: int = 0
    ) -> dict[int, int]:
        """Return the pfn behind each gfn, as if every slot had all of its memory.

        A kernel may map more than a slot has, as large as its leaf is (ppc).
        """
        lists = [frames.get(row.name, ()) for row in self.setup.memories]
        return {
            slot.gfn + i - slot.page: pfn
            for (as_id, _), slot in self.slots[vm].items()
            if not as_id
            for i, pfn in enumerate(lists[slot.memory])
            if slot.gfn + i >= slot.page
        }

    def access(self, verb: str, args: Mapping[str, Any]) -> Order:
        """Return the command of a guest's access."""
        offset = CODE_OFFSET if verb == "exec" else ACCESS_OFFSET
        gpa = args["gpa"] if "gpa" in args else (args["gfn"] << self.shift) + offset
        command = f"run {args.get('vcpu', 0):x} {ACCESSES[verb]} {gpa:x}"
        return Order(command, gpa >> self.shift, args.get("vm", 0))

    def pages(self, args: Mapping[str, Any]) -> tuple[int, int, int]:
        """Return number, first page and number of pages that a line names."""
        at = self.names[args["memory"]]
        first = args.get("page", 0)
        count = args.get("pages", self.setup.memories[at].pages - first)
        return at, first, count

    def expect(self, args: Mapping[str, Any], slot: Slot | None) -> tuple[int, int]:
        """Note what the order will do to a slot, if it succeeds.

        :returns: address space and number of the slot.
        """
        key = args.get("as_id", 0), args["id"]
        self._pending = args.get("vm", 0), key, slot
        return key

    def forget(self, vm: int) -> None:
        """Note that a VM has gone."""
        self.slots[vm].clear()
        self.reached[vm].clear()


# -- one function for each verb --------------------------------------------------------


def _command(verb: str, *numbers: int) -> str:
    return " ".join([verb, *(f"{number:x}" for number in numbers)])


def _slot(board: Board, args: Mapping[str, Any]) -> str:
    at, first, count = board.pages(args)
    gpa = args["gpa"] if "gpa" in args else args.get("gfn", 0) << board.shift
    slot = Slot(gpa >> board.shift, count, at, first) if count else None
    key = board.expect(args, slot)
    offset = (first << board.shift) + args.get("offset", 0)
    flags, size = args.get("flags", 0), count << board.shift
    return _command("slot", *key, flags, gpa, size, at, offset)


def _slot_delete(board: Board, args: Mapping[str, Any]) -> str:
    key = board.expect(args, None)
    return _command("slot", *key, 0, 0, 0, NO_MEMORY, 0)


def _dirty_get(_board: Board, args: Mapping[str, Any]) -> str:
    return _command("dirty", args.get("as_id", 0) << 16 | args["id"])


def _dirty_clear(_board: Board, args: Mapping[str, Any]) -> str:
    bits, words = args["bits"], []
    while bits:
        words.append(bits & (1 << _WORD) - 1)
        bits >>= _WORD
    return _command("clear", args["id"], args["first"], args["pages"], *words)


def _manual(_board: Board, args: Mapping[str, Any]) -> str:
    return _command("manual", 3 if args.get("initially_set") == "yes" else 1)


def _touch(board: Board, args: Mapping[str, Any]) -> str:
    value = (args["value"],) if "value" in args else ()
    return _command("touch", *board.pages(args), *value)


def _madvise(advice: int) -> Callable[[Board, Mapping[str, Any]], str]:
    return lambda board, args: _command("madvise", *board.pages(args), advice)


def _mprotect(board: Board, args: Mapping[str, Any]) -> str:
    return _command("mprotect", *board.pages(args), _PROT[args["prot"]])


def _mremap(board: Board, args: Mapping[str, Any]) -> str:
    return _command("mremap", *board.pages(args), board.names[args["to"]])


_ORDERS: dict[str, Callable[[Board, Mapping[str, Any]], str]] = {
    "slot": _slot,
    "slot_delete": _slot_delete,
    "dirty_get": _dirty_get,
    "dirty_clear": _dirty_clear,
    "manual_protect": _manual,
    "touch": _touch,
    "ksm_merge": lambda board, args: _command("ksm", *board.pages(args)),
    "ksm_unmerge": _madvise(mmap.MADV_UNMERGEABLE),
    "dontneed": _madvise(mmap.MADV_DONTNEED),
    "mprotect": _mprotect,
    "munmap": lambda board, args: _command("munmap", *board.pages(args)),
    "mremap": _mremap,
    "fork": lambda _board, _args: "fork",
    "exit_mm": lambda _board, _args: "exit",
    "vm_destroy": lambda _board, _args: "destroy",
    "mark": lambda _board, _args: "",
    "look": lambda _board, _args: "",
}
"""By verb, what makes the command. Marks and looks are for who records."""


def content_of(value: Any) -> int:
    """Return a number for what a scenario says a page holds; equal for equal values."""
    if isinstance(value, int) and 0 <= value < 1 << 32:
        return value
    return 1 << 36 | zlib.crc32(repr(value).encode())


def check_verb(line: records.StepLine, where: str = "") -> None:
    """Refuse what the lab cannot do.

    :param where: the line is, for the error.
    :raises LabError: with what it can do.
    """
    known = {*_ORDERS, *ACCESSES}
    if line.verb not in known:
        raise LabError(
            f"{where}{line.text!r}: nothing makes a real kernel do that from outside; "
            f"the lab can {', '.join(sorted(known))}"
        )
