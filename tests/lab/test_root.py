"""The root of a VM among other tables that hold the same pages."""

import re
from types import SimpleNamespace

import pytest

from kvmarch import plugins
from kvmarch.errors import WalkError
from kvmarch.lab.observe import BY_FRAMES, Observer, candidates
from kvmarch.lab.root import Known, find_root, roots_of
from kvmarch.testing.bench import Bench
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.write import write_tables

BASE = 0x1000_0000
ROOM = 64 * 4096
"""Memory behind the VM's tables, for other tables."""


@pytest.fixture
def x86():
    """A VM of 16 pages, four of them touched; its tables lie in an image."""
    arch = plugins.load(only=("x86",)).get("x86")
    k = plugins.link(arch, (6, 1))
    options = arch.info.settle((6, 1), {"paging": "npt"})
    one = Bench(k, options, 16)
    assert one.slot() == 0
    for gfn in (1, 2, 3, 7):
        one.access(gfn, "write")
    return SimpleNamespace(
        one=one, k=k, info=arch.info, layout=k.walk.fn(k, options), known=known(one)
    )


def known(one, touched=(1, 2, 3, 7)):
    return Known({gfn: one.pfn(gfn) for gfn in range(16)}, set(touched))


class Memory:
    """The VM's tables in a file, and room for others."""

    def __init__(self, path, one):
        self.path = path
        size = write_tables(path, one.vm.tables.live.values(), "little", BASE)
        self.next = BASE + size
        with path.open("r+b") as file:
            file.truncate(size + ROOM)
        self.vm_tables = list(one.vm.tables.live.values())

    def put(self, pa, value):
        with self.path.open("r+b") as file:
            file.seek(pa - BASE)
            file.write(value.to_bytes(8, "little"))

    def copy(self, top):
        """Copy the VM's tables; the root's entry moves to an index."""
        moved = {}
        for table in self.vm_tables:
            moved[table.pa] = self.next
            self.next += 4096
        for table in self.vm_tables:
            for index, value in enumerate(table.copy(0, table.size)):
                frame = value & 0x3FFF_FFFF_F000
                new = value - frame + moved[frame] if frame in moved else value
                at = top if table.level == 4 and not index else index
                if new:
                    self.put(moved[table.pa] + at * 8, new)
        return {table.level: moved[table.pa] for table in self.vm_tables}

    def open(self):
        return open_image(str(self.path), [Region(BASE, None, 0)])


@pytest.fixture
def memory(tmp_path, x86):
    return Memory(tmp_path / "ram", x86.one)


def root_of(one):
    return next(t.pa for t in one.vm.tables.live.values() if t.level == 4)


def test_found_from_its_leaves(x86, memory):
    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [root_of(x86.one)]


def test_the_process_maps_the_same_pages_elsewhere(x86, memory):
    memory.copy(254)

    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [root_of(x86.one)]


@pytest.mark.parametrize("extra", [0x8888_8000, 0x1000])
def test_a_tree_that_maps_more_is_not_it(x86, memory, extra):
    """A page that is not the VM's, or one of the VM's for the wrong gfn."""
    leaf = memory.copy(0)[1]
    entry = next(t for t in memory.vm_tables if t.level == 1).get(1)
    memory.put(leaf + 9 * 8, entry & 0xFFF | extra)

    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [root_of(x86.one)]


def test_a_tree_that_maps_less_is_not_it(x86, memory):
    leaf = memory.copy(0)[1]
    memory.put(leaf + 7 * 8, 0)

    with memory.open() as image:
        assert roots_of(image, x86.layout, x86.known) == [root_of(x86.one)]


def test_two_that_fit_are_no_answer(x86, memory):
    copy = memory.copy(0)[4]
    shown = f"several trees map what is known: {root_of(x86.one):#x}, {copy:#x}"

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
    memory.put(top, entry & 0xFFF | root_of(x86.one))

    with memory.open() as image:
        found = find_root(image, [m.layout for m in machines], x86.known)
        assert found == (top, machines[1].layout)


def test_arm64_varies_what_only_entries_tell():
    arch = plugins.load(only=("arm64",)).get("arm64")
    k = plugins.link(arch, (6, 1))

    machines = list(candidates(k, arch.info, {"ipa": "40"}))

    told = {(m.options["fwb"], m.options["dic"]) for m in machines}
    assert told == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {m.options["page_size"] for m in machines} == {4096, 16384, 65536}


# -- looking, step by step ---------------------------------------------------------


@pytest.fixture
def watched(x86, memory):
    """An observer of the VM, which sees what is written to the file."""
    image = memory.open()
    machines = list(candidates(x86.k, x86.info, {"paging": "npt"}))
    yield Observer(image, machines)
    image.close()


def test_a_look(x86, watched):
    seen = watched.look(x86.known)

    assert (seen.root, seen.method) == (root_of(x86.one), BY_FRAMES)
    assert [(leaf.gfn, leaf.pfn, leaf.kind) for leaf in seen.leaves] == [
        (gfn, x86.one.pfn(gfn), "leaf") for gfn in (1, 2, 3, 7)
    ]
    assert {leaf.level for leaf in seen.leaves} == {1}
    assert {leaf.pages for leaf in seen.leaves} == {1}
    assert watched.machine.options["levels"] == 4


def test_a_known_root_needs_no_touched_page(x86, memory, watched):
    watched.look(x86.known)
    leaf = next(t.pa for t in memory.vm_tables if t.level == 1)
    memory.put(leaf + 8, 0)

    seen = watched.look(Known(x86.known.frames, ()))

    assert [row.gfn for row in seen.leaves] == [2, 3, 7]


def test_a_page_that_is_mapped_elsewhere_is_shown(x86, memory, watched):
    """What a lost invalidation leaves is what somebody looks for."""
    watched.look(x86.known)
    leaf = next(t for t in memory.vm_tables if t.level == 1)
    stale = leaf.get(1) & 0xFFF | 0x7777_7000
    memory.put(leaf.pa + 8, stale)

    seen = watched.look(x86.known)

    assert seen.root == root_of(x86.one)
    assert (seen.leaves[0].entry, seen.leaves[0].pfn) == (stale, 0x77777)


def test_another_root_is_found_when_the_old_one_maps_nothing(x86, memory, watched):
    watched.look(x86.known)
    new = memory.copy(0)[4]
    memory.put(root_of(x86.one), 0)

    assert watched.look(x86.known).root == new


def test_a_root_that_became_something_else_is_given_up(x86, memory, watched):
    watched.look(x86.known)
    for at in range(512):
        memory.put(root_of(x86.one) + at * 8, 0x7000_0000_0003 | at << 12)

    seen = watched.look(x86.known)

    assert seen == (None, "no tree maps what was touched", ())


def test_a_vm_without_tables(x86, watched):
    seen = watched.look(Known(x86.known.frames, ()))

    assert seen == (None, "nothing is touched, so nothing tells the root", ())


def test_another_vm_begins_anew(x86, watched):
    watched.look(x86.known)
    watched.forget()

    assert watched.look(Known(x86.known.frames, ())).root is None
