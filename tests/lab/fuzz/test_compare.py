"""What is compared, and what a kernel may decide by itself."""

import pytest

from kvmarch.errors import EntryError
from kvmarch.lab.fuzz.compare import Comparer
from kvmarch.lab.sides import Leaf, Look, Memory, Setup
from kvmarch.recordings.traces import EVERY, Traced

SETUP = Setup((Memory("ram", 4), Memory("big", 16, huge=True)), 1, 9)


@pytest.fixture
def comparer():
    """A comparer of entries that are page numbers; huge pages are of 8."""
    made = Comparer(8, lambda entry, level, pfn: pfn << 12 | entry & 0xFFF)
    made.begin(SETUP)
    return made


def leaf(gfn, pfn, bits=1, level=1):
    return Leaf(gfn, level, pfn << 12 | bits, pfn, "leaf", 1)


def look(*pfns, leaves=(), answers=(), **more):
    frames = {"ram": pfns, "big": (0,) * 16}
    return Look(answers, (tuple(leaves),), frames=frames, **more)


def test_page_numbers_may_be_others(comparer):
    real = look(5, 5, 0, 7, leaves=[leaf(1, 5), leaf(3, 7)])
    model = look(90, 90, 0, 80, leaves=[leaf(1, 90), leaf(3, 80)])

    assert comparer.compare(real, model) is None


def test_which_pages_are_the_same_may_not(comparer):
    found = comparer.compare(look(5, 5), look(90, 91))

    assert found.what == "host pages"
    assert "ram[1]: recorded the page of ram[0], model a page of its own" in found.text


@pytest.mark.parametrize(
    "model",
    [
        pytest.param([leaf(1, 90, bits=3)], id="bits"),
        pytest.param([leaf(1, 80)], id="page"),
        pytest.param([leaf(1, 90, level=2)], id="level"),
        pytest.param([], id="missing"),
        pytest.param([leaf(1, 90), leaf(3, 80)], id="one more"),
    ],
)
def test_entries_must_be_the_same(comparer, model):
    real = look(5, 5, 0, 7, leaves=[leaf(1, 5)])
    found = comparer.compare(real, look(90, 90, 0, 80, leaves=model))

    assert found.what == "tree"
    assert list(comparer.leaves(real, look(leaves=model)))


def test_an_entry_that_cannot_lead_to_the_page_differs():
    def repoint(entry, level, pfn):
        if level == 2:
            raise EntryError(f"pfn: {pfn:#x} is no multiple of 0x200")
        return pfn << 12 | entry & 0xFFF

    comparer = Comparer(8, repoint)
    comparer.begin(SETUP)
    real = look(5, 5, 0, 7, leaves=[leaf(1, 5)])
    found = comparer.compare(real, look(90, 90, 0, 80, leaves=[leaf(1, 90, level=2)]))

    assert found.what == "tree"
    assert "gfn 0x1 level 2: recorded none, model 0x5a001" in found.text


def test_the_exit_of_a_run_that_failed_does_not_count(comparer):
    real = look(answers=("run ld gpa=10 rc=-1 exit=39 errno=14",))
    model = look(answers=("run ld gpa=10 rc=-1 errno=14",))
    other = look(answers=("run ld gpa=10 rc=-1 errno=4",))

    assert comparer.compare(real, model) is None
    assert comparer.compare(real, other).what == "answer"


def test_the_same_difference_may_be_about_another_page(comparer):
    kinds = {
        comparer.compare(
            look(answers=(f"dirty rc=0 {bits} errno=0",)),
            look(answers=("dirty rc=0 0 errno=0",)),
        ).kind
        for bits in ("7f", "1")
    }

    assert len(kinds) == 1


def test_a_tree_that_is_not_found_is_counted(comparer):
    unknown = Look(trees=(None,), frames=look().frames)

    assert comparer.compare(unknown, look(leaves=[leaf(1, 9)])) is None
    assert comparer.not_walked == 1


def test_each_vm_has_a_tree_of_its_own(comparer):
    one, two = (leaf(1, 5),), (leaf(8, 5),)
    frames = {"ram": (5,), "big": (0,) * 16}
    both, swapped = (Look(trees=t, frames=frames) for t in ((one, two), (two, one)))
    second, unknown = (Look(trees=(one, t), frames=frames) for t in (one, None))

    assert comparer.compare(both, both) is None
    assert comparer.compare(both, swapped).what == "tree"
    assert comparer.compare(both, second).text.startswith("tree of VM 1: gfn 0x1 ")
    assert [
        (vm, leaf.gfn, real) for vm, leaf, real in comparer.leaves(both, second)
    ] == [
        (1, 1, False),
        (1, 8, True),
    ]
    assert comparer.compare(both, unknown) is None
    assert comparer.not_walked == 1


def test_warnings_are_compared_as_such(comparer):
    assert comparer.compare(look(kernel_log=("a",)), look(kernel_log=("b",))) is None
    assert comparer.compare(look(), look(kernel_log=("b",))).what == "kernel log"


def big(*pfns):
    return Look(frames={"ram": (), "big": pfns})


HUGE = tuple(range(64, 72))
SMALL = (3, 9, 5, 11, 20, 22, 24, 30)
NONE = (0,) * 8


@pytest.mark.parametrize(
    ("real", "model", "unlike"),
    [
        pytest.param(HUGE + NONE, HUGE + NONE, False, id="both"),
        pytest.param(SMALL + NONE, HUGE + NONE, True, id="the host had none"),
        pytest.param(NONE + SMALL, NONE + HUGE, True, id="nor the second"),
        pytest.param(HUGE + NONE, SMALL + NONE, False, id="the model had none"),
    ],
)
def test_a_host_without_a_huge_page_ends_the_comparison(comparer, real, model, unlike):
    assert comparer.compare(big(*real), big(*model)) is None
    assert comparer.unlike == unlike


def test_nothing_at_all_is_no_lack_of_a_huge_page(comparer):
    assert comparer.compare(big(*NONE * 2), big(*HUGE, *NONE)).what == "host pages"
    assert not comparer.unlike


def traced(*notifiers, **more):
    return look(traced=Traced(EVERY, notifiers, **more))


@pytest.mark.parametrize(
    ("real", "model", "what"),
    [
        (traced("kvm_set_spte_hva 1"), traced(), "notifier events"),
        (traced(faults=("2", "3")), traced(faults=("3", "2")), "faults"),
        (traced(), traced(mmio=("mark_mmio_spte 40 3 0",)), "mmio entries"),
    ],
)
def test_events_are_compared(comparer, real, model, what):
    assert comparer.compare(real, model).what == what
    assert comparer.compare(model, model) is None
    assert comparer.compare(look(), model) is None
