"""Scenarios with several VMs in one process: slots and tables apart, memory shared."""

import pytest

from kvmarch.errors import ScenarioError
from kvmarch.explore.search import explore
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import load

SCENARIO = """
title = "two VMs"
[vm]
count = 2
memory = [{{ name = "ram", pages = 8, contents = [7, 7] }}]
[[task]]
name = "vmm"
steps = [
    "slot id=1 memory=ram gfn=0",
    "slot id=1 memory=ram gfn=8 vm=1",
    {lines}
]
"""
TOUCHED = '"write gfn=2 stay=yes", "write gfn=10 stay=yes vm=1"'


def entries(played, gfn):
    """Return the lowest entry of a gfn in each VM."""
    return [vm.k.entry.fn(vm, gfn)[0] for vm in played.machine.vms]


def events(played, name):
    return [e.data for e in played.events if e.name == name]


def test_each_has_slots_and_tables_of_its_own(play):
    played = play(SCENARIO.format(lines=TOUCHED))
    mine, others = (
        [memslots.slots[0].base_gfn for memslots in vm.memslots[:1]]
        for vm in played.machine.vms
    )
    here, there = entries(played, 2), entries(played, 10)

    assert (mine, others) == ([0], [8])
    assert [bool(entry) for entry in here] == [True, False]
    assert [bool(entry) for entry in there] == [False, True]
    assert here[0] == there[1]


def test_both_are_told_what_the_host_does(play):
    lines = f'{TOUCHED}, "dontneed memory=ram page=2 pages=1"'
    played = play(SCENARIO.format(lines=lines))

    assert {d["vm"] for d in events(played, "kvm_unmap_hva_range")} == {"vm", "vm1"}
    assert entries(played, 2)[0] == entries(played, 10)[1] == 0
    assert played.violations == []


def test_a_survey_has_every_tree(play):
    lines = f'{TOUCHED}, "survey name=end also=2"'
    (found,) = events(play(SCENARIO.format(lines=lines)), "survey")

    assert [[entry.gfn for entry in tree] for tree in found["trees"]] == [[2], [10]]


def test_one_may_go_and_the_other_stays(play):
    lines = f'{TOUCHED}, "vm_destroy vm=1", "read gfn=2 stay=yes"'
    played = play(SCENARIO.format(lines=lines))

    assert played.results["vmm", 5] == "done"
    assert [len(vm.tables.live) > 0 for vm in played.machine.vms] == [True, False]


def test_dirty_logs_are_apart(play):
    lines = (
        '"slot id=2 memory=ram gfn=32 flags=log_dirty", '
        '"slot id=2 memory=ram gfn=32 flags=log_dirty vm=1", '
        '"write gfn=33 stay=yes vm=1", "dirty_get id=2", "dirty_get id=2 vm=1"'
    )
    played = play(SCENARIO.format(lines=lines))

    assert played.results["vmm", 5] == (0, 0)
    assert played.results["vmm", 6] == (0, 2)
    assert played.violations == []


def test_a_vm_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "none.toml"
    path.write_text(SCENARIO.format(lines='"read gfn=2 vm=2"'))
    with pytest.raises(ScenarioError, match="read: no vm 2; there is 2"):
        load(path)

    path.write_text(SCENARIO.format(lines="").replace("count = 2", "count = 0"))
    with pytest.raises(ScenarioError, match=r"vm.count: 0 is less than 1"):
        load(path)


RACE = """
title = "the second VM's write against migration"
setup = ["slot id=0 memory=ram gfn=0", "slot id=0 memory=ram gfn=8 vm=1"]
[vm]
count = 2
memory = [{ name = "ram", pages = 2 }]
[[task]]
name = "host"
steps = ["migrate memory=ram page=0"]
[[task]]
name = "guest"
steps = ["write gfn=8 vm=1"]
"""


@pytest.mark.parametrize(("arch", "lost"), [("mips", True), ("x86", False)])
def test_every_interleaving_of_several_vms(tmp_path, arch, lost):
    """The race of MIPS's write with migration, as it is with one VM."""
    path = tmp_path / "race.toml"
    path.write_text(RACE)
    plugins = load_plugins()
    cell, _expected = next(cells_of(load(path), plugins, Choose((arch,), ("v6.1",))))
    search = explore(cell.program(plugins))

    assert search.ends
    assert bool(search.found) == lost
