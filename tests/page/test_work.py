from dataclasses import replace

import pytest

from kvmarch.explore.search import Bounds
from kvmarch.page.work import do_job, jobs_of
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose, compare
from kvmarch.scenarios.file import library, load


def test_a_comparison_has_the_values_of_the_table(compared, do, toys):
    [result] = do(compared)
    table = compare(compared, toys, Choose())

    data = result["comparison"]
    assert data["columns"] == ["callback", "entry_before"]
    for row, said in zip(data["rows"], table.rows, strict=True):
        shown = row["values"] and dict(zip(data["columns"], row["values"], strict=True))
        assert (row["arch"], row["kernel"]) == (said["arch"], said["kernel"])
        assert shown == {name: said[name] for name in data["columns"]}


def test_cells_carry_what_is_expected_of_them(compared, do):
    [result] = do(compared)

    by_kernel = {row["kernel"]: row for row in result["comparison"]["rows"]}
    assert by_kernel["v6.9"]["expected"] == [[0, "present", True, "it was there"]]
    assert by_kernel["v6.12"]["expected"] == [[0, "absent", True, "it was removed"]]
    assert result["status"] == 0


def test_an_expectation_that_fails_is_marked(disappointed, do):
    [result] = do(disappointed)

    row = next(r for r in result["comparison"]["rows"] if r["kernel"] == "v6.9")
    assert row["expected"] == [[0, "absent", False, "it was there"]]
    assert result["status"] == 1


def test_kernels_that_answer_alike_are_followed_once(compared, do):
    [result] = do(compared)

    kernels = [trace["kernel"] for trace in result["traces"]]
    assert kernels == ["v6.9", "v7.2"]
    assert all(trace["property"] == "" for trace in result["traces"])


def test_a_scenario_without_columns_is_followed_at_the_newest_release(scenario, do):
    plain = scenario(
        """
        title = "nothing to compare"
        [vm]
        memory = [{ name = "ram", pages = 1 }]
        [[task]]
        name = "vmm"
        steps = ["slot id=0 memory=ram gfn=0", "read gfn=0"]
        """
    )

    [result] = do(plain)

    assert "comparison" not in result
    assert [trace["kernel"] for trace in result["traces"]] == ["v7.2"]


def test_a_race_is_explored_and_its_losses_followed(raced, do):
    [result] = do(raced)

    [row] = [r for r in result["cell"]["rows"] if r["property"] == "counted"]
    [trace] = [t for t in result["traces"] if t["property"] == "counted"]
    assert (row["verdict"], row["expected"], row["met"]) == ("always", "always", True)
    assert row["because"] == "the host zaps"
    assert row["steps"] == len(trace["steps"])
    lost = [n for n, step in enumerate(trace["steps"], 1) if step["lost"]]
    assert lost == [len(trace["steps"])]
    assert "mmu_invalidate_in_progress > 0" in "".join(trace["notes"])


def test_a_verdict_that_is_not_as_expected_is_marked(raced_wrongly, do):
    [result] = do(raced_wrongly)

    [row] = [r for r in result["cell"]["rows"] if r["property"] == "counted"]
    assert row["met"] is False
    assert result["status"] == 1
    assert any(note.startswith("FAILED") for note in result["notes"])


def test_a_search_that_is_cut_says_so(raced, do):
    [result] = do(raced, how=How(bounds=Bounds(states=2)))

    assert result["cell"]["cut"] == "2 states"
    [row] = [r for r in result["cell"]["rows"] if r["expected"]]
    assert (row["verdict"], row["met"]) == ("unknown", None)
    assert result["status"] == 3


def test_a_schedule_is_followed_as_it_was_printed(raced, do, toys):
    [explored] = do(raced)
    [known] = [t for t in explored["traces"] if t["property"] == "counted"]
    [job] = jobs_of(raced, toys, Choose(), How())

    again = do_job(replace(job, schedule=known["schedule"]), toys)

    [trace] = again["traces"]
    assert trace["steps"] == known["steps"]


def test_options_are_told_of_the_architectures_that_have_them():
    plugins = load_plugins()
    scenario = load(library()["aging"])
    choose = Choose(arch=("arm64", "x86"), kernel=("v6.1",), options={"mmu": "rmap"})

    [job] = jobs_of(scenario, plugins, choose, How())
    result = do_job(job, plugins)

    told = {row["arch"]: row["machine"] for row in result["comparison"]["rows"]}
    assert told == {"arm64": "", "x86": "mmu=rmap"}
    schedules = [trace["schedule"].partition(":")[0] for trace in result["traces"]]
    assert schedules == ["aging@arm64-v6.1", "aging@x86-v6.1/mmu=rmap"]


@pytest.mark.parametrize("kernel", ["v4.4", "v6.1"])
def test_a_kernel_that_is_chosen_is_the_only_one(compared, do, kernel):
    [result] = do(compared, choose=Choose(kernel=(kernel,)))

    assert [row["kernel"] for row in result["comparison"]["rows"]] == [kernel]
    assert {trace["kernel"] for trace in result["traces"]} == {kernel}
