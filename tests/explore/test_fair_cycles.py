"""Random programs that may go on for ever, against a look at every set of movers."""

from collections import Counter, deque
from itertools import chain, combinations
from random import Random

import pytest

from kvmarch.errors import ExploreError
from kvmarch.explore.endless import Endless, moves_of
from kvmarch.explore.programs import SmallProgram, load, store
from kvmarch.explore.schedule import schedule_of
from kvmarch.explore.search import explore

# A program is, per task, a tuple of instructions: ("load", variable), which goes to its
# own place's target if the value is 1; ("store", variable, value); ("take",), ("drop",)
# of the only lock. What follows the last instruction is the end, or the first one.
VARIABLES = 2


def random_code(random):
    code = []
    for _ in range(random.randint(1, 3)):
        kind = random.choice(("load", "load", "store", "locked"))
        if kind == "load":
            code.append(("load", random.randrange(VARIABLES), random.randrange(-1, 3)))
        elif kind == "store":
            code.append(("store", random.randrange(VARIABLES), random.randrange(2)))
        else:
            inside = random.randrange(VARIABLES)
            code += [("take",), ("store", inside, random.randrange(2)), ("drop",)]
    return tuple(code), random.random() < 0.7


def random_codes(seed):
    random = Random(seed)  # noqa: S311 - programs, no secrets
    return tuple(random_code(random) for _ in range(random.choice((2, 2, 3))))


def follow(code, at, value):
    """Return where a task goes after its instruction; -1 for the end."""
    instructions, _again = code
    if instructions[at][0] == "load" and value:
        target = instructions[at][2]
        # Nobody jumps into what is locked, or out of it.
        return target if target < 0 or target == 0 else _next(code, at)
    return _next(code, at)


def _next(code, at):
    instructions, again = code
    if at + 1 < len(instructions):
        return at + 1
    return 0 if again else -1


def program_of(codes):
    program = SmallProgram()
    variables = [program.variable(f"v{n}") for n in range(VARIABLES)]
    lock = program.lock("lock")

    async def run(code):
        at = 0
        while at >= 0:
            what, *args = code[0][at]
            value = 0
            if what == "load":
                value = await load(variables[args[0]])
            elif what == "store":
                await store(variables[args[0]], args[1])
            elif what == "take":
                await lock.take_write()
            else:
                await lock.drop_write()
            at = follow(code, at, value)
            value = 0

    for number, code in enumerate(codes):
        program.task(f"T{number}", lambda code=code: run(code))
    return program


# -- the same, by hand -------------------------------------------------------------


def start(codes):
    """Return the first state: places, values, and who holds the lock."""
    return (0,) * len(codes), (0,) * VARIABLES, -1


def step(codes, state, task):
    """Return the state after a task's step; None if it cannot take one."""
    places, values, holder = state
    at = places[task]
    if at < 0:
        return None
    what, *args = codes[task][0][at]
    value = values[args[0]] if what == "load" else 0
    if what == "take":
        if holder >= 0:
            return None
        holder = task
    elif what == "drop":
        holder = -1
    elif what == "store":
        values = (*values[: args[0]], args[1], *values[args[0] + 1 :])
    at = follow(codes[task], at, value)
    return (*places[:task], at, *places[task + 1 :]), values, holder


def graph_of(codes):
    """Return each state's depth and moves."""
    first = start(codes)
    depths, moves, queue = {first: 0}, {}, deque([first])
    while queue:
        state = queue.popleft()
        moves[state] = {}
        for task in range(len(codes)):
            after = step(codes, state, task)
            if after is not None:
                moves[state][task] = after
                if after not in depths:
                    depths[after] = depths[state] + 1
                    queue.append(after)
    return depths, moves


def reach(start, arrows):
    seen, stack = set(), [start]
    while stack:
        for after in arrows.get(stack.pop(), ()):
            if after not in seen:
                seen.add(after)
                stack.append(after)
    return seen


