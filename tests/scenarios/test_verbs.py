"""The verbs: their arguments, and that each runs its kernel path."""

from errno import EAGAIN, EEXIST, EINVAL, ENOENT

import pytest

from kvmarch.scenarios.verbs import SEQUENCE, VERBS, Context, parse

SCENARIO = """
title = "verbs"
[vm]
memory = [
    {{ name = "ram", pages = 8, contents = [7, 7] }},
    {{ name = "spare", pages = 8, touched = false }},
    {{ name = "big", mib = 2, huge = true }},
]
[[task]]
name = "vmm"
steps = ["slot id=0 memory=ram gfn=0", {lines}]
"""

LINES = [
    # the line, and what it returns
    ("read gfn=0", "mmio"),
    ("read gpa=0x1fff", "mmio"),
    ("write gfn=1", "mmio"),
    ("exec gfn=2", "mmio"),
    ("write gfn=1 stay=yes", "done"),
    ("read gfn=0x100 stay=yes", "mmio"),
    ("slot id=1 memory=big gfn=0x1000", 0),
    ("slot id=1 memory=big gpa=0x1000000 flags=log_dirty", 0),
    ("slot id=1 memory=ram gfn=4", EEXIST),
    ("slot id=1 memory=ram gfn=0x100 offset=1", EINVAL),
    ("slot id=1 memory=ram gfn=0x100 page=2 pages=3", 0),
    ("slot id=1 memory=ram gfn=0x100 flags=0x80", EINVAL),
    ("slot id=0 as_id=1 memory=ram gfn=0", EINVAL),
    ("slot_delete id=0", 0),
    ("slot_delete id=5", EINVAL),
    ("updates count=3", None),
    ("dirty_get id=0", (ENOENT, 0)),
    ("dirty_clear id=0 first=0 pages=64 bits=1", ENOENT),
    ("manual_protect initially_set=yes", None),
    ("touch memory=ram page=2 pages=1 value=9", None),
    ("touch memory=spare", None),
    ("ksm_merge memory=ram", 1),
    ("ksm_unmerge memory=ram", None),
    ("dontneed memory=ram page=0 pages=2", None),
    ("mprotect memory=ram prot=r", None),
    ("munmap memory=ram", None),
    ("mremap memory=ram to=spare", 0),
    ("fork", None),
    ("oom_reap memory=ram", True),
    ("driver", None),
    ("age memory=ram how=clear_flush_young", True),
    ("age memory=ram how=clear_young", True),
    ("age memory=ram how=test_young", False),
    ("swap_out memory=ram page=0", True),
    ("swap_out memory=ram page=0 idle=clear_young", False),
    ("migrate memory=ram page=0", True),
    ("collapse memory=big page=0", False),
    ("split_huge memory=big page=3", True),
    ("gpc_map name=g gfn=1", 0),
    ("gpc_map name=g gfn=1 offset=0x10", 0),
    # v6.1 has no caches of a host address.
    ("gpc_map_hva name=g memory=ram page=1", EINVAL),
    ("gpc_store name=g", EINVAL),
    ("gpc_store_atomic name=g", EAGAIN),
    ("gpc_unmap name=g", None),
    ("stream_end", None),
    ("environment turn=next", None),
    ("environment turn=plenty", None),
    ("reclaim_any memory=ram", True),
    ("exit_mm", None),
    ("vm_destroy", None),
    ("mark name=here", None),
    ("look name=here memory=ram gfn=0", None),
    ("look name=here memory=big gpa=0x2000", None),
    ("survey name=here also=0x100", None),
]


@pytest.mark.parametrize(
    ("line", "result"), [pytest.param(*row, id=row[0]) for row in LINES]
)
def test_a_verb_runs_its_path(play, line, result):
    played = play(SCENARIO.format(lines=f'"{line}"'))

    assert played.outcome.end == "done"
    assert played.results["vmm", 1] == result
    assert played.violations == []


def test_every_verb_is_tried_here():
    # A stream needs somebody else to end it.
    assert {line.split()[0] for line, _ in LINES} == set(VERBS) - {"stream"}


def test_updates_move_the_generation_only(play):
    played = play(SCENARIO.format(lines='"updates count=3"'))
    memslots = played.machine.vm.memslots[0]

    assert memslots.generation == 4
    assert [slot.id for slot in memslots.slots] == [0]


def test_a_driver_refuses_to_be_reaped(play):
    played = play(SCENARIO.format(lines='"driver", "oom_reap memory=ram"'))

    assert played.results["vmm", 2] is False
    assert played.machine.vm.mmu_invalidate_in_progress == 0


def test_a_stream_goes_on_until_it_is_ended(play):
    second = '[[task]]\nname = "end"\nsteps = ["stream_end"]\n'
    turns = 'schedule = ["vmm 200", "end 3"]\n'
    played = play(turns + SCENARIO.format(lines='"stream memory=ram"') + second)

    assert played.outcome.end == "done"
    assert 0 <= played.machine.vm.mmu_invalidate_seq < SEQUENCE
    assert played.violations == []


