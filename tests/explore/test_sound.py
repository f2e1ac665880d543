"""Brute force, the search with states and the one without find the same."""

import os
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import pytest
from small import TooManyError, brute_force, end_of, random_program

from kvmarch.explore.audit import compare_engines
from kvmarch.explore.ends import end_in
from kvmarch.explore.schedule import schedule_of
from kvmarch.explore.search import Found, explore
from kvmarch.explore.stateless import explore_stateless
from kvmarch.explore.verdict import verdict_of
from kvmarch.machine.run import run_along
from kvmarch.machine.world import Violation

PROGRAMS = 600
CHUNK = 50


def programs(first, number):
    def those_that_end_soon():
        for seed in count(first * 1000):
            try:
                yield seed, brute_force(lambda seed=seed: random_program(seed))
            except TooManyError:
                continue

    return islice(those_that_end_soon(), number)


def replayed(seed, turns):
    """Run a schedule on a new machine; return where it ends and what it loses."""
    program = random_program(seed)
    tasks = program.tasks()
    lost = {violation.property for violation in program.always()}

    def look(_task, _step):
        lost.update(violation.property for violation in program.always())

    program.world.observer = look
    outcome = run_along(program.world, tasks, turns)
    lost |= {violation.property for violation in program.world.violations}
    end = None if outcome.end == "open" else end_of(program, tasks)
    if end is not None:
        lost |= {violation.property for violation in program.at_rest(outcome.end)}
    if outcome.end == "stuck":
        lost.add("ends")
    return outcome.end, end, lost


def turns_to(search, found):
    return schedule_of(search.space, found, "small").turns


@pytest.mark.parametrize("chunk", range(PROGRAMS // CHUNK))
def test_three_ways_find_the_same(chunk):
    for seed, brute in programs(chunk, CHUNK):
        program = random_program(seed)
        comparison = compare_engines(program, always=program.asks_always)
        search, traces = comparison.search, comparison.traces

        assert comparison.differences == [], seed
        assert comparison.complete, seed
        assert traces.blocked == 0, seed
        names = {*brute.lost, *search.found, *traces.found}
        for name in names:
            assert verdict_of(search, name).verdict == brute.verdict(name), (seed, name)
            assert traces.verdict(name) == brute.verdict(name), (seed, name)
        lengths = {name: found.length for name, found in search.found.items()}
        assert lengths == brute.lost, seed

        # Every schedule leads where it is said to lead.
        ends = set()
        nothing = Violation("", "", "")
        for state in (*search.ends, *search.stuck):
            turns = turns_to(search, Found(nothing, state, -1, 0))
            how, end, _ = replayed(seed, turns)
            assert how == ("stuck" if state in search.stuck else "done"), seed
            ends.add(end)
        assert ends == brute.ends, seed
        assert {replayed(seed, turns)[1] for turns in traces.ends.values()} == ends
        for name, found in search.found.items():
            assert name in replayed(seed, turns_to(search, found))[2], (seed, name)
        for name, lost in traces.found.items():
            assert name in replayed(seed, lost.turns)[2], (seed, name)


@pytest.mark.parametrize("chunk", range(PROGRAMS // CHUNK))
def test_a_reduced_search_finds_the_same(chunk):
    for seed in range(chunk * 1000, chunk * 1000 + CHUNK):
        program = random_program(seed)
        whole = explore(program, always=program.asks_always)
        reduced = explore(program, always=program.asks_always, reduce=True)

        assert reduced.found.keys() == whole.found.keys(), seed
        for name in whole.found:
            verdict = verdict_of(reduced, name).verdict
            assert verdict == verdict_of(whole, name).verdict, (seed, name)
        assert ends_of(reduced) == ends_of(whole), seed
        for name, found in reduced.found.items():
            assert name in replayed(seed, turns_to(reduced, found))[2], (seed, name)


def ends_of(search):
    return {end_in(search.space, state) for state in search.ends | search.stuck}


@pytest.mark.parametrize("chunk", range(4))
def test_verdicts_do_not_depend_on_the_order_of_tasks_or_of_the_search(chunk):
    for seed in range(chunk * 1000, chunk * 1000 + CHUNK):
        program = random_program(seed)
        other = random_program(seed, reverse=True)
        always = program.asks_always

        first = explore(program, always=always)
        searches = (
            explore(other, always=always),
            explore(program, always=always, order="depth"),
        )
        traces = (
            explore_stateless(program, always=always),
            explore_stateless(other, always=always),
        )

        verdicts = {name: verdict_of(first, name).verdict for name in first.found}
        for search in searches:
            assert verdicts == {
                name: verdict_of(search, name).verdict for name in search.found
            }, seed
            assert len(search.ends) == len(first.ends), seed
            assert len(search.stuck) == len(first.stuck), seed
            assert search.states == first.states, seed
        for found in traces:
            assert verdicts == {name: found.verdict(name) for name in found.found}, seed
            assert found.traces == traces[0].traces, seed


def test_nothing_depends_on_the_seed_of_hashes():
    script = (
        "from small import random_program\n"
        "from kvmarch.explore.audit import compare_engines\n"
        "from kvmarch.explore.verdict import verdict_of\n"
        "for seed in range(40):\n"
        "    program = random_program(seed)\n"
        "    got = compare_engines(program, always=program.asks_always)\n"
        "    search, traces = got.search, got.traces\n"
        "    names = sorted(search.found)\n"
        "    print(seed, search.states, search.transitions, traces.traces,\n"
        "          [(n, verdict_of(search, n).verdict, search.found[n].length)\n"
        "           for n in names], [(n, traces.found[n].turns) for n in names])\n"
    )

    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert len(said) == 1
    assert len(said.pop().splitlines()) == 40
