"""The kinds of columns: what each shows of a run."""

import pytest

from kvmarch.errors import ScenarioError
from kvmarch.machine.steps import op
from kvmarch.scenarios.columns import SHOWS, Seen, check_column, value_of
from kvmarch.scenarios.play import play as play_linked
from kvmarch.scenarios.records import Column

TEXT = """
title = "columns"
watch = [0, 2]
[vm]
memory = [{ name = "ram", pages = 4, contents = [7, 7] }]
[[task]]
name = "vmm"
steps = [
    "slot id=0 memory=ram gfn=0",
    "mark name=fault",
    "read gfn=0 stay=yes",
    "write gfn=2 stay=yes",
    "mark name=merge",
    "ksm_merge memory=ram page=0 pages=2",
    "mark name=again",
    "read gfn=0 stay=yes",
    "read gfn=0x100 stay=yes",
    "mark name=calls",
    "slot id=0 memory=ram gfn=0 flags=log_dirty",
    "slot id=1 memory=ram gfn=0",
    "write gfn=3 stay=yes",
    "dirty_get id=0",
    "age memory=ram how=test_young",
    "mark name=empty",
]
"""


@pytest.fixture
def seen(play, toy):
    """One run on v6.1, as columns look at it."""
    return Seen(play(TEXT), toy.info.settle((6, 1), {}))


def show(seen, kind, **args):
    marks = {"fault", "merge", "again", "calls", "empty"}
    assert check_column(kind, args, marks) == ("", "")
    return value_of(Column("c", kind, args), seen)


@pytest.mark.parametrize(
    ("kind", "args", "value"),
    [
        pytest.param("level", {"after": "merge"}, 1, id="level-after"),
        pytest.param("kind", {"after": "fault"}, "empty", id="kind-before"),
        pytest.param("kind", {"gfn": 2, "after": "merge"}, "page", id="kind-after"),
        pytest.param("entry", {"after": "again"}, "0x0", id="entry-unmapped"),
        pytest.param("entry", {"after": "fault", "at": "no_such"}, "", id="never"),
        pytest.param("kind", {"after": "fault", "at": "no_such"}, "", id="kind-never"),
        pytest.param(
            "level", {"after": "fault", "at": "no_such"}, "", id="level-never"
        ),
        pytest.param(
            "effect",
            {"after": "merge", "before": "range_start_done", "at": "change_pte_done"},
            "none",
            id="effect-none",
        ),
        pytest.param(
            "effect",
            {"after": "merge", "before": "kvm_set_spte_hva", "at": "range_start_done"},
            "none",
            id="effect-of-start",
        ),
        pytest.param(
            "effect",
            {"after": "merge", "before": "mark", "at": "range_start_done"},
            "unmapped",
            id="effect-unmapped",
        ),
        pytest.param(
            "effect",
            {"after": "fault", "before": "mark", "at": "result"},
            "installed",
            id="effect-installed",
        ),
        pytest.param(
            "effect",
            {"after": "fault", "before": "mark", "at": "no_such"},
            "absent",
            id="effect-absent",
        ),
        pytest.param("callback", {"event": "change_pte_done"}, "present", id="present"),
        pytest.param(
            "callback",
            {"event": "change_pte_done", "after": "again"},
            "absent",
            id="absent",
        ),
        pytest.param(
            "flush",
            {"begin": "kvm_unmap_hva_range", "end": "range_start_done"},
            "none",
            id="flush-none",
        ),
        pytest.param(
            "flush",
            {
                "begin": "kvm_set_spte_hva",
                "end": "change_pte_done",
                "after": "fault",
            },
            "",
            id="flush-no-callback",
        ),
        pytest.param("exits", {"after": "fault"}, 2, id="exits"),
        pytest.param("exits", {"after": "fault", "gfn": 0}, 1, id="exits-of-gfn"),
        pytest.param("exits", {"after": "again"}, 2, id="exits-with-mmio"),
        pytest.param("exits", {}, 5, id="exits-of-all"),
        pytest.param("count", {"event": "kvm_unmap_hva_range"}, 3, id="count"),
        pytest.param("count", {"event": "no_such"}, 0, id="count-none"),
        pytest.param("result", {"after": "merge"}, 1, id="result-count"),
        pytest.param("result", {"after": "fault"}, "done", id="result-text"),
        pytest.param("result", {"after": "calls"}, 0, id="result-0"),
        pytest.param("result", {"after": "calls", "nth": 1}, "EEXIST", id="errno"),
        pytest.param("result", {"after": "calls", "nth": 3}, "0x8", id="bitmap"),
        pytest.param("result", {"after": "calls", "nth": 4}, True, id="result-bool"),
        pytest.param("result", {"after": "calls", "nth": 9}, "", id="no-such-result"),
        pytest.param("result", {"after": "empty"}, "", id="no-result"),
        pytest.param("violations", {}, "none", id="violations"),
        pytest.param(
            "data",
            {"event": "kvm_set_spte_hva", "field": "hva"},
            "0x7f0000000000",
            id="data",
        ),
        pytest.param("data", {"event": "no_such", "field": "x"}, "", id="data-none"),
        pytest.param("data", {"event": "mark", "field": "no_such"}, "", id="no-field"),
        pytest.param("tables", {}, 2, id="tables"),
        pytest.param("value", {"of": "vm.mmu_invalidate_seq"}, 3, id="value"),
        pytest.param("saved", {"of": "c", "with": ["x"]}, None, id="saved"),
    ],
)
def test_a_column_shows(seen, kind, args, value):
    assert show(seen, kind, **args) == value


