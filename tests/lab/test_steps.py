"""Scenario lines as commands of the probe."""

import pytest

from kvmarch.errors import LabError, ScenarioError
from kvmarch.lab.sides import Memory, Setup
from kvmarch.lab.steps import Board, check_verb, content_of, line_of

SETUP = Setup((Memory("ram", 16, contents=(1, 1)), Memory("more", 8)), 2, 3)


def order(text, board=None):
    board = board or Board(SETUP, 4096)
    return board.order(line_of(text, board.rows, 2))


@pytest.mark.parametrize(
    ("text", "command", "gfn"),
    [
        ("read gfn=2", "run 0 ld 2010", 2),
        ("write gpa=0x20000008 vcpu=1", "run 1 st 20000008", 0x20000),
        ("exec gfn=5", "run 0 ex 5080", 5),
        ("slot id=0 memory=ram gfn=0", "slot 0 0 0 0 10000 0 0", -1),
        (
            "slot id=3 memory=more gpa=0x8000 page=2 pages=4 flags=readonly as_id=1",
            "slot 1 3 2 8000 4000 1 2000",
            -1,
        ),
        (
            "slot id=3 memory=ram gfn=1 offset=1 flags=0x80",
            "slot 0 3 80 1000 10000 0 1",
            -1,
        ),
        ("slot id=3 memory=ram gfn=1 pages=0", "slot 0 3 0 1000 0 0 0", -1),
        ("slot_delete id=9", "slot 0 9 0 0 0 ffff 0", -1),
        ("dirty_get id=2 as_id=1", "dirty 10002", -1),
        (
            "dirty_clear id=0 first=64 pages=128 bits=0x10000000000000002",
            "clear 0 40 80 2 1",
            -1,
        ),
        ("manual_protect", "manual 1", -1),
        ("manual_protect initially_set=yes", "manual 3", -1),
        ("touch memory=more page=1 pages=2 value=3", "touch 1 1 2 3", -1),
        ("touch memory=more", "touch 1 0 8", -1),
        ("ksm_merge memory=ram page=0 pages=3", "ksm 0 0 3", -1),
        ("dontneed memory=ram page=2 pages=1", "madvise 0 2 1 4", -1),
        ("mprotect memory=ram page=2 pages=1 prot=r", "mprotect 0 2 1 1", -1),
        ("mprotect memory=ram page=2 pages=1 prot=rw", "mprotect 0 2 1 3", -1),
        ("munmap memory=more page=7", "munmap 1 7 1", -1),
        ("mremap memory=ram page=0 pages=8 to=more", "mremap 0 0 8 1", -1),
        ("fork", "fork", -1),
        ("mark name=here", "", -1),
    ],
)
def test_a_line_is_one_command(text, command, gfn):
    made = order(text)

    assert (made.command, made.gfn) == (command, gfn)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("read", "read needs either gfn= or gpa="),
        ("read gfn=2 vcpu=2", "no vcpu 2"),
        ("read two", "name=value"),
        ("touch memory=none", "no memory 'none'"),
        ("dontneed memory=ram page=16", "has no page 16"),
    ],
)
def test_a_wrong_line_is_refused(text, why):
    with pytest.raises(ScenarioError, match=why):
        order(text)


def test_what_no_kernel_can_be_made_to_do_is_refused():
    line = line_of("migrate memory=ram page=0", Board(SETUP, 4096).rows, 1)

    with pytest.raises(LabError, match=r"'migrate memory=ram page=0'.*the lab can"):
        check_verb(line)


def test_memories_and_the_page_of_code():
    assert list(Board(SETUP, 4096).begin()) == [
        "begin 2 3000 1",
        "memory 10 0 0 1 4 1 1",
        "memory 8 0 0 1 0",
    ]


def test_a_memory_of_the_name_code_holds_the_code():
    setup = Setup((Memory("ram", 4, contents=None), Memory("code", 1)), 1, 0xE0000)

    assert list(Board(setup, 4096).begin()) == [
        "begin 1 e0000000 1",
        "memory 4 0 0 0 0",
        "memory 1 0 0 1 1",
    ]


def test_each_vm_has_slots_of_its_own():
    setup = Setup((Memory("code", 1), Memory("code1", 1), Memory("ram", 4)), 1, 0x90, 2)
    board = Board(setup, 4096)

    def done(text):
        found = board.order(line_of(text, board.rows, 1, 2))
        board.settle(succeeded=True)
        return found.command, found.vm

    assert list(board.begin())[:3] == ["begin 1 90000 2", *["memory 1 0 0 1 1"] * 2]
    assert done("slot id=0 memory=ram gfn=8 vm=1") == ("slot 0 0 0 8000 4000 2 0", 1)
    assert done("slot id=0 memory=ram gfn=0")[1] == 0
    assert done("read gfn=8 vm=1") == ("run 0 ld 8010", 1)
    frames = {"ram": (5, 6, 7, 8)}
    assert sorted(board.frames_by_gfn(frames)) == [0, 1, 2, 3]
    assert sorted(board.frames_by_gfn(frames, 1)) == [8, 9, 10, 11]

    board.forget(1)
    assert board.frames_by_gfn(frames, 1) == {}


def test_pages_around_a_slot_are_those_of_its_memory():
    board = Board(SETUP, 4096)
    order("slot id=1 memory=more gfn=0x20 page=3 pages=2", board)
    board.settle(succeeded=True)
    order("slot id=2 memory=more gfn=1 page=3", board)
    board.settle(succeeded=True)

    frames = {"more": (9, 8, 7, 6, 5, 4, 3, 2)}
    far = {0x1D + page: 9 - page for page in range(8)}
    assert board.frames_around(frames) == far | {n: 7 - n for n in range(6)}


def test_pages_behind_gfns_follow_the_slots_that_there_are():
    board = Board(SETUP, 4096)
    frames = {"ram": tuple(range(100, 116)), "more": (0, 7, *range(8, 14))}

    order("slot id=0 memory=ram gfn=0x10 pages=2", board)
    board.settle(succeeded=True)
    order("slot id=1 memory=more gfn=0x20 page=1 pages=2", board)
    board.settle(succeeded=True)
    order("slot id=2 memory=ram gfn=0x10", board)
    board.settle(succeeded=False)

    known = {0x10: 100, 0x11: 101, 0x20: 7, 0x21: 8}
    assert board.frames_by_gfn(frames) == known

    order("slot_delete id=0", board)
    board.settle(succeeded=True)
    assert board.frames_by_gfn(frames) == {0x20: 7, 0x21: 8}


def test_equal_contents_are_equal_numbers():
    assert content_of(7) == 7
    assert content_of("a") == content_of("a") != content_of("b")
    assert content_of(-1) > 1 << 32
