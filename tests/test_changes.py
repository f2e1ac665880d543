"""Releases, changes, and how a kernel is assembled of choices."""

import pytest

from kvmarch.changes import (
    COMPARED,
    RELEASES,
    Change,
    Choice,
    applied_changes,
    as_step,
    assemble,
    find_release,
    find_releases,
    show_release,
)
from kvmarch.errors import KernelError, KvmarchError, UnknownNameError
from kvmarch.kernel.table import CHANGES, CHOICES
from kvmarch.machine.steps import Op

ROWS = (
    Change("old", "always there", (3, 16)),
    Change("one", "s", (5, 0)),
    Change("two", "s", (5, 1)),
    Change("gone", "came and went", (4, 0), until=(5, 0)),
    Change("proposed", "never merged", None),
)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("v6.1", (6, 1)),
        ("6.1", (6, 1)),
        ("6.1.170", (6, 1)),
        ("6.1.0-50-arm64", (6, 1)),
        ("v3.16", (3, 16)),
        ("7.2", (7, 2)),
        ("v6.1-rc3", (6, 1)),
        ("6.12.96+deb13-arm64", (6, 12)),
        ("6.1.0_own", (6, 1)),
    ],
)
def test_a_release_is_found(text, release):
    assert find_release(text) == release


@pytest.mark.parametrize(
    "text",
    [
        *("", "6", "v6", "v6.99", "v3.15", "v7.3", "2.6.32", "six", "v6.1x.2", "v-6.1"),
        *("v5.4..v6.1", "v6.1,v6.2", "v6.1.", "v6.1 v6.2"),
    ],
)
def test_a_release_that_is_not_here(text):
    with pytest.raises(
        UnknownNameError, match=r"every mainline release from v3\.16 to"
    ):
        find_release(text)


@pytest.mark.parametrize(
    ("text", "first", "last", "count"),
    [
        ("v6.1", (6, 1), (6, 1), 1),
        ("v5.19..v6.1", (5, 19), (6, 1), 3),
        ("6.1..6.1", (6, 1), (6, 1), 1),
        ("..v3.17", (3, 16), (3, 17), 2),
        ("v7.1..", (7, 1), (7, 2), 2),
        ("..", (3, 16), (7, 2), len(RELEASES)),
    ],
)
def test_a_span_of_releases(text, first, last, count):
    found = find_releases(text)

    assert (found[0], found[-1], len(found)) == (first, last, count)


def test_a_span_that_runs_backwards():
    with pytest.raises(KernelError, match=r"v6\.2\.\.v6\.1: v6\.2 is later than v6\.1"):
        find_releases("v6.2..v6.1")
    with pytest.raises(UnknownNameError, match=r"unknown release 'v6\.1\.v6\.2'"):
        find_releases("v6.1.v6.2")


def test_releases_are_in_order_without_a_gap():
    assert list(RELEASES) == sorted(set(RELEASES))
    assert (RELEASES[0], RELEASES[-1]) == ((3, 16), (7, 2))
    assert {(3, 19), (4, 0), (4, 20), (5, 0), (5, 19), (6, 0), (6, 19), (7, 0)} <= set(
        RELEASES
    )
    assert set(COMPARED) <= set(RELEASES)
    assert list(COMPARED) == sorted(COMPARED)
    assert show_release((6, 1)) == "v6.1"


# -- which changes a kernel has ----------------------------------------------------


@pytest.mark.parametrize(
    ("release", "plus", "minus", "applied"),
    [
        pytest.param((3, 16), (), (), {"old"}, id="oldest"),
        pytest.param((4, 4), (), (), {"old", "gone"}, id="until-inside"),
        pytest.param((5, 0), (), (), {"old", "one"}, id="until-exclusive"),
        pytest.param((7, 2), (), (), {"old", "one", "two"}, id="newest"),
        pytest.param((5, 0), ("two",), (), {"old", "one", "two"}, id="plus"),
        pytest.param((5, 0), ("one",), (), {"old", "one"}, id="plus-what-is-there"),
        pytest.param((5, 1), (), ("one",), {"old", "two"}, id="minus"),
        pytest.param((3, 16), (), ("one",), {"old"}, id="minus-what-is-not-there"),
        pytest.param(
            (5, 0),
            ("proposed", "gone"),
            ("old",),
            {"one", "proposed", "gone"},
            id="all",
        ),
    ],
)
def test_changes_of_a_kernel(release, plus, minus, applied):
    assert applied_changes(ROWS, release, plus, minus) == applied


@pytest.mark.parametrize(
    ("plus", "minus"), [(("x",), ()), ((), ("x",))], ids=["plus", "minus"]
)
def test_an_unknown_change(plus, minus):
    with pytest.raises(
        UnknownNameError, match="unknown change 'x'; there is gone, old, one"
    ):
        applied_changes(ROWS, (6, 1), plus, minus)


