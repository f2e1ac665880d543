"""A sweep's cells: all that were asked for, each once, and told from another's."""

from dataclasses import replace

import pytest

from kvmarch.errors import KernelError, SweepError, UnknownNameError
from kvmarch.explore.search import Bounds
from kvmarch.plugins import Plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.sweep.cells import model_of, plan_of

REMOVED = "change-pte-removed"


@pytest.mark.parametrize(
    ("kernels", "places"),
    [
        pytest.param(("v6.1",), ["v6.1"], id="one"),
        pytest.param(("v6.1..v6.3",), ["v6.1", "v6.2", "v6.3"], id="a span"),
        pytest.param(("v6.1..v6.1", "6.1"), ["v6.1"], id="the same twice"),
        pytest.param(("v5.19..v6.0", "v5.4"), ["v5.19", "v6.0", "v5.4"], id="both"),
    ],
)
def test_releases(plan, kernels, places):
    assert plan(*kernels).places == tuple(f"race@toy-{kernel}" for kernel in places)


def test_a_span_may_be_open(plan):
    assert plan("..v6.0").places[-1] == "race@toy-v6.0"
    assert plan("v6.12..").places[0] == "race@toy-v6.12"
    assert set(plan("..").places) > set(plan("v6.1..").places)


def test_a_change_is_taken_away_where_it_is_and_added_where_not(plan):
    assert plan("v6.1", "v6.12", toggled=[REMOVED]).places == (
        "race@toy-v6.1",
        f"race@toy-v6.1/+{REMOVED}",
        "race@toy-v6.12",
        f"race@toy-v6.12/-{REMOVED}",
    )


def test_a_change_that_was_chosen_is_toggled_back(toys, race):
    choose = Choose(kernel=("v6.1",), plus=(REMOVED,))

    places = plan_of([race], toys, choose, [REMOVED]).places

    assert places == (f"race@toy-v6.1/+{REMOVED}", f"race@toy-v6.1/-{REMOVED}")


def test_nothing_is_explored_before_an_architecture_is_there(toys, toy, race):
    late = replace(toy, info=replace(toy.info, first=(6, 0)))

    plan = plan_of([race], Plugins([late], []), Choose(("toy",), ("v5.18..v6.1",)))

    assert plan.places == ("race@toy-v6.0", "race@toy-v6.1")
    with pytest.raises(SweepError, match="nothing to sweep"):
        plan_of([race], Plugins([late], []), Choose(("toy",), ("v5.18",)))


@pytest.mark.parametrize(
    ("kernel", "toggled", "why"),
    [
        ("v6.3..v6.1", (), "v6.3..v6.1: v6.3 is later than v6.1"),
        ("v6.3..v9.1", (), "unknown release 'v9.1'"),
        ("v6.1", ("no-such",), "unknown change 'no-such'"),
    ],
)
def test_what_is_refused(plan, kernel, toggled, why):
    with pytest.raises((KernelError, SweepError, UnknownNameError), match=why):
        plan(kernel, toggled=toggled)


def test_scenarios_have_names_of_their_own(toys, race):
    other = replace(race, title="another")

    with pytest.raises(SweepError, match="two scenarios are named race"):
        plan_of([race, other], toys, Choose(kernel=("v6.1",)))


def test_the_definition_tells_sweeps_apart(toys, race, plan):
    one = plan("v6.1").definition

    assert plan("v6.1").definition == one
    assert plan("v6.2").definition != one
    assert plan("v6.1", how=How(bounds=Bounds(states=9))).definition != one
    other = plan_of([replace(race, vcpus=2)], toys, Choose(kernel=("v6.1",)))
    assert other.definition != one
    assert other.places == plan("v6.1").places


def test_the_model_is_known_by_its_source(toys, toy_module, tmp_path, monkeypatch):
    before = model_of(toys)
    assert model_of(toys) == before

    package = tmp_path / "kvmarch_toy"
    package.mkdir()
    (package / "__init__.py").write_text("# another\n", "utf-8")
    monkeypatch.setattr(toy_module.__spec__, "origin", str(package / "__init__.py"))
    monkeypatch.setattr(
        toy_module.__spec__, "submodule_search_locations", [str(package)]
    )

    assert model_of(toys) != before
