"""The root of a VM among other tables that hold the same pages."""

import re

import pytest

from kvmarch.errors import WalkError
from kvmarch.lab.observe import candidates
from kvmarch.lab.root import Known, find_root, roots_of


def test_found_from_its_leaves(x86, memory):
    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [x86.root]


def test_the_process_maps_the_same_pages_elsewhere(x86, memory):
    memory.copy(254)

    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [x86.root]


@pytest.mark.parametrize("extra", [0x8888_8000, 0x1000])
def test_a_tree_that_maps_more_is_not_it(x86, memory, extra):
    """A page that is not the VM's, or one of the VM's for the wrong gfn."""
    leaf = memory.copy(0)[1]
    entry = next(t for t in memory.vm_tables if t.level == 1).get(1)
    memory.put(leaf + 9 * 8, entry & 0xFFF | extra)

    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [x86.root]


def test_a_tree_that_maps_less_is_not_it(x86, memory):
    leaf = memory.copy(0)[1]
    memory.put(leaf + 7 * 8, 0)

    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [x86.root]


def test_two_that_fit_are_no_answer(x86, memory):
    copy = memory.copy(0)[4]
    shown = f"several trees map what is known: {x86.root:#x}, {copy:#x}"

    with memory.open() as image, pytest.raises(WalkError, match=re.escape(shown)):
        find_root(image, [x86.layout], x86.known)


def test_nothing_is_found_without_a_touched_page(x86, memory):
    with memory.open() as image:
        assert find_root(image, [x86.layout], Known(x86.known.frames, ())) is None


def test_more_levels_are_tried_first(x86, memory):
    machines = list(candidates(x86.k, x86.info, {"paging": "npt"}))
    assert [m.options["levels"] for m in machines] == [4, 5]
    entry = next(t for t in memory.vm_tables if t.level == 3).get(0)
    top = memory.next
    memory.put(top, entry & 0xFFF | x86.root)

    with memory.open() as image:
        found = find_root(image, [m.layout for m in machines], x86.known)
        assert found == (top, machines[1].layout)
