from collections import deque

import pytest

from kvmarch.errors import ExploreError
from kvmarch.explore.cells import Cells, Image, watched
from kvmarch.explore.programs import Variable
from kvmarch.machine.world import Part


class Box(Part):
    variables = ("things", "names")
    unordered = ("names",)

    def __init__(self, things):
        self.things = things
        self.names = []


class Chip:
    __slots__ = ("name", "value")
    variables = ("value",)

    def __init__(self, name, value=0):
        self.name, self.value = name, value

    def key(self):
        return "chip", self.name


@pytest.mark.parametrize(
    ("things", "change"),
    [
        ([1, 2], lambda things: things.append(3)),
        ({1: 2}, lambda things: things.update({1: 3})),
        ({1}, lambda things: things.clear()),
        (deque([1]), lambda things: things.appendleft(0)),
        (bytearray(b"ab"), lambda things: things.extend(b"c")),
        ({1: [2]}, lambda things: things[1].append(3)),
    ],
)
def test_an_image_puts_contents_back_in_place(things, change):
    box = Box(things)
    before = repr(things)
    image = Image([box])

    change(box.things)
    box.names.append("x")
    image.restore()

    assert box.things is things
    assert repr(things) == before
    assert box.names == []


def test_an_image_puts_slots_and_wiring_back():
    chip = Chip("one", 1)
    box = Box([chip])
    image = Image([box])

    chip.value = 2
    box.things = []
    image.restore()

    assert box.things == [chip]
    assert chip.value == 1


def test_reads_and_stores_are_told_apart():
    x = Variable("x")
    with watched([Variable]) as log:
        assert x.value == 0
        assert (log.read, log.stored) == ([(x, "value")], [])
        log.clear()
        x.value = 1
        assert (log.read, log.stored) == ([], [(x, "value")])
    assert x.value == 1


def test_a_class_that_is_named_twice_is_watched_once():
    chip = Chip("one")
    with watched([Chip, Chip]) as log:
        chip.value += 1
        assert (log.read, log.stored) == ([(chip, "value")], [(chip, "value")])
    assert chip.value == 1


def test_an_error_stops_the_watching():
    x = Variable("x")
    with pytest.raises(ZeroDivisionError), watched([Variable]):
        x.value = 1 // 0
    assert not hasattr(Variable, "value")


def test_the_order_of_what_is_unordered_is_no_state():
    box = Box(None)
    cells = Cells(Image([box]))
    names = cells.cell(box, "names")

    box.names = ["b", "a"]
    one = cells.look(names)
    box.names = ["a", "b"]

    assert cells.look(names) == one
    box.names = ["a"]
    assert cells.look(names) != one


def test_a_piece_is_one_cell_whatever_object_it_is():
    box = Box([])
    cells = Cells(Image([box]))

    first = cells.cell(Chip("late", 1), "value")
    one = cells.look(first)

    assert cells.cell(Chip("late", 1), "") == first
    assert cells.look(first) == one
    assert cells.cell(Chip("late", 2), "") == first
    assert cells.look(first) != one
    assert cells.cell(Chip("other", 1), "") != first


def test_a_part_that_came_later_has_no_cell():
    cells = Cells(Image([Box([])]))

    with pytest.raises(ExploreError, match="was made after the search began"):
        cells.cell(Variable("late"), "value")


def test_what_cannot_be_compared_is_no_value():
    cells = Cells(Image([]))

    with pytest.raises(ExploreError, match="cannot be part of a state"):
        cells.freeze(object())
    with pytest.raises(ExploreError, match="position cannot be seen"):
        cells.freeze(iter([1]))