def test_every_kind_is_tried_here():
    tried = {mark.values[0] for mark in test_a_column_shows.pytestmark[0].args[1]}

    assert tried == set(SHOWS)


def test_an_entry_is_hexadecimal(seen):
    text = show(seen, "entry", gfn=2, after="merge")

    assert int(text, 16) & 0xFFF == 0b1111
    assert text.startswith("0x")


def test_a_column_may_look_at_the_end(seen):
    assert show(seen, "kind", gfn=2) == show(seen, "kind", gfn=2, after="empty")


def test_a_run_without_events(scenario, link, toy):
    read = scenario('title = "t"\n[[task]]\nname = "a"\nsteps = []')
    options = toy.info.settle((6, 1), {})
    seen = Seen(play_linked(read, link(), options), options)

    assert show(seen, "entry") == ""
    assert show(seen, "violations") == "none"


@pytest.mark.parametrize(
    ("release", "flush"), [((4, 4), "inside"), ((5, 0), "owed"), ((6, 1), "owed")]
)
def test_who_flushes_for_change_pte(scenario, link, toy, release, flush):
    @op
    def set_spte(vm, slot, gfn, pte):
        if release >= (5, 0):
            return vm.ledger.owe(gfn, gfn + 1)
        vm.world.note("tlb_invalidate", start=gfn, end=gfn + 1)
        return None

    options = toy.info.settle(release, {})
    k = link(release, set_spte_gfn=set_spte)
    seen = Seen(play_linked(scenario(TEXT), k, options), options)
    callback = {"begin": "kvm_set_spte_hva", "end": "change_pte_done"}

    assert show(seen, "flush", **callback) == flush


def test_violations_are_named_once(scenario, link, toy):
    options = toy.info.settle((6, 1), {})
    k = link(dirty_log_masked=op(lambda vm, slot, gfn, mask: vm.ledger.owe(0, 1)))
    seen = Seen(play_linked(scenario(TEXT), k, options), options)

    assert show(seen, "violations") == "flush-owed"


def test_results_of_tasks_at_once_are_not_mixed_up(play, toy):
    text = (
        TEXT.split("[[task]]", maxsplit=1)[0]
        + """
[[task]]
name = "a"
steps = ["slot id=0 memory=ram gfn=0", "slot id=1 memory=ram gfn=0"]
[[task]]
name = "b"
steps = ["age memory=ram how=test_young", "mark name=x"]
"""
    )
    text = text.replace("watch", 'schedule = ["a 5", "b 5", "a 5"]\nwatch')
    seen = Seen(play(text), toy.info.settle((6, 1), {}))

    values = [show(seen, "result", nth=n) for n in range(3)]
    assert sorted(map(str, values)) == ["0", "EEXIST", "False"]


def test_a_value_that_cannot_be_had(seen):
    with pytest.raises(ScenarioError, match=r"value 'vm\.no_such': .*no_such"):
        show(seen, "value", of="vm.no_such")
