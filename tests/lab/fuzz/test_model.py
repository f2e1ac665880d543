"""The model as a side: answers as the lab's program prints them, and what is seen."""

import pytest

from kvmarch.errors import LabError, ScenarioError
from kvmarch.lab.fuzz.model import ModelSide
from kvmarch.lab.sides import Memory, Setup
from kvmarch.plugins import link, load

ROWS = (
    Memory("code", 1),
    Memory("ram", 8, contents=(1, 1)),
    Memory("spare", 8, contents=None),
)
CODE = 0xE0000


@pytest.fixture(scope="module")
def plugins():
    return load()


def begun(plugins, name="x86", release=(6, 1), vcpus=1):
    arch = plugins.get(name)
    side = ModelSide(link(arch, release), arch.info.settle(release, {}))
    side.begin(Setup(ROWS, vcpus, CODE))
    side.do(f"slot id=0 memory=code gfn={CODE}")
    return side


STEPS = [
    ("slot id=1 memory=ram gfn=0 flags=log_dirty", "slot id=1 flags=1 gpa=0 size=8000"),
    ("write gfn=2", "run st gpa=2010 rc=0 exit=5"),
    ("read gfn=0x40", "run ld gpa=40010 rc=0 exit=6 mmio=40010"),
    ("exec gfn=3", "run ex gpa=3080 rc=0 exit=5"),
    ("dirty_get id=1", "dirty rc=0 c errno=0"),
    ("dirty_get id=2", "dirty rc=-1 0 errno=2"),
    ("dirty_clear id=1 first=1 pages=1 bits=1", "clear rc=-1 errno=22"),
    ("slot id=1 memory=ram gfn=0 as_id=2", "slot id=131073 flags=0 gpa=0 size=8000"),
    ("slot id=2 memory=spare gfn=8 pages=9", "slot id=2 flags=0 gpa=8000 size=9000"),
    ("read gfn=16", "run ld gpa=10010 rc=-1 errno=14"),
    ("slot_delete id=1", "slot id=1 flags=0 gpa=0 size=0 rc=0 errno=0"),
]


def test_answers_are_those_of_the_labs_program(plugins):
    side = begun(plugins)
    for line, answer in STEPS:
        (said,) = side.do(line).answers
        assert said.startswith(answer), line


def test_a_guest_may_leave_by_a_store_to_nowhere(plugins):
    side = begun(plugins, "arm64")
    side.do("slot id=1 memory=ram gfn=0")

    assert side.do("read gfn=1").answers == (
        "run ld gpa=1010 rc=0 exit=6 mmio=10000000",
    )


def test_the_whole_tree_and_all_pages_are_seen(plugins):
    side = begun(plugins)
    side.do("slot id=1 memory=ram gfn=0")
    look = side.do("write gfn=2")
    outside = side.do("read gfn=0x40")

    (tree,) = look.trees
    assert [leaf.gfn for leaf in tree] == [2, CODE]
    assert {leaf.kind for leaf in tree} == {"leaf"}
    assert tree[0].pfn == look.frames["ram"][2]
    assert look.frames["spare"] == (0,) * 8
    assert [leaf.kind for leaf in outside.trees[0]] == ["leaf", "mmio", "leaf"]


def test_two_pages_that_ksm_merges_are_one(plugins):
    look = begun(plugins).do("ksm_merge memory=ram page=0 pages=3")

    assert look.frames["ram"][0] == look.frames["ram"][1]
    assert look.answers == ()


def test_events_are_those_of_the_step(plugins):
    side = begun(plugins)
    side.do("slot id=1 memory=ram gfn=0")
    wrote = side.do("write gfn=2").traced
    dropped = side.do("dontneed memory=ram page=2 pages=2").traced

    assert wrote.faults == ("e0000", "2")
    assert (dropped.notifiers, dropped.faults) == (("kvm_unmap_hva_range 1:2-4",), ())


def test_each_vm_is_new(plugins):
    side = begun(plugins)
    side.do("slot id=1 memory=ram gfn=0")
    side.do("write gfn=2")
    side.end()
    with pytest.raises(LabError, match="no VM"):
        side.do("write gfn=2")

    side.begin(Setup(ROWS, 1, CODE))
    assert side.do(f"slot id=0 memory=code gfn={CODE}").trees == ((),)


def test_after_the_end_there_is_no_tree(plugins):
    assert begun(plugins).do("exit_mm").trees == (None,)


def test_several_vms_have_a_tree_each(plugins):
    arch = plugins.get("x86")
    side = ModelSide(link(arch, (6, 1)), arch.info.settle((6, 1), {}))
    side.begin(
        Setup((Memory("code", 1), Memory("code1", 1), Memory("ram", 8)), 1, CODE, 2)
    )
    for line in (
        f"slot id=0 memory=code gfn={CODE}",
        f"slot id=0 memory=code1 gfn={CODE} vm=1",
        "slot id=1 memory=ram gfn=0",
        "slot id=1 memory=ram gfn=0 vm=1",
        "write gfn=2",
    ):
        side.do(line)
    look = side.do("write gfn=3 vm=1")
    after = side.do("dontneed memory=ram page=2 pages=2")
    rest = side.do("vm_destroy")

    assert [[leaf.gfn for leaf in tree] for tree in look.trees] == [
        [2, CODE],
        [3, CODE],
    ]
    assert look.trees[0][1].pfn != look.trees[1][1].pfn
    assert after.traced.notifiers == ("kvm_unmap_hva_range 2:2-4",) * 2
    assert [len(tree) for tree in after.trees] == [1, 1]
    assert [len(tree) for tree in rest.trees] == [0, 1]


def test_a_line_that_is_none_is_refused(plugins):
    with pytest.raises(ScenarioError, match="there is 1"):
        begun(plugins).do("read gfn=0 vcpu=1")


def test_what_the_model_loses_is_no_warning(plugins):
    side = begun(plugins, "x86")
    side.do("slot id=1 memory=ram gfn=0")

    assert side.do("write gfn=0").kernel_log == ()
    assert side.lost == []
