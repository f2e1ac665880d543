"""Random sequences of steps, valid and invalid, that favour boundaries.

A process has one VM or two, with slots and vCPUs of their own over the same memory.

What a sequence is depends on its seed and the shape of the machine alone. The
generator follows roughly what its steps do, so that valid ones are frequent; it never
asks whether one was right, that is what is compared.

Some things are left out, because no side could say what happens next:

- The host does not write to memory that it has not mapped writable: its process would
  be killed.
- The guest fetches code only from pages that hold some: what it does elsewhere is
  decided by what lies there.
- No slot covers the page of the guest's code, or the address at which it leaves.
"""

__all__ = ["WEIGHTS", "Program", "Shape", "program"]

import random
from collections.abc import Callable, Mapping

from kvmarch.lab.fuzz.chooser import (
    EVERYTHING,
    HAS_CODE,
    MAPPED,
    SLOT_IDS,
    WRITABLE,
    Chooser,
    Program,
    Shape,
    Slot,
)
from kvmarch.lab.sides import code_memory
from kvmarch.scenarios.verbs import LEAVE_GPA, VERBS

WEIGHTS: Mapping[str, int] = {
    "read": 28,
    "write": 20,
    "exec": 7,
    "outside": 4,
    "slot": 12,
    "overlap": 3,
    "wrong": 5,
    "flags": 8,
    "same": 1,
    "move": 4,
    "delete": 6,
    "reshape": 3,
    "touch": 6,
    "dontneed": 6,
    "mprotect": 14,
    "munmap": 3,
    "mremap": 2,
    "fork": 1,
    "ksm_merge": 5,
    "ksm_unmerge": 1,
    "dirty_get": 9,
    "dirty_clear": 4,
    "manual_protect": 1,
    "destroy": 1,
}
"""How often each kind of step is tried; the names are methods of the generator."""

FORKS = 3
WRONG_FLAGS = (0x4, 0x80, 1 << 31)
HIGH_IDS = (509, 511, 512, 513, 32763, 32764, 32765, 32766, 32767, 32768, 65535)