def least_depth(codes, fairness):
    """Return how near a fair cycle is, over every set of tasks that may move in it."""
    depths, moves = graph_of(codes)
    tasks = range(len(codes))
    best = None
    for movers in chain(*(combinations(tasks, n) for n in tasks), [tuple(tasks)]):
        allowed = {
            state
            for state, able in moves.items()
            if fairness != "queued" or able.keys() <= set(movers)
        }
        arrows = {
            state: {moves[state][t] for t in movers if moves[state].get(t) in allowed}
            for state in allowed
        }
        left = set(allowed)
        while left:
            state = left.pop()
            there = reach(state, arrows)
            if state not in there:
                continue
            loop = {s for s in there if state in reach(s, arrows)}
            left -= loop
            moved = {t for s in loop for t in movers if moves[s].get(t) in loop}
            unable = {t for t in tasks if any(t not in moves[s] for s in loop)}
            if moved == set(movers) and movers:
                others = set(tasks) - moved
                if fairness == "queued" or others <= unable:
                    near = min(depths[s] for s in loop)
                    best = near if best is None else min(best, near)
    return best


CHUNK = 50


@pytest.mark.parametrize("fairness", ["queued", "unfair"])
@pytest.mark.parametrize("chunk", range(6))
def test_every_fair_cycle_is_found_where_it_is_nearest(chunk, fairness):
    lost = 0
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        codes = random_codes(seed)
        near = least_depth(codes, fairness)
        search = explore(program_of(codes), fairness=fairness)
        found = search.found.get("ends")
        cycle = found is not None and found.cycle
        stuck = search.stuck
        if near is None:
            assert not cycle, seed
            continue
        assert found is not None, seed
        if not cycle:
            # Somebody who waits for ever is nearer than the cycle.
            assert stuck, seed
            assert found.length <= near, seed
            continue
        lost += 1
        assert found.length == near, seed
        schedule = schedule_of(search.space, found, "small")
        with Endless.of(program_of(codes)) as endless:
            parts = (schedule.turns, schedule.cycle)
            shown = endless.round(*(moves_of(schedule.tasks, part) for part in parts))
        assert not shown.differs, seed
        assert shown.fairness in {fairness, "queued"}, seed
    assert lost > CHUNK // 10


# -- many cycles, tried one after the other ------------------------------------------


def round_by_hand(codes, first, cycle):
    """Return whether a cycle comes back, its fairness, and who could always move.

    None if a step of it cannot be taken.
    """
    state, states = start(codes), []
    for at, task in enumerate(first + cycle):
        if at >= len(first):
            states.append(state)
        state = step(codes, state, task)
        if state is None:
            return None
    if state != states[0]:
        return False, "", ()
    others = [t for t in range(len(codes)) if t not in cycle]
    able = {t: [step(codes, s, t) is not None for s in states] for t in others}
    always = tuple(f"T{t}" for t in others if all(able[t]))
    if always:
        return True, "", always
    return True, "unfair" if any(map(any, able.values())) else "queued", ()


def random_walk(codes, random):
    """Return moves up to a state that was there before, and from there back to it."""
    state, moves, seen = start(codes), [], {}
    while state not in seen:
        seen[state] = len(moves)
        able = [t for t in range(len(codes)) if step(codes, state, t) is not None]
        if not able:
            break
        moves.append(random.choice(able))
        state = step(codes, state, moves[-1])
    at = seen[state]
    return tuple(moves[:at]), tuple(moves[at:])


def shown(endless, first, cycle):
    """Return the same of what a machine does."""
    try:
        found = endless.round(first, cycle)
    except ExploreError:
        return None
    return not found.differs, found.fairness, found.able


def test_what_was_learnt_from_other_cycles_is_right_and_is_not_run_again():
    told = Counter()
    for seed in range(CHUNK):
        codes, random = random_codes(seed), Random(seed)  # noqa: S311 - no secrets
        tried = {}
        with Endless.of(program_of(codes)) as endless:
            for _ in range(20):
                first, cycle = random_walk(codes, random)
                if random.random() < 0.3:
                    cycle += (random.randrange(len(codes)),)
                if cycle:
                    expected = round_by_hand(codes, first, cycle)
                    tried[first, cycle] = expected
                    told[expected and expected[:2]] += 1
                    assert shown(endless, first, cycle) == expected, (seed, tried)
            steps = endless.runner.steps
            for pair, expected in tried.items():
                assert shown(endless, *pair) == expected, seed
            assert endless.runner.steps == steps
    kinds = {None, (False, ""), (True, ""), (True, "queued"), (True, "unfair")}
    assert told.keys() == kinds
    assert min(told.values()) > CHUNK // 2
