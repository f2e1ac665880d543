"""Looking at a VM step by step: when a root is kept, and when it is looked for."""

import pytest

from kvmarch import plugins
from kvmarch.lab.observe import BY_FRAMES, Observer, candidates
from kvmarch.lab.root import Known


def test_arm64_varies_what_only_entries_tell():
    arch = plugins.load(only=("arm64",)).get("arm64")
    k = plugins.link(arch, (6, 1))

    machines = list(candidates(k, arch.info, {"ipa": "40"}))

    told = {(m.options["fwb"], m.options["dic"]) for m in machines}
    assert told == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert {m.options["page_size"] for m in machines} == {4096, 16384, 65536}


@pytest.fixture
def watched(x86, memory):
    """An observer of the VM, which sees what is written to the file."""
    image = memory.open()
    machines = list(candidates(x86.k, x86.info, {"paging": "npt"}))
    yield Observer(image, machines)
    image.close()


def test_a_look(x86, watched):
    seen = watched.look(x86.known)

    assert (seen.root, seen.method) == (x86.root, BY_FRAMES)
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

    assert seen.root == x86.root
    assert (seen.leaves[0].entry, seen.leaves[0].pfn) == (stale, 0x77777)


def test_another_root_is_found_when_the_old_one_maps_nothing(x86, memory, watched):
    watched.look(x86.known)
    new = memory.copy(0)[4]
    memory.put(x86.root, 0)

    assert watched.look(x86.known).root == new


def test_a_root_that_became_something_else_is_given_up(x86, memory, watched):
    watched.look(x86.known)
    for at in range(512):
        memory.put(x86.root + at * 8, 0x7000_0000_0003 | at << 12)

    seen = watched.look(x86.known)

    assert seen == (None, "no tree maps what was touched", ())


def test_a_vm_without_tables(x86, watched):
    seen = watched.look(Known(x86.known.frames, ()))

    assert seen == (None, "nothing is touched, so nothing tells the root", ())


def test_another_vm_begins_anew(x86, watched):
    watched.look(x86.known)
    watched.forget()

    assert watched.look(Known(x86.known.frames, ())).root is None


def test_of_two_trees_that_fit_none_is_shown_until_they_differ(x86, memory, watched):
    copy = memory.copy(0)

    seen = watched.look(x86.known)
    assert (seen.root, seen.leaves) == (None, ())
    assert "several trees map what is known" in seen.method

    memory.put(copy[1] + 7 * 8, 0)
    assert watched.look(x86.known).root == x86.root


def test_the_tree_of_another_vm_is_none_of_its_own(x86, memory, watched):
    """Two VMs that map the same pages to the same gfns."""
    first = watched.look(x86.known)
    second = memory.copy(0)[4]

    assert watched.look(x86.known, 1).root == second
    assert watched.look(x86.known).root == first.root
    assert [
        leaf.gfn for leaf in watched.look(Known(x86.known.frames, ()), 1).leaves
    ] == [leaf.gfn for leaf in first.leaves]


def test_what_is_left_of_a_table_is_of_any_of_its_pages(x86, memory, watched):
    """As kernels of arm64 leave it from v5.10 to v5.12."""
    watched.look(x86.known)
    upper = next(t for t in memory.vm_tables if t.level == 2)
    memory.put(upper.pa + 8, 0x7000_0002)

    seen = watched.look(Known({**x86.known.frames, 600: 0}, ()))

    assert seen.root == x86.root
    assert (512, 2) in {(leaf.gfn, leaf.level) for leaf in seen.leaves}
    watched.forget()
    watched.look(x86.known)
    assert watched.look(Known(x86.known.frames, ())).root is None
