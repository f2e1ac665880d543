"""Identical tasks: fewer states, the same verdicts and the same lengths."""

from itertools import count, islice
from pathlib import Path
from random import Random

import pytest
from small import TooManyError, brute_force, interpret, random_code

from kvmarch.changes import find_release
from kvmarch.errors import ExploreError
from kvmarch.explore.programs import SmallProgram, add, cmpxchg, load, store
from kvmarch.explore.schedule import schedule_of
from kvmarch.explore.search import explore
from kvmarch.explore.symmetry import Symmetry
from kvmarch.explore.verdict import verdict_of
from kvmarch.machine.run import run_along
from kvmarch.machine.steps import op
from kvmarch.plugins import link
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.scenarios.program import ScenarioProgram

SCENARIOS = Path(__file__).parents[2] / "benchmarks" / "scenarios"


# -- small programs ----------------------------------------------------------------


def twin_program(seed):
    """Return a program in which two or three tasks run the same code."""
    random = Random(seed)  # noqa: S311 - programs, no secrets
    program = SmallProgram()
    shared = [program.variable(n, random.randrange(2)) for n in "xy"]
    locks, srcu = [program.lock("l"), program.lock("m")], program.srcu("s")
    size = random.choice((2, 2, 3))
    own = [program.variable(f"own{n}") for n in range(size)]
    longest = 4 if size == 2 else 3
    mine = object()
    code = random_code(random, random.randint(2, longest), [*shared, mine], locks, srcu)
    for n in range(size):
        of_n = tuple(
            tuple(own[n] if part is mine else part for part in instruction)
            for instruction in code
        )
        program.task(f"T{n}", lambda of_n=of_n: interpret(program, of_n))
    if random.random() < 0.5:
        other = random_code(random, random.randint(1, 3), shared, locks, srcu)
        program.task("other", lambda: interpret(program, other))
    program.alike({f"T{n}": (own[n],) for n in range(size)})
    x, y = shared
    one, two = random.randrange(3), random.randrange(3)
    program.claim("rest", lambda: not (x.value == one and y.value == two))
    program.claim("sum", lambda: sum(v.value for v in own) != 2)
    if random.random() < 0.4:
        program.claim("always", lambda: x.value + y.value != 3, always=True)
    return program


def programs(first, number):
    def those_that_end_soon():
        for seed in count(first * 1000):
            try:
                yield seed, brute_force(lambda seed=seed: twin_program(seed))
            except TooManyError:
                continue

    return islice(those_that_end_soon(), number)


def states_of(search):
    """Return how many states those that were kept stand for."""
    exchanged = search.space.symmetry.exchanged
    return len({twin for state in search.space.parents for twin in exchanged(state)})


@pytest.mark.parametrize("chunk", range(6))
def test_random_twins_lose_what_brute_force_loses(chunk):
    for seed, brute in programs(chunk, 40):
        full = explore(twin_program(seed), always=twin_program(seed).asks_always)
        program = twin_program(seed)
        search = explore(program, always=program.asks_always, symmetric=True)

        assert search.symmetry == ", ".join(
            name for name in search.space.names if name != "other"
        ), seed
        assert {n: f.length for n, f in search.found.items()} == brute.lost, seed
        for name in brute.lost:
            assert verdict_of(search, name).verdict == brute.verdict(name), (seed, name)
        assert search.states <= full.states
        assert states_of(search) == full.states, seed
        assert search.depth == full.depth, seed
        for name, found in search.found.items():
            if name != "ends":
                assert name in replayed(twin_program(seed), search, found), (seed, name)


def replayed(program, search, found):
    """Run a schedule on a new machine; return what it loses."""
    lost = {violation.property for violation in program.always()}

    def look(_task, _step):
        lost.update(violation.property for violation in program.always())

    program.world.observer = look
    turns = schedule_of(search.space, found, "small").turns
    outcome = run_along(program.world, program.tasks(), turns)
    lost |= {violation.property for violation in program.world.violations}
    if outcome.end != "open":
        lost |= {violation.property for violation in program.at_rest(outcome.end)}
    return lost


async def add_to(mine, shared):
    await add(mine, 1)
    await add(shared, 1)


def test_of_many_twins_only_how_many_stand_where_counts():
    program = SmallProgram()
    shared = program.variable("shared")
    own = {f"T{n}": (program.variable(f"own{n}"),) for n in range(5)}
    for name, (mine,) in own.items():
        program.task(name, lambda mine=mine: add_to(mine, shared))
    program.alike(own)

    search = explore(program, symmetric=True)

    # Each task stands at one of three places, in order: 7 over 2.
    assert search.states == 21
    assert states_of(search) == 3**5


@op
def add_if_first(variable):
    variable.value += variable.name == "own0"


async def uneven(mine):
    await add_if_first(mine)


