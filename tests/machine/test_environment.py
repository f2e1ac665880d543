"""What the surroundings of the machine decide."""

import pytest

from kvmarch.machine.environment import Environment, turn


def test_the_environment_begins_with_the_first_page_and_plenty_of_memory():
    environment = Environment()

    assert (environment.choice, environment.short) == (0, 0)


@pytest.mark.parametrize(
    ("turns", "state"),
    [
        pytest.param(["next"], (1, 0), id="next"),
        pytest.param(["next", "next"], (2, 0), id="next-again"),
        pytest.param(["short"], (0, 1), id="short"),
        pytest.param(["short", "plenty"], (0, 0), id="plenty"),
    ],
)
def test_a_turn_changes_one_choice(turns, state):
    environment = Environment()

    for what in turns:
        turn.fn(environment, what)

    assert (environment.choice, environment.short) == state
