import pytest

from kvmarch.errors import ExploreError
from kvmarch.explore.schedule import Schedule, merged

NAMES = ("reader", "writer")


def parse(text):
    return Schedule.parse(text, "here@x86-v6.1", NAMES)


def test_a_schedule_is_read_as_it_was_written():
    turns = (("reader", 3), ("writer", 12), ("reader", 1))
    schedule = Schedule("here@x86-v6.1", NAMES, turns)

    assert str(schedule) == "here@x86-v6.1:a3b12a1"
    assert parse(str(schedule)) == schedule
    assert schedule.steps == 16
    assert parse("here@x86-v6.1:").turns == ()


def test_a_cycle_is_written_behind_what_leads_to_it():
    schedule = Schedule("here", NAMES, (("reader", 3),), (("writer", 2), ("reader", 1)))

    assert str(schedule) == "here:a3~b2a1"
    assert Schedule.parse("here:a3~b2a1", "here", NAMES) == schedule
    assert (schedule.steps, schedule.around) == (3, 3)
    assert Schedule.parse("here:~a1", "here", NAMES).turns == ()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a3b1", "is no schedule"),
        ("there@x86-v6.1:a3", "of there@x86-v6.1, not of here@x86-v6.1"),
        ("here@x86-v6.1:3a", "are no turns"),
        ("here@x86-v6.1:a3 b1", "are no turns"),
        ("here@x86-v6.1:A3", "are no turns"),
        ("here@x86-v6.1:a", "are no turns"),
        ("here@x86-v6.1:a-1", "are no turns"),
        ("here@x86-v6.1:a1~", "after ~ must come the turns of a cycle"),
        ("here@x86-v6.1:a1~b0", "after ~ must come the turns of a cycle"),
        ("here@x86-v6.1:a1~b1~a1", "are no turns"),
        ("here@x86-v6.1:a1~c1", "there is no task c"),
        ("here@x86-v6.1:a1c2", "there is no task c; there is a to b"),
    ],
)
def test_what_is_no_schedule_is_refused(text, why):
    with pytest.raises(ExploreError, match=why):
        parse(text)


def test_turns_of_one_task_are_joined_and_empty_ones_dropped():
    turns = (("a", 1), ("a", 2), ("b", 0), ("a", 1), ("b", 1))

    assert merged(turns) == (("a", 4), ("b", 1))