class _Generator(Chooser):
    """Makes up one step at a time; None if that kind makes no sense now."""

    # -- the guest ---------------------------------------------------------------------

    def access(self, verb: str) -> str | None:
        found = self.slot()
        if found is None:
            return None
        (as_id, _), slot = found
        gfn = self.in_slot(slot)
        if self.rng.random() < 0.5:
            slot, gfn = self.changed() or (slot, gfn)
        page = slot.page + gfn - slot.gfn
        if verb == "exec":
            inside = page < self.memories[slot.memory].pages
            if as_id or not inside or slot in self.doubtful:
                return None
            if not self.state[slot.memory][page] & HAS_CODE:
                return None
        return _line(verb, gfn=gfn, **self.vcpu())

    def changed(self) -> tuple[Slot, int] | None:
        """Return a slot with the page that the host has changed last, and its gfn."""
        name, page = self.last
        for (as_id, _), slot in sorted(self.slots.items()):
            at = page - slot.page
            if not as_id and slot.memory == name and 0 <= at < slot.pages:
                return slot, slot.gfn + at
        return None

    def vcpu(self) -> dict[str, int]:
        """Return which vCPU, as an argument if it is not the first."""
        number = self.rng.randrange(self.vcpus)
        return {"vcpu": number} if number else {}

    def read(self) -> str | None:
        return self.access("read")

    def write(self) -> str | None:
        return self.access("write")

    def exec(self) -> str | None:
        return self.access("exec")

    def outside(self) -> str | None:
        verb = self.rng.choice(("read", "write"))
        gfn = self.gfn(1)
        if not self.is_free(0, gfn, 1):
            return None
        return _line(verb, gfn=gfn, **self.vcpu())

    # -- memslots ----------------------------------------------------------------------

    def make(self, key: tuple[int, int], slot: Slot, **more: int) -> str:
        args: dict[str, object] = {"id": key[1], "memory": slot.memory, "gfn": slot.gfn}
        args |= {"page": slot.page} if slot.page else {}
        args |= {"pages": slot.pages} if slot.pages != self.left(slot) else {}
        args |= {"flags": slot.flags} if slot.flags else {}
        args |= {"as_id": key[0]} if key[0] else {}
        return _line("slot", **args, **more)

    def believe(self, key: tuple[int, int], slot: Slot) -> None:
        """Note that there is a slot now, if the kernel does not object."""
        self.slots[key] = slot
        pages = slot.memory, slot.page, slot.pages
        beyond = slot.pages > self.left(slot)
        if beyond or not self.all_have(*pages, MAPPED | WRITABLE):
            self.doubtful.add(slot)

    def left(self, slot: Slot) -> int:
        """Return the pages of a slot's memory from its first one on."""
        return self.memories[slot.memory].pages - slot.page

    def new(self) -> Slot:
        """Return a slot that could be, wherever."""
        name = self.name()
        page, pages = self.part(name)
        if self.rng.random() < 0.1:
            # Behind a memory there is nothing.
            pages = self.memories[name].pages - page + self.rng.choice((1, 2, 16))
        return Slot(self.gfn(pages), pages, name, page, self.flag())

    def slot_(self) -> str | None:
        key, slot = self.key(), self.new()
        if key in self.slots or not self.is_free(key[0], slot.gfn, slot.pages):
            return None
        self.believe(key, slot)
        return self.make(key, slot)

    def overlap(self) -> str | None:
        found, key = self.slot(), self.key()
        if found is None or key in self.slots:
            return None
        there = found[1]
        slot = self.new()
        gfn = self.rng.choice(
            (there.gfn + there.pages - 1, there.gfn - slot.pages + 1, there.gfn)
        )
        if gfn < 0 or self.is_free(key[0], gfn, slot.pages):
            return None
        size = self.shape.page_size
        if gfn <= LEAVE_GPA // size < gfn + slot.pages:
            return None
        return self.make(key, slot._replace(gfn=gfn))

    def wrong(self) -> str | None:
        rng, size = self.rng, self.shape.page_size
        key, slot = self.key(), self.new()
        how = rng.randrange(8)
        if how == 0:
            return self.make(key, slot, offset=rng.choice((1, 8, size // 2)))
        if how == 1:
            flags = rng.choice(WRONG_FLAGS)
            return self.make(key, slot._replace(flags=f"{flags:#x}"))
        if how == 2:
            end = (1 << 64) // size
            pages = rng.choice((1 << 31, (1 << 31) - 1, 1 << 40, end - 1))
            return self.make(key, slot._replace(pages=pages, gfn=end - 4))
        if how == 3:
            gpa = slot.gfn * size + rng.choice((1, 8, size // 2, size - 1))
            args = {"id": key[1], "memory": slot.memory, "gpa": f"{gpa:#x}"}
            return _line("slot", **args)
        if how == 4:
            as_id = self.shape.address_spaces + rng.choice((0, 1, 7))
            return self.make((as_id, key[1]), slot)
        if how == 5:
            number = rng.choice(HIGH_IDS)
            return _line("slot_delete", id=number)
        if how == 6:
            number = rng.choice((32768, 40000, 65535))
            return self.make((0, number), slot)
        if key in self.slots:
            return None
        space = {"as_id": key[0]} if key[0] else {}
        return _line("slot_delete", id=key[1], **space)

    def flags(self) -> str | None:
        found = self.slot()
        if found is None:
            return None
        key, slot = found
        words = set(filter(None, slot.flags.split(",")))
        changed = ",".join(sorted(words ^ {"log_dirty"}))
        self.believe(key, slot._replace(flags=changed))
        return self.make(key, self.slots[key])

    def same(self) -> str | None:
        found = self.slot()
        return None if found is None else self.make(*found)

    def move(self) -> str | None:
        found = self.slot()
        if found is None:
            return None
        key, slot = found
        gfn = self.gfn(slot.pages)
        if not self.is_free(key[0], gfn, slot.pages, key[1]):
            return None
        flags = self.flag() if self.rng.random() < 0.2 else slot.flags
        keeps = ("readonly" in flags) == ("readonly" in slot.flags)
        moved = slot._replace(gfn=gfn, flags=flags)
        if keeps:
            self.believe(key, moved)
        return self.make(key, moved)

    def delete(self) -> str | None:
        found = self.slot()
        if found is None:
            return None
        (as_id, number), _ = found
        del self.slots[as_id, number]
        return _line("slot_delete", id=number, **({"as_id": as_id} if as_id else {}))

    def reshape(self) -> str | None:
        """Change of a slot what may not change while it exists."""
        found, rng = self.slot(), self.rng
        if found is None:
            return None
        key, slot = found
        how = rng.randrange(3)
        if how == 0 and slot.pages > 1:
            return self.make(key, slot._replace(pages=slot.pages - 1))
        if how == 1 and self.left(slot) > slot.pages:
            return self.make(key, slot._replace(page=slot.page + 1))
        words = set(filter(None, slot.flags.split(",")))
        return self.make(
            key, slot._replace(flags=",".join(sorted(words ^ {"readonly"})))
        )

    # -- the host ----------------------------------------------------------------------

    def pages(self, name: str, first: int, count: int) -> dict[str, object]:
        """Return the arguments of a step about pages, and note one of them."""
        self.last = name, first + self.rng.randrange(count)
        return {"memory": name, "page": first, "pages": count}

    def touch(self) -> str | None:
        name = self.name()
        first, count = self.part(name)
        if not self.all_have(name, first, count, MAPPED | WRITABLE):
            return None
        state = self.state[name]
        state[first : first + count] = [EVERYTHING] * count
        value = self.rng.choice((1, 2, 3, 4))
        return _line("touch", **self.pages(name, first, count), value=value)

    def dontneed(self) -> str | None:
        name = self.name()
        first, count = self.part(name)
        if not self.all_have(name, first, count, MAPPED):
            return None
        self.forget(name, first, count, HAS_CODE)
        return _line("dontneed", **self.pages(name, first, count))

    def mprotect(self) -> str | None:
        name = self.name()
        first, count = self.part(name)
        if not self.all_have(name, first, count, MAPPED):
            return None
        self.split.add(name)
        # Rather what it is not yet.
        writable = self.all_have(name, first, count, WRITABLE)
        prot = "r" if writable == (self.rng.random() < 0.8) else "rw"
        state = self.state[name]
        for page in range(first, first + count):
            state[page] |= WRITABLE
            if prot == "r":
                state[page] &= ~WRITABLE
        return _line("mprotect", **self.pages(name, first, count), prot=prot)

    def munmap(self) -> str | None:
        name = self.name()
        first, count = self.part(name)
        self.split.add(name)
        self.forget(name, first, count, EVERYTHING)
        return _line("munmap", **self.pages(name, first, count))

    def mremap(self) -> str | None:
        """Move pages to the place of another memory, which may be huge, or not.

        What a range of several mappings or of none does depends on the release; what
        is left then is not known here, so that the host keeps away from it.
        """
        name = self.name()
        to = self.rng.choice([to for to in ("there", "spare") if to != name])
        first, count = self.part(name)
        room = self.memories[to].pages
        count = min(count, room if self.rng.random() < 0.7 else 1)
        known = self.all_have(name, first, count, MAPPED)
        known = known and (count == 1 or name not in self.split)
        if not known and self.rng.random() < 0.8:
            return None
        moved = self.state[name][first : first + count] if known else [0] * count
        self.split |= {name, to}
        self.state[to] = [*moved, *[0] * (room - count)]
        self.forget(name, first, count, EVERYTHING)
        return _line("mremap", **self.pages(name, first, count), to=to)

    def fork(self) -> str | None:
        if self.forks >= FORKS:
            return None
        self.forks += 1
        return "fork"

    def ksm_merge(self) -> str | None:
        name = self.name() if self.rng.random() < 0.3 else "ram"
        first, count = self.part(name)
        if not self.all_have(name, first, count, MAPPED):
            return None
        self.split.add(name)
        return _line("ksm_merge", **self.pages(name, first, count))

    def ksm_unmerge(self) -> str | None:
        """Give up merging: pages that were merged become the memory's own."""
        name = self.name()
        first, count = self.part(name)
        if not self.all_have(name, first, count, MAPPED):
            return None
        self.split.add(name)
        return _line("ksm_unmerge", **self.pages(name, first, count))

    def destroy(self) -> str | None:
        """Let a VM go, late, while another one stays."""
        if self.vm in self.gone or len(self.gone) + 1 == len(self.every):
            return None
        if self.rng.random() < 0.7:
            return None
        self.gone.add(self.vm)
        return "vm_destroy"

    # -- dirty logs --------------------------------------------------------------------

    def logged(self, keys: list[tuple[int, int]]) -> tuple[int, int] | None:
        """Return one of some slots, mostly one that logs."""
        logging = [key for key in keys if "log_dirty" in self.slots[key].flags]
        if logging and self.rng.random() < 0.8:
            keys = logging
        return self.rng.choice(keys) if keys else None

    def dirty_get(self) -> str | None:
        found = self.logged(sorted(self.slots))
        if found is None:
            return None
        as_id, number = found
        if self.rng.random() < 0.1:
            number = self.rng.choice((*range(SLOT_IDS + 1), *HIGH_IDS))
        return _line("dirty_get", id=number, **({"as_id": as_id} if as_id else {}))

    def dirty_clear(self) -> str | None:
        rng = self.rng
        found = self.logged([key for key in sorted(self.slots) if not key[0]])
        if found is None:
            return None
        number, slot = found[1], self.slots[found]
        first = rng.choice((0, 0, 0, 64, 512, 32, slot.pages))
        left = max(slot.pages - first, 0)
        count = rng.choice((left, left, 64, 128, left + 1, 1))
        bits = rng.choice((rng.getrandbits(16), (1 << min(max(count, 1), 128)) - 1, 1))
        bits &= (1 << max(count, 1)) - 1
        return _line(
            "dirty_clear", id=number, first=first, pages=count, bits=f"{bits:#x}"
        )

    def manual_protect(self) -> str | None:
        if self.vm in self.manual:
            return None
        self.manual.add(self.vm)
        return _line("manual_protect", initially_set=self.rng.choice(("yes", "no")))


def _line(verb: str, **args: object) -> str:
    return " ".join([verb, *(f"{name}={value}" for name, value in args.items())])


def _of(vm: int, line: str) -> str:
    """Return a line that is about a VM, if its verb is about any."""
    names = "vm" in VERBS[line.partition(" ")[0]].params
    return f"{line} vm={vm}" if vm and names else line


def program(
    seed: int,
    number: int,
    steps: int,
    shape: Shape,
    weights: Mapping[str, int] = WEIGHTS,
) -> Program:
    """Return the process of a number in a seed's row, and so many steps.

    :param weights: how often each kind of step is tried.
    """
    rng = random.Random(f"{seed}/{number}")  # noqa: S311 - no secret
    generator = _Generator(shape, rng)
    setup = generator.begin()
    lines = [
        _of(vm, _line("slot", id=0, memory=code_memory(vm), gfn=setup.code_gfn))
        for vm in range(setup.vms)
    ]
    kinds, odds = list(weights), list(weights.values())
    makers: dict[str, Callable[[], str | None]] = {
        kind: getattr(generator, "slot_" if kind == "slot" else kind) for kind in kinds
    }
    while len(lines) < steps:
        (kind,) = rng.choices(kinds, odds)
        generator.vm = rng.choice(sorted(set(range(setup.vms)) - generator.gone))
        line = makers[kind]()
        if line is not None:
            lines.append(_of(generator.vm, line))
    return Program(setup, tuple(lines))
