"""The world: events, violations and its frozen state."""

from array import array

import pytest

from kvmarch.machine.run import Task
from kvmarch.machine.world import Event, Part, Violation, World


class Box(Part):
    """A part with one variable."""

    variables = ("value",)

    def __init__(self, value):
        self.value = value
        self.wiring = object()


@pytest.mark.parametrize(
    ("value", "frozen"),
    [
        pytest.param(7, 7, id="int"),
        pytest.param(None, None, id="none"),
        pytest.param({"b": [1], "a": [2]}, (("a", (2,)), ("b", (1,))), id="dict"),
        pytest.param([1, (2, [3])], (1, (2, (3,))), id="nested-lists"),
        pytest.param({1, 2}, frozenset({1, 2}), id="set"),
        pytest.param(bytearray(b"ab"), b"ab", id="bytearray"),
        pytest.param(array("Q", [1]), (1).to_bytes(8, "little"), id="array"),
        pytest.param(Box(Box([5])), (((5,),),), id="parts"),
    ],
)
def test_a_part_freezes_to_its_variables(value, frozen):
    assert Box(value).freeze() == (frozen,)
    hash(Box(value).freeze())


def test_the_world_freezes_its_parts_by_name():
    world = World()
    world.add("one", Box([1]))
    world.add("other", Box({}))

    assert world.freeze() == (("one", ((1,),)), ("other", ((),)))


def test_events_name_the_step_and_the_task():
    world = World()
    world.steps = 3
    world.note("outside", gfn=0x10)
    world.current = Task("vcpu0", None)
    world.note("inside")

    assert world.events == [
        Event(3, "", "outside", {"gfn": 0x10}),
        Event(3, "vcpu0", "inside", {}),
    ]
    assert [str(e) for e in world.events] == ["outside gfn=0x10", "inside"]


def test_events_print_numbers_as_hexadecimal_and_the_rest_plainly():
    event = Event(0, "a", "e", {"n": 16, "yes": True, "text": "t", "none": None})

    assert str(event) == "e n=0x10 yes=True text=t none=None"


def test_an_event_may_have_a_datum_called_name():
    world = World()
    world.note("mark", name="fault")

    assert world.events[0].data == {"name": "fault"}


def test_without_a_trace_violations_are_still_kept():
    world = World(traced=False)
    world.note("anything")
    world.violate("warn", "a sentence")

    assert world.events == []
    assert world.violations == [Violation("warn", "a sentence", "")]


def test_a_violation_names_the_task_and_is_an_event():
    world = World()
    world.current = Task("a", None)
    world.violate("warn", "a sentence")

    assert world.violations == [Violation("warn", "a sentence", "a")]
    assert world.events[0].data == {"property": "warn", "sentence": "a sentence"}


def test_a_part_is_called_by_its_kind_and_name():
    class Named(Part):
        name = "one"

    class Plain(Part):
        pass

    assert (repr(Named()), repr(Plain())) == ("Named(one)", "Plain")
