"""Comparisons: which cells there are, what they expect, and what was asked for."""

from dataclasses import replace
from functools import partial

import pytest

from kvmarch.arch import Deviation, Option
from kvmarch.changes import COMPARED, Change
from kvmarch.errors import KvmarchError, PluginError, ScenarioError, UnknownNameError
from kvmarch.plugins import Plugins
from kvmarch.scenarios import compare as module
from kvmarch.scenarios.compare import Choose, compare
from kvmarch.scenarios.play import play

TEXT = """
title = "a comparison"
[vm]
memory = [{{ name = "ram", pages = 4, contents = [7, 7] }}]
[[task]]
name = "vmm"
steps = ["slot id=0 memory=ram gfn=0", "read gfn=0", "ksm_merge memory=ram"]
[[column]]
name = "callback"
show = "callback"
event = "change_pte_done"
[[column]]
name = "generation"
show = "value"
of = "vm.memslots[0].generation"
{rest}
"""


def text(rest=""):
    return TEXT.format(rest=rest)


@pytest.fixture
def second(toy):
    """Another architecture: younger, with an option, a change and a name of its own."""
    info = replace(
        toy.info,
        name="other",
        first=(5, 0),
        options={
            **toy.info.options,
            "mmu": Option(("flat", "deep"), "d", {"deep": (6, 1)}),
        },
    )
    change = Change("other-change", "s", (6, 1), arch="other", source="here")
    return replace(toy, info=info, changes=(change,))


@pytest.fixture
def both(toy, second):
    return Plugins([toy, second], [])


def cells(table, column):
    return [row[column] for row in table.rows]


def test_each_architecture_and_release_has_a_row(scenario, both):
    table = compare(scenario(text()), both, Choose(kernel=("v4.4", "v6.1", "6.12.5")))

    rows = [(r["arch"], r["kernel"], r["mmu"], r["callback"]) for r in table.rows]
    assert rows == [
        ("other", "v4.4", None, None),
        ("other", "v6.1", "flat", "present"),
        ("other", "v6.12", "flat", "absent"),
        ("toy", "v4.4", "-", "present"),
        ("toy", "v6.1", "-", "present"),
        ("toy", "v6.12", "-", "absent"),
    ]
    assert table.rows[0]["note"] == "not before v5.0"
    assert table.status == 0


def test_without_a_choice_the_usual_releases_are_compared(scenario, toys):
    table = compare(scenario(text()), toys, Choose())

    assert len(table.rows) == len(COMPARED)
    assert table.merge == "kernel"


def test_an_architecture_is_chosen(scenario, both):
    table = compare(scenario(text()), both, Choose(arch=("toy",), kernel=("v6.1",)))

    assert cells(table, "arch") == ["toy"]


def test_changes_are_added_and_taken_away(scenario, toys):
    kept = Choose(kernel=("v6.12",), minus=("change-pte-removed",))
    gone = Choose(kernel=("v6.1",), plus=("change-pte-removed",))

    assert cells(compare(scenario(text()), toys, kept), "callback") == ["present"]
    assert cells(compare(scenario(text()), toys, gone), "callback") == ["absent"]


def test_a_scenario_without_columns_is_not_compared(scenario, toys):
    bare = scenario(text().split("[[column]]")[0])

    with pytest.raises(ScenarioError, match="scenario test has no columns to compare"):
        compare(bare, toys, Choose())


# -- expectations ------------------------------------------------------------------


EXPECT = """
[[expect]]
{where}
values = {{ callback = "{value}" }}
because = "of it"
"""


@pytest.mark.parametrize(
    ("where", "value", "status"),
    [
        pytest.param("", "present", 0, id="kept"),
        pytest.param("", "absent", 1, id="failed"),
        pytest.param("arch = 'toy'", "absent", 1, id="this-arch"),
        pytest.param("arch = 'other'", "absent", 0, id="another-arch"),
        pytest.param("since = 'v6.1'", "absent", 1, id="since"),
        pytest.param("since = 'v6.2'", "absent", 0, id="since-later"),
        pytest.param("until = 'v6.1'", "absent", 0, id="until-exclusive"),
        pytest.param("until = 'v6.2'", "absent", 1, id="until"),
        pytest.param("mmu = 'deep'", "absent", 0, id="another-mmu"),
        pytest.param("mmu = '-'", "absent", 1, id="this-mmu"),
        pytest.param("with = ['gpc']", "absent", 0, id="another-kernel"),
        pytest.param("without = ['gpc']", "absent", 0, id="another-kernel-less"),
    ],
)
def test_an_expectation_that_fails_is_status_1(scenario, toys, where, value, status):
    read = scenario(text(EXPECT.format(where=where, value=value)))

    table = compare(read, toys, Choose(kernel=("v6.1",)))

    assert table.status == status
    note = "FAILED toy v6.1: callback is 'present', expected 'absent' (of it)"
    assert table.notes == [note] * status


