"""Random small programs, and every schedule of one run by brute force."""

from dataclasses import dataclass, field
from random import Random

from kvmarch.explore.programs import (
    SmallProgram,
    add,
    cmpxchg,
    load,
    rest,
    store,
    wait,
)
from kvmarch.machine.steps import BLOCKED, check_sleep, op

TOO_MANY = 1500
"""Schedules of a program above which another one is taken."""


class TooManyError(Exception):
    pass


# -- random programs -----------------------------------------------------------


@op
def check(program, variable, value):
    if variable.value == value:
        program.violation("claim")


@op
def scold(program, value):
    """Lose a property without a look at anything shared."""
    if value == 1:
        program.violation("local")


async def interpret(program, code):
    """Run instructions; what is kept is a place, two registers and a count."""
    at = turns = 0
    kept = (0, 0)
    while at < len(code):
        what, *args = code[at]
        at += 1
        if what == "load":
            got = await load(args[0])
            kept = (got, kept[0])
        elif what == "store":
            await store(*args)
        elif what == "put":
            await store(args[0], kept[0] + 1)
        elif what == "add":
            got = await add(*args)
            kept = (got, kept[0])
        elif what == "cmpxchg":
            got = await cmpxchg(*args)
            kept = (int(got), kept[0])
        elif what == "check":
            await check(program, *args)
        elif what == "scold":
            await scold(program, kept[0])
        elif what == "wait":
            await wait(*args)
        elif what == "rest":
            await rest()
        elif what == "step":
            await args[0]
        elif what == "synchronize":
            await args[0].synchronize()
        elif what == "again":
            # Once more, if the newest value is so; at most so often.
            if kept[0] == args[1] and turns < args[2]:
                turns += 1
                at = args[0]
        elif what == "skip" and kept[0] == args[1]:
            at = args[0]


PLAIN = (
    *("load", "load", "store", "put", "add"),
    *("cmpxchg", "check", "scold", "rest", "wait"),
)


def random_instruction(random, variables):
    kind = random.choice(PLAIN)
    variable, one, other = random.choice(variables), *random.choices(range(3), k=2)
    if kind in {"rest", "scold"}:
        return (kind,)
    if kind in {"load", "put"}:
        return kind, variable
    if kind == "cmpxchg":
        return kind, variable, one, other
    if kind == "wait":
        # Seldom for a new value, because what follows is then seldom reached.
        return kind, variable, one // 2
    return kind, variable, one


def random_code(random, size, variables, locks, srcu):
    code = []

    def value():
        return random.randrange(3)

    def some(size):
        while size > 0:
            kind = random.randrange(10)
            if kind < 5 or size < 2:
                code.append(random_instruction(random, variables))
                size -= 1
            elif kind == 5 and size > 2:
                inside = random.randint(1, size - 2)
                lock = random.choice(locks)
                read = random.random() < 0.4
                enter = lock.take_read() if read else lock.take_write()
                leave = lock.drop_read() if read else lock.drop_write()
                code.append(("step", enter))
                some(inside)
                code.append(("step", leave))
                size -= inside + 2
            elif kind == 6 and size > 2:
                inside = random.randint(1, size - 2)
                code.append(("step", srcu.read().enter))
                some(inside)
                code.append(("step", srcu.read().leave))
                size -= inside + 2
            elif kind == 7 and size > 3:
                code.append(("synchronize", srcu))
                size -= 4
            elif kind == 8:
                begin = len(code)
                inside = random.randint(1, min(2, size - 1))
                some(inside)
                code.append(("again", begin, value(), 1))
                size -= inside + 1
            else:
                place = len(code)
                code.append(None)
                inside = random.randint(1, min(2, size - 1))
                some(inside)
                code[place] = ("skip", len(code), value())
                size -= inside

    some(size)
    return tuple(code)