def test_a_guest_with_code_fetches_it_first(play):
    text = SCENARIO.format(lines='"write gfn=1"').replace("[vm]", "[vm]\ncode = 3")

    played = play(text)

    faults = [e.data for e in played.events if e.name == "guest_fault"]
    leave = 0x10000
    assert [(f["gfn"], f["access"]) for f in faults] == [
        (3, "exec"),
        (1, "write"),
        (leave, "write"),
    ]


def test_each_vcpu_is_its_own(play):
    text = SCENARIO.format(lines='"read gfn=1 vcpu=1"').replace("[vm]", "[vm]\nvcpus=2")

    played = play(text)

    assert [sum(v.exits.values()) > 0 for v in played.machine.vm.vcpus] == [False, True]


def test_mremap_moves_onto_a_memory(play):
    played = play(SCENARIO.format(lines='"mremap memory=ram to=spare", "read gfn=0"'))

    assert played.results["vmm", 2] == "error"
    assert played.violations == []


def test_ksm_merges_what_other_steps_made_mergeable(play):
    lines = (
        '"touch memory=ram page=4 pages=2 value=7", "ksm_merge memory=ram page=4", '
        '"ksm_merge memory=ram page=0 pages=1", "touch memory=ram page=6 value=7", '
        '"ksm_merge memory=ram page=0 pages=1"'
    )
    played = play(SCENARIO.format(lines=lines))

    # Pages 4 and 5, then 0 as well, then 6 and 7; page 1 is not mergeable.
    assert [played.results["vmm", step] for step in (2, 3, 5)] == [1, 1, 2]


def test_pages_that_are_touched_without_a_value_are_all_different(play):
    lines = '"touch memory=ram page=2 pages=3", "touch memory=ram page=4 pages=3", '
    played = play(SCENARIO.format(lines=lines + '"ksm_merge memory=ram page=2"'))

    assert played.results["vmm", 3] == 0


def test_a_look_sees_four_pages_and_entries(play):
    lines = '"read gfn=1 stay=yes", "look name=x memory=ram gfn=0"'
    played = play(SCENARIO.format(lines=lines))

    (look,) = (e.data for e in played.events if e.name == "look")
    assert look["gfn"] == 0
    assert len(look["pages"]) == len(look["entries"]) == 4
    assert all(look["pages"])
    assert [bool(entry) for entry in look["entries"]] == [False, True, False, False]
    assert look["entries"][1] >> 12 & 0xFFFFFFFF == look["pages"][1]


def test_a_look_at_nothing(play):
    played = play(SCENARIO.format(lines='"look name=x memory=spare gfn=0x100"'))

    (look,) = (e.data for e in played.events if e.name == "look")
    assert (look["pages"], look["entries"], look["table"]) == ((0,) * 4, (), 0)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        pytest.param("int", "0x10", 16, id="hexadecimal"),
        pytest.param("?int", "10", 10, id="optional"),
        pytest.param("flags", "log_dirty", 1, id="flag"),
        pytest.param("flags", "log_dirty,readonly,0x80", 0x83, id="flags"),
        pytest.param("word:a|b", "b", "b", id="word"),
        pytest.param("name", "any", "any", id="name"),
    ],
)
def test_arguments_have_kinds(kind, text, value):
    assert parse(kind, text) == value


def test_pages_count_from_the_start_of_a_memory(bench):
    context = Context(bench().machine, {"ram": (0x10000, 0x8000)})

    assert context.pages({"memory": "ram"}) == (0x10000, 0x18000)
    assert context.pages({"memory": "ram", "page": 2}) == (0x12000, 0x18000)
    assert context.pages({"memory": "ram", "page": 2, "pages": 1}) == (0x12000, 0x13000)
    assert context.gfn({"gpa": 0x1FFF}) == context.gfn({"gfn": 1}) == 1


def test_which_verbs_return_an_errno():
    assert {name for name, verb in VERBS.items() if verb.returns_errno} == {
        "slot",
        "slot_delete",
        "dirty_get",
        "dirty_clear",
        "gpc_map",
        "gpc_map_hva",
        "gpc_store",
        "gpc_store_atomic",
        "gpc_unmap",
    }


@pytest.mark.parametrize(
    ("changed", "initially", "manual"),
    [
        ({"initially_set_log": True}, True, True),
        ({"initially_set_log": False}, True, False),
        ({"initially_set_log": False}, False, True),
        ({"generic_dirty_log": False}, False, False),
    ],
)
def test_what_is_not_there_is_not_switched_on(bench, changed, initially, manual):
    one = bench(replaced=changed)
    context = Context(one.machine, {})
    args = {"initially_set": "yes"} if initially else {}
    one.do(VERBS["manual_protect"].make(context, args))

    assert one.vm.manual_protect == manual
    assert one.vm.initially_set == (manual and initially)
