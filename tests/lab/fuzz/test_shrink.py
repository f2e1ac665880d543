"""Shrinking: what is left over is needed."""

from kvmarch.lab.fuzz.generate import Program
from kvmarch.lab.fuzz.shrink import shrink
from kvmarch.lab.sides import Memory, Setup

SETUP = Setup((Memory("code", 1), Memory("ram", 4), Memory("rom", 4)), 3, 9)


def of(*lines):
    return Program(SETUP, lines)


def test_lines_that_are_not_needed_go():
    lines = [f"read gfn={n}" for n in range(37)]
    needed = {"read gfn=3", "read gfn=20", "read gfn=21"}
    tried = []

    def shows(smaller):
        tried.append(smaller.lines)
        return needed <= set(smaller.lines) and smaller.lines[-1] == lines[-1]

    best = shrink(of(*lines), shows)

    assert best.lines == ("read gfn=3", "read gfn=20", "read gfn=21", "read gfn=36")
    assert len(tried) < 100


def test_two_lines_that_only_go_together_go():
    def shows(smaller):
        return ("a" in smaller.lines) == ("b" in smaller.lines)

    assert shrink(of("x", "a", "b", "y", "end"), shows).lines == ("end",)


def test_what_no_line_names_goes():
    best = shrink(of("touch memory=ram", "read gfn=0 vcpu=1"), lambda smaller: True)
    assert best.setup == Setup((Memory("code", 1),), 2, 9)

    kept = shrink(of("mremap memory=ram to=rom"), lambda smaller: True)
    assert kept.setup == Setup(SETUP.memories, 1, 9)


def test_a_line_alone_stays():
    assert shrink(of("a"), lambda smaller: True).lines == ("a",)


MEMORIES = (Memory("code", 1), Memory("code1", 1), Memory("ram", 4))
BOTH = Program(
    Setup(MEMORIES, 2, 9, 2),
    (
        "slot id=0 memory=code gfn=9",
        "slot id=0 memory=code1 gfn=9 vm=1",
        "touch memory=ram",
        "read gfn=0",
        "read gfn=0 vm=1 vcpu=1",
    ),
)


def test_a_vm_that_shows_it_alone_stays_alone():
    def shows(smaller):
        words = " ".join(smaller.lines)
        return "touch" in words and "vcpu=1" in words

    best = shrink(BOTH, shows)

    assert best.lines == ("touch memory=ram", "read gfn=0 vcpu=1")
    assert best.setup == Setup((MEMORIES[0], MEMORIES[2]), 2, 9)


def test_vms_that_show_it_together_stay():
    best = shrink(BOTH, lambda smaller: len(smaller.lines) > 4)

    assert best.lines == BOTH.lines
    assert best.setup == Setup(MEMORIES, 2, 9, 2)