def random_program(seed, *, reverse=False):
    random = Random(seed)  # noqa: S311 - programs, no secrets
    program = SmallProgram()
    variables = [program.variable(n, random.randrange(2)) for n in "xyz"]
    locks = [program.lock("l"), program.lock("m")]
    srcu = program.srcu("s")
    count = random.choice((2, 2, 3))
    sizes = (2, 7) if count == 2 else (1, 4)
    codes = [
        random_code(random, random.randint(*sizes), variables, locks, srcu)
        for _ in range(count)
    ]
    tasks = [(f"T{n}", code) for n, code in enumerate(codes)]
    for name, code in reversed(tasks) if reverse else tasks:
        program.task(name, lambda code=code: interpret(program, code))
    x, y, z = variables
    one, other = random.randrange(3), random.randrange(3)
    program.claim("rest", lambda: not (x.value == one and y.value == other))
    if random.random() < 0.4:
        program.claim("always", lambda: z.value + x.value != 3, always=True)
    return program


# -- brute force ---------------------------------------------------------------


@dataclass
class Brute:
    ends: set = field(default_factory=set)
    lost: dict = field(default_factory=dict)
    """By property, the fewest steps that touch something after which it is lost."""
    avoided: set = field(default_factory=set)
    """Properties that some complete schedule does not lose."""
    schedules: int = 0

    def verdict(self, name):
        if name not in self.lost:
            return "never"
        return "sometimes" if name in self.avoided else "always"


def end_of(program, tasks):
    """Return an end as something that does not depend on objects or engines."""
    waiting = frozenset((t.name, t.pending.op.name) for t in tasks if not t.done)
    return waiting, state_of(program)


def state_of(program):
    values = []
    for name, part in program.world.parts.items():
        for variable in part.variables:
            value = getattr(part, variable)
            if variable in part.unordered:
                lists = value if value and isinstance(value[0], list) else [value]
                value = tuple(tuple(sorted(item)) for item in lists)
            values.append((name, variable, value))
    return frozenset(values)


def brute_force(make):
    """Run every schedule of a program from its beginning; nothing is merged."""
    found = Brute()
    losses = []
    todo = [()]
    while todo:
        prefix = todo.pop()
        lost = _run(make, prefix, todo, found)
        if lost is not None:
            losses.append(lost)
            found.schedules += 1
            if found.schedules > TOO_MANY:
                raise TooManyError
    for name in found.lost:
        if any(name not in lost for lost in losses):
            found.avoided.add(name)
    return found


def _run(make, prefix, todo, found):
    program = make()
    world, tasks = program.world, program.tasks()
    lost, length, taken = set(), 0, []

    def lose(name):
        lost.add(name)
        found.lost[name] = min(found.lost.get(name, length), length)

    def look():
        for violation in program.always():
            lose(violation.property)

    look()
    while True:
        if len(taken) < len(prefix):
            if not _step(world, tasks[prefix[len(taken)]]):
                return None
            taken.append(prefix[len(taken)])
        else:
            for n, task in enumerate(tasks):
                if not task.done and _step(world, task):
                    todo.extend(
                        (*taken, other)
                        for other in range(n + 1, len(tasks))
                        if not tasks[other].done
                    )
                    taken.append(n)
                    break
            else:
                break
        length += world.visible
        for violation in world.violations:
            lose(violation.property)
        world.violations.clear()
        look()
    end = end_of(program, tasks)
    found.ends.add(end)
    if end[0]:
        lose("ends")
    for violation in program.at_rest("stuck" if end[0] else "done"):
        lose(violation.property)
    return lost


def _step(world, task):
    world.current = task
    try:
        if task.path is None:
            task.path = task.start()
            try:
                task.pending = task.path.send(None)
            except StopIteration:
                task.done, task.pending = True, None
                world.visible = 0
                return True
        step = task.pending
        if step.op.sleeps:
            before = len(world.violations)
            check_sleep(world, step.op)
        else:
            before = None
        value = step.op.fn(*step.args)
        if value is BLOCKED:
            if before is not None:
                del world.violations[before:]
            return False
        world.visible = int(step.op is not rest and step.op is not scold)
        try:
            task.pending = task.path.send(value)
        except StopIteration:
            task.done, task.pending = True, None
            if task.held:
                world.violate("locks", "held at the end")
        return True
    finally:
        world.current = None
