"""The model's own tables, written into an image and walked back."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmarch import plugins
from kvmarch.lab.root import Known, find_root
from kvmarch.testing.bench import Bench
from kvmarch.testing.cases import Wanted, cases
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.names import Machine, Names
from kvmarch.walk.path import Walker
from kvmarch.walk.tree import Tree, pages_of
from kvmarch.walk.write import write_tables

BASE = 0x1000_0000
"""Where the model's tables begin."""
PAGES = 520
"""More than a leaf table of 512 entries maps."""


def walked():
    """Return every case of the contract suite whose MMU keeps a tree."""
    found = []
    for case in cases(Wanted(), plugins.load()):
        if not case.absent and "walk" in case.arch.operations:
            k, options = case.link(), case.options()
            layout = k.walk.fn(k, options)
            if layout is not None:
                found.append(pytest.param(Machine(k, options, layout), id=str(case)))
    return found


CASES = walked()


def machine_of(machine, accesses, deleted):
    """Return a machine whose guest has made some accesses."""
    one = Bench(machine.k, machine.options, PAGES)
    assert one.slot() == 0
    assert one.slot(1, gfn=1 << 18, pages=8) == 0
    for gfn, how in accesses:
        one.access(gfn, how)
    if deleted:
        one.slot(1, pages=0)
    return one


def mapped(one):
    """Return the entry that maps each gfn, by the model."""
    names = Names(Machine(one.k, one.vm.options, None))
    found = {}
    for gfn in (*range(PAGES), *range(1 << 18, (1 << 18) + 8)):
        entry, level = one.k.entry.fn(one.vm, gfn)
        pfn = one.k.entry_pfn.fn(one.k, one.vm.options, entry, level)
        if pfn is not None and names.maps(entry, level):
            found[gfn] = entry, level
    return found


@pytest.mark.parametrize("machine", CASES)
@settings(
    max_examples=4,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    accesses=st.lists(
        st.tuples(
            st.one_of(st.integers(0, PAGES - 1), st.integers(1 << 18, (1 << 18) + 7)),
            st.sampled_from(["read", "write", "exec"]),
        ),
        min_size=1,
        max_size=8,
    ),
    deleted=st.booleans(),
)
def test_the_same_leaves(tmp_path, machine, accesses, deleted):
    one = machine_of(machine, accesses, deleted)
    layout, k = machine.layout, machine.k
    top = layout.levels[0].level
    order = "big" if layout.byteorder == "big" else "little"
    path = tmp_path / "ram"
    write_tables(path, one.vm.tables.live.values(), order, BASE)
    place = k.leaf_table.fn(one.vm, 0, top)
    wanted = mapped(one)
    if place is None:
        assert wanted == {}
        return
    root = place[0]

    with open_image(str(path), [Region(BASE, None, 0)]) as image:
        tree, walker = Tree(image, layout, root), Walker(image, layout, root)
        found = {}
        for piece in tree.find():
            if pages_of(piece) is not None:
                for gpa, entry in zip(
                    piece.gpa.tolist(), piece.entry.tolist(), strict=True
                ):
                    found[gpa >> layout.page_shift] = entry, piece.level.level
        assert found == wanted
        gfns = np.array(sorted(wanted), np.uint64)
        answer = tree.translate(gfns << np.uint64(layout.page_shift))
        for gfn, pa in zip(gfns.tolist(), answer.pa.tolist(), strict=True):
            visit = walker.follow(gfn << layout.page_shift)[-1]
            assert (visit.entry, visit.level) == wanted[gfn]
            pfn = k.entry_pfn.fn(k, machine.options, visit.entry, visit.level)
            assert pa >> layout.page_shift == pfn
        frames = {gfn: one.pfn(gfn & 0x3FFFF) for gfn in wanted}
        at = find_root(image, [layout], Known(frames, set(frames)))
        assert at == ((root, layout) if wanted else None)
