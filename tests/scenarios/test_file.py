"""Scenario files: what they say, and where they are found."""

import pytest

from kvmarch.errors import ScenarioError, UnknownNameError
from kvmarch.scenarios.file import find, library, load
from kvmarch.scenarios.records import Column, Expect, Memory, StepLine, TaskLines

FULL = """
title = "A title"
source = "a source"
tags = ["one", "two"]
watch = [0, 2]
schedule = ["a 3", "b 1"]

[vm]
vcpus = 2
code = 3
memory = [
    { name = "ram", pages = 4, contents = [7, 7] },
    { name = "big", mib = 2, huge = true, touched = false, mergeable = true },
]

[[task]]
name = "a"
steps = ["slot id=0 memory=ram gfn=0x10 flags=log_dirty,readonly", "read gfn=0x10"]

[[task]]
name = "b"
steps = []

[[column]]
name = "entry"
show = "entry"
gfn = 2

[[expect]]
arch = "toy"
since = "v5.0"
until = "v6.1"
mmu = "tdp"
with = ["gpc"]
without = ["gfn-notifiers"]
values = { entry = "0x0" }
because = "of a reason"

[property.cached]
bad = "vm.mmu_invalidate_seq > 5"

[property.always]
ask = "always"
bad = "False"
"""


def test_everything_that_a_file_says_is_read(scenario):
    read = scenario(FULL, "full")

    assert (read.name, read.title, read.source) == ("full", "A title", "a source")
    assert (read.tags, read.watch) == (("one", "two"), (0, 2))
    assert (read.vcpus, read.code) == (2, 3)
    assert read.memory == (
        Memory("ram", pages=4, contents=(7, 7)),
        Memory("big", mib=2, huge=True, touched=False, mergeable=True),
    )
    assert read.tasks[0] == TaskLines(
        "a",
        (
            StepLine(
                "slot",
                {
                    "id": "0",
                    "memory": "ram",
                    "gfn": "0x10",
                    "flags": "log_dirty,readonly",
                },
                "slot id=0 memory=ram gfn=0x10 flags=log_dirty,readonly",
            ),
            StepLine("read", {"gfn": "0x10"}, "read gfn=0x10"),
        ),
    )
    assert read.schedule == (("a", 3), ("b", 1))
    assert read.columns == (Column("entry", "entry", {"gfn": 2}),)
    assert read.expects == (
        Expect(
            "toy",
            "v5.0",
            "v6.1",
            "tdp",
            ("gpc",),
            ("gfn-notifiers",),
            {"entry": "0x0"},
            "of a reason",
        ),
    )
    assert read.bad == {
        "cached": ("at-rest", "vm.mmu_invalidate_seq > 5"),
        "always": ("always", "False"),
    }


def test_what_is_left_out_has_a_default(scenario):
    read = scenario('title = "t"\n[[task]]\nname = "a"\nsteps = []')

    assert (read.source, read.tags, read.watch, read.vcpus) == ("", (), (), 1)
    assert (read.code, read.memory, read.columns, read.expects) == (-1, (), (), ())


def test_the_size_of_a_memory():
    assert Memory("a", pages=3).size(4096) == 0x3000
    assert Memory("a", pages=3).size(65536) == 0x30000
    assert Memory("a", mib=4).size(65536) == 4 << 20


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ScenarioError, match=r"none\.toml: No such file or directory"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "binary.toml"
    path.write_bytes(b"title = '\xff'")

    with pytest.raises(ScenarioError, match=r"binary\.toml: not UTF-8 at byte 9"):
        load(path)


def test_a_directory_is_no_scenario(tmp_path):
    with pytest.raises(ScenarioError, match="Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize("name", sorted(library()))
def test_every_shipped_scenario_loads(name):
    read = load(find(name))

    assert read.name == name
    assert read.title
    assert read.source
    assert read.tags


def test_a_name_or_a_path_finds_a_scenario(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text("title = 't'", "utf-8")

    assert find("tour") == library()["tour"]
    assert find(str(own)) == own
    assert find("mine", (str(tmp_path),)) == own


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        UnknownNameError, match=r"unknown scenario 'tuor'; there is .*tour"
    ):
        find("tuor")


def test_a_plugin_does_not_hide_a_shipped_scenario(tmp_path):
    (tmp_path / "tour.toml").write_text("title = 't'", "utf-8")

    assert find("tour", (str(tmp_path),)) == library()["tour"]
