"""Playing a scenario: set-up, schedule, what is seen, and what is checked."""

import pytest

from kvmarch.errors import ModelError, ScenarioError
from kvmarch.machine.host import PFN_SHIFT
from kvmarch.machine.steps import op
from kvmarch.machine.world import Violation
from kvmarch.scenarios.file import find, load
from kvmarch.scenarios.play import play as play_linked
from kvmarch.scenarios.play import set_up
from kvmarch.scenarios.records import FIRST_HVA

TWO = """
title = "two tasks"
{top}
[vm]
memory = [{{ name = "ram", pages = 4, contents = [7, 7] }}]
[[task]]
name = "a"
steps = ["slot id=0 memory=ram gfn=0", "read gfn=0 stay=yes"]
[[task]]
name = "b"
steps = ["dontneed memory=ram page=0 pages=1"]
{rest}
"""


def two(top="", rest=""):
    return TWO.format(top=top, rest=rest)


def named(played, name):
    return [event.data for event in played.events if event.name == name]


def test_memory_is_laid_out_and_filled(scenario, link, toy):
    read = scenario("""
        title = "memory"
        [vm]
        memory = [
            { name = "one", pages = 2, contents = ["x"], mergeable = true },
            { name = "large", mib = 2, huge = true },
            { name = "none", pages = 1, touched = false },
        ]
        [[task]]
        name = "a"
        steps = []
        """)
    context = set_up(read, link(), toy.info.settle((6, 1), {}))

    mm, pages = context.machine.mm, context.machine.host.pages
    bases = {name: base for name, (base, _size) in context.memory.items()}
    assert context.memory["one"] == (FIRST_HVA, 0x2000)
    assert context.memory["large"][1] == 2 << 20
    assert all(base % (1 << 30) == 0 for base in bases.values())
    assert pages[mm.pte(bases["one"] >> 12) >> PFN_SHIFT].content == "x"
    second = pages[mm.pte((bases["one"] >> 12) + 1) >> PFN_SHIFT].content
    assert second not in {"x", 0}
    assert list(mm.pmds) == [bases["large"] >> 12]
    assert mm.pte(bases["none"] >> 12) == 0
    assert [(v.huge, v.mergeable) for v in mm.vmas] == [
        (False, True),
        (True, False),
        (False, False),
    ]


def test_tasks_run_in_turn_without_a_schedule(play):
    played = play(two())

    assert [e.task for e in played.events if e.name == "step"] == ["a", "a", "b"]
    assert played.results == {("a", 0): 0, ("a", 1): "done", ("b", 0): None}
    assert played.outcome.end == "done"


def test_tasks_run_along_the_schedule(play):
    played = play(two(top='schedule = ["b 3", "a 2"]'))

    assert played.outcome.schedule[:2] == (("b", 3), ("a", 2))
    assert next(e.task for e in played.events if e.name == "step") == "b"


def test_a_schedule_that_does_not_fit(play):
    with pytest.raises(ModelError, match="schedule: b is done after"):
        play(two(top='schedule = ["b 3000"]'))


def test_a_run_is_cut(play):
    played = play(two(), bound=10)

    assert (played.outcome.end, played.outcome.steps) == ("cut", 10)


def test_each_step_is_shown_if_asked(play):
    played = play(two(), each_step=True)

    steps = [data["step"] for data in named(played, "micro")]
    assert len(steps) == played.outcome.steps
    assert "lock slots_lock" in steps
    assert named(play(two()), "micro") == []


def test_watched_entries_are_followed(play):
    played = play(two(top="watch = [0, 1]"))

    changes = [
        (d["gfn"], bool(d["old"]), bool(d["new"]), d["old_level"], d["level"])
        for d in named(played, "entry")
    ]
    # A new leaf table takes gfn 1 down a level too, and its entry stays empty.
    assert changes == [
        (0, False, True, 2, 1),
        (1, False, False, 2, 1),
        (0, True, False, 1, 1),
    ]


def test_results_are_events_unless_there_is_none(play):
    assert named(play(two()), "result") == [
        {"number": 0, "value": 0},
        {"number": 1, "value": "done"},
    ]


def test_a_flush_that_is_owed_when_a_call_returns(scenario, link, toy):
    async def late(vm, old, new, change):
        await op(vm.ledger.owe)(0, 4)

    k = link(commit_memory_region=late)
    played = play_linked(scenario(two()), k, toy.info.settle((6, 1), {}))

    assert played.violations == [
        Violation(
            "flush-owed",
            "return from a step 0: a flush of gfn 0x0-0x3 is still owed",
            "a",
        )
    ]


@pytest.mark.parametrize(
    ("ask", "bad", "lost"),
    [
        pytest.param("always", "vm.mn_active_invalidate_count > 0", 1, id="always"),
        pytest.param("at-rest", "vm.mn_active_invalidate_count > 0", 0, id="at-rest"),
        pytest.param("at-rest", "entry[0] == 0", 1, id="at-rest-lost"),
        pytest.param("at-rest", "host[0x7f0000001000] is None", 0, id="host"),
        pytest.param("always", "False", 0, id="never"),
    ],
)
def test_the_scenarios_properties_are_asked(play, ask, bad, lost):
    played = play(two(rest=f"[property.mine]\nask = '{ask}'\nbad = '{bad}'"))

    assert [v.property for v in played.violations] == ["mine"] * lost


def test_a_property_that_has_no_value(play):
    with pytest.raises(ScenarioError, match=r"property mine: .*no_such"):
        play(two(rest="[property.mine]\nbad = 'vm.no_such'"))


LOG = """
title = "log"
[vm]
memory = [{ name = "ram", pages = 4 }]
[[task]]
name = "a"
steps = [
    "slot id=0 memory=ram gfn=0 flags=log_dirty",
    "write gfn=2 stay=yes",
    "dirty_get id=0",
    "write gfn=2 stay=yes",
]
"""


@pytest.mark.parametrize(
    ("replaced", "lost"),
    [
        pytest.param({}, [], id="protected-and-flushed"),
        pytest.param(
            {"dirty_log_masked": op(lambda vm, slot, gfn, mask: None)},
            ["lost-dirty"],
            id="not-protected",
        ),
        pytest.param(
            {"flush_remote_tlbs": op(lambda vm, start, end: None)},
            ["lost-dirty"],
            id="not-flushed",
        ),
    ],
)
def test_a_write_that_no_log_reports(scenario, link, toy, replaced, lost):
    settled = toy.info.settle((6, 1), {})

    played = play_linked(scenario(LOG), link(**replaced), settled)

    assert [violation.property for violation in played.violations] == lost


@pytest.mark.parametrize("release", [(3, 16), (5, 10), (6, 1), (7, 2)])
def test_the_tour_plays_to_its_end(play, release):
    played = play(load(find("tour")), release)

    assert played.outcome.end == "done"
    assert played.violations == []
    assert played.machine.vm.tables.live == {}
