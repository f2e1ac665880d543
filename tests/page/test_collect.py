import json
import sys
from dataclasses import replace

import pytest

from kvmarch.errors import ExploreError, ScenarioError, UnknownNameError
from kvmarch.explore.search import Bounds
from kvmarch.page.collect import chosen_scenarios, collect
from kvmarch.page.html import page
from kvmarch.plugins import Plugins, Refused
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import library


def failures(found):
    """Return what a page says that failed."""
    return "\n".join(text for text, failed in found.data["notes"] if failed)


def test_without_names_sequential_scenarios_and_the_posts_are_chosen(toys):
    chosen = {scenario.name: scenario for scenario in chosen_scenarios((), toys)}

    assert {"change_pte", "tour", "change_pte_dontneed", "gpc_stream"} <= chosen.keys()
    assert "memory_short" not in chosen
    assert all(scenario.bug is None for scenario in chosen.values())


def test_names_are_taken_once_and_in_order(toys):
    chosen = chosen_scenarios(["ksm_cow", "aging", "ksm_cow"], toys)

    assert [scenario.name for scenario in chosen] == ["ksm_cow", "aging"]


def test_two_scenarios_of_a_name_are_refused(toys, tmp_path):
    path = tmp_path / "aging.toml"
    path.write_text(library()["aging"].read_text("utf-8"), "utf-8")

    with pytest.raises(ScenarioError, match="there is another aging"):
        chosen_scenarios(["aging", str(path)], toys)


def test_an_unknown_scenario_is_refused(toys):
    with pytest.raises(UnknownNameError, match="unknown scenario 'agin'"):
        chosen_scenarios(["agin"], toys)


def test_processes_change_nothing(gather, compared, raced, monkeypatch, toys):
    module = sys.modules["kvmarch.page.collect"]

    def elsewhere(function, items, jobs):
        assert jobs == 2
        assert function is module.try_job
        results = [(n, module.do_job(item, toys)) for n, item in enumerate(items)]
        yield from reversed(results)

    one = gather(compared, raced)
    monkeypatch.setattr(module, "in_processes", elsewhere)
    two = gather(compared, raced, jobs=2)

    assert two.data == one.data
    assert (two.status, two.notes) == (one.status, one.notes)


def test_what_another_process_cannot_do_is_said(raced):
    plugins = load_plugins()
    schedule = "raced@x86-v6.1:a99999"

    with pytest.raises(ExploreError, match="is done after"):
        collect(
            [raced],
            plugins,
            Choose(arch=("x86",), kernel=("v6.1",)),
            How(),
            jobs=2,
            schedules=[schedule],
        )


def test_a_failure_outweighs_the_rest(gather, compared, disappointed):
    found = gather(disappointed, compared)

    assert found.status == 1
    assert "disappointed: FAILED" in failures(found)


def test_a_property_of_the_scenario_is_told(gather, raced, raced_at_rest):
    one, other = gather(raced, raced_at_rest).data["scenarios"]

    bad = "vm.mmu_invalidate_in_progress > 0"
    assert one["bad"] == {"counted": ["after each step", bad]}
    assert other["bad"] == {"counted": ["at the end", bad]}


def test_a_search_that_is_cut_is_a_remark_and_no_failure(raced, toys):
    found = collect([raced], toys, Choose(), How(bounds=Bounds(states=2)))

    assert found.status == 3
    assert found.data["notes"] == [["raced@toy-v6.1: cut at 2 states", False]]
    assert found.notes == ["raced@toy-v6.1: cut at 2 states"]


def test_a_plugin_that_was_refused_is_a_failure(compared, toy):
    plugins = Plugins([toy], [Refused("vax", "kvmarch-vax", "plugin vax: no plugin")])

    assert failures(collect([compared], plugins, Choose(), How())) == (
        "plugin vax: no plugin"
    )


def test_a_schedule_that_was_printed_is_added(gather, raced):
    known = gather(raced).data["traces"][0]["schedule"]

    found = gather(raced, schedules=[known])

    assert [trace["schedule"] for trace in found.data["traces"]].count(known) == 2


def test_a_schedule_of_something_else_is_refused(gather, raced):
    with pytest.raises(UnknownNameError, match="there is raced"):
        gather(raced, schedules=["aging@toy-v6.1:a3"])
    with pytest.raises(ExploreError, match="none of the kernels"):
        gather(raced, schedules=["raced@toy-v99.1:a3"])


def test_progress_is_told(gather, compared, raced):
    told = []

    gather(compared, raced, progress=lambda done, every: told.append((done, every)))

    assert told == [(1, 2), (2, 2)]


def test_releases_and_architectures_are_there_once_and_in_order(gather, compared):
    choose = Choose(arch=("toy", "toy"), kernel=("v6.12", "6.1", "v6.1.4"))

    data = gather(compared, choose=choose).data

    assert data["releases"] == ["v6.1", "v6.12"]
    assert [arch["name"] for arch in data["archs"]] == ["toy"]
    rows = data["scenarios"][0]["comparison"]["rows"]
    assert [row["kernel"] for row in rows] == ["v6.1", "v6.12"]


def test_data_are_plain(gather, compared, raced):
    data = gather(compared, raced, choose=Choose(kernel=("v6.1",))).data

    assert json.loads(json.dumps(data)) == data
    assert data["releases"] == ["v6.1"]
    assert [arch["name"] for arch in data["archs"]] == ["toy"]


def broken(toy, name):
    """Return the toy with an operation that raises."""

    def fail(*_arguments):
        raise ZeroDivisionError("no")

    return Plugins([replace(toy, operations={**toy.operations, name: fail})], [])


@pytest.mark.parametrize(
    "name", ["formats", "decode", "entry", "translate", "unmap_gfn_range", "walk"]
)
def test_a_plugin_that_raises_is_named_and_the_page_is_made(toy, compared, raced, name):
    found = collect([compared, raced], broken(toy, name), Choose(), How())

    assert found.status == 2
    assert f"hook kvmarch_{name} raised" in failures(found)
    assert page(found.data, "broken")