@pytest.mark.parametrize(
    ("row", "status"),
    [
        pytest.param(Deviation("frees-tables", "s"), 0, id="deviates"),
        pytest.param(Deviation("frees-tables", "s", "", (6, 1)), 1, id="until"),
        pytest.param(Deviation("frees-tables", "s", "deep"), 1, id="another-mmu"),
        pytest.param(Deviation("logs-writes", "s"), 1, id="another-rule"),
    ],
)
def test_an_expectation_of_kernels_that_keep_a_rule(scenario, toy, row, status):
    read = scenario(text(EXPECT.format(where="keeps = 'frees-tables'", value="absent")))
    deviating = Plugins([replace(toy, deviations=(row,))], [])

    assert compare(read, deviating, Choose(kernel=("v6.1",))).status == status


def test_expectations_of_a_changed_kernel(scenario, toys):
    where = "without = ['change-pte-removed']"
    read = scenario(text(EXPECT.format(where=where, value="absent")))
    chosen = Choose(kernel=("v6.12",), minus=("change-pte-removed",))

    assert compare(read, toys, chosen).status == 1


def test_failures_of_neighbouring_releases_are_one_note(scenario, toys):
    read = scenario(text(EXPECT.format(where="", value="absent")))

    table = compare(read, toys, Choose(kernel=("v6.1", "v6.2", "v6.12")))

    assert table.notes == [
        "FAILED toy v6.1..v6.2: callback is 'present', expected 'absent' (of it)"
    ]


def test_nothing_is_expected_of_an_architecture_before_its_time(scenario, second):
    read = scenario(text(EXPECT.format(where="", value="x")))

    table = compare(read, Plugins([second], []), Choose(kernel=("v4.4",)))

    assert table.status == 0


def test_a_cut_is_status_3(scenario, toys, monkeypatch):
    monkeypatch.setattr(module, "play", partial(play, bound=5))

    table = compare(scenario(text()), toys, Choose(kernel=("v6.1",)))

    assert table.status == 3
    assert cells(table, "note") == ["cut by the bound on steps"]


def test_what_a_change_saves(scenario, toys):
    rest = """
[[column]]
name = "events"
show = "count"
event = "kvm_set_spte_hva"
[[column]]
name = "saved"
show = "saved"
of = "events"
with = ["change-pte-removed"]
"""
    table = compare(scenario(text(rest)), toys, Choose(kernel=("v6.1", "v6.12")))

    assert cells(table, "events") == [3, 0]
    assert cells(table, "saved") == [-3, 0]


# -- what is asked for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "error", "message"),
    [
        pytest.param(
            Choose(arch=("vax",)),
            UnknownNameError,
            "unknown architecture 'vax'; there is other, toy",
            id="arch",
        ),
        pytest.param(
            Choose(kernel=("v2.6",)),
            UnknownNameError,
            "unknown release 'v2.6'; there is every mainline release from v3.16 to",
            id="kernel",
        ),
        pytest.param(
            Choose(plus=("magic",)),
            UnknownNameError,
            "unknown change 'magic'; there is gpc, and",
            id="change",
        ),
        pytest.param(
            Choose(minus=("magic",)), UnknownNameError, "unknown change", id="minus"
        ),
        pytest.param(
            Choose(plus=("gpc",), minus=("gpc",)),
            KvmarchError,
            "gpc cannot be both added and taken away",
            id="both",
        ),
        pytest.param(
            Choose(options={"colour": "red"}),
            UnknownNameError,
            "unknown option of .* 'colour'; there is page_size",
            id="option",
        ),
        pytest.param(
            Choose(options={"mmu": "odd"}),
            UnknownNameError,
            "unknown value of other option mmu 'odd'; there is flat, deep",
            id="value",
        ),
        pytest.param(
            Choose(arch=("toy",), options={"mmu": "flat"}),
            UnknownNameError,
            "unknown option of toy 'mmu'",
            id="option-of-another",
        ),
        pytest.param(
            Choose(options={"page_size": "64K"}),
            UnknownNameError,
            "unknown value of other option page_size '64K'; there is 4096",
            id="page-size",
        ),
    ],
)
def test_what_does_not_exist_is_refused(scenario, both, chosen, error, message):
    with pytest.raises(error, match=message):
        compare(scenario(text()), both, chosen)


def test_an_option_of_one_architecture_leaves_the_other_alone(scenario, both):
    chosen = Choose(kernel=("v6.1",), options={"mmu": "deep"})

    assert cells(compare(scenario(text()), both, chosen), "mmu") == ["deep", "-"]


def test_a_change_of_one_architecture_leaves_the_other_alone(scenario, both):
    chosen = Choose(kernel=("v6.1",), minus=("other-change",))

    assert cells(compare(scenario(text()), both, chosen), "callback") == ["present"] * 2


def test_a_value_that_a_release_does_not_have_is_a_note(scenario, second):
    chosen = Choose(kernel=("v6.0", "v6.1"), options={"mmu": "deep"})

    table = compare(scenario(text()), Plugins([second], []), chosen)

    assert cells(table, "note") == ["other has no mmu=deep in v6.0", ""]
    assert cells(table, "callback") == [None, "present"]


def test_without_any_architecture_there_is_nothing_to_compare(scenario):
    with pytest.raises(PluginError, match="no architecture is installed"):
        compare(scenario(text()), Plugins([], []), Choose())
