"""The tables of what there is."""

from dataclasses import replace

import pytest

from kvmarch.changes import Choice
from kvmarch.plugins import Plugins, load
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.lists import diff_table

INSTALLED = load()


@pytest.mark.parametrize("name", sorted(INSTALLED.loaded))
def test_releases_of_every_architecture_are_told_apart(name):
    table = diff_table(INSTALLED, Choose((name,)), "v3.16", "v7.2")

    steps = [(row["arch"], row["step"]) for row in table.rows]
    assert table.rows or table.notes
    assert len(steps) == len(set(steps))


def test_a_choice_that_an_architecture_adds_to_is_made_with_the_cores(toy):
    own = Choice("aging_walk", "which locks an aging callback takes")
    own.add(lambda: None, "lockless-aging", "gfn-notifiers")
    plugins = Plugins([replace(toy, choices=(*toy.choices, own))], [])

    table = diff_table(plugins, Choose(), "v6.1", "v6.15")

    (row,) = (row for row in table.rows if row["step"] == "aging_walk")
    assert (row["arch"], row["because of"]) == ("toy", "lockless-aging")
    assert not diff_table(plugins, Choose(), "v6.2", "v6.3").rows