def test_a_change_that_is_added_and_taken_away():
    with pytest.raises(KvmarchError, match="one, two cannot be both added and taken"):
        applied_changes(ROWS, (6, 1), ("two", "one"), ("one", "two"))


# -- choices -----------------------------------------------------------------------


@pytest.fixture
def choice():
    made = Choice("how", "how something is done")
    made.add("plain")
    made.add("with one", "one")
    made.add("with both", "one", "two")
    return made


@pytest.mark.parametrize(
    ("applied", "picked"),
    [
        ((), "plain"),
        (("two",), "plain"),
        (("one",), "with one"),
        (("one", "two"), "with both"),
        (("one", "two", "old"), "with both"),
    ],
)
def test_the_variant_with_the_most_needs_is_picked(choice, applied, picked):
    assert choice.pick(frozenset(applied)) == picked


def test_two_equally_specific_variants_are_a_tie():
    made = Choice("how", "d")
    made.add(1, "one")
    made.add(2, "two")

    with pytest.raises(
        KernelError, match="choice how: one and two both apply; add a variant for both"
    ):
        made.pick(frozenset({"one", "two"}))


def test_no_variant_applies():
    made = Choice("how", "d")
    made.add(1, "one")

    with pytest.raises(KernelError, match="choice how: no variant applies"):
        made.pick(frozenset())


def test_a_set_of_needs_has_one_variant(choice):
    with pytest.raises(KernelError, match=r"choice how: two variants need \['one'"):
        choice.add("again", "two", "one")


def test_when_registers_the_function_and_leaves_it(choice):
    @choice.when("old")
    def function():
        return 3

    assert function() == 3
    assert choice.pick(frozenset({"old"})) is function
    assert repr(choice) == "Choice(how)"


def test_an_architectures_choice_joins_the_cores(choice):
    adds = Choice("how", "d")
    adds.add("mine", "two")
    adds.add("my both", "one", "two")
    alone = Choice("how", "d")
    alone.add("only mine")

    joined = choice.joined(adds)
    assert joined.pick(frozenset({"two"})) == "mine"
    assert joined.pick(frozenset({"one", "two"})) == "my both"
    assert joined.pick(frozenset({"one"})) == "with one"
    assert choice.joined(alone) is alone
    assert choice.joined(None) is choice
    assert choice.pick(frozenset({"one", "two"})) == "with both"


# -- kernels -----------------------------------------------------------------------


def plain():
    """Return nothing."""


async def path():
    """Return nothing, as a path."""


class Callable:
    """A class is a value."""


@pytest.mark.parametrize("value", [path, Callable, 3, "text", None, Op(plain)])
def test_only_plain_functions_become_steps(value):
    assert as_step(value) is value


def test_a_plain_function_becomes_a_step():
    assert isinstance(as_step(plain), Op)
    assert as_step(plain).fn is plain


def test_a_kernel_is_assembled(choice):
    k = assemble(
        "toy", (5, 0), frozenset({"one"}), [choice], {"fixed": plain, "how": 1}
    )

    assert (k.arch, k.release, k.how) == ("toy", (5, 0), "with one")
    assert isinstance(k.fixed, Op)
    assert k.has("how")
    assert not k.has("why")
    with pytest.raises(AttributeError, match="the kernel has no why"):
        _ = k.why


# -- the generic table -------------------------------------------------------------


def test_changes_have_names_of_their_own():
    names = [change.name for change in CHANGES]

    assert len(set(names)) == len(names)


@pytest.mark.parametrize("release", RELEASES, ids=show_release)
def test_every_choice_is_made_in_every_release(release):
    applied = applied_changes(CHANGES, release)

    for each in CHOICES:
        each.pick(applied)


def assembled(link, release, **changes):
    """Return a kernel, or None and why there is none."""
    try:
        return link(release, **changes), ""
    except KernelError as error:
        return None, str(error)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
@pytest.mark.parametrize("release", [(3, 16), (5, 10), (6, 1), (7, 2)])
def test_one_change_more_or_less_leaves_a_kernel(link, change, release):
    applied = applied_changes(CHANGES, release)
    more = {"plus": [change.name]} if change.name not in applied else {}
    less = {"minus": [change.name]} if change.name in applied else {}

    k, why = assembled(link, release, **more, **less)

    if k is None:
        # Not every combination exists; it must say so.
        assert "both apply" in why
    else:
        assert (change.name in k.applied) == bool(more)


def test_choices_need_only_changes_that_exist():
    names = {change.name for change in CHANGES}

    needed = {n for each in CHOICES for v in each.variants for n in v.needs}
    assert needed <= names
