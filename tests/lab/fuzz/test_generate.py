"""Random programs: the same from the same seed, and of lines that are understood."""

import subprocess
import sys

import pytest

from kvmarch.lab.fuzz.generate import WEIGHTS, Shape, program
from kvmarch.lab.fuzz.scenario import scenario_of
from kvmarch.scenarios.verbs import LEAVE_GPA, VERBS

SHAPES = [
    pytest.param(Shape(address_spaces=2), id="x86"),
    pytest.param(Shape(65536, 32), id="64K"),
    pytest.param(Shape(huge_pages=1, readonly=False), id="neither huge nor read-only"),
]
SCRIPT = (
    "from kvmarch.lab.fuzz.generate import Shape, program\n"
    "print([program(7, n, 40, Shape(address_spaces=2)) for n in range(3)])\n"
)


def said(seed):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_a_seed_says_everything():
    assert said("1") == said("2")
    assert program(7, 0, 40, Shape()) != program(7, 1, 40, Shape())
    assert program(7, 0, 40, Shape()) != program(8, 0, 40, Shape())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_line_is_one_of_a_scenario(shape):
    for number in range(30):
        made = program(1, number, 40, shape)

        assert len(made.lines) == 40
        assert len(scenario_of(*made).tasks[0].steps) == 40


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_step_occurs(shape):
    verbs = {"slot", "slot_delete", "vm_destroy", *WEIGHTS} - {
        *("outside", "overlap", "wrong", "flags", "same", "move", "delete", "reshape"),
        "destroy",
    }
    seen = {
        line.split()[0]
        for number in range(60)
        for line in program(1, number, 40, shape).lines
    }

    assert seen == verbs


def test_a_vm_that_is_gone_is_asked_for_nothing():
    gone = 0
    for number in range(60):
        made = program(1, number, 40, Shape())
        words = [line.split() for line in made.lines]
        ends = [at for at, line in enumerate(words) if line[0] == "vm_destroy"]
        assert len(ends) < made.setup.vms
        for at in ends:
            vm = [word for word in words[at] if word.startswith("vm=")]
            for verb, *args in words[at + 1 :]:
                if "vm" in VERBS[verb].params:
                    gone += 1
                    assert [word for word in args if word.startswith("vm=")] != vm

    assert gone > 10


def slots(made):
    for line in made.lines:
        verb, *words = line.split()
        args = dict(word.split("=") for word in words)
        if verb == "slot" and "gfn" in args and "as_id" not in args:
            yield args


@pytest.mark.parametrize("shape", SHAPES)
def test_no_slot_is_where_the_guest_leaves(shape):
    leave = LEAVE_GPA // shape.page_size
    for number in range(60):
        made = program(2, number, 40, shape)
        have = {row.name: row.pages for row in made.setup.memories}
        for args in slots(made):
            first = int(args["gfn"])
            left = have[args["memory"]] - int(args.get("page", 0))
            pages = int(args.get("pages", left))
            assert not first <= leave < first + pages or int(args["id"]) >= 32768


def test_weights_decide():
    none = dict.fromkeys(WEIGHTS, 0)
    made = program(1, 0, 20, Shape(), {**none, "slot": 1, "read": 5})

    assert {line.split()[0] for line in made.lines} == {"slot", "read"}