def test_twins_that_do_not_do_the_same_are_found_out_and_explored_apart():
    program = SmallProgram()
    own = {f"T{n}": (program.variable(f"own{n}"),) for n in range(2)}
    for name, (mine,) in own.items():
        program.task(name, lambda mine=mine: uneven(mine))
    program.alike(own)

    search = explore(program, symmetric=True)

    assert search.symmetry.startswith(
        "not used: T0 and T1 do not do the same at 'add_if"
    )
    assert search.states == 4


def test_twins_that_begin_with_different_values_are_none():
    program = SmallProgram()
    own = {f"T{n}": (program.variable(f"own{n}", n),) for n in range(2)}
    for name, (mine,) in own.items():
        program.task(name, lambda mine=mine: add_to(mine, mine))
    program.alike(own)

    search = explore(program, symmetric=True)

    assert search.symmetry == (
        "not used: own0.value and own1.value differ from the beginning"
    )


async def take_all(variables):
    for variable in variables:
        await store(variable, 1)


def test_a_task_that_goes_from_twin_to_twin_tells_them_apart():
    program = SmallProgram()
    own = {f"T{n}": (program.variable(f"own{n}"),) for n in range(2)}
    for name, (mine,) in own.items():
        program.task(name, lambda mine=mine: add_to(mine, mine))
    program.task("all", lambda: take_all([mine for (mine,) in own.values()]))
    program.alike(own)

    assert explore(program, symmetric=True).symmetry.startswith("not used: all has one")


async def take_turns(mine, turn):
    while True:
        seen = await load(mine)
        if seen:
            return
        await cmpxchg(turn, 0, 1)
        await cmpxchg(turn, 1, 0)


@pytest.mark.parametrize("fairness", ["queued", "unfair"])
def test_a_livelock_of_twins_is_found_and_its_schedule_goes_round(fairness):
    def make():
        program = SmallProgram()
        turn = program.variable("turn")
        own = {f"T{n}": (program.variable(f"own{n}"),) for n in range(2)}
        for name, (mine,) in own.items():
            program.task(name, lambda mine=mine: take_turns(mine, turn))
        program.alike(own)
        return program

    full = explore(make(), fairness=fairness)
    search = explore(make(), symmetric=True, fairness=fairness)

    assert search.symmetry == "T0, T1"
    assert verdict_of(search, "ends").verdict == verdict_of(full, "ends").verdict
    assert search.found["ends"].length == full.found["ends"].length
    schedule = schedule_of(search.space, search.found["ends"], "small")
    assert {name for name, _count in schedule.cycle} == {"T0", "T1"}


def test_it_does_not_go_with_a_reduction():
    with pytest.raises(ExploreError, match="--reduce and --symmetry do not go"):
        explore(SmallProgram(), reduce=True, symmetric=True)


# -- scenarios ---------------------------------------------------------------------


def program_of(name, arch, kernel, without=()):
    loaded = load_plugins(only=(arch,)).loaded[arch]
    release = find_release(kernel)
    scenario = load_scenario(SCENARIOS / f"{name}.toml")
    k = link(loaded, release, minus=without)
    return ScenarioProgram(scenario, k, loaded.info.settle(release, {}))


@pytest.mark.parametrize("arch", ["x86", "arm64", "mips", "ppc"])
@pytest.mark.parametrize("name", ["gpc_2vcpu", "generation_2vcpu"])
def test_two_vcpus_that_do_the_same_are_one(arch, name):
    if name == "gpc_2vcpu" and arch != "x86":
        pytest.skip("no gfn_to_pfn_cache there")
    full = explore(program_of(name, arch, "v6.1"))
    search = explore(program_of(name, arch, "v6.1"), symmetric=True)

    assert search.symmetry == "vcpu0, vcpu1"
    assert search.states < 0.6 * full.states
    assert states_of(search) == full.states
    assert search.depth == full.depth
    assert search.found.keys() == full.found.keys()
    exchanged = search.space.symmetry.exchanged
    assert len({t for end in search.ends for t in exchanged(end)}) == len(full.ends)


def test_verbs_of_an_architecture_of_its_own_are_no_hindrance():
    loaded = load_plugins(only=("x86",)).loaded["x86"]
    scenario = load_scenario(find("tdp_zap_range"))
    k = link(loaded, (6, 1))
    program = ScenarioProgram(scenario, k, loaded.info.settle((6, 1), {}))

    assert explore(program, symmetric=True).symmetry == "no task is like another"


def test_what_was_learnt_of_one_is_compared_with_the_other(monkeypatch):
    compared = []
    audit = Symmetry.audit

    def counting(self, nodes):
        compared.append(audit(self, nodes))
        return compared[-1]

    monkeypatch.setattr(Symmetry, "audit", counting)
    explore(program_of("generation_2vcpu", "x86", "v6.1"), symmetric=True)

    assert compared[0] > 100
